"""The crop: where pixels land, that shrinking averages, and that outside is black."""

import cv2
import numpy as np
import pytest

from vqhps.crop import crop_image, crop_matrix
from vqhps.errors import VqhpsError


def ramp(height: int = 120, width: int = 160) -> np.ndarray:
    """An image whose red is x and whose green is y of the pixel's centre, in px."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 200)], -1).astype(np.uint8)


def blob(x: float, y: float, sigma: float, shape: tuple[int, int]) -> np.ndarray:
    """A soft white dot at (x, y), pixel centres at integer + 0.5."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    value = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(value[..., None], 3, -1).round().astype(np.uint8)


def centroid(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def test_whole_image_at_its_own_size_is_itself():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_image(image, np.array([32.0, 32.0]), 64.0, 64), image)


def test_matrix_round_trip():
    rng = np.random.default_rng(0)
    for turn, flip in ((0.0, False), (33.0, False), (-80.0, True)):
        matrix = crop_matrix(rng.uniform(0, 900, 2), rng.uniform(20, 900), 224, turn, flip)
        points = rng.uniform(0, 1000, (50, 2))
        crop = points @ matrix[:, :2].T + matrix[:, 2]
        back = np.linalg.solve(matrix[:, :2], (crop - matrix[:, 2]).T).T
        np.testing.assert_allclose(back, points, atol=1e-4)


def test_matrix_says_what_the_words_say():
    matrix = crop_matrix(np.array([50.0, 40.0]), 20.0, 10, rotation_deg=90)
    right_of_centre = matrix[:, :2] @ [60, 40] + matrix[:, 2]
    np.testing.assert_allclose(right_of_centre, [5, 10], atol=1e-9)  # clockwise: right goes down
    mirrored = crop_matrix(np.array([50.0, 40.0]), 20.0, 10, flip=True)
    np.testing.assert_allclose(mirrored[:, :2] @ [60, 40] + mirrored[:, 2], [0, 5], atol=1e-9)


@pytest.mark.parametrize("size", [20.0, 64.0, 129.0, 400.0, 1100.0])
@pytest.mark.parametrize(("turn", "flip"), [(0.0, False), (25.0, False), (-130.0, True)])
def test_pixels_land_where_the_matrix_says(size, turn, flip):
    shape, center = (700, 900), np.array([431.3, 318.7])
    place = center + np.array([0.11, -0.07]) * size
    image = blob(*place, sigma=size / 20, shape=shape)
    matrix = crop_matrix(center, size, 64, turn, flip)
    found = centroid(crop_image(image, center, size, 64, turn, flip))
    np.testing.assert_allclose(found, matrix[:, :2] @ place + matrix[:, 2], atol=0.03)


def test_enlarging_interpolates():
    crop = crop_image(ramp(), np.array([80.0, 60.0]), 20.0, 80)
    matrix = crop_matrix(np.array([80.0, 60.0]), 20.0, 80)
    x = (np.arange(80) + 0.5 - matrix[0, 2]) / matrix[0, 0] - 0.5
    np.testing.assert_allclose(crop[40, :, 0], x, atol=1.01)


def test_shrinking_averages_fine_patterns():
    image = np.zeros((512, 512, 3), np.uint8)
    image[:, ::2] = 255
    crop = crop_image(image, np.array([256.0, 256.0]), 512.0, 64)
    assert np.abs(crop.astype(int) - 127.5).max() <= 1
    reference = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(crop.astype(int) - reference).max() <= 1


@pytest.mark.parametrize("size", [40.0, 400.0])
def test_outside_is_black(size):
    image = np.full((100, 100, 3), 255, np.uint8)
    crop = crop_image(image, np.array([0.0, 50.0]), size, 40)
    assert (crop[18:22, :18] == 0).all() and (crop[18:22, 21 : 21 + 5] == 255).all()
    assert not crop_image(image, np.array([-5000.0, 40.0]), size, 40).any()


@pytest.mark.parametrize(("center", "size"), [([1, 1], 0.0), ([1, 1], -4.0), ([np.nan, 1], 9.0), ([1, 1], np.inf)])
def test_impossible_crop_is_refused(center, size):
    with pytest.raises(VqhpsError, match="crop"):
        crop_image(np.zeros((8, 8, 3), np.uint8), np.array(center, float), size, 4)
