"""What the image model learns from: canonical meshes and their tokens, computed once a shard and kept beside it."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from vqhps.body.model import BodyModel, canonical
from vqhps.data.sample import Shards, save_table
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_quaternion

logger = logging.getLogger(__name__)

_BATCH = 128
_SYMMETRIC_M = 1e-3


def canonical_vertices(body: BodyModel, shards: Shards) -> Float[np.ndarray, "N Vc 3"]:
    """Canonical vertices of every sample, metres, float16; kept in `{shard}.{body}.npz`."""
    parts = []
    for path, rows in _by_shard(shards):
        side_file = path.with_suffix(f".{body.name}.npz")
        if not _is_fresh(side_file, path):
            batches = np.array_split(rows, -(-len(rows) // _BATCH))
            meshes = [_pose(body, shards.labels["pose"][b], shards.labels["shape"][b]) for b in batches]
            save_table(side_file, {"canonical": np.concatenate(meshes)})
        with np.load(side_file) as table:
            parts.append(table["canonical"])
    return np.concatenate(parts)


def _pose(body: BodyModel, pose: Float[np.ndarray, "B K 4"], shape: Float[np.ndarray, "B S"]) -> np.ndarray:
    rotations = matrix_from_quaternion(torch.from_numpy(pose.astype(np.float32)))
    return canonical(body.forward(rotations, torch.from_numpy(shape))).numpy().astype(np.float16)


@torch.no_grad()
def token_targets(
    tokenizer: nn.Module, shards: Shards, vertices: Float[np.ndarray, "N Vc 3"], mirror: Int[np.ndarray, "Vc"] | None
) -> Int[np.ndarray, "N 2 T"]:
    """Tokens of every sample and of its mirror image; kept in `{shard}.tokens-{hash of the tokenizer}.npz`.

    Args:
        tokenizer: frozen.
        shards: samples.
        vertices: canonical.
        mirror: see `mirror_map`; without it the second row repeats the first.
    """
    key, parts = state_hash(tokenizer), []
    for path, rows in _by_shard(shards):
        side_file = path.with_suffix(f".tokens-{key}.npz")
        if not _is_fresh(side_file, path):
            both = [vertices[rows], vertices[rows] if mirror is None else mirror_vertices(vertices[rows], mirror)]
            save_table(side_file, {"tokens": np.stack([_encode(tokenizer, v) for v in both], 1)})
        with np.load(side_file) as table:
            parts.append(table["tokens"])
    return np.concatenate(parts)


def _encode(tokenizer: nn.Module, vertices: Float[np.ndarray, "N Vc 3"]) -> Int[np.ndarray, "N T"]:
    batches = torch.from_numpy(vertices).split(_BATCH)
    return torch.cat([tokenizer.encode(b.float()) for b in batches]).numpy().astype(np.int16)


def _by_shard(shards: Shards) -> Iterator[tuple[Path, np.ndarray]]:
    ends = np.cumsum(shards.counts)
    for path, end, count in zip(tqdm(shards.paths, "targets", unit="shard"), ends, shards.counts, strict=True):
        yield path, np.arange(end - count, end)


def _is_fresh(side_file: Path, shard: Path) -> bool:
    return side_file.exists() and side_file.stat().st_mtime >= shard.stat().st_mtime


def state_hash(module: nn.Module) -> str:
    """Twelve hexadecimal digits that change with any weight or buffer."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def mirror_map(template: Float[np.ndarray, "V 3"]) -> Int[np.ndarray, "V"] | None:
    """For each vertex, the one on the other side of the body; `None` if the mesh is not symmetric to 1 mm."""
    from scipy.spatial import cKDTree

    distance, index = cKDTree(template).query(template * [-1, 1, 1])
    if distance.max() > _SYMMETRIC_M or len(np.unique(index)) < len(index):
        logger.warning("the mesh is not symmetric (%.1f mm): no flips in training", 1000 * distance.max())
        return None
    return index


def mirror_vertices(vertices: np.ndarray, mirror: Int[np.ndarray, "V"]) -> np.ndarray:
    """Bodies (..., V, 3) in canonical axes, mirrored left to right."""
    return vertices[..., mirror, :] * np.array([-1, 1, 1], vertices.dtype)


def check_body(tokenizer: nn.Module, body: BodyModel) -> None:
    """The tokenizer must speak of this body.

    Raises:
        VqhpsError: it does not.
    """
    expected = tokenizer.regressor("coco17").shape[1]
    if expected != len(body.template):
        raise VqhpsError(
            f"the tokenizer has {expected} vertices and {body.name} has {len(body.template)}; train a tokenizer for {body.name}"
        )


def as_tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays of a batch as tensors that share their memory."""
    return {name: torch.from_numpy(value) for name, value in batch.items()}
