"""Second part of training an image model: its first guess of a body alone, without running the backbone.

First from true key points; later from what the backbone makes of crops, computed once.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vqhps.data.features import FeatureStore
from vqhps.data.lifting import FoundErrors, LiftingStream
from vqhps.data.mocap import load_poses
from vqhps.errors import VqhpsError
from vqhps.geometry import rotate
from vqhps.models.build import samples
from vqhps.models.first_guess import disturbed, joint_depth, with_confidence
from vqhps.models.method import Tokenizer
from vqhps.models.vqhps import VQHPS
from vqhps.training_config import ImageTrainingConfig
from vqhps.training_state import rate_share

Bodies = Callable[[int], dict[str, Tensor]]  # labels of a step
Shown = tuple[dict[str, Tensor], tuple[Tensor, Tensor | None, Tensor | None]]  # labels, and what `VQHPS.lift` takes

_FLAT = 0.3  # share of bodies that are lifted without the depths of their key points
_ERRORS = 20_000  # crops whose errors are moved to other bodies


def bodies_to_lift(
    model: VQHPS,
    config: ImageTrainingConfig,
    store: FeatureStore,
    rows: np.ndarray,
    tokens: np.ndarray,
    shape: Float[np.ndarray, "R S"],
) -> Bodies:
    """Bodies to lift, a batch a step: the labels of kept views, or what `config.motion` gives, which have the shapes of
    those views if the model is to know them."""
    if config.motion:
        poses = load_poses(Path(config.motion), "train")
        stream = LiftingStream(poses, model.tokenizer, config.augment, shapes=shape if model.build else None)  # type: ignore[arg-type]
        return lambda step: stream.batch(config.lifting_batch, (config.seed, 2, step))
    return lambda step: store.labels(
        np.random.default_rng((config.seed, 2, step)).choice(rows, config.lifting_batch), tokens
    )


def train_guess(model: VQHPS, config: ImageTrainingConfig, draw: Callable[[int], list[Shown]], steps: int) -> None:
    """Train the model's first guess alone.

    Args:
        model: to be trained.
        config: of the run.
        draw: parts of the batch of a step: labels, and what `VQHPS.lift` takes: key points, and what the backbone makes
            of the image or nothing.
        steps: how many.
    """
    optimizer = torch.optim.AdamW(model.guess.parameters(), weight_decay=config.weight_decay)
    bar = tqdm(range(steps), desc="guess", mininterval=2)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate_share(step, config.warmup, steps)
        parts = [model.loss(model.lift(*shown), batch) for batch, shown in draw(step)]
        losses = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix_str(" ".join(f"{n} {v.item():.3f}" for n, v in losses.items()), refresh=False)


def told(model: VQHPS, labels: dict[str, Tensor]) -> Shown:
    """A batch of true key points, disturbed; for some bodies without depths."""
    batch = _with_mesh(model, labels)
    shown = disturbed(true_keypoints(model.tokenizer, batch))
    flat = torch.rand(len(shown), 1, device=shown.device) < _FLAT
    return batch, (torch.cat([shown[..., :3], (shown[..., 3] * ~flat)[..., None]], 2), None, None)


def seen_and_lifted(
    model: VQHPS,
    config: ImageTrainingConfig,
    store: FeatureStore,
    rows: np.ndarray,
    tokens: np.ndarray,
    bodies: Bodies,
    shape: Float[np.ndarray, "R S"],
) -> Callable[[int], list[Shown]]:
    """Batches of what the backbone sees, and of bodies that it has not seen with the errors that it makes.

    A model that reads builds from the image learns to do so first; bodies that were not seen have the shapes of people
    who were, and what is read of those. `shape` is that of each of the rows.
    """
    vectors, found, looks = _see(model, store, rows)
    builds = None if looks is None else _fit_build(model, looks, torch.from_numpy(shape), store.labels(rows, tokens))
    some = np.random.default_rng((config.seed, 3)).choice(len(rows), min(len(rows), _ERRORS), replace=False)
    labels = _with_mesh(model, store.labels(rows[some], tokens))
    errors = FoundErrors(true_keypoints(model.tokenizer, labels), found[some].float().to(labels["indices"].device))

    def draw(step: int) -> list[Shown]:
        chosen = np.random.default_rng((config.seed, 4, step)).choice(len(rows), config.lifting_batch)
        batch = _with_mesh(model, store.labels(rows[chosen], tokens))
        device = batch["indices"].device
        vector, own = (values[chosen].float().to(device) for values in (vectors, found))
        told = torch.rand(len(own), 1, 1, device=device) < config.model.hints
        keypoints = torch.where(told, disturbed(true_keypoints(model.tokenizer, batch)), own)
        shown: list[Shown] = [(batch, (keypoints, vector, None if builds is None else builds[chosen]))]
        if config.motion:
            other = _with_mesh(model, bodies(config.lifting_steps + step))
            build = None if builds is None else builds[other["drawn"]]
            shown.append((other, (errors(true_keypoints(model.tokenizer, other)), None, build)))
        return shown

    return draw


def _fit_build(
    model: VQHPS, looks: Float[Tensor, "R P C"], shape: Float[Tensor, "R S"], labels: dict[str, Tensor]
) -> Float[Tensor, "R S"]:
    """Fit how builds are read, and what they do to tokens; returns what is read of each crop."""
    assert model.build is not None
    if shape.shape[1] != model.config.build:
        raise VqhpsError(f"build is {model.config.build}, the people have {shape.shape[1]} shape parameters")
    device = model.guess.codes.device
    known, looks = labels["has_mesh"] > 0, looks.to(device)
    model.build.fit(looks[known.to(device)], shape[known].to(device))
    model.guess.fit_build(labels["indices"][known].to(device), shape[known].to(device))
    return torch.cat([model.build(part) for part in looks.split(4096)])


def _with_mesh(model: VQHPS, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels on the model's device, with the mesh that their tokens decode to."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in labels.items()}
    return {**batch, "canonical_vertices": model.tokenizer.decode(batch["indices"])}


@torch.no_grad()
def _see(model: VQHPS, store: FeatureStore, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
    """The backbone's vector, the key points it finds, and its map there if builds are read from it, of some kept
    crops; half precision."""
    device = next(model.parameters()).device
    vectors, found, looks = [], [], []
    for chosen in tqdm(np.array_split(rows, -(-len(rows) // 256)), desc="vectors", mininterval=2):
        seen = model.backbone.from_trunk(store.features(chosen).to(device))
        vectors.append(seen.vector.half().cpu())
        found.append(with_confidence(seen.keypoints).half().cpu())
        if model.build is not None:
            looks.append(samples(seen.trunk, seen.keypoints).half().cpu())
    return torch.cat(vectors), torch.cat(found), torch.cat(looks) if looks else None


def true_keypoints(tokenizer: Tokenizer, batch: dict[str, Tensor]) -> Float[Tensor, "B 17 4"]:
    """True key points in crop coordinates, with weights and depths."""
    joints = rotate(batch["rotation"], tokenizer.regressor("coco17") @ batch["canonical_vertices"])
    depth = joint_depth(joints) * batch["has_mesh"][:, None]
    return torch.cat([batch["keypoints2d"], batch["keypoints_weight"][..., None], depth[..., None]], 2)
