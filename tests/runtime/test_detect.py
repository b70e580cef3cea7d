"""Person detector: real models on a real photo, suppression, boxes files, the model cache, evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqhps.errors import VqhpsError
from vqhps.evaluation.detector import evaluate_detector
from vqhps.runtime import download
from vqhps.runtime.blazepose import (
    KEYPOINT_NAMES,
    Candidates,
    Roi,
    anchors,
    roi_from_points,
    sample_roi,
)
from vqhps.runtime.detect import (
    BlazePoseDetector,
    BoxDetector,
    Detection,
    box_iou,
    filled,
    nms,
    pose_similarity,
    read_boxes,
    views,
)

COCO_FREE = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos" / "coco_free"


def index(name: str) -> int:
    return KEYPOINT_NAMES.index(name)


@pytest.fixture(scope="module")
def detector() -> BlazePoseDetector:
    try:
        return BlazePoseDetector()
    except download.DownloadError as error:
        pytest.skip(f"the models are not cached and cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    from skimage.data import astronaut as load

    return load()


@pytest.fixture(scope="module")
def found(detector: BlazePoseDetector, astronaut: np.ndarray) -> list[Detection]:
    return detector(astronaut)


def test_astronaut_is_one_person_where_she_is(found: list[Detection]) -> None:
    assert len(found) == 1
    assert found[0].score > 0.5
    assert box_iou(found[0].box, [10, 5, 360, 512])[0, 0] > 0.8  # box drawn by hand
    assert (found[0].box >= 0).all()
    assert (found[0].box <= 512).all()


def test_astronaut_keypoints_match_mediapipe(found: list[Detection]) -> None:
    reference = {  # px: mediapipe 0.10.14 itself, solutions.pose, model_complexity=1, static image
        "nose": (222.7, 128.0),
        "left_eye": (249.0, 112.5),
        "right_eye": (205.0, 103.3),
        "mouth_left": (233.8, 153.9),
        "mouth_right": (205.8, 147.7),
        "left_shoulder": (306.2, 256.6),
        "right_shoulder": (112.7, 240.0),
    }
    for (
        name,
        expected,
    ) in reference.items():  # her crop is 1300 px wide, the image 512: a shoulder may be 1.2 % of it off
        limit = 16 if "shoulder" in name else 8
        assert np.linalg.norm(found[0].keypoints[index(name)] - expected) < limit, name
        assert found[0].confidence[index(name)] > 0.9, name


def test_left_right_up_and_down_of_the_world_keypoints(found: list[Detection]) -> None:
    world = found[0].keypoints3d
    assert world.shape == (33, 3)
    assert world[index("left_shoulder"), 0] > world[index("right_shoulder"), 0] + 0.2  # she faces us
    assert world[index("nose"), 1] < world[index("left_shoulder"), 1] < world[index("left_hip"), 1]  # y points down
    assert world[index("nose"), 2] < world[index("left_ear"), 2]  # z points away from the camera
    assert np.abs(world[[index("left_hip"), index("right_hip")]].mean(0)).max() < 0.05


def test_mirrored_photo_swaps_left_and_right(
    detector: BlazePoseDetector, astronaut: np.ndarray, found: list[Detection]
) -> None:
    mirrored = detector(np.ascontiguousarray(astronaut[:, ::-1]))
    assert len(mirrored) == 1
    expected = found[0].keypoints[index("left_eye")]
    x, y = mirrored[0].keypoints[index("right_eye")]
    assert np.linalg.norm([512 - x - expected[0], y - expected[1]]) < 12


def test_two_people_are_found_and_never_twice(detector: BlazePoseDetector, astronaut: np.ndarray) -> None:
    pair = detector(np.concatenate([astronaut[:, :400], astronaut[:, :400]], axis=1))
    assert sorted(int(person.keypoints[0, 0] // 400) for person in pair) == [0, 1]


def test_blank_image_has_nobody(detector: BlazePoseDetector) -> None:
    assert detector(np.full((480, 640, 3), 127, np.uint8)) == []


def test_tiny_image_and_wrong_type(detector: BlazePoseDetector) -> None:
    assert detector(np.zeros((3, 2, 3), np.uint8)) == []
    with pytest.raises(VqhpsError, match=r"\(H, W, 3\) uint8 RGB, found shape \(4, 4\) float64"):
        detector(np.zeros((4, 4)))


def test_landmarks_of_a_given_box(detector: BlazePoseDetector, astronaut: np.ndarray, found: list[Detection]) -> None:
    box = np.array([10.0, 5, 360, 512])
    given = detector.landmarks(astronaut, box)
    assert (given.box == box).all()
    face = slice(index("nose"), index("mouth_right") + 1)
    assert np.linalg.norm(given.keypoints[face] - found[0].keypoints[face], axis=1).max() < 20


def test_without_keypoints(detector: BlazePoseDetector, astronaut: np.ndarray, found: list[Detection]) -> None:
    bare = BlazePoseDetector(with_keypoints=False)(astronaut)
    assert len(bare) == 1
    assert bare[0].keypoints is bare[0].keypoints3d is bare[0].confidence is None
    np.testing.assert_allclose(bare[0].box, found[0].box)


def test_impossible_settings_are_named() -> None:
    with pytest.raises(VqhpsError, match=r"score_threshold 0\.0"):
        BlazePoseDetector(score_threshold=0.0)


def test_anchors_are_those_of_the_model() -> None:
    centers = anchors()
    assert centers.shape == (2254, 2)  # 28*28*2 + 14*14*2 + 7*7*6
    np.testing.assert_allclose(centers[0], 0.5 / 28)
    np.testing.assert_allclose(centers[2], [1.5 / 28, 0.5 / 28])  # x runs first, two anchors a cell
    np.testing.assert_allclose(centers[-1], 6.5 / 7)


def test_roi_of_an_upright_and_of_a_lying_person() -> None:
    upright = roi_from_points(np.array([100.0, 200]), np.array([100.0, 100]))
    assert upright.rotation == pytest.approx(0)
    assert upright.size == pytest.approx(250)
    lying = roi_from_points(np.array([100.0, 200]), np.array([200.0, 200]))  # head to the right
    np.testing.assert_allclose(lying.to_image(np.array([[0.5, 0.0]])), [[225, 200]])  # top of the crop: beyond the head


@pytest.mark.parametrize(("size", "rotation"), [(64.0, 0.0), (64.0, 0.7), (400.0, 0.0), (400.0, -1.0)])
def test_sampling_puts_pixels_where_the_matrix_says(size: float, rotation: float) -> None:
    x, y = np.meshgrid(np.arange(600) + 0.5, np.arange(500) + 0.5)
    image = np.stack([x * 0.4, y * 0.4, np.zeros_like(x)], -1)
    roi = Roi(np.array([300.0, 250]), size, rotation)
    crop = sample_roi(np.round(image).astype(np.uint8), roi, 64).astype(float)
    ticks = (np.arange(64) + 0.5) / 64
    grid = np.stack(np.meshgrid(ticks, ticks), -1)
    where = roi.to_image(grid.reshape(-1, 2)).reshape(64, 64, 2)
    inside = ((where > 4) & (where < (596, 496))).all(-1)
    assert np.abs(crop[..., :2] - where * 0.4)[inside].max() < 1.3


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
    assert box_iou([0, 0, 0, 0], [0, 0, 0, 0])[0, 0] == 0


def test_pose_similarity_tells_people_apart() -> None:
    pose = np.random.default_rng(0).uniform(0, 100, (33, 2))
    boxes = np.tile([0.0, 0, 100, 100], (3, 1))
    similarity = pose_similarity(np.stack([pose, pose + 2, pose + 40]), boxes)
    assert similarity[0, 0] == 1
    assert similarity[0, 1] > 0.9
    assert similarity[0, 2] < 0.01


@pytest.mark.parametrize(("width", "height", "count"), [(640, 480, 5), (480, 640, 5), (300, 300, 1), (2000, 400, 3)])
def test_views_cover_the_photo(width: int, height: int, count: int) -> None:
    squares = views(width, height, 1)
    assert len(squares) == count
    for tiles in (squares[:1], squares[1:] or squares):
        corners = np.array([[tile.center - tile.size / 2, tile.center + tile.size / 2] for tile in tiles])
        assert (corners[:, 0].min(0) <= 0).all()
        assert (corners[:, 1].max(0) >= (width, height)).all()
    assert len(views(640, 480, 2)) > 5


def test_share_of_a_tile_that_a_person_fills() -> None:
    tile = Roi(np.array([50.0, 50.0]), 100.0)
    assert filled(tile, Roi(np.array([50.0, 50.0]), 120.0)) == 1
    assert filled(tile, Roi(np.array([100.0, 50.0]), 100.0)) == 0.5
    assert filled(tile, Roi(np.array([50.0, 50.0]), 60.0, np.pi / 6)) == pytest.approx(0.36, abs=0.03)
    assert filled(tile, Roi(np.array([200.0, 50.0]), 100.0)) == 0


def test_tiles_that_one_person_fills_are_not_looked_at(
    detector: BlazePoseDetector, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """She fills her photo; in the corner of a larger one, all tiles but her own are looked at."""
    looks: list[Roi] = []
    model = detector._detection

    def look(image: np.ndarray, view: Roi, threshold: float) -> Candidates:
        looks.append(view)
        return model(image, view, threshold)

    monkeypatch.setattr(detector, "_detection", look)
    large = np.full((1100, 1100, 3), 128, np.uint8)
    large[:512, :512] = astronaut
    for photo, tiles in ((astronaut, range(0, 2)), (large, range(3, 5))):
        looks.clear()
        assert len(detector(photo)) == 1
        assert len(looks) - 1 in tiles


def test_boxes_file(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"a.jpg": [[1, 2, 30, 40]], "b.jpg": []}))
    boxes = read_boxes(path)
    np.testing.assert_array_equal(boxes["a.jpg"], [[1, 2, 30, 40]])
    assert boxes["b.jpg"].shape == (0, 4)
    people = BoxDetector(boxes["a.jpg"])(np.zeros((50, 50, 3), np.uint8))
    assert [(person.box.tolist(), person.score, person.keypoints) for person in people] == [([1, 2, 30, 40], 1.0, None)]


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
    import zipfile

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


def test_import_is_light_and_loading_is_silent(detector: BlazePoseDetector) -> None:
    code = (
        "import sys, vqhps.runtime.detect as d; "
        "assert not {'torch', 'ai_edge_litert', 'jaxtyping'} & set(sys.modules), sorted(sys.modules); "
        "d.BlazePoseDetector()"
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
    with pytest.raises(VqhpsError, match="COCO person annotations"):
        evaluate_detector(given, tmp_path / "images")


@pytest.mark.skipif(not COCO_FREE.is_dir(), reason=f"photos not here: {COCO_FREE}")
def test_recall_and_precision_on_real_photos(detector: BlazePoseDetector) -> None:
    result = evaluate_detector(detector, COCO_FREE)
    assert result["boxes"] == 130
    assert result["recall"] > 0.20
    assert result["recall_large"] > 0.54
    assert result["precision"] > 0.90
    assert result["false_positives_per_background_photo"] < 0.25
