"""What the frozen first part of a backbone makes of augmented crops, computed once and kept beside each shard.

A network whose first layers stay as they came need not run them in every epoch: most of the time of a step goes there,
and into decoding and warping JPEGs.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqhps.config import to_dict
from vqhps.data.augment import AugmentConfig
from vqhps.data.crops import crop_rotations, random_crop
from vqhps.data.sample import Shards, quiet_opencv, save_table

_BATCH = 50
_LABELS = ("flip", "rotation", "keypoints2d", "keypoints_weight", "has_mesh")
_NEWER = ("place",)  # not in files of earlier versions, which stay good for methods that need none


class _Views(Dataset[dict[str, Any]]):
    """The augmented crops of one shard, `views` of each sample, view by view."""

    def __init__(self, shards: Shards, size: int, augment: AugmentConfig, views: int) -> None:
        self.shards, self.size, self.augment, self.views = shards, size, augment, views
        self.rotations = crop_rotations(shards)
        self.seed = zlib.crc32(shards.paths[0].name.encode())

    def __len__(self) -> int:
        return self.views * len(self.shards)

    def __getitem__(self, position: int) -> dict[str, Any]:
        quiet_opencv()
        rng = np.random.default_rng((self.seed, position))
        index = position % len(self.shards)
        return random_crop(self.shards, self.rotations, index, self.size, self.augment, rng)


def feature_key(trunk: torch.nn.Module, size: int, augment: AugmentConfig, views: int) -> str:
    """Names what the features depend on: the weights of `trunk`, the side of the crops and their augmentation."""
    digest = hashlib.sha256(json.dumps([size, to_dict(augment), views]).encode())
    for _, value in sorted(trunk.state_dict().items()):
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


class FeatureStore:
    """Features and labels of `views` augmented crops of every sample, from files beside the shards.

    Args:
        paths: shards.
        key: from `feature_key`.

    Attributes:
        sample: which sample each crop shows.
        flip: whether it is mirrored.
    """

    def __init__(self, paths: list[Path], key: str) -> None:
        tables = [np.load(path.with_suffix(f".features-{key}.npz")) for path in paths]
        self._features = [np.load(path.with_suffix(f".features-{key}.npy"), mmap_mode="r") for path in paths]
        names = (*_LABELS, *(name for name in _NEWER if all(name in t for t in tables)))
        self._labels = {name: np.concatenate([t[name] for t in tables]) for name in names}
        self.flip = self._labels["flip"]
        samples = [int(t["samples"]) for t in tables]
        firsts = np.cumsum([0, *samples])
        counts = [len(f) for f in self._features]
        self._shard = np.repeat(np.arange(len(paths)), counts)
        self._number = np.concatenate([np.arange(n) for n in counts])
        self.sample = firsts[self._shard] + self._number % np.array(samples)[self._shard]

    def __len__(self) -> int:
        return len(self._shard)

    def labels(self, chosen: Int[np.ndarray, "B"], tokens: Int[np.ndarray, "N 2 T"]) -> dict[str, Tensor]:
        """The labels of some crops as `CropDataset` has them.

        Args:
            chosen: crops.
            tokens: of all samples, from `vqhps.data.crops.shard_tokens`.
        """
        rows: dict[str, np.ndarray] = {name: values[chosen] for name, values in self._labels.items()}
        rows["indices"] = tokens[self.sample[chosen], rows.pop("flip").astype(np.int64)].astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in rows.items()}

    def batch(self, chosen: Int[np.ndarray, "B"], tokens: Int[np.ndarray, "N 2 T"]) -> dict[str, Tensor]:
        """Labels, and the features as `trunk` in place of `image`."""
        return {**self.labels(chosen, tokens), "trunk": self.features(chosen)}

    def features(self, chosen: Int[np.ndarray, "B"]) -> Float[Tensor, "B C H W"]:
        """The features of some crops."""
        features = np.stack([self._features[self._shard[i]][self._number[i]] for i in chosen])
        return torch.from_numpy(features).permute(0, 3, 1, 2).float()  # stored channels last


def store_features(
    paths: list[Path],
    trunk: Callable[[Tensor], Tensor],
    key: str,
    size: int,
    augment: AugmentConfig,
    views: int,
    workers: int = 1,
) -> FeatureStore:
    """Compute what is missing; shards that are done are kept, so that an interrupted run goes on.

    Args:
        paths: shards.
        trunk: RGB crops (B, S, S, 3) uint8 -> features (B, C, H, W).
        key: from `feature_key`.
        size: side of the crops, px.
        augment: strength.
        views: crops of each sample.
        workers: processes that prepare crops.
    """
    todo = [path for path in paths if not _is_done(path, key)]
    for path in tqdm(todo, desc="features", unit="shard", disable=not todo):
        _store_shard(path, trunk, key, _Views(Shards([path]), size, augment, views), workers)
    return FeatureStore(paths, key)


def _is_done(path: Path, key: str) -> bool:
    table = path.with_suffix(f".features-{key}.npz")
    return table.exists() and table.stat().st_mtime >= path.stat().st_mtime


@torch.no_grad()
def _store_shard(path: Path, trunk: Callable[[Tensor], Tensor], key: str, views: _Views, workers: int) -> None:
    part = path.with_suffix(f".features-{key}.npy.partial")
    features: np.memmap | None = None
    labels: dict[str, list[np.ndarray]] = {name: [] for name in (*_LABELS, *_NEWER)}
    first = 0
    own = torch.Generator()  # whether features must be computed must not change what the training draws
    for batch in DataLoader(views, _BATCH, num_workers=workers, generator=own):
        values: Float[np.ndarray, "B H W C"] = trunk(batch["image"]).permute(0, 2, 3, 1).numpy()
        if features is None:
            shape = (len(views), *values.shape[1:])
            features = np.lib.format.open_memmap(part, "w+", np.float16, shape)
        features[first : first + len(values)] = values
        first += len(values)
        for name in labels:
            labels[name].append(batch[name].numpy())
    assert features is not None
    features.flush()
    part.replace(path.with_suffix(f".features-{key}.npy"))
    table = {name: np.concatenate(parts) for name, parts in labels.items()}
    save_table(path.with_suffix(f".features-{key}.npz"), {**table, "samples": np.array(len(views.shards))})
