"""A batch of bodies for the image models, with images of noise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from tiny_shards import TinyBody, random_bodies, random_poses
from vqhps.body import named
from vqhps.geometry import project, rotate
from vqhps.models import method
from vqhps.models.cliff import CLIFF, project_full_frame

FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every named body is the tiny one, in tests that import this."""
    for module in (method, named):
        monkeypatch.setattr(module, "named_body", lambda name: TinyBody())


def projection(model: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The one that a method is held to."""
    return project_full_frame if isinstance(model, CLIFF) else lambda joints, camera, place: project(joints, camera)


def made_batch(model: Any, count: int = 10) -> dict[str, Tensor]:
    """Images of noise, each with a body of its own somewhere in a photo."""
    rng = np.random.default_rng(1)
    pose, shape = random_poses(count, rng)
    turn = Rotation.from_euler("y", rng.uniform(-60, 60, (count, 1)), degrees=True).as_matrix()
    rotation = torch.from_numpy(turn.astype(np.float32)) @ FLIP
    vertices = random_bodies(pose, shape)
    joints = rotate(rotation, model.tokenizer.regressor("coco17") @ vertices)
    place = torch.from_numpy(rng.uniform((-0.4, -0.4, 0.3), (0.4, 0.4, 0.6), (count, 3)).astype(np.float32))
    return {
        "image": torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(2)),
        "pose": torch.from_numpy(pose.astype(np.float32)), "shape": torch.from_numpy(shape),
        "body": torch.zeros(count, dtype=torch.int64), "rotation": rotation, "canonical_vertices": vertices,
        "keypoints2d": projection(model)(joints, torch.tensor([[0.8, 0.1, -0.1]]).expand(count, 3), place),
        "keypoints_weight": torch.ones(count, 17), "has_mesh": torch.ones(count), "place": place,
    }  # fmt: skip
