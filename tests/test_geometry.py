"""Every formula against an independent implementation (scipy, roma, or written out), in numpy and in torch."""

import math

import numpy as np
import pytest
import roma
import torch
from scipy.spatial.transform import Rotation

from vqhps import geometry

RNG = np.random.default_rng(0)
MATRICES = Rotation.random(20, random_state=0).as_matrix()


def both(function, *arrays):
    """The result in numpy, after checking that torch gives the same."""
    expected = function(*arrays)
    found = function(*(torch.from_numpy(np.asarray(a)) for a in arrays))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    return expected


def cameras(count: int = 12) -> tuple[np.ndarray, ...]:
    """Random crop cameras in a photo of 1280 x 853: camera, center, size, focal, principal."""
    camera = np.stack([RNG.uniform(0.4, 1.5, count), *RNG.uniform(-0.3, 0.3, (2, count))], 1)
    center = RNG.uniform([0, 0], [1280, 853], (count, 2))
    size, focal = RNG.uniform(80, 900, count), RNG.uniform(700, 2500, count)
    return camera, center, size, focal, np.tile([640.0, 426.5], (count, 1))


def test_6d_is_the_first_two_rows():
    matrix = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(both(geometry.matrix_to_6d, matrix), [0, -1, 0, 1, 0, 0])
    np.testing.assert_allclose(both(geometry.matrix_from_6d, np.array([0.0, -1, 0, 1, 0, 0])), matrix, atol=1e-12)


def test_6d_round_trip():
    np.testing.assert_allclose(
        both(geometry.matrix_from_6d, both(geometry.matrix_to_6d, MATRICES)), MATRICES, atol=1e-12
    )


def test_6d_of_any_numbers_is_roma_transposed():
    numbers = RNG.normal(0, 3, (50, 6))
    # roma orthonormalises columns (Gram-Schmidt), this package rows
    columns = torch.from_numpy(numbers).reshape(50, 2, 3).transpose(1, 2)
    expected = roma.special_gramschmidt(columns).transpose(1, 2).numpy()
    found = both(geometry.matrix_from_6d, numbers)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-10)


def test_quaternion_against_scipy():
    quaternion = Rotation.from_matrix(MATRICES).as_quat()[:, [3, 0, 1, 2]] * RNG.uniform(-3, 3, (20, 1))
    np.testing.assert_allclose(both(geometry.matrix_from_quaternion, quaternion), MATRICES, atol=1e-12)


def test_quaternion_of_matrices_against_scipy():
    """Half turns about each axis and no turn as well, where one of the four is all there is."""
    matrices = np.concatenate(
        [MATRICES, np.eye(3)[None], [np.diag(d) for d in ([1, -1, -1.0], [-1, 1, -1], [-1, -1, 1])]]
    )
    expected = Rotation.from_matrix(matrices).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    np.testing.assert_allclose(both(geometry.quaternion_from_matrix, matrices), expected, atol=1e-12)


def test_rotation_vector_against_scipy():
    vectors = np.concatenate([RNG.normal(0, 2, (20, 3)), RNG.normal(0, 1e-9, (3, 3)), np.zeros((1, 3))])
    expected = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(both(geometry.matrix_from_vector, vectors), expected, atol=1e-12)


def test_rotate_against_scipy():
    points = RNG.normal(size=(20, 7, 3))
    expected = np.stack([Rotation.from_matrix(m).apply(p) for m, p in zip(MATRICES, points, strict=True)])
    np.testing.assert_allclose(both(geometry.rotate, MATRICES, points), expected, atol=1e-12)


def test_project_weak_perspective_written_out():
    points, camera = RNG.normal(size=(4, 5, 3)), RNG.normal(size=(4, 3))
    found = both(geometry.project, points, camera)
    for b in range(4):
        s, tx, ty = camera[b]
        np.testing.assert_allclose(found[b], [[s * (x + tx), s * (y + ty)] for x, y, _ in points[b]])


def test_project_perspective_against_the_matrix_product():
    points = RNG.normal(size=(4, 5, 3)) + [0, 0, 6]
    intrinsics = np.zeros((4, 3, 3))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = 900, 1000, 1
    intrinsics[:, :2, 2] = RNG.uniform(100, 500, (4, 2))
    homogeneous = points @ intrinsics.transpose(0, 2, 1)
    expected = homogeneous[..., :2] / homogeneous[..., 2:]
    np.testing.assert_allclose(both(geometry.project_perspective, points, intrinsics), expected)


def test_crop_from_box():
    center, size = geometry.crop_from_box(np.array([[10.0, 20.0, 50.0, 140.0], [0.0, 0.0, 80.0, 8.0]]))
    np.testing.assert_allclose(center, [[30, 80], [40, 4]])
    np.testing.assert_allclose(size, [150, 100])


def test_crop_round_trip_and_corners():
    _, center, size, _, _ = cameras()
    points = RNG.uniform(0, 1280, (12, 30, 2))
    crop = both(geometry.full_to_crop, points, center, size)
    np.testing.assert_allclose(both(geometry.crop_to_full, crop, center, size), points, atol=1e-4)
    single = [a.astype(np.float32) for a in (points, center, size)]
    back = geometry.crop_to_full(geometry.full_to_crop(*single), *single[1:])
    np.testing.assert_allclose(back, points, atol=1e-3)
    corner = (center - size[:, None] / 2)[:, None]
    np.testing.assert_allclose(geometry.full_to_crop(corner, center, size), -1, atol=1e-9)


