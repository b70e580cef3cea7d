"""The default body: frames, joints, shapes."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vqhps.body.anny import _TO_BODY_AXES, anny_body
from vqhps.body.joints import COCO17, H36M17
from vqhps.body.topology import random_pose, upsampler, upsampling_matrix
from vqhps.data.bodies import mirrored


@pytest.fixture(scope="module")
def body():
    return anny_body("coarse")


def test_meshes_are_the_registered_ones():
    full = anny_body("full")
    assert full.template.shape == (13718, 3)
    assert full.faces.max() == 13717
    assert anny_body("coarse").template.shape == (1229, 3)


def test_body_axes_are_left_up_front(body):
    joints = dict(zip(COCO17, body.joint_regressors["coco17"] @ body.template, strict=True))
    assert joints["left_wrist"][0] > 0.3 > -0.3 > joints["right_wrist"][0]
    assert joints["nose"][1] > joints["left_hip"][1] > joints["left_ankle"][1]
    assert joints["nose"][2] > joints["left_ear"][2]
    assert np.abs(body.rest_joints[0]).max() < 1e-6


def test_parts_share_out_the_body(body):
    assert (np.sum(list(body.parts.values()), axis=0) == 1).all()
    height = {part: body.template[mask, 1] for part, mask in body.parts.items()}
    out = {part: np.abs(body.template[mask, 0]) for part, mask in body.parts.items()}
    assert height["head"].min() > height["legs"].max() > height["feet"].max() - 0.05
    assert out["hands"].min() > out["torso"].max() and height["feet"].max() < height["torso"].min()


def test_rest_pose_gives_the_template(body):
    pose = torch.eye(3).expand(2, 31, 3, 3)
    vertices = body.forward(pose, torch.full((2, 6), 0.5)).numpy()
    np.testing.assert_allclose(vertices[1], body.template, atol=1e-5)


def test_forward_equals_linear_blend_skinning_written_out(body):
    """Independent forward kinematics and skinning in numpy."""
    rng = np.random.default_rng(1)
    pose = random_pose(1, 31, rng)
    shape = torch.from_numpy(body.sample_shape(1, rng))
    rest, heads = (x[0].numpy() for x in body.rest(shape))
    turns = [pose[0, 0].numpy()]
    places = [heads[0]]
    for bone, parent in enumerate(body.bone_parents[1:], start=1):
        places.append(places[parent] + turns[parent] @ (heads[bone] - heads[parent]))
        turns.append(turns[parent] @ pose[0, bone].numpy())
    weights, index = body.model.vertex_bone_weights.numpy(), body.model.vertex_bone_indices.numpy()
    expected = np.zeros_like(rest)
    for slot in range(weights.shape[1]):
        for v in range(len(rest)):
            b = index[v, slot]
            expected[v] += weights[v, slot] * (turns[b] @ (rest[v] - heads[b]) + places[b])
    np.testing.assert_allclose(body.forward(pose, shape)[0].numpy(), expected, atol=2e-5)


def test_root_rotation_turns_the_whole_body(body):
    turn = torch.from_numpy(Rotation.from_euler("xyz", [0.3, 1.0, -0.4]).as_matrix().astype(np.float32))
    pose = random_pose(1, 31, np.random.default_rng(2))
    shape = torch.full((1, 6), 0.5)
    still = body.forward(pose, shape)
    pose[:, 0] = turn
    np.testing.assert_allclose(body.forward(pose, shape).numpy(), (still @ turn.T).numpy(), atol=1e-5)


def test_regressors_are_affine_and_agree_between_meshes(body):
    full = anny_body("full")
    rng = np.random.default_rng(3)
    pose, shape = random_pose(4, 31, rng), torch.from_numpy(full.sample_shape(4, rng))
    for name, rows in (("coco17", 17), ("h36m17", len(H36M17))):
        regressor = full.joint_regressors[name]
        assert regressor.shape == (rows, 13718)
        np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-5)
        fine = regressor @ full.forward(pose, shape).numpy()
        coarse = body.joint_regressors[name] @ body.forward(pose, shape).numpy()
        assert np.linalg.norm(fine - coarse, axis=-1).max() < 0.003


@pytest.mark.parametrize(("target", "source", "mm"), [("full", "coarse", 0.6), ("coarse", "full", 0.2)])
def test_blend_of_the_other_mesh_is_exact_to_a_fraction_of_a_millimetre(target, source, mm):
    body, full = anny_body(source), anny_body(target)
    indices, weights = upsampler(full, body)
    rng = np.random.default_rng(9)
    pose, shape = random_pose(16, 31, rng), torch.from_numpy(full.sample_shape(16, rng))
    matrix = upsampling_matrix(indices, weights, len(body.template))
    coarse = body.forward(pose, shape).numpy()
    error = np.linalg.norm(np.stack([matrix @ c for c in coarse]) - full.forward(pose, shape).numpy(), axis=-1)
    assert 1000 * error.mean() < mm
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)


def test_shapes_are_adults_unless_asked(body):
    rng = np.random.default_rng(0)
    heights = [
        np.ptp(body.rest(torch.from_numpy(body.sample_shape(100, rng, children)))[0].numpy()[..., 1], axis=1)
        for children in (False, True)
    ]
    assert heights[0].min() > 1.35 and heights[0].max() < 2.1
    assert 1.6 < heights[0].mean() < 1.78
    assert heights[1].min() < 1.1


def test_shape_sampling_is_reproducible_and_leaves_torch_alone(body):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = body.sample_shape(3, np.random.default_rng(7))
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, body.sample_shape(3, np.random.default_rng(7)))


def test_mirrored_pose_gives_the_mirrored_body(body):
    pose = random_pose(3, 31, np.random.default_rng(4), 0.2)
    shape = torch.full((3, 6), 0.5)
    joints = body.joint_regressors["coco17"]
    here = joints @ body.forward(pose, shape).numpy()
    there = joints @ body.forward(torch.from_numpy(mirrored(pose.numpy(), body)), shape).numpy()
    swap = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    np.testing.assert_allclose(there[:, swap] * [-1, 1, 1], here, atol=0.004)


def test_posing_is_that_of_anny_itself_and_has_gradients() -> None:
    body = anny_body("coarse")
    rng = np.random.default_rng(5)
    pose, shape = random_pose(4, 31, rng), torch.from_numpy(body.sample_shape(4, rng))
    transforms = torch.eye(4).expand(4, 31, 4, 4).clone()
    transforms[..., :3, :3] = _TO_BODY_AXES.T @ pose @ _TO_BODY_AXES
    expected = body.model(transforms, shape)["vertices"] @ _TO_BODY_AXES.T
    torch.testing.assert_close(body.forward(pose, shape), expected, atol=2e-6, rtol=0)

    direction = torch.from_numpy(rng.normal(size=shape.shape).astype(np.float32))
    inner = shape.clamp(0.2, 0.45).requires_grad_()
    of_pose = pose.clone().requires_grad_()
    height = body.forward(of_pose, inner)[..., 1].amax()
    of_turn, of_shape = torch.autograd.grad(height, (of_pose, inner))
    step = 1e-2
    ends = [body.forward(pose, inner.detach() + s * step * direction)[..., 1].amax() for s in (-1, 1)]
    torch.testing.assert_close((of_shape * direction).sum(), (ends[1] - ends[0]) / (2 * step), rtol=0.05, atol=1e-3)
    assert of_turn.abs().max() > 0
