"""Training batches: augmented crops with their targets, in a random order that resumes exactly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqhps.body.joints import COCO17_FLIP
from vqhps.data.augment import AugmentConfig, augment_image, random_view
from vqhps.data.crop import apply_transform, crop_transform, pixels_to_crop, warp
from vqhps.data.sample import Shards, quiet_opencv
from vqhps.data.targets import as_tensors, mirror_vertices

_MIRROR = np.diag([-1.0, 1.0, 1.0]).astype(np.float32)


@dataclass(frozen=True)
class Request:
    """One sample of one epoch; with the seed it fixes all of the augmentation.

    Attributes:
        index: of the sample.
        epoch: how often it has been seen.
        size: side of the crop, px.
    """

    index: int
    epoch: int
    size: int


@dataclass(frozen=True)
class Targets:
    """Targets of all samples.

    Attributes:
        vertices: canonical, coarse, metres, float16.
        tokens: of the mesh and of its mirror image.
        mirror: see `targets.mirror_map`; `None` forbids flips.
    """

    vertices: Float[np.ndarray, "N Vc 3"]
    tokens: Int[np.ndarray, "N 2 T"]
    mirror: Int[np.ndarray, "Vc"] | None


class CropDataset(Dataset[dict[str, np.ndarray]]):
    """Crops by `Request`.

    Args:
        shards: images and labels.
        targets: meshes and tokens.
        augment: how crops vary; `None` gives the plain crop, as at prediction.
        seed: of the augmentation.
    """

    def __init__(self, shards: Shards, targets: Targets, augment: AugmentConfig | None, seed: int = 0) -> None:
        self.shards, self.targets, self.augment, self.seed = shards, targets, augment, seed

    def __getitem__(self, request: Request) -> dict[str, np.ndarray]:
        """One element of a batch: `image` uint8 RGB; the rest as `VQHPS.loss` wants it."""
        quiet_opencv()
        sample, targets = self.shards[request.index], self.targets
        rng = np.random.default_rng((self.seed, request.epoch, request.index))
        rotation, keypoints, weight = sample.rotation, sample.keypoints2d, sample.keypoints_weight
        vertices, flip = targets.vertices[request.index], False
        if self.augment is None:
            transform = crop_transform(sample.center, sample.size, request.size)
            image = warp(sample.image, transform, request.size)
        else:
            view = random_view(sample.center, sample.size, request.size, self.augment, rng, targets.mirror is not None)
            transform, flip = view.transform, view.flip
            image = augment_image(warp(sample.image, transform, request.size), self.augment, rng)
            rotation = view.rotation @ (_MIRROR @ rotation @ _MIRROR if flip else rotation)
        keypoints = pixels_to_crop(apply_transform(transform, keypoints), request.size)
        if flip:
            keypoints, weight = keypoints[list(COCO17_FLIP)], weight[list(COCO17_FLIP)]
            vertices = mirror_vertices(vertices, targets.mirror)
        return {
            "image": image,
            "keypoints2d": keypoints.astype(np.float32),
            "keypoints_weight": (weight * (np.abs(keypoints).max(1) < 3)).astype(np.float32),
            "rotation": rotation.astype(np.float32),
            "canonical_vertices": vertices.astype(np.float32),
            "indices": targets.tokens[request.index, int(flip)].astype(np.int64),
            "has_mesh": np.float32(sample.has_mesh),
        }


class RequestBatches:
    """Endless random batches; epoch after epoch, each a fresh permutation.

    Args:
        indices: samples to draw from.
        batch_size: samples a batch.
        size_at: side of the crops, px, by training step.
        seed: of the order.
        start: training step to begin with; what came before is as if it had been read.
    """

    def __init__(
        self, indices: Int[np.ndarray, "N"], batch_size: int, size_at: Callable[[int], int], seed: int, start: int = 0
    ) -> None:
        self.indices, self.batch_size, self.size_at = indices, batch_size, size_at
        self.seed, self.start = seed, start

    def __iter__(self) -> Iterator[list[Request]]:
        count, step = len(self.indices), self.start
        order, epoch = np.empty(0, int), -1
        while True:
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // count != epoch:
                    epoch = position // count
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
                batch.append(Request(int(order[position % count]), epoch, self.size_at(step)))
            yield batch
            step += 1


def collate(rows: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Stack samples."""
    return as_tensors({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def training_loader(dataset: CropDataset, batches: RequestBatches, workers: int) -> DataLoader[dict[str, Tensor]]:
    """Batches from worker processes, in order."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
    )


def plain_batches(dataset: CropDataset, indices: Int[np.ndarray, "N"], size: int, batch: int) -> Iterator[dict[str, Tensor]]:
    """Plain crops in a fixed order, the last batch kept."""
    for rows in np.array_split(indices, -(-len(indices) // batch)):
        yield collate([dataset[Request(int(i), 0, size)] for i in rows])