def test_default_focal_has_the_stated_field_of_view():
    focal = geometry.default_focal(1600, 1200)
    assert math.degrees(2 * math.atan(1000 / focal)) == pytest.approx(geometry.DEFAULT_FOV_DEG)


def test_ray_rotation_is_the_smallest_turn_to_the_ray():
    _, center, _, focal, principal = cameras()
    turn = both(geometry.ray_rotation, center, focal, principal)
    ray = np.concatenate([(center - principal) / focal[:, None], np.ones((12, 1))], 1)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    np.testing.assert_allclose(turn[:, :, 2], ray, atol=1e-12)
    found = Rotation.from_matrix(turn)
    np.testing.assert_allclose(found.as_matrix(), turn, atol=1e-9)
    np.testing.assert_allclose(found.magnitude(), np.arccos(ray[:, 2]), atol=1e-6)


def test_full_translation_reprojects_where_the_crop_shows_it():
    camera, center, size, focal, principal = cameras()
    origin = both(geometry.full_translation, camera, center, size, focal, principal)
    turn = geometry.ray_rotation(center, focal, principal)
    # a camera that looks at the centre of the crop, in whose axes the body was predicted
    inside = np.einsum("bji,bj->bi", turn, origin)
    np.testing.assert_allclose(inside[:, :2], camera[:, 1:], atol=1e-9)
    away = np.hypot(focal, np.linalg.norm(center - principal, axis=1))
    np.testing.assert_allclose(away / inside[:, 2], camera[:, 0] * size / 2, rtol=1e-9)


def test_crop_camera_undoes_full_translation():
    camera, *crop = cameras()
    found = both(geometry.crop_camera, geometry.full_translation(camera, *crop), *crop)
    np.testing.assert_allclose(found, camera, rtol=1e-9, atol=1e-9)


def test_full_translation_agrees_with_weak_perspective_in_the_photo():
    """A small body far away: perspective in the photo and weak perspective in the crop give the same pixels."""
    _, _, _, focal, principal = cameras()
    camera = np.tile([0.9, 0.02, -0.03], (12, 1))
    center = principal + RNG.uniform(-60, 60, (12, 2))
    size = np.full(12, 60.0)
    body = RNG.uniform(-0.3, 0.3, (12, 20, 3))
    weak = geometry.crop_to_full(geometry.project(body, camera), center, size)
    turn = geometry.ray_rotation(center, focal, principal)
    origin = geometry.full_translation(camera, center, size, focal, principal)
    intrinsics = np.zeros((12, 3, 3))
    intrinsics[:, [0, 1], [0, 1]], intrinsics[:, :2, 2], intrinsics[:, 2, 2] = focal[:, None], principal, 1
    full = geometry.project_perspective(geometry.rotate(turn, body) + origin[:, None], intrinsics)
    assert np.abs(full - weak).max() < 0.02 * 60


def test_procrustes_undoes_a_similarity():
    source = RNG.normal(size=(20, 9, 3))
    target = 1.7 * source @ MATRICES.transpose(0, 2, 1) + RNG.normal(size=(20, 1, 3))
    np.testing.assert_allclose(both(geometry.procrustes, source, target), target, atol=1e-9)


def test_procrustes_against_roma():
    source, target = RNG.normal(size=(6, 9, 3)), RNG.normal(size=(6, 9, 3))
    rotation, shift, scale = roma.rigid_points_registration(
        torch.from_numpy(source), torch.from_numpy(target), compute_scaling=True
    )
    expected = scale[:, None, None] * torch.from_numpy(source) @ rotation.transpose(1, 2) + shift[:, None]
    np.testing.assert_allclose(both(geometry.procrustes, source, target), expected.numpy(), atol=1e-9)


def test_procrustes_never_mirrors():
    source = RNG.normal(size=(8, 9, 3))
    mirrored = source * [-1, 1, 1]
    aligned = geometry.procrustes(source, mirrored)
    assert np.linalg.norm(aligned - mirrored, axis=-1).mean() > 0.1
    for a, s in zip(aligned, source, strict=True):
        linear, *_ = np.linalg.lstsq(s - s.mean(0), a - a.mean(0), rcond=None)
        assert np.linalg.det(linear) > 0


def test_fit_rotation_against_roma():
    rng = np.random.default_rng(3)
    source, target, weight = rng.normal(size=(4, 30, 3)), rng.normal(size=(4, 30, 3)), rng.random(30)
    found = geometry.fit_rotation(source, target, weight)
    weights = torch.from_numpy(weight).expand(4, -1)
    expected, _ = roma.rigid_points_registration(torch.from_numpy(source), torch.from_numpy(target), weights)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(found), 1)


def test_fit_rotation_follows_the_points_that_weigh():
    rng = np.random.default_rng(4)
    turn = Rotation.random(2, rng=rng).as_matrix()
    source = rng.normal(size=(1, 30, 3))
    target = source @ turn.transpose(0, 2, 1) + [1.0, 2.0, 3.0]
    target[:, 10:] = rng.normal(size=(2, 20, 3))
    np.testing.assert_allclose(geometry.fit_rotation(source, target, np.arange(30) < 10), turn, atol=1e-9)
