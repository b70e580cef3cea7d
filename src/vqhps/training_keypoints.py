"""First part of training an image model whose backbone finds key points: the backbone, on those and their depths.

Fresh crops in every step. Only the first layers, which see edges and colours, stay as they came. A first guess that was
trained before is trained along, and the backbone for its mesh as well (`keypoint_mesh`).
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vqhps.data.crops import CropDataset
from vqhps.data.sample import CROP_SCALE, Shards
from vqhps.geometry import rotate
from vqhps.models.blazepose import BlazePose
from vqhps.models.first_guess import joint_depth, keypoint_loss, with_confidence
from vqhps.models.vqhps import VQHPS
from vqhps.training_config import ImageTrainingConfig
from vqhps.training_state import RelativeAdamW, rate_share, resume_state, save_state

log = logging.getLogger(__name__)

_HEAT = 0.02  # weight of the cross-entropy of the heat maps
_STILL = 7  # first layers of the trunk that are not trained: up to stride 8


def train_keypoints(model: VQHPS, shards: Shards, tokens: np.ndarray, config: ImageTrainingConfig) -> None:
    """Train the backbone of a model in place, and its first guess along; a stopped run goes on exactly.

    Args:
        model: whose backbone is BlazePose.
        shards: samples; the last `config.validation` are held back.
        tokens: of all samples, from `shard_tokens`.
        config: `keypoint_steps`, `keypoint_batch`, `keypoint_rate`, `keypoint_mesh`, and what it shares with the
            rest of the training.
    """
    out = Path(config.out) / "keypoints"
    body: BlazePose = model.backbone.body  # type: ignore[assignment]
    steps, size = config.keypoint_steps, config.keypoint_batch
    device = next(model.parameters()).device
    body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    body.requires_grad_(True)
    for layer in body.trunk[:_STILL]:
        layer.requires_grad_(False)
    parts = nn.ModuleList([body, model.guess] if config.keypoint_mesh else [body])
    trained = [p for p in parts.parameters() if p.requires_grad]
    new = [*body.heat.parameters(), *parts[1:].parameters()]
    old = [p for p in trained if not any(p is q for q in new)]
    groups: list[dict[str, Any]] = [{"params": old}, {"params": new, "relative": False}]
    optimizer = RelativeAdamW(groups, weight_decay=0.0)
    average = AveragedModel(parts, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    modules: dict[str, nn.Module] = {"model": parts, "average": average}
    start = resume_state(out, config, modules, optimizer)
    order = keypoint_rows(shards, len(shards) - config.validation, config.cut_copies)
    crops = CropDataset(shards, order, tokens, config.image_size, config.augment, config.seed + 5, steps * size)
    batches = DataLoader(
        Subset(crops, range(start * size, steps * size)), size, num_workers=config.workers, generator=torch.Generator()
    )
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="key points", mininterval=2)
    saved, running = time.monotonic(), 0.0
    for step, batch in zip(bar, batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = config.keypoint_rate * rate_share(step, config.warmup, steps)
        loss = _loss(model, {name: value.to(device) for name, value in batch.items()}, config.keypoint_mesh)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update_parameters(parts)
        running = 0.98 * running + 0.02 * loss.item() if running else loss.item()
        bar.set_postfix_str(f"loss {running:.3f}", refresh=False)
        if time.monotonic() - saved > 60 * config.save_minutes or step + 1 == steps:
            save_state(out, config, step + 1, modules, optimizer)
            saved = time.monotonic()
    parts.load_state_dict(average.module.state_dict())
    model.backbone.freeze(config.model.frozen_stages)


def keypoint_rows(shards: Shards, count: int, cut_copies: int) -> Int[np.ndarray, "R"]:
    """The first `count` samples, people cut by the frame `cut_copies` times: they are few and the hardest."""
    labels, rows = shards.labels, np.arange(count)
    scale = (labels["stored"] / labels["crop"][:, 2])[:, None]
    low, high = ((labels["box"][:, i : i + 2] - labels["crop"][:, :2]) * scale for i in (0, 2))
    middle = (low + high + labels["stored"][:, None]) / 2
    half = CROP_SCALE * (high - low).max(1) / 2
    apart = np.abs(labels["keypoints2d"] - middle[:, None]).max((1, 2))
    return np.concatenate([rows, *[rows[apart[:count] >= half[:count]]] * (cut_copies - 1)])


def _loss(model: VQHPS, batch: dict[str, Tensor], mesh: float) -> Float[Tensor, ""]:
    body: BlazePose = model.backbone.body  # type: ignore[assignment]
    images = batch["image"]
    together = 1 if images.device.type == "cpu" else len(images)  # layers of one image fit into a processor's cache
    with torch.no_grad():
        early = torch.cat([body.trunk[:_STILL](model.normalise(part)) for part in images.split(together)])
    seen = body.from_trunk(body.trunk[_STILL:](early))
    with torch.no_grad():
        canonical = model.tokenizer.decode(batch["indices"])
        joints = rotate(batch["rotation"], model.tokenizer.regressor("coco17") @ canonical)
    truth = batch["keypoints2d"], batch["keypoints_weight"], joint_depth(joints), batch["has_mesh"]
    assert seen.first is not None and seen.keypoints is not None and seen.heat is not None
    first, second = (keypoint_loss(found, *truth) for found in (seen.first, seen.keypoints))
    loss = second + 0.5 * first + _HEAT * heat_loss(seen.heat, *truth[:2])
    if mesh:
        guess = model.lift(with_confidence(seen.keypoints), seen.vector, model.build_of(seen))
        losses = model.loss(guess, {**batch, "canonical_vertices": canonical})
        loss = loss + mesh * torch.stack([*losses.values()]).sum()
    return loss


def heat_loss(
    heat: Float[Tensor, "B J S S"], true: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"]
) -> Float[Tensor, ""]:
    """Cross-entropy of heat maps against normal densities around the true places, one cell wide; of points inside."""
    cells = heat.shape[-1]
    grid = torch.arange(cells, device=heat.device) + 0.5
    apart = (grid - ((true + 1) * (cells / 2))[..., None]).square()  # of columns, of rows
    across, down = (-0.5 * apart).softmax(-1).unbind(2)
    target = down[..., None] * across[..., None, :]
    weights = weight * (true.abs().amax(-1) < 1)
    entropy = -(target * heat.flatten(2).log_softmax(2).view_as(heat)).sum((2, 3))
    return (entropy * weights).sum() / weights.sum().clamp(min=1)
