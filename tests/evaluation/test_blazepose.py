"""BlazePose's landmarks as MediaPipe gives them, in a box."""

import numpy as np
import pytest
from skimage.data import astronaut

from vqhps.evaluation.blazepose import KEYPOINT_NAMES, PoseLandmarkModel, Roi, roi_from_points, sample_roi
from vqhps.runtime import download

HER_BOX = np.array([10.0, 5, 360, 512])


def index(name: str) -> int:
    return KEYPOINT_NAMES.index(name)


@pytest.fixture(scope="module")
def model() -> PoseLandmarkModel:
    try:
        return PoseLandmarkModel()
    except download.DownloadError as error:
        pytest.skip(f"the models are not cached and cannot be fetched here: {error}")


def test_landmarks_in_a_box_match_mediapipe(model: PoseLandmarkModel) -> None:
    reference = {  # px: mediapipe 0.10.14 itself, solutions.pose, model_complexity=1, static image
        "nose": (222.7, 128.0), "left_eye": (249.0, 112.5), "right_eye": (205.0, 103.3), "mouth_left": (233.8, 153.9),
        "mouth_right": (205.8, 147.7),
    }  # fmt: skip
    found = model.in_box(astronaut(), HER_BOX)
    assert found.presence > 0.9
    for name, expected in reference.items():  # its crop was twice as large
        assert np.linalg.norm(found.keypoints[index(name)] - expected) < 20, name


def test_mirrored_photo_swaps_left_and_right(model: PoseLandmarkModel) -> None:
    found = model.in_box(astronaut(), HER_BOX).keypoints[index("left_eye")]
    mirrored = model.in_box(np.ascontiguousarray(astronaut()[:, ::-1]), np.array([512 - 360, 5, 512 - 10, 512.0]))
    x, y = mirrored.keypoints[index("right_eye")]
    assert np.linalg.norm([512 - x - found[0], y - found[1]]) < 12


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
