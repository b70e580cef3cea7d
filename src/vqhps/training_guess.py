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
from vqhps.geometry import rotate
from vqhps.models.first_guess import disturbed, joint_depth, with_confidence
from vqhps.models.method import Tokenizer
from vqhps.models.vqhps import VQHPS
from vqhps.training_config import ImageTrainingConfig
from vqhps.training_state import rate_share

Bodies = Callable[[int], dict[str, Tensor]]  # labels of a step
Shown = tuple[dict[str, Tensor], Tensor, Tensor | None]  # labels, key points, vectors of the backbone

_FLAT = 0.3  # share of bodies that are lifted without the depths of their key points
_ERRORS = 20_000  # crops whose errors are moved to other bodies


def bodies_to_lift(
    model: VQHPS, config: ImageTrainingConfig, store: FeatureStore, rows: np.ndarray, tokens: np.ndarray
) -> Bodies:
    """Bodies to lift, a batch a step: the labels of kept views, or what `config.motion` gives."""
    if config.motion:
        stream = LiftingStream(load_poses(Path(config.motion), "train"), model.tokenizer, config.augment)  # type: ignore[arg-type]
        return lambda step: stream.batch(config.lifting_batch, (config.seed, 2, step))
    return lambda step: store.labels(
        np.random.default_rng((config.seed, 2, step)).choice(rows, config.lifting_batch), tokens
    )


def train_guess(model: VQHPS, config: ImageTrainingConfig, draw: Callable[[int], list[Shown]], steps: int) -> None:
    """Train the model's first guess alone.

    Args:
        model: to be trained.
        config: of the run.
        draw: parts of the batch of a step: labels, key points, and vectors of the backbone or nothing.
        steps: how many.
    """
    optimizer = torch.optim.AdamW(model.guess.parameters(), weight_decay=config.weight_decay)
    bar = tqdm(range(steps), desc="guess", mininterval=2)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate_share(step, config.warmup, steps)
        parts = [model.loss(model.lift(shown, vector), batch) for batch, shown, vector in draw(step)]
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
    return batch, torch.cat([shown[..., :3], (shown[..., 3] * ~flat)[..., None]], 2), None


def seen_and_lifted(
    model: VQHPS,
    config: ImageTrainingConfig,
    store: FeatureStore,
    rows: np.ndarray,
    tokens: np.ndarray,
    bodies: Bodies,
) -> Callable[[int], list[Shown]]:
    """Batches of what the backbone sees, and of bodies that it has not seen with the errors that it makes."""
    vectors, found = _see(model, store)
    some = np.random.default_rng((config.seed, 3)).choice(rows, min(len(rows), _ERRORS), replace=False)
    labels = _with_mesh(model, store.labels(some, tokens))
    errors = FoundErrors(true_keypoints(model.tokenizer, labels), found[some].float().to(labels["indices"].device))

    def draw(step: int) -> list[Shown]:
        chosen = np.random.default_rng((config.seed, 4, step)).choice(rows, config.lifting_batch)
        batch = _with_mesh(model, store.labels(chosen, tokens))
        device = batch["indices"].device
        vector, own = (values[chosen].float().to(device) for values in (vectors, found))
        told = torch.rand(len(own), 1, 1, device=device) < config.model.hints
        shown: list[Shown] = [
            (batch, torch.where(told, disturbed(true_keypoints(model.tokenizer, batch)), own), vector)
        ]
        if config.motion:
            other = _with_mesh(model, bodies(config.lifting_steps + step))
            shown.append((other, errors(true_keypoints(model.tokenizer, other)), None))
        return shown

    return draw


def _with_mesh(model: VQHPS, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels on the model's device, with the mesh that their tokens decode to."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in labels.items()}
    return {**batch, "canonical_vertices": model.tokenizer.decode(batch["indices"])}


@torch.no_grad()
def _see(model: VQHPS, store: FeatureStore) -> tuple[Tensor, Tensor]:
    """The backbone's vector and the key points it finds, of all kept crops; half precision."""
    device = next(model.parameters()).device
    vectors, found = [], []
    for chosen in tqdm(np.array_split(np.arange(len(store)), -(-len(store) // 256)), desc="vectors", mininterval=2):
        seen = model.backbone.from_trunk(store.features(chosen).to(device))
        assert seen.keypoints is not None
        vectors.append(seen.vector.half().cpu())
        found.append(with_confidence(seen.keypoints).half().cpu())
    return torch.cat(vectors), torch.cat(found)


def true_keypoints(tokenizer: Tokenizer, batch: dict[str, Tensor]) -> Float[Tensor, "B 17 4"]:
    """True key points in crop coordinates, with weights and depths."""
    joints = rotate(batch["rotation"], tokenizer.regressor("coco17") @ batch["canonical_vertices"])
    depth = joint_depth(joints) * batch["has_mesh"][:, None]
    return torch.cat([batch["keypoints2d"], batch["keypoints_weight"][..., None], depth[..., None]], 2)
