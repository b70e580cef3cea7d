"""PCK on photos with labelled key points: the files, the figures, the pictures of the worst persons."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from tiny_bundle import write_bundle
from vqhps.body.joints import COCO17
from vqhps.errors import VqhpsError
from vqhps.evaluation.blazepose import KEYPOINT_NAMES, PoseLandmarkModel
from vqhps.evaluation.card import record_metrics
from vqhps.evaluation.coco import draw_worst, evaluate_coco, labelled_people
from vqhps.evaluation.run import Bodies, bundle_model
from vqhps.geometry import crop_from_box, crop_to_full
from vqhps.runtime.bundle import Bundle

RNG = np.random.default_rng(0)


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
        def run(crops, places):
            assert crops.shape == (1, 64, 64, 3) and places.shape == (1, 3)
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


def test_beside_blazepose_and_with_pictures_of_the_worst(tmp_path: Path) -> None:
    """scikit-image's astronaut, labelled with what BlazePose itself finds: its PCK is 1, the capsule's is not."""
    (tmp_path / "images").mkdir()
    photo = data.astronaut()
    Image.fromarray(photo).save(tmp_path / "images" / "a.png")
    landmarks = PoseLandmarkModel()
    keypoints = landmarks.in_box(photo, np.array([60.0, 0.0, 400.0, 512.0])).keypoints
    labels = {name: [*(keypoints[KEYPOINT_NAMES.index(name)] - 0.5), 2] for name in COCO17}
    labels["left_ankle"] = [0, 0, 0]
    person = {"id": 5, "image_id": 1, "bbox": [60, 0, 340, 512], "keypoints": np.ravel(list(labels.values())).tolist()}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [person]}
    (tmp_path / "person_keypoints_free.json").write_text(json.dumps(content))
    bundle = Bundle.load(write_bundle(tmp_path / "bundle"))
    summary = evaluate_coco(bundle_model(bundle), 32, tmp_path, tmp_path / "out", beside=landmarks)
    assert summary["blazepose PCK@0.05"] == 1 and summary["PCK@0.05"] < 1
    assert summary["joints"]["nose"]["blazepose PCK@0.1"] == 1 and summary["joints"]["nose"]["labelled"] == 1
    assert summary["joints"]["left_ankle"]["labelled"] == 0 and np.isnan(summary["joints"]["left_ankle"]["PCK@0.1"])
    shares = [row["PCK@0.1"] for name, row in summary["joints"].items() if name != "left_ankle"]
    assert np.mean(shares) == pytest.approx(summary["PCK@0.1"])
    record_metrics(tmp_path / "bundle", "coco-free", {"PCK@0.1": 0.5})
    record_metrics(tmp_path / "bundle", "synthetic-test", {"authors PA-MPJPE": 77.124, "interval_95": {}, "bounds": {}})
    record_metrics(tmp_path / "bundle", "coco-free", summary)
    kept = {(m.data, m.protocol, m.name): (m.value, m.unit) for m in Bundle.load(tmp_path / "bundle").info.metrics}
    assert kept.pop(("synthetic-test", "authors", "PA-MPJPE")) == (77.12, "mm")
    assert {name for *_, name in kept} == {"PCK@0.05", "PCK@0.1", "PCK@0.2"} and len(kept) == 3
    assert kept["coco-free", "boxes given, of the diagonal of the box", "PCK@0.1"] == (
        round(summary["PCK@0.1"], 4),
        "share",
    )
    (picture,) = draw_worst(bundle, tmp_path, tmp_path / "out", tmp_path / "worst")
    assert picture.name == "worst-01-a-5.png"
    drawn = cv2.imread(str(picture))[..., ::-1].astype(int)
    assert drawn.shape == (480, 960, 3)
    x, y = (keypoints[0] - (230, 256)) * 480 / 768 + 240  # the nose, where a green ring must lie
    ring = drawn[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7]
    assert ((ring[..., 1] > 240) & (ring[..., 0] < 30)).sum() > 8
    assert np.abs(drawn[:, :480] - drawn[:, 480:]).mean() > 2  # a mesh is drawn on the right half
