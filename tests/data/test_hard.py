"""Hard versions of crops: deterministic, and each takes away what it says."""

import cv2
import numpy as np
import pytest
from skimage import data

from vqhps.data.hard import HARD

CROP = cv2.resize(data.astronaut(), (128, 128), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("name", HARD)
def test_the_same_each_time_and_the_crop_itself_stays(name: str) -> None:
    before = CROP.copy()
    first, again, other = (HARD[name](CROP, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == CROP.shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(CROP, before)


def test_each_takes_away_what_it_says() -> None:
    def sharpness(image: np.ndarray) -> float:
        return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())

    for seed in range(8):
        found = {name: change(CROP, np.random.default_rng(seed)) for name, change in HARD.items()}
        assert found["dark"].mean() < 0.3 * CROP.mean()
        assert sharpness(found["blurred"]) < 0.2 * sharpness(CROP)
        assert 0.04 < (found["occluded"] != CROP).any(2).mean() < 0.9
        black = (found["truncated"] == 0).all(2)
        assert 0.3 < black.mean() < 0.6
        lines = [black[:40].mean(), black[-40:].mean(), black[:, :40].mean(), black[:, -40:].mean()]
        assert max(lines) == 1.0  # one whole side
