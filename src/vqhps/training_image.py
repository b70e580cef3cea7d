"""The training loop of the image models, over Lightning Fabric."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vqhps.checkpoint import CheckpointCard, load_checkpoint, load_tokenizer, save_checkpoint
from vqhps.data.crops import BodyLabels, CropDataset, crop_places, crop_rotations, plain_crops, shard_tokens
from vqhps.data.features import feature_key, store_features
from vqhps.data.sample import Shards, find_shards, quiet_opencv
from vqhps.errors import VqhpsError
from vqhps.geometry import procrustes, rotate
from vqhps.models import MODELS
from vqhps.models.backbones import imagenet_weights
from vqhps.models.method import Method
from vqhps.models.vqhps import VQHPSConfig
from vqhps.runtime.download import blazepose_models
from vqhps.training_config import DataShare, ImageTrainingConfig
from vqhps.training_guess import bodies_to_lift, seen_and_lifted, told, train_guess, true_keypoints
from vqhps.training_keypoints import train_keypoints
from vqhps.training_state import rate_share, resume_state, save_state

log = logging.getLogger(__name__)

_Tensors = tuple[Tensor, ...] | list[Tensor]


def train_image_model(config: ImageTrainingConfig) -> Path:
    """Train an image model on prepared shards; a stopped run goes on exactly, on the shards it began with.

    Returns: the checkpoint, `out/checkpoint`. `out/log.jsonl` keeps losses and validation errors.
    """
    _check(config)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    quiet_opencv()  # its threads would not survive the fork of the loader's processes
    fabric = Fabric(accelerator="auto", devices=1, precision=_precision(config.precision))  # type: ignore[arg-type]
    fabric.seed_everything(config.seed)
    model = _build(config)
    shards = Shards(_shards_of_run(out, Path(config.shards)))
    _begin(model, config, shards)
    tokens = shard_tokens(shards, model.tokenizer)  # type: ignore[arg-type]
    if config.keypoint_steps and not (out / "state.pt").exists():
        train_keypoints(model.to(fabric.device), shards, tokens, config)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(_parameter_groups(model, config), weight_decay=config.weight_decay, fused=True)
    average = AveragedModel(model, multi_avg_fn=_moving_average(config.average), use_buffers=True)
    modules = {"model": model, "average": average}
    start = resume_state(out, config, modules, optimizer)
    model, optimizer = fabric.setup(model.to(memory_format=torch.channels_last), optimizer)
    validate = _Validation(shards, config, tokens)
    batches = _kept_batches if config.kept_views else _batches
    saved, running = time.monotonic(), dict[str, float]()
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="image model", mininterval=2)
    for step, batch in zip(bar, batches(config, shards, tokens, start, model.module), strict=True):
        _set_rates(optimizer, config, step)
        joins = int(config.transformer_from * config.steps)
        for each in (model.module, average.module):
            each.guess_only = step < joins
        if config.guess_steps and step == joins:  # another model than before: its average begins anew
            average.n_averaged.zero_()
        losses = _losses(model, fabric.to_device(batch))
        optimizer.zero_grad()
        fabric.backward(torch.stack([*losses.values()]).sum())
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        average.update_parameters(model.module)
        running = {n: 0.98 * running.get(n, v.item()) + 0.02 * v.item() for n, v in losses.items()}
        bar.set_postfix_str(" ".join(f"{n} {v:.3f}" for n, v in running.items()), refresh=False)
        last = step + 1 == config.steps
        if (step + 1) % config.validate_every == 0 or last:
            _report(out, step + 1, running, validate(average.module))  # type: ignore[arg-type]
        if time.monotonic() - saved > 60 * config.save_minutes or last:
            save_state(out, config, step + 1, modules, optimizer)
            _save_checkpoint(out, config, step + 1, average.module)
            saved = time.monotonic()
    return out / "checkpoint"


def _check(config: ImageTrainingConfig) -> None:
    """Settings that do not go together.

    Raises:
        VqhpsError: see above.
    """
    guesses = isinstance(config.model, VQHPSConfig) and config.model.first_guess
    if config.kept_views and config.model.frozen_stages < 1:
        raise VqhpsError("kept_views needs a first part of the backbone that is not trained: set frozen_stages to 1")
    if config.kept_views and not getattr(config.model, "shared_backbone", True):
        raise VqhpsError("kept_views are those of one backbone: set shared_backbone to true")
    if config.mixture and config.kept_views:
        raise VqhpsError("mixture needs new crops in every step: set kept_views to 0")
    lifts = config.kept_views and guesses and "keypoints" in config.model.sources
    if config.keypoint_steps and config.model.backbone != "blazepose":
        raise VqhpsError("keypoint_steps needs a backbone that finds key points: blazepose")
    if config.keypoint_mesh and not (config.keypoint_steps and config.start_from and guesses):
        raise VqhpsError(
            "keypoint_mesh needs keypoint_steps, first_guess, and a model to start_from whose guess is trained"
        )
    if config.motion and not (Path(config.motion) / "mocap").is_dir():
        raise VqhpsError(
            f"no folder {config.motion}/mocap; set motion to the folder that holds mocap/, see docs/data.md"
        )
    if config.lifting_steps and not lifts:
        raise VqhpsError("lifting_steps needs kept_views, first_guess, and keypoints among the sources")
    if config.transformer_from and not guesses:
        raise VqhpsError("transformer_from needs first_guess: before it, there would be nothing to train")


def _precision(wanted: str) -> str:
    """The precision of a run: on a processor without bfloat16 products, where they are emulated, that of float32."""
    slow = not torch.cuda.is_available() and not torch.cpu._is_avx512_bf16_supported()
    if wanted.startswith("bf16") and slow:
        log.warning("this processor has no bfloat16 products: training in float32 in place of %s", wanted)
        return "32-true"
    return wanted


def training_rows(config: ImageTrainingConfig, count: int) -> Int[np.ndarray, "R"]:
    """The samples, of `count`, that a run is trained on: those held back are the last."""
    rows = np.arange(count - config.validation)
    if not config.samples:
        return rows
    pool = rows[: config.pool or None]
    if config.samples > len(pool):
        raise VqhpsError(f"samples: {config.samples} are asked for, there are {len(pool)} to train on")
    return np.sort(np.random.default_rng((config.seed, 5)).permutation(pool)[: config.samples])


def _begin(model: Method, config: ImageTrainingConfig, shards: Shards) -> None:
    """Show the labels of the training samples to a model that starts anew."""
    rows = training_rows(config, len(shards))
    labels = BodyLabels(shards).of(rows, 0 * rows)
    if not config.start_from:
        model.begin(torch.from_numpy(labels["pose"]), torch.from_numpy(labels["shape"]))


def _build(config: ImageTrainingConfig) -> Method:
    model_class = MODELS[config.method][1]
    if config.start_from:
        start = load_checkpoint(Path(config.start_from), config.method)
        model = model_class(config.model, start.tokenizer)
        model.load_state_dict(start.state_dict())
        return model
    tokenizer = load_tokenizer(config.tokenizer)
    name = config.model.backbone
    if config.backbone_from:
        model = model_class(config.model, tokenizer)
        taken: Any = load_checkpoint(Path(config.backbone_from))
        if not hasattr(taken, "backbone") or not hasattr(model, "backbone") or taken.backbone.name != name:
            raise VqhpsError(f"backbone_from: {config.backbone_from} has no backbone {name} for this model")
        model.backbone.load_state_dict(taken.backbone.state_dict())
        return model
    weights = Path(config.backbone_weights) if config.backbone_weights else None
    weights = weights or (blazepose_models()[1] if name.startswith("blazepose") else imagenet_weights(name))
    if weights is None:
        log.warning("no ImageNet weights at hand for %s: it starts from random ones", name)
    return model_class(config.model, tokenizer, weights)


def _save_checkpoint(out: Path, config: ImageTrainingConfig, step: int, model: torch.nn.Module) -> None:
    notes = f"After {step} of {config.steps} steps of {config.batch_size} crops."
    save_checkpoint(out / "checkpoint", model, CheckpointCard(config.method, notes=notes), half=True)


def _losses(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses of a batch."""
    batch["canonical_vertices"] = model.module.true_mesh(batch)
    keypoints = true_keypoints(model.module.tokenizer, batch)
    image = None if "trunk" in batch else model.module.normalise(batch["image"])
    output = model(image, keypoints, batch.get("trunk"), batch.get("place"))
    return model.module.loss(output, batch)


