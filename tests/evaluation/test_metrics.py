"""Metrics and protocols against independent implementations and against what moved bodies must give."""

import json
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from PIL import Image
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from vqhps.body.joints import H36M17, H36M17_TO_14
from vqhps.errors import VqhpsError
from vqhps.evaluation.metrics import aligned_distance_mm, correct_keypoints, mean_distance_mm
from vqhps.evaluation.protocols import PROTOCOLS, mesh_errors
from vqhps.evaluation.run import Bodies, evaluate_coco, labelled_people
from vqhps.geometry import crop_from_box, crop_to_full

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


def coco_file(folder: Path, annotations: list[dict[str, object]]) -> Path:
    images = [{"id": 7, "file_name": "somewhere/photo.jpg"}]
    (folder / "person_keypoints_free.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def test_coco_annotations_are_read_with_pixel_centres_at_a_half(tmp_path: Path) -> None:
    labelled = {"id": 1, "image_id": 7, "bbox": [10, 20, 30, 40], "keypoints": [5, 6, 2] + [0, 0, 0] * 16}
    crowd = {**labelled, "id": 2, "iscrowd": 1}
    unlabelled = {**labelled, "id": 3, "keypoints": [0] * 51}
    (person,) = labelled_people(coco_file(tmp_path, [labelled, crowd, unlabelled]))
    assert person.box.tolist() == [10, 20, 40, 60]
    assert person.keypoints[0].tolist() == [5.5, 6.5]
    assert person.labelled.tolist() == [True] + [False] * 16
    assert person.photo == tmp_path / "images" / "photo.jpg"


def test_bad_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(VqhpsError, match="cannot read"):
        labelled_people(tmp_path)
    with pytest.raises(VqhpsError, match="not a COCO key point file"):
        labelled_people(
            coco_file(tmp_path, [{"id": 1, "image_id": 8, "bbox": [0, 0, 1, 1], "keypoints": [1, 1, 2] * 17}])
        )


def test_perfect_key_points_score_one_and_shifted_ones_do_not(tmp_path):
    """From crop coordinates to the photo and back, through files: a model that knows the answer scores 1."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((120, 200, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    answer = RNG.uniform(-0.7, 0.7, (17, 2))
    box = np.array([30.0, 20.0, 110.0, 100.0])
    pixels = crop_to_full(answer[None], *crop_from_box(box[None]))[0] - 0.5
    flat = np.concatenate([pixels, np.full((17, 1), 2)], 1).ravel().tolist()
    person = {"id": 1, "image_id": 1, "bbox": [30, 20, 80, 80], "keypoints": flat}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [person]}
    (tmp_path / "person_keypoints_free.json").write_text(json.dumps(content))

    def model(shift: float):
        def run(crops):
            assert crops.shape == (1, 64, 64, 3)
            joints = np.concatenate([answer + shift, np.zeros((17, 1))], 1)[None]
            return Bodies(np.zeros((1, 4, 3)), joints, np.array([[1.0, 0.0, 0.0]]))

        return run

    perfect = evaluate_coco(model(0.0), 64, tmp_path, tmp_path / "out")
    assert perfect["PCK@0.05"] == 1 and perfect["persons"] == 1
    assert (tmp_path / "out" / "results.csv").read_text().startswith("sample,")
    # 0.4 of half a crop of 100 px along both axes are 28 px; the diagonal of the box is 113 px.
    shifted = evaluate_coco(model(0.4), 64, tmp_path)
    assert shifted["PCK@0.2"] == 0
    assert evaluate_coco(model(0.2), 64, tmp_path)["PCK@0.2"] == 1
    assert evaluate_coco(model(0.2), 64, tmp_path)["PCK@0.1"] == 0
