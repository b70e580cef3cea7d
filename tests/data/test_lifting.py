"""Bodies without images: cameras and labels agree, limbs are mixed, and errors come from crops alike."""

import numpy as np
import pytest
import torch

from vqhps.body.anny import anny_body
from vqhps.data.lifting import FoundErrors, LiftingStream
from vqhps.data.mocap import PoseBank
from vqhps.geometry import rotate


class MeshesThemselves:
    """In place of a tokenizer: keeps the meshes it is given."""

    def encode(self, vertices: torch.Tensor) -> torch.Tensor:
        return vertices


def stream(mixing: float = 0.0) -> LiftingStream:
    """Two poses: at rest, and with every bone but the root turned a little."""
    bones = len(anny_body("coarse").bone_names)
    angle = 0.3
    turned = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]], np.float32)
    pose = np.broadcast_to(np.eye(3, dtype=np.float32), (2, bones, 3, 3)).copy()
    pose[1, 1:] = turned
    bank = PoseBank(pose, np.broadcast_to(np.eye(3, dtype=np.float32), (2, 3, 3)).copy(), ("a", "b"))
    return LiftingStream(bank, MeshesThemselves(), mixing=mixing)  # type: ignore[arg-type]


def test_bodies_project_to_their_key_points() -> None:
    """Up to perspective, scale and place, the turned mesh lies where the key points are."""
    batch = stream().batch(64, (1, 0))
    assert batch["keypoints2d"].shape == (64, 17, 2) and batch["rotation"].shape == (64, 3, 3)
    joints = rotate(
        batch["rotation"], torch.from_numpy(anny_body("coarse").joint_regressors["coco17"]) @ batch["indices"]
    )
    whole = (batch["keypoints2d"].abs().amax(2) < 1).all(1)
    assert 20 < whole.sum() < 64
    ours, theirs = (x - x.mean(1, keepdim=True) for x in (joints[whole][..., :2], batch["keypoints2d"][whole]))
    scale = (ours * theirs).sum((1, 2)) / ours.square().sum((1, 2))
    apart = (scale[:, None, None] * ours - theirs).norm(dim=2).mean(1)
    assert apart.median() < 0.04 and scale.min() > 0.3


def test_a_batch_follows_from_its_seed() -> None:
    first, again, other = (stream(0.5).batch(8, seed)["keypoints2d"] for seed in ((1, 0), (1, 0), (1, 1)))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_limbs_of_several_poses_are_mixed(mixing: float) -> None:
    own = stream(mixing)
    poses, _ = own._poses(200, np.random.default_rng(0))
    angle = np.degrees(np.arccos(((np.trace(poses, axis1=2, axis2=3) - 1) / 2).clip(-1, 1)))
    bent = angle > 10
    names = list(own.body.bone_names)
    arm, knee, back = (bent[:, names.index(n)] for n in ("LeftForeArm", "LeftLeg", "Spine"))
    assert (bent[:, names.index("LeftArm")] == arm).mean() > 0.95  # a limb stays in one piece
    different = ((arm != back).mean(), (knee != back).mean())
    assert min(different) > 0.1 if mixing else max(different) < 0.05


def test_errors_come_from_crops_alike() -> None:
    torch.manual_seed(0)
    left, right = torch.zeros(2, 20, 17, 4)
    left[..., 0], right[..., 0] = -0.5, 0.5
    true = torch.cat([left, right])
    true[..., :2] += 0.01 * torch.randn(40, 17, 2)
    true[..., 2] = 1
    found = true.clone()
    found[:20, :, 1] += 0.2
    found[20:, :, 3] += 0.3
    found[:20, :, 2], found[20:, :, 2] = 0.4, 0.6
    errors = FoundErrors(true, found)
    for given, moved, sure in ((left, [0, 0.2, 0], 0.4), (right, [0, 0, 0.3], 0.6)):
        shown = errors(given)
        torch.testing.assert_close((shown - given)[..., [0, 1, 3]], torch.tensor(moved).expand(20, 17, 3))
        assert (shown[..., 2] == sure).all()