def _set_rates(optimizer: torch.optim.Optimizer, config: ImageTrainingConfig, step: int) -> None:
    share = rate_share(step, config.warmup, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * group["share"] * share


def _shards_of_run(out: Path, folder: Path) -> list[Path]:
    """The shards a run began with, by `shards.json` in its folder: more of them later must not change its order."""
    listing = out / "shards.json"
    if not listing.exists():
        listing.with_suffix(".partial").write_text(json.dumps([p.name for p in find_shards(folder, "train")]))
        listing.with_suffix(".partial").replace(listing)
    paths = [folder / name for name in json.loads(listing.read_text())]
    if lost := [p.name for p in paths if not p.exists()]:
        raise VqhpsError(
            f"{folder} lacks {lost[0]} that the run in {out} began with; bring it back or name another --out"
        )
    return paths


def _moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Exponential moving average of weights; integers (indices of the mesh, counts) are copied, as rounding would
    change them."""
    floating = get_ema_multi_avg_fn(decay)

    def update(averages: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            floating(averages, current, count)
        else:
            torch._foreach_copy_(averages, current)

    return update


def _parameter_groups(model: Method, config: ImageTrainingConfig) -> list[dict[str, object]]:
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    before = ("backbone", "guess") if config.lifting_steps or config.guess_steps else ("backbone",)
    taught = [p for n, p in trained if n.startswith(before)]
    rest = [p for n, p in trained if not n.startswith(before)]
    groups: list[dict[str, object]] = [{"params": rest, "share": 1.0}]
    return [*groups, {"params": taught, "share": config.backbone_rate}] if taught else groups


def _batches(
    config: ImageTrainingConfig, shards: Shards, tokens: np.ndarray, start: int, model: Any
) -> Iterator[dict[str, Tensor]]:
    """Batches from step `start` on, larger crops in the last part."""
    switch = int(config.steps * (1 - config.final_share))
    rows = training_rows(config, len(shards))
    probability = row_probabilities(shards, rows, config.mixture) if config.mixture else None
    for size, first, end in ((config.image_size, 0, switch), (config.final_image_size, switch, config.steps)):
        first = max(first, start)
        if first >= end:
            continue
        length = config.steps * config.batch_size
        dataset = CropDataset(shards, rows, tokens, size, config.augment, config.seed, length, probability)
        yield from DataLoader(
            Subset(dataset, range(first * config.batch_size, end * config.batch_size)),
            config.batch_size,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            generator=torch.Generator(),  # its own: a resumed run must not draw from the model's
        )


def row_probabilities(
    shards: Shards, rows: Int[np.ndarray, "R"], mixture: tuple[DataShare, ...]
) -> Float[np.ndarray, "R"]:
    """How likely each row is the next, by the data set that its shard's name says; the same for all rows of one.

    Raises:
        VqhpsError: a data set has no rows, or a probability is not positive.
    """
    names = np.array([path.name for path in shards.paths])[shards.shard[rows]]
    probability = np.zeros(len(rows))
    for share in mixture:
        mine = np.char.startswith(names, f"{share.name}-train-")
        if not mine.any() or not share.probability > 0:
            raise VqhpsError(
                f"mixture: {share.name} has {mine.sum()} samples to train on and probability {share.probability}; both "
                f"must be positive (shards {share.name}-train-*.tar)"
            )
        probability[mine] = share.probability / mine.sum()
    return probability / probability.sum()


def _kept_batches(
    config: ImageTrainingConfig, shards: Shards, tokens: np.ndarray, start: int, model: Any
) -> Iterator[dict[str, Tensor]]:
    """Batches of kept features from step `start` on, in an order that the seed fixes."""
    trunk, size = model.backbone.trunk, config.final_image_size
    key = feature_key(trunk, size, config.augment, config.kept_views)
    settings = (key, size, config.augment, config.kept_views, config.workers)
    device = next(model.parameters()).device

    def run_trunk(crops: Tensor) -> Tensor:  # a few at a time, as in `train_keypoints`
        parts = crops.split(2 if device.type == "cpu" else len(crops))
        return torch.cat([trunk(model.normalise(part.to(device))).cpu() for part in parts])

    chosen, parameters = training_rows(config, len(shards)), BodyLabels(shards)
    seen = shards.paths[: shards.shard[(config.pool or len(shards)) - 1] + 1]
    store = store_features(seen, run_trunk, *settings)
    rows = np.flatnonzero(np.isin(store.sample, chosen))
    shape = parameters.shape[store.sample[rows]]
    bodies = bodies_to_lift(model, config, store, rows, tokens, shape)
    if config.lifting_steps and start == 0:
        train_guess(model, config, lambda step: [told(model, bodies(step))], config.lifting_steps)
    for step in range(start, config.steps):
        if config.guess_steps and step == int(config.transformer_from * config.steps):
            draw = seen_and_lifted(model, config, store, rows, tokens, bodies, shape)
            train_guess(model, config, draw, config.guess_steps)
        positions = np.arange(step * config.batch_size, (step + 1) * config.batch_size)
        epochs, places = np.divmod(positions, len(rows))
        orders = {e: np.random.default_rng((config.seed, int(e))).permutation(rows) for e in np.unique(epochs)}
        views = np.array([orders[e][p] for e, p in zip(epochs, places, strict=True)])
        labels = parameters.of(store.sample[views], store.flip[views])
        yield {**store.batch(views, tokens), **{name: torch.from_numpy(value) for name, value in labels.items()}}


class _Validation:
    """Errors on samples held back from the end of the shards, in eval mode, without augmentation."""

    def __init__(self, shards: Shards, config: ImageTrainingConfig, tokens: np.ndarray) -> None:
        rows = np.arange(len(shards) - config.validation, len(shards))
        self.crops = torch.from_numpy(plain_crops(shards, rows, config.image_size))
        labels = BodyLabels(shards).of(rows, 0 * rows)
        labels |= {"indices": tokens[rows, 0].astype(np.int64), "rotation": crop_rotations(shards)[rows]}
        labels["place"] = crop_places(shards, rows)
        self.labels = {name: torch.from_numpy(value) for name, value in labels.items()}

    @torch.no_grad()
    def __call__(self, model: Method) -> dict[str, float]:
        """PVE and PA-MPJPE in mm on the coarse mesh, for each way that the method reads its prediction."""
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        joints = model.tokenizer.regressor("h36m17")
        errors: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(self.crops)).split(50):
            batch = {name: value[rows].to(device) for name, value in self.labels.items()}
            truth = rotate(batch["rotation"], model.true_mesh(batch))
            image = model.normalise(self.crops[rows].to(device))
            for how, out in model.readings(image, None, batch["place"]).items():
                mine, theirs = joints @ out.vertices, joints @ truth
                pve = (out.vertices - mine[:, :1] - truth + theirs[:, :1]).norm(dim=-1).mean(1)
                pa = (procrustes(mine, theirs) - theirs).norm(dim=-1).mean(1)
                of = f"_{how}" if how else ""
                errors.setdefault(f"pve{of}_mm", []).append(1000 * pve)
                errors.setdefault(f"pa_mpjpe{of}_mm", []).append(1000 * pa)
        model.train(was_training)
        return {name: torch.cat(values).mean().item() for name, values in errors.items()}


def _report(out: Path, step: int, losses: dict[str, float], errors: dict[str, float]) -> None:
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "losses": losses, **errors}) + "\n")
    tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.1f}" for name, value in errors.items()))
