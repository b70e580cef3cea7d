"""Batches for the image models: augmented crops with the labels that follow them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from vqhps.body.joints import COCO17_FLIP
from vqhps.body.model import canonical
from vqhps.body.named import BODY_NAMES, named_body
from vqhps.body.smpl import SMPL_BONES
from vqhps.crop import crop_image, crop_matrix
from vqhps.data.augment import AugmentConfig, View, augment_image, random_view
from vqhps.data.bodies import mirror_bones, mirrored
from vqhps.data.sample import CROP_SCALE, Shards, quiet_opencv, save_table
from vqhps.errors import VqhpsError
from vqhps.geometry import crop_from_box, default_focal, full_to_crop, matrix_from_quaternion, ray_rotation
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE

FAR = 3.0  # key points farther out than this, in crop coordinates, say nothing


def crop_rotations(shards: Shards) -> Float[np.ndarray, "N 3 3"]:
    """Rotations from canonical to the axes of a camera that looks at the centre of the crop (see `ray_rotation`)."""
    labels = shards.labels
    box, intrinsics = labels["box"].astype(np.float64), labels["intrinsics"].astype(np.float64)
    turn = ray_rotation((box[:, :2] + box[:, 2:]) / 2, intrinsics[:, 0, 0], intrinsics[:, :2, 2])
    return (turn.transpose(0, 2, 1) @ labels["rotation"]).astype(np.float32)


class BodyLabels:
    """Body parameters of samples, as they are and mirrored, for methods that learn from them.

    Args:
        shards: samples.
    """

    def __init__(self, shards: Shards) -> None:
        labels = shards.labels
        pose = labels["pose"].astype(np.float32)
        self.pose, self.shape = np.stack([pose, pose], 1), labels["shape"].astype(np.float32)
        self.body = np.zeros(len(pose), np.int64)
        for name in np.unique(labels["body"]):
            rows = np.flatnonzero(labels["body"] == name)
            bones = SMPL_BONES if name.startswith("smpl-") else named_body(str(name)).bone_names  # needs no file
            swap = mirror_bones(bones)
            self.pose[rows, 1] = pose[rows][:, swap] * np.array([1, 1, -1, -1], np.float32)  # mirrored in x
            self.body[rows] = BODY_NAMES.index(str(name))

    def of(self, sample: Any, flip: Any) -> dict[str, Any]:
        """`pose` (quaternions wxyz), `shape` and `body` (its place in `BODY_NAMES`) of samples, mirrored or not."""
        side = np.asarray(flip).astype(np.int64)
        return {"pose": self.pose[sample, side], "shape": self.shape[sample], "body": self.body[sample]}


def crop_places(shards: Shards, rows: Int[np.ndarray, "R"], scale: float = CROP_SCALE) -> Float[np.ndarray, "R 3"]:
    """Where in their photos the plain crops of samples are: centre from the optical axis, and side, as shares of the
    focal length (Li et al., ECCV 2022). Where the camera is not known, one like a phone's is assumed."""
    center, size = crop_from_box(shards.labels["box"][rows].astype(np.float64), scale)
    focal, principal = photo_cameras(shards, rows)
    return np.concatenate([center - principal, size[:, None]], 1).astype(np.float32) / focal[:, None]


def photo_cameras(shards: Shards, rows: Any) -> tuple[Float[np.ndarray, "R"], Float[np.ndarray, "R 2"]]:
    """Focal length and principal point of samples' photos, px; the default ones where they are not known."""
    intrinsics, frame = shards.labels["intrinsics"][rows], shards.labels["frame_size"][rows]
    known = np.isfinite(intrinsics[:, 0, 0])
    focal = [i[0, 0] if k else default_focal(*map(int, f)) for i, f, k in zip(intrinsics, frame, known, strict=True)]
    principal = np.where(known[:, None], intrinsics[:, :2, 2], frame / 2)
    return np.array(focal, np.float32), principal.astype(np.float32)


def shard_tokens(shards: Shards, tokenizer: MeshVQVAE) -> Int[np.ndarray, "N 2 T"]:
    """Target tokens of every sample, as it is and mirrored; kept beside each shard, one file a tokenizer."""
    weights = b"".join(v.numpy().tobytes() for _, v in sorted(tokenizer.state_dict().items()))
    key = hashlib.sha256(weights).hexdigest()[:12]
    out, first = [], 0
    for path, count in zip(shards.paths, shards.counts, strict=True):
        rows = slice(first, first + count)
        side_file = Path(path).with_suffix(f".tokens-{key}.npz")
        if side_file.exists() and side_file.stat().st_mtime >= Path(path).stat().st_mtime:
            with np.load(side_file) as table:
                out.append(table["tokens"])
        else:
            out.append(_tokens({name: shards.labels[name][rows] for name in ("pose", "shape", "body")}, tokenizer))
            save_table(side_file, {"tokens": out[-1]})
        first += count
    return np.concatenate(out)


