"""Endless canonical bodies for the tokenizer: mocap poses, varied, on shapes of a realistic population."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from vqhps.body.anny import AnnyBody, anny_body
from vqhps.body.model import canonical
from vqhps.body.smpl import SMPLBody
from vqhps.body.topology import random_pose
from vqhps.data.mocap import PoseBank, Source, load_poses
from vqhps.geometry import rotate


@dataclass(frozen=True)
class BodyStream:
    """Canonical bodies of a pose bank, reproducible by seed and step.

    Attributes:
        bank: poses.
        children: shapes of all ages instead of adults only.
        jitter: random turn of every bone, radians an axis.
        mirror: swap left and right in half of the bodies.
        turned: in axes of cameras all around instead of canonical, see `camera_turns`.
    """

    bank: PoseBank
    children: bool = False
    jitter: float = 0.02
    mirror: bool = True
    turned: bool = False

    @cached_property
    def body(self) -> AnnyBody:
        """The body, on its coarse mesh."""
        return anny_body("coarse")

    def batch(self, count: int, seed: tuple[int, ...]) -> Float[Tensor, "B Vc 3"]:
        """Coarse canonical vertices, metres."""
        rng = np.random.default_rng(seed)
        pose = self.bank.pose[rng.integers(len(self.bank), size=count)]
        if self.mirror:
            flip = rng.random(count) < 0.5
            pose = np.where(flip[:, None, None, None], mirrored(pose, self.body), pose)
        bones = torch.from_numpy(pose) @ random_pose(count, pose.shape[1], rng, self.jitter)
        shape = torch.from_numpy(self.body.sample_shape(count, rng, self.children))
        bodies = canonical(self.body.forward(bones, shape))
        return rotate(camera_turns(count, rng), bodies) if self.turned else bodies


def camera_turns(count: int, rng: np.random.Generator) -> Float[Tensor, "B 3 3"]:
    """Rotations canonical -> camera: upright, from all sides alike, tilted by some 25 degrees."""
    about, tilt = rng.uniform(-np.pi, np.pi, (count, 1)), rng.normal(0, np.radians(25), (count, 2))
    turns = Rotation.from_euler("y", about), Rotation.from_euler("xz", tilt)
    around, tilted = (torch.from_numpy(turn.as_matrix().astype(np.float32)) for turn in turns)
    return tilted @ torch.diag(torch.tensor((1.0, -1.0, -1.0))) @ around


def mirror_bones(names: Sequence[str]) -> list[int]:
    """For each bone the number of its twin on the other side, or its own."""
    other = {"L": "R", "R": "L"}
    names, swap = list(names), []
    for name in names:
        for word, opposite in (("Left", "Right"), ("Right", "Left"), ("left", "right"), ("right", "left")):
            if name.startswith(word):
                swap.append(names.index(opposite + name.removeprefix(word)))
                break
        else:
            twin = other.get(name[0], "") + name[1:]
            swap.append(names.index(twin if twin in names else name))
    return swap


def mirrored(pose: Float[np.ndarray, "B K 3 3"], body: AnnyBody | SMPLBody) -> Float[np.ndarray, "B K 3 3"]:
    """The same poses with left and right exchanged."""
    swap = mirror_bones(body.bone_names)
    sign = np.diag([-1.0, 1.0, 1.0]).astype(np.float32)
    return sign @ pose[:, swap] @ sign


def test_bodies(
    data_root: Path, seed: int = 0, unseen: Source | None = None
) -> tuple[Float[Tensor, "N Vc 3"], Float[Tensor, "N V 3"], tuple[str, ...]]:
    """The fixed test set of the tokenizer: each spaced pose of the held-out CMU subjects on an adult shape.

    Args:
        data_root: folder that holds `mocap/`.
        seed: of the shapes.
        unseen: all of this motion set instead, for tokenizers that were trained without it.

    Returns:
        coarse and full canonical vertices in metres, each minus its own mean, and the clip of each body.
    """
    bank = load_poses(data_root, "train", 0.06, (unseen,)) if unseen else load_poses(data_root, "test", 0.06)
    coarse, full = anny_body("coarse"), anny_body("full")
    shape = torch.from_numpy(full.sample_shape(len(bank), np.random.default_rng(seed)))
    pose = torch.from_numpy(bank.pose)
    parts = torch.arange(len(bank)).split(128)
    return (
        torch.cat([canonical(coarse.forward(pose[p], shape[p])) for p in parts]),
        torch.cat([canonical(full.forward(pose[p], shape[p])) for p in parts]),
        bank.clip,
    )
