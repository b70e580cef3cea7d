"""Person detector: the real model on a real photo, suppression, boxes files, the model cache, evaluation."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vqhps.errors import VqhpsError
from vqhps.evaluation.detector import evaluate_detector
from vqhps.runtime import download
from vqhps.runtime.detect import BoxDetector, PersonDetector, _apart, box_iou, nms, read_boxes
from vqhps.runtime.nanodet import BINS, NanoDet, decode

COCO_FREE = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos" / "coco_free"
HER_BOX = [10, 5, 360, 512]  # drawn by hand


@pytest.fixture(scope="module")
def detector() -> PersonDetector:
    return PersonDetector()


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    from skimage.data import astronaut as load

    return load()


def within(image: np.ndarray, scale: float, corner: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """A grey photo of 1280 x 720 px with a smaller one in it, and her box there."""
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    photo = np.full((720, 1280, 3), 128, np.uint8)
    x, y = corner
    photo[y : y + small.shape[0], x : x + small.shape[1]] = small
    return photo, np.array(HER_BOX) * scale + [x, y, x, y]


def test_astronaut_is_one_person_where_she_is(detector: PersonDetector, astronaut: np.ndarray) -> None:
    found, *others = detector(astronaut)
    assert all(person.score < found.score and np.ptp(person.box[1::2]) < 64 for person in others)
    assert 0.5 < found.score < 1
    assert box_iou(found.box, HER_BOX)[0, 0] > 0.9
    assert (found.box >= 0).all() and (found.box <= 512).all()


@pytest.mark.parametrize(("scale", "corner"), [(0.25, (900, 500)), (1.0, (300, 100)), (1.4, (200, 0))])
def test_she_is_found_in_any_size_and_place(
    detector: PersonDetector, astronaut: np.ndarray, scale: float, corner: tuple[int, int]
) -> None:
    photo, box = within(astronaut, scale, corner)
    assert box_iou(detector(photo)[0].box, box)[0, 0] > 0.7


def test_two_people_are_found_and_never_twice(detector: PersonDetector, astronaut: np.ndarray) -> None:
    pair = detector(np.concatenate([astronaut[:, :400], astronaut[:, :400]], axis=1))
    assert sorted(int(person.box[[0, 2]].mean() // 400) for person in pair) == [0, 1]
    assert len(PersonDetector(max_people=1)(np.concatenate([astronaut[:, :400]] * 2, axis=1))) == 1


def test_blank_and_tiny_images_have_nobody_and_wrong_ones_are_named(detector: PersonDetector) -> None:
    assert detector(np.full((480, 640, 3), 127, np.uint8)) == []
    assert detector(np.zeros((3, 2, 3), np.uint8)) == []
    with pytest.raises(VqhpsError, match=r"\(H, W, 3\) uint8 RGB, found shape \(4, 4\) float64"):
        detector(np.zeros((4, 4)))


def test_a_closer_look_follows_whom_it_is_told_of(detector: PersonDetector, astronaut: np.ndarray) -> None:
    photo, box = within(astronaut, 0.25, (900, 500))
    found = detector.follow(photo, box + 8)
    assert found is not None and box_iou(found.box, box)[0, 0] > 0.7
    assert detector.follow(photo, box - [400, 200, 400, 200]) is None  # nobody there
    assert detector.follow(photo, np.array([2000.0, 0, 2100, 200])) is None  # outside
    assert detector.follow(photo, box - [70, 0, 70, 0]) is None  # she is beside it


def test_no_closer_look_at_a_part_of_somebody_sure(
    detector: PersonDetector, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, model = [], detector._model

    def look(images: np.ndarray, threshold: float) -> list[tuple[np.ndarray, np.ndarray]]:
        looks.append(images.shape)
        return model(images, threshold)

    monkeypatch.setattr(detector, "_model", look)
    photo = cv2.resize(astronaut, (1280, 1280), interpolation=cv2.INTER_CUBIC)[:, 213:1066]
    assert len(detector(photo)) == 1
    assert looks == [(1, 640, 416, 3), (1, 384, 256, 3)]  # one sure box with two unsure ones in it
    boxes, scores = np.array([[0, 0, 10, 10], [2, 2, 8, 8], [5, 0, 15, 10.0]]), np.array([0.7, 0.5, 0.5])
    assert _apart(boxes, scores).tolist() == [True, False, True]
    assert _apart(boxes, scores - 0.2).tolist() == [True, True, True]  # nobody sure


def test_a_large_photo_is_shrunk_once(
    detector: PersonDetector, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, box = within(astronaut, 1.4)
    sizes, resize = [], cv2.resize

    def shrink(image: np.ndarray, *rest: Any, **more: Any) -> np.ndarray:
        sizes.append(image.shape[:2])
        return resize(image, *rest, **more)

    monkeypatch.setattr(cv2, "resize", shrink)
    found = detector(photo)
    assert sizes[:2] == [(720, 1280), (352, 640)]  # the second look is made of the first
    assert box_iou(found[0].box, box)[0, 0] > 0.9


def test_impossible_settings_and_a_missing_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(VqhpsError, match=r"score_threshold 0\.0"):
        PersonDetector(score_threshold=0.0)
    with pytest.raises(VqhpsError, match=r"nowhere\.onnx cannot be loaded"):
        NanoDet(1, tmp_path / "nowhere.onnx")


def test_a_cell_says_how_far_its_box_reaches() -> None:
    cells = np.full((1 + 4 * BINS, 3, 4), -9.0, np.float32)
    cells[0, 1, 2] = 0.0  # a score of one half
    for side, reach in enumerate((1, 2, 3, 10)):
        cells[1 + side * BINS + reach, 1, 2] = 30
    cells[1 + 2, 1, 2] = 30  # left: halfway between 1 and 2
    boxes, scores = decode(cells, 16, 0.4)
    np.testing.assert_allclose(boxes, [[40 - 24, 24 - 32, 40 + 48, 24 + 160]])
    np.testing.assert_allclose(scores, [0.5])
    assert len(decode(cells, 16, 0.6)[0]) == 0


def test_iou_and_suppression() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 5]], float)
    overlap = box_iou(boxes, boxes)
    assert overlap[0, 1] == pytest.approx(9 / 11)
    assert overlap[0, 3] == pytest.approx(0.5)
    assert overlap[0, 2] == 0
    scores = np.array([0.8, 0.9, 0.3, 0.7])
    assert nms(boxes, scores, 0.6) == [1, 3, 2]
    assert nms(boxes, scores, 0.3) == [1, 2]
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5) == []
    part = np.array([[0, 0, 40, 100], [5, 0, 35, 30], [30, 0, 60, 90]], float)  # a head, and somebody beside
    assert nms(part, np.array([0.9, 0.8, 0.7]), 0.5) == [0, 1, 2]
    assert nms(part, np.array([0.9, 0.8, 0.7]), 0.5, 0.8) == [0, 2]
    assert nms(part, np.array([0.7, 0.9, 0.8]), 0.5, 0.8) == [1, 2, 0]  # the larger one is no part
    assert box_iou([0, 0, 0, 0], [0, 0, 0, 0])[0, 0] == 0


def test_boxes_file(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"a.jpg": [[1, 2, 30, 40]], "b.jpg": []}))
    boxes = read_boxes(path)
    np.testing.assert_array_equal(boxes["a.jpg"], [[1, 2, 30, 40]])
    assert boxes["b.jpg"].shape == (0, 4)
    people = BoxDetector(boxes["a.jpg"])(np.zeros((50, 50, 3), np.uint8))
    assert [(person.box.tolist(), person.score) for person in people] == [([1, 2, 30, 40], 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[[1, 2, 3, 4]]", "found a list"),
        ('{"a.jpg": [1, 2, 3, 4]}', "entry 'a.jpg': expected a list of"),
        ('{"a.jpg": [[1, 2, 3]]}', "entry 'a.jpg': expected a list of"),
        ('{"a.jpg": [["x", 2, 3, 4]]}', "entry 'a.jpg': expected a list of"),
        ('{"a.jpg": null}', "entry 'a.jpg': expected a list of"),
        ('{"a.jpg": [[30, 2, 10, 4]]}', "x0 < x1"),
        ('{"a.jpg": [[0, 0, NaN, 4]]}', "x0 < x1"),
    ],
)
def test_malformed_boxes_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(VqhpsError, match=message) as error:
        read_boxes(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_boxes_file(tmp_path: Path) -> None:
    with pytest.raises(VqhpsError, match=r"nowhere\.json cannot be read"):
        read_boxes(tmp_path / "nowhere.json")


def test_cached_model_with_another_hash_is_refused(tmp_path: Path) -> None:
    for member in (download.POSE_DETECTION, download.POSE_LANDMARK):
        (tmp_path / member.name).write_bytes(b"not a model")
    with pytest.raises(download.DownloadError, match="SHA-256") as error:
        download.blazepose_models(tmp_path)
    assert "pose_detection.tflite" in str(error.value)


def test_wheel_with_another_file_inside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "mediapipe.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(download.POSE_DETECTION.path, b"something else")
    monkeypatch.setattr(download, "_pip_download", lambda *_: wheel)
    with pytest.raises(download.DownloadError, match="SHA-256"):
        download.blazepose_models(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def test_no_network_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(download.DownloadError, match="vqhps download blazepose") as error:
        download.blazepose_models(tmp_path)
    assert "\n" not in str(error.value)


def test_import_is_light_and_loading_is_silent() -> None:
    code = (
        "import sys, vqhps.runtime.detect as d; "
        "assert not {'torch', 'onnxruntime', 'jaxtyping'} & set(sys.modules), sorted(sys.modules); "
        "d.PersonDetector(); assert 'ai_edge_litert' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_evaluation_counts_by_hand(tmp_path: Path) -> None:
    from PIL import Image

    for folder, name in (("images", "a.jpg"), ("background", "b.jpg")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (400, 300)).save(tmp_path / folder / name)
    boxes = [([10, 10, 100, 200], 0), ([200, 10, 20, 20], 0), ([0, 220, 400, 80], 1)]  # x y width height, crowd
    annotations = [{"image_id": 1, "bbox": box, "iscrowd": crowd} for box, crowd in boxes]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    (tmp_path / "person_keypoints_free.json").write_text(json.dumps(content))
    given = BoxDetector([[12, 10, 110, 210], [300, 50, 350, 150], [50, 230, 80, 290]])  # hit, false alarm, in the crowd
    result = evaluate_detector(given, tmp_path)
    assert (result["boxes"], result["detections"]) == (3, 2)
    assert result["recall"] == pytest.approx(1 / 3)
    assert result["precision"] == pytest.approx(1 / 2)
    assert (result["boxes_small"], result["boxes_medium"], result["boxes_large"]) == (1, 0, 2)
    assert result["recall_large"] == pytest.approx(1 / 2)
    assert result["mean_iou"] == pytest.approx(0.98)
    assert result["false_positives_per_background_photo"] == 3
    assert "val2017" not in result
    Image.new("RGB", (400, 300)).save(tmp_path / "images" / "c.jpg")
    content["images"].append({"id": 2, "file_name": "c.jpg", "coco_url": "http://images.cocodataset.org/val2017/c.jpg"})
    annotations.append({"image_id": 2, "bbox": [12, 10, 98, 200], "iscrowd": 0})
    (tmp_path / "person_keypoints_free.json").write_text(json.dumps(content))
    both = evaluate_detector(given, tmp_path)
    assert both["recall"] == pytest.approx(2 / 4)
    assert (both["val2017"]["boxes"], both["val2017"]["recall"]) == (1, 1)
    assert both["val2017"]["precision"] == pytest.approx(1 / 3)
    with pytest.raises(VqhpsError, match="COCO person annotations"):
        evaluate_detector(given, tmp_path / "images")


@pytest.mark.skipif(not COCO_FREE.is_dir(), reason=f"photos not here: {COCO_FREE}")
def test_recall_and_precision_on_real_photos(detector: PersonDetector) -> None:
    result = evaluate_detector(detector, COCO_FREE)
    assert result["boxes"] == 130
    assert result["recall"] > 0.46
    assert result["recall_large"] > 0.74
    assert result["precision"] > 0.91
    assert result["false_positives_per_background_photo"] < 0.05