@torch.no_grad()
def _tokens(labels: dict[str, np.ndarray], tokenizer: MeshVQVAE) -> Int[np.ndarray, "N 2 T"]:
    pose = matrix_from_quaternion(labels["pose"].astype(np.float32))
    tokens = np.empty((len(pose), 2, tokenizer.num_tokens), np.int16)
    for name in np.unique(labels["body"]):
        body = named_body(str(name))
        wanted = len(tokenizer.mesh.get_buffer("template"))
        if len(body.template) != wanted:
            raise VqhpsError(
                f"the tokenizer is of meshes of {wanted} vertices, the people are {name}: see docs/data.md"
            )
        chosen = np.flatnonzero(labels["body"] == name)
        for rows in np.array_split(chosen, -(-len(chosen) // 128)):
            shape = torch.from_numpy(labels["shape"][rows])
            for version, turned in enumerate((pose[rows], mirrored(pose[rows], body))):
                vertices = body.forward(torch.from_numpy(np.ascontiguousarray(turned)), shape)
                tokens[rows, version] = tokenizer.encode(canonical(vertices)).numpy()
    return tokens


class CropDataset(Dataset[dict[str, Tensor]]):
    """Endless augmented crops in a random order that a seed fixes: item `i` is the i-th crop of the run.

    Args:
        shards: samples.
        rows: which of them.
        tokens: of all samples, from `shard_tokens`.
        size: side of the crops, px.
        augment: strength.
        seed: of order and augmentation.
        length: crops in all.
        probability: of each of the rows to be next; by default each comes once an epoch.
    """

    def __init__(
        self,
        shards: Shards,
        rows: Int[np.ndarray, "R"],
        tokens: Int[np.ndarray, "N 2 T"],
        size: int,
        augment: AugmentConfig,
        seed: int,
        length: int,
        probability: Float[np.ndarray, "R"] | None = None,
    ) -> None:
        self.probability = probability
        self.shards, self.rows, self.tokens = shards, rows, tokens
        self.size, self.augment, self.seed, self.length = size, augment, seed, length
        self.rotations, self.bodies = crop_rotations(shards), BodyLabels(shards)
        self._order: tuple[int, np.ndarray] = (-1, rows)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        quiet_opencv()
        epoch, place = divmod(position, len(self.rows))
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            some = self.probability is not None
            order = rng.choice(self.rows, len(self.rows), p=self.probability) if some else rng.permutation(self.rows)
            self._order = epoch, order
        index = int(self._order[1][place])
        rng = np.random.default_rng((self.seed, 1, position))
        crop = random_crop(self.shards, self.rotations, index, self.size, self.augment, rng)
        flip = int(crop.pop("flip"))
        crop |= {"indices": self.tokens[index, flip].astype(np.int64), **self.bodies.of(index, flip)}
        return {name: torch.as_tensor(value) for name, value in crop.items()}


def random_crop(
    shards: Shards,
    rotations: Float[np.ndarray, "N 3 3"],
    index: int,
    size: int,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """An augmented crop of a sample: `image`, the labels that follow it, its `place` in the photo (see `crop_places`)
    and whether it is mirrored (`flip`).

    Args:
        shards: samples.
        rotations: of all of them, from `crop_rotations`.
        index: which.
        size: side of the crop, px.
        augment: strength.
        rng: source of all randomness.
    """
    sample = shards[index]
    view = random_view(sample.center, sample.size, augment, rng)
    cut = (view.center, view.size, size, view.angle_deg, view.flip)
    matrix = crop_matrix(*cut)
    keypoints = (sample.keypoints2d @ matrix[:, :2].T + matrix[:, 2]) * (2 / size) - 1
    weight = sample.keypoints_weight
    if view.flip:
        keypoints, weight = keypoints[list(COCO17_FLIP)], weight[list(COCO17_FLIP)]
    return {
        "image": augment_image(crop_image(sample.image, *cut), augment, rng),
        "flip": view.flip,
        "rotation": view.rotated(rotations[index]),
        "keypoints2d": keypoints.astype(np.float32),
        "keypoints_weight": (weight * (np.abs(keypoints).max(1) < FAR)).astype(np.float32),
        "has_mesh": np.float32(sample.has_mesh),
        "place": _place(shards, index, view),
    }


def _place(shards: Shards, index: int, view: View) -> Float[np.ndarray, "3"]:
    """Of a random crop, in a photo that is turned and mirrored as the crop is."""
    crop, stored = shards.labels["crop"][index], shards.labels["stored"][index]
    pixel = crop[2] / stored  # of the stored image, in those of the photo
    (focal,), (principal,) = photo_cameras(shards, [index])
    center = view.placed(crop[:2] + (view.center - stored / 2) * pixel - principal)
    return (np.array([*center, view.size * pixel]) / focal).astype(np.float32)


def plain_crops(shards: Shards, rows: Int[np.ndarray, "R"], size: int, scale: float = CROP_SCALE) -> np.ndarray:
    """The upright crops of samples as at prediction, `scale` x the long side of the box: (R, S, S, 3) uint8."""
    crops = []
    for row in rows:
        sample = shards[int(row)]
        crops.append(crop_image(sample.image, sample.center, sample.size * scale / CROP_SCALE, size))
    return np.stack(crops)


def crop_keypoints(
    shards: Shards, rows: Int[np.ndarray, "R"], scale: float = CROP_SCALE
) -> Float[np.ndarray, "R 17 2"]:
    """True key points of samples in the coordinates of their plain crops, [-1, 1]."""
    samples = [shards[int(row)] for row in rows]
    center = np.stack([s.center for s in samples])
    size = np.array([s.size for s in samples]) * (scale / CROP_SCALE)
    return full_to_crop(np.stack([s.keypoints2d for s in samples]), center, size)
