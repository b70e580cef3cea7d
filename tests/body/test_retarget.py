"""Motion of other skeletons on the body: limbs point where the source's do, left is left, joints bend the right way."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shared import DATA, needs_data
from vqhps.body.anny import anny_body
from vqhps.body.retarget import Skeleton, body_axes, match_joints, read_bvh, retarget
from vqhps.data.mocap import _READERS, MOCAP_TEST_SUBJECTS, joint_positions, load_clips, load_poses
from vqhps.errors import VqhpsError

BONES = [
    (side + a, side + b)
    for side in ("Left", "Right")
    for a, b in (("UpLeg", "Leg"), ("Leg", "Foot"), ("Arm", "ForeArm"), ("ForeArm", "Hand"))
]
BVH = """HIERARCHY
ROOT Hips
{ OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Head { OFFSET 0 60 0 CHANNELS 3 Zrotation Xrotation Yrotation End Site { OFFSET 0 10 0 } }
%s
}
MOTION
Frames: 1
Frame Time: 0.04
0 0 0 0 0 90 0 0 0 %s
"""


def limb(side: str, sign: int) -> str:
    """A leg that hangs down and an arm that points sideways."""
    end = "End Site { OFFSET 0 -5 0 } "
    joint = "JOINT {} {{ OFFSET {} {} 0 CHANNELS 3 Zrotation Xrotation Yrotation "
    leg = "".join(
        joint.format(side + n, x, y) for n, x, y in (("UpLeg", 9 * sign, -5), ("Leg", 0, -40), ("Foot", 0, -40))
    )
    arm = "".join(
        joint.format(side + n, x, y)
        for n, x, y in (("Arm", 18 * sign, 45), ("ForeArm", 28 * sign, 0), ("Hand", 24 * sign, 0))
    )
    return leg + end + "} } } " + arm + end + "} } } "


def write_bvh(path: Path, angles: str) -> Path:
    path.write_text(BVH % (limb("Left", 1) + limb("Right", -1), angles))
    return path


def carried(skeleton: Skeleton, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    body = anny_body("coarse")
    return retarget(skeleton, local, body.bone_names, body.bone_parents, body.rest_joints)


def worst_direction_error(skeleton: Skeleton, local: np.ndarray) -> float:
    """Largest angle between a limb of the source and of the body, degrees."""
    body = anny_body("coarse")
    pose, rotation = carried(skeleton, local)
    target = joint_positions(pose) @ rotation.transpose(0, 2, 1)
    joints = match_joints(skeleton.names)
    axes = body_axes(skeleton, joints)
    source = skeleton.positions(local)
    worst = 0.0
    for a, b in BONES:
        s = (source[:, joints[b]] - source[:, joints[a]]) @ axes.T
        t = target[:, body.bone_names.index(b)] - target[:, body.bone_names.index(a)]
        cosine = (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
        worst = max(worst, float(np.degrees(np.arccos(cosine.clip(-1, 1))).max()))
    return worst


def test_bvh_rest_pose_becomes_a_t_pose(tmp_path):
    skeleton, local, rate = read_bvh(write_bvh(tmp_path / "t.bvh", "0 " * 36))
    assert rate == pytest.approx(25)
    pose, rotation = carried(skeleton, local)
    np.testing.assert_allclose(rotation[0] @ [0, 0, 1], [1, 0, 0], atol=1e-6)  # 90 degrees about y: front to x
    joints = dict(zip(anny_body("coarse").bone_names, joint_positions(pose)[0], strict=True))
    assert joints["LeftHand"][0] - joints["LeftArm"][0] > 0.4
    assert abs(joints["LeftHand"][1] - joints["LeftArm"][1]) < 1e-4
    assert abs(joints["RightFoot"][0] - joints["RightUpLeg"][0]) < 1e-4


def test_knees_bend_backwards_and_elbows_forwards(tmp_path):
    # Channels: head, then left leg, left arm, right leg, right arm, three joints each, in the order z x y.
    knee, elbow = "0 0 0 0 80 0 0 0 0 ", "0 0 0 0 0 -80 0 0 0 "
    skeleton, local, _ = read_bvh(write_bvh(tmp_path / "bent.bvh", knee + elbow + "0 " * 18))
    joints = dict(zip(anny_body("coarse").bone_names, joint_positions(carried(skeleton, local)[0])[0], strict=True))
    assert joints["LeftFoot"][2] < joints["LeftLeg"][2] - 0.3
    assert joints["LeftHand"][2] > joints["LeftForeArm"][2] + 0.2
    assert abs(joints["RightFoot"][2] - joints["RightLeg"][2]) < 0.02


@pytest.mark.parametrize(
    "text, message",
    [("", "not a BVH"), ("HIERARCHY ROOT a { OFFSET 0 0 0 ", "not a BVH"), ("\x00\x01", "not a BVH")],
)
def test_damaged_bvh_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "bad.bvh").write_text(text)
    with pytest.raises(VqhpsError, match=message):
        read_bvh(tmp_path / "bad.bvh")


def test_skeleton_without_legs_is_named():
    with pytest.raises(VqhpsError, match="LeftUpLeg"):
        match_joints(["Hips", "LeftArm", "LeftForeArm"])


@needs_data
@pytest.mark.parametrize("source", ["cmu", "dance", "deepmimic", "makehuman"])
def test_limbs_point_where_the_source_points(source):
    clips = [clip for i, clip in enumerate(_READERS[source](DATA / "mocap")) if i % 40 == 0]
    assert clips
    for _, skeleton, local in clips:
        assert worst_direction_error(skeleton, local[::20]) < 0.5


@needs_data
@pytest.mark.parametrize("name", ["dab", "jumping_jacks", "mass_kick"])
def test_sample_bvh_files_of_other_skeletons(name):
    skeleton, local, _ = read_bvh(DATA / "bvh_samples" / f"{name}.bvh")
    assert worst_direction_error(skeleton, local[::30]) < 0.5


@needs_data
def test_walkers_walk_forwards_and_bend_their_knees():
    clip = next(c for c in load_clips(DATA, "train", ("deepmimic",)) if c.name.endswith("/walk"))
    body = anny_body("coarse")
    joints = dict(zip(body.bone_names, joint_positions(clip.pose).transpose(1, 0, 2), strict=True))
    for side in ("Left", "Right"):
        shin = joints[side + "Foot"] - joints[side + "Leg"]
        thigh = joints[side + "Leg"] - joints[side + "UpLeg"]
        bend = np.cross(thigh, shin)[:, 0]
        assert (bend > -0.01).all()  # about the axis to the left: shin goes back
        assert bend.max() > 0.03
    vertices = body.forward(torch.from_numpy(clip.pose[:1]), torch.full((1, 6), 0.5))
    assert vertices.isfinite().all()


@needs_data
def test_held_out_subjects_stay_out():
    train, test = load_poses(DATA, "train", 0.2), load_poses(DATA, "test", 0.2)
    subjects = {c.split("/")[1].split("_")[0] for c in test.clip}
    assert subjects == set(MOCAP_TEST_SUBJECTS)
    assert not subjects & {c.split("/")[1].split("_")[0] for c in train.clip if c.startswith("cmu/")}


def test_missing_data_is_one_clear_error(tmp_path):
    with pytest.raises(VqhpsError, match=r"no motion data at .*cmu_mb_30fps\.npz"):
        load_poses(tmp_path, "train")
