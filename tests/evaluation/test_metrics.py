"""Metrics and protocols against independent implementations and against what moved bodies must give."""

import numpy as np
import pytest
import roma
import torch
from scipy.spatial import ConvexHull
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from vqhps.body.joints import COCO17, H36M17, H36M17_TO_14
from vqhps.evaluation.metrics import (
    LIMBS,
    aligned_distance_mm,
    correct_keypoints,
    correlation,
    edge_ratios,
    limb_lengths,
    mean_distance_mm,
    volume_litres,
)
from vqhps.evaluation.protocols import PROTOCOLS, mesh_errors

RNG = np.random.default_rng(0)
POINTS = RNG.normal(0, 0.4, (5, 60, 3))
REGRESSOR = RNG.dirichlet(np.ones(60) / 5, 17)


def moved(points: np.ndarray) -> np.ndarray:
    """A rotated, scaled and shifted copy of each body."""
    turn = Rotation.random(len(points), rng=np.random.default_rng(1)).as_matrix()
    return 1.3 * points @ turn.transpose(0, 2, 1) + [0.5, -1.0, 4.0]


def test_ten_millimetres_are_ten_millimetres() -> None:
    shifted = POINTS + np.array([0.006, 0.0, 0.008])
    np.testing.assert_allclose(mean_distance_mm(shifted, POINTS), 10.0, atol=1e-9)
    assert mean_distance_mm(POINTS, POINTS).max() == 0


def test_a_rotated_scaled_shifted_copy_has_no_aligned_error() -> None:
    np.testing.assert_allclose(aligned_distance_mm(moved(POINTS), POINTS), 0.0, atol=1e-9)
    assert mean_distance_mm(moved(POINTS), POINTS).min() > 100


def test_a_mirror_image_cannot_be_aligned() -> None:
    assert aligned_distance_mm(POINTS * [-1, 1, 1], POINTS).min() > 50


def test_alignment_agrees_with_roma_and_scipy() -> None:
    noisy = moved(POINTS) + RNG.normal(0, 0.1, POINTS.shape)
    ours = aligned_distance_mm(noisy, POINTS)
    x, y = torch.from_numpy(noisy), torch.from_numpy(POINTS)
    rotation, translation, scale = roma.rigid_points_registration(x, y, compute_scaling=True)
    aligned = scale[:, None, None] * x @ rotation.mT + translation[:, None]
    np.testing.assert_allclose(ours, mean_distance_mm(aligned.numpy(), POINTS), rtol=1e-9)
    for sample, value in zip(range(5), ours, strict=True):
        true, fitted, _ = scipy_procrustes(POINTS[sample], noisy[sample])
        size = np.linalg.norm(POINTS[sample] - POINTS[sample].mean(0))
        np.testing.assert_allclose(value, 1000 * size * np.linalg.norm(fitted - true, axis=1).mean(), rtol=1e-9)


@pytest.mark.parametrize("name", ["authors", "standard"])
def test_protocols_do_not_see_where_the_person_stands(name: str) -> None:
    errors = mesh_errors(PROTOCOLS[name], POINTS + np.array([1.0, 2.0, 3.0]), POINTS, REGRESSOR)
    assert set(errors) == {"PVE", "PA-PVE", "MPJPE", "PA-MPJPE"}
    for metric, values in errors.items():
        np.testing.assert_allclose(values, 0, atol=1e-9, err_msg=metric)


def test_protocols_differ_in_origin_and_joints() -> None:
    predicted = POINTS + RNG.normal(0, 0.05, POINTS.shape)
    joints, true = REGRESSOR @ predicted, REGRESSOR @ POINTS
    standard = mesh_errors(PROTOCOLS["standard"], predicted, POINTS, REGRESSOR)
    keep = list(H36M17_TO_14)
    relative = (joints - joints[:, :1] - true + true[:, :1])[:, keep]
    np.testing.assert_allclose(standard["MPJPE"], 1000 * np.linalg.norm(relative, axis=2).mean(1))
    aligned = aligned_distance_mm(joints[:, keep], true[:, keep])
    np.testing.assert_allclose(standard["PA-MPJPE"], aligned)
    pelvis = predicted - joints[:, :1] - POINTS + true[:, :1]
    np.testing.assert_allclose(standard["PVE"], 1000 * np.linalg.norm(pelvis, axis=2).mean(1))
    authors = mesh_errors(PROTOCOLS["authors"], predicted, POINTS, REGRESSOR)
    centred = predicted - predicted.mean(1, keepdims=True) - POINTS + POINTS.mean(1, keepdims=True)
    np.testing.assert_allclose(authors["PVE"], 1000 * np.linalg.norm(centred, axis=2).mean(1))
    np.testing.assert_allclose(authors["PA-PVE"], standard["PA-PVE"])


