"""A tiny body, tokenizer and shards of painted capsules, for tests of the data path and of training."""

import functools
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from shared import tiny_mesh, tiny_tokenizer
from vqhps.geometry import matrix_from_quaternion
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE

_STORED, _FOCAL = 96, 1e5  # so far away that perspective is weak perspective


@dataclass
class TinyBody:
    """A capsule with a waist and two sides that swell apart: poses have a left and a right."""

    name: str = "tiny"
    bone_names: tuple[str, ...] = ("Hips", "LeftSide", "RightSide")
    bone_parents: tuple[int, ...] = (-1, 0, 0)
    shape_names: tuple[str, ...] = tuple("abcdef")
    template: np.ndarray = field(default_factory=lambda: tiny_mesh()[0])
    faces: np.ndarray = field(default_factory=lambda: tiny_mesh()[1])

    @functools.cached_property
    def joint_regressors(self) -> dict[str, np.ndarray]:
        """Those of its tokenizer."""
        tokenizer = symmetric_tokenizer()
        return {name: tokenizer.regressor(name).numpy() for name in ("coco17", "h36m17")}

    def sample_shape(self, count: int, rng: np.random.Generator, children: bool = False) -> np.ndarray:
        """Any."""
        return rng.random((count, 6), dtype=np.float32)

    def forward(self, pose: Tensor, shape: Tensor) -> Tensor:
        """Each side turns by its bone about the middle, more so higher up; the shape scales."""
        rest = torch.from_numpy(self.template).expand(len(pose), -1, -1) * (0.8 + 0.4 * shape[:, :1, None])
        turned = [rest @ pose[:, k].transpose(1, 2) for k in (1, 2)]
        left = torch.from_numpy((self.template[:, 0] > 0) + 0.5 * (self.template[:, 0] == 0)).float()[:, None]
        return left * turned[0] + (1 - left) * turned[1]


def random_poses(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions (count, 3, 4) wxyz, float16, of `TinyBody`, its root still, and shapes (count, 6)."""
    vectors = rng.normal(0, 0.3, (count, 3, 3)) * [[0], [1], [1]]
    quaternions = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_quat(scalar_first=True).reshape(count, 3, 4)
    return quaternions.astype(np.float16), rng.random((count, 6), dtype=np.float32)


def random_bodies(quaternions: np.ndarray, shape: np.ndarray) -> Tensor:
    """Canonical vertices, metres."""
    pose = matrix_from_quaternion(torch.from_numpy(quaternions.astype(np.float32)))
    vertices = TinyBody().forward(pose, torch.from_numpy(shape))
    return vertices - vertices.mean(1, keepdim=True)


@torch.no_grad()
def symmetric_tokenizer() -> MeshVQVAE:
    """A tokenizer of `TinyBody`: principal components and random latents for codes, no training.

    Its key points have mirror twins: single vertices in COCO-17's pairs.
    """
    tokenizer = tiny_tokenizer().eval()
    bodies = random_bodies(*random_poses(64, np.random.default_rng(9)))
    tokenizer.network.initialise(bodies - tokenizer.mesh.get_buffer("template"), tokenizer.mesh.get_buffer("weight"))
    tokenizer.codebook.copy_(tokenizer.latents(bodies[: tokenizer.num_codes]).transpose(0, 1))
    template = tiny_mesh()[0]
    rng = np.random.default_rng(3)
    rows = np.zeros((17, len(template)), np.float32)
    middle = np.abs(template[:, 0]).argmin()
    rows[0, middle] = 1
    for joint, vertex in zip(range(1, 17, 2), rng.choice(np.flatnonzero(template[:, 0] > 0.05), 8, False), strict=True):
        twin = np.linalg.norm(template - template[vertex] * [-1, 1, 1], axis=1).argmin()
        rows[joint, vertex] = rows[joint + 1, twin] = 1
    tokenizer.mesh.get_buffer("regressor_coco17").copy_(torch.from_numpy(rows))
    return tokenizer


def write_shard(path: Path, count: int, seed: int = 0) -> Path:
    """A shard in the format of `vqhps prepare synthetic`, bodies of `TinyBody` on a gray ground."""
    rng = np.random.default_rng(seed)
    regressor = symmetric_tokenizer().regressor("coco17").numpy()
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            labels, image = _sample(regressor, rng)
            table = io.BytesIO()
            np.savez(table, **labels)
            jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            for name, data in (
                (f"{seed:02d}{number:04d}.jpg", jpeg),
                (f"{seed:02d}{number:04d}.npz", table.getvalue()),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def _sample(regressor: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    bones, shape = random_poses(1, rng)
    vertices = random_bodies(bones, shape)[0].numpy()
    turn = Rotation.from_euler("yz", [rng.uniform(-60, 60), rng.normal(0, 10)], degrees=True).as_matrix()
    rotation = (turn @ np.diag([1, -1, -1])).astype(np.float32)
    placed = vertices @ rotation.T + [0, 0, 2 * _FOCAL / 300]
    intrinsics = np.array([[_FOCAL, 0, 320], [0, _FOCAL, 240], [0, 0, 1]], np.float32)
    points = placed[:, :2] / placed[:, 2:] * _FOCAL + [320, 240]
    box = np.concatenate([points.min(0), points.max(0)]).astype(np.float32)
    middle = (box[:2] + box[2:]) / 2
    placed[:, :2] += (np.array([320, 240]) - middle) / _FOCAL * placed[:, 2:]  # the crop's centre on the optical axis
    points = placed[:, :2] / placed[:, 2:] * _FOCAL + [320, 240]
    box = np.concatenate([points.min(0), points.max(0)]).astype(np.float32)
    crop = np.array([320, 240, 1.5 * (box[2:] - box[:2]).max()], np.float32)
    stored = (points - crop[:2] + crop[2] / 2) * _STORED / crop[2]
    image = np.full((_STORED, _STORED, 3), rng.integers(60, 120), np.uint8)
    colour = tuple(int(c) for c in 128 + 100 * bones[0, 1, 1:])
    cv2.fillConvexPoly(image, cv2.convexHull(stored.astype(np.float32)).astype(np.int32), colour)
    joints = regressor @ placed
    keypoints = joints[:, :2] / joints[:, 2:] * _FOCAL + [320, 240]
    labels = {
        "pose": bones[0], "shape": shape[0], "rotation": rotation,
        "translation": placed.mean(0).astype(np.float32), "intrinsics": intrinsics,
        "frame_size": np.array([640, 480], np.int32), "box": box, "crop": crop, "size": np.array(_STORED, np.int32),
        "keypoints2d": ((keypoints - crop[:2] + crop[2] / 2) * _STORED / crop[2]).astype(np.float32),
        "keypoints_visible": np.full(17, 2, np.uint8), "joints3d": joints.astype(np.float32),
    }  # fmt: skip
    return labels, image