def test_the_fourteen_joints_leave_out_pelvis_spine_and_nose() -> None:
    assert {H36M17[i] for i in set(range(17)) - set(H36M17_TO_14)} == {"pelvis", "spine", "nose"}
    assert len(H36M17_TO_14) == 14
    assert H36M17[0] == "pelvis"


def test_each_sample_counts_alone() -> None:
    predicted = POINTS + RNG.normal(0, 0.05, POINTS.shape)
    together = mesh_errors(PROTOCOLS["standard"], predicted, POINTS, REGRESSOR)
    for i in range(len(POINTS)):
        alone = mesh_errors(PROTOCOLS["standard"], predicted[i : i + 1], POINTS[i : i + 1], REGRESSOR)
        for metric, values in alone.items():
            np.testing.assert_allclose(values[0], together[metric][i], rtol=1e-9)


def test_correct_keypoints_counts_labelled_ones_within_reach() -> None:
    true = np.zeros((1, 4, 2))
    predicted = np.array([[[0.0, 9.0], [10.0, 0.0], [0.0, 11.0], [0.0, 0.0]]])
    labelled = np.array([[True, True, True, False]])
    correct, count = correct_keypoints(predicted, true, labelled, np.array([100.0]), 0.1)
    assert correct.tolist() == [2.0] and count.tolist() == [3.0]


def test_a_torn_and_a_reversed_mesh_stand_out() -> None:
    """A cube of 100 mm: its edges and diagonals, its litre; scaled, torn at a corner, inside out."""
    corners = np.array([[x, y, z] for x in (0, 0.1) for y in (0, 0.1) for z in (0, 0.1)])
    faces = ConvexHull(corners).simplices
    outward = np.einsum("fi,fi->f", np.cross(*(corners[faces[:, i]] - corners[faces[:, 0]] for i in (1, 2))),
                        corners[faces].mean(1) - 0.05) > 0  # fmt: skip
    faces = np.where(outward[:, None], faces, faces[:, ::-1])
    torn = corners.copy()
    torn[7] = 0.9
    meshes = np.stack([corners, 1.5 * corners, torn])
    assert volume_litres(meshes, faces)[:2] == pytest.approx([1.0, 1.5**3])
    assert volume_litres(meshes[:, :, ::-1], faces)[0] == pytest.approx(-1.0)  # axes swapped: a mirror
    ratios = edge_ratios(meshes, corners, faces)
    np.testing.assert_allclose(ratios[:2], [[1, 1], [1.5, 1.5]])
    assert ratios[2, 1] > 8 and ratios[2, 0] == pytest.approx(1)


def test_limbs_are_measured_on_both_sides() -> None:
    joints = np.zeros((2, 17, 3))
    joints[:, COCO17.index("left_elbow"), 1] = 0.3  # from the shoulder at the origin, and to the wrist there
    joints[1, COCO17.index("right_ankle")] = [0.3, 0.4, 0.0]
    assert dict(zip(LIMBS, limb_lengths(joints)[0], strict=True)) == {
        "upper arm": pytest.approx(0.15), "forearm": pytest.approx(0.15), "thigh": 0, "shin": 0,
    }  # fmt: skip
    assert limb_lengths(joints)[1, LIMBS.index("shin")] == pytest.approx(0.25)


def test_correlation() -> None:
    a, noise = RNG.normal(50, 10, 400), RNG.normal(0, 10, 400)
    assert correlation(a, a + noise) == pytest.approx(np.corrcoef(a, a + noise)[0, 1])
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(np.full(400, 50.1), a) == 0  # a model that always gives one body
