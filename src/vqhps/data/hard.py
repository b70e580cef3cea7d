"""Hard versions of test crops: poor light, blur, occlusion, truncation; the same each time for a seed."""

from collections.abc import Callable

import cv2
import numpy as np

from vqhps.data.augment import Image, blur, erase, noise

Change = Callable[[Image, np.random.Generator], Image]


def dark(image: Image, rng: np.random.Generator) -> Image:
    """A sixth to a twelfth of the light, with the noise of a sensor that has little."""
    table = np.arange(256) / rng.uniform(6, 12) + 4
    return noise(cv2.LUT(image, table.astype(np.uint8)[:, None]), rng)


def blurred(image: Image, rng: np.random.Generator) -> Image:
    """Out of focus by some 2 % of the crop, then what training knows of blur."""
    return blur(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.015, 0.025) * len(image)), rng)


def occluded(image: Image, rng: np.random.Generator) -> Image:
    """Rectangles over the crop, twice as many as training may see, and one in the middle of it."""
    image, side = erase(erase(image, rng), rng), len(image)
    x, y, width, height = (rng.uniform((0.3, 0.2, 0.2, 0.2), (0.5, 0.6, 0.3, 0.3)) * side).astype(int)
    image[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return image


def truncated(image: Image, rng: np.random.Generator) -> Image:
    """The photo ends within the crop: a third to a half of it is missing at one side."""
    image, cut = image.copy(), int(rng.uniform(0.33, 0.5) * len(image))
    side = int(rng.integers(4))
    np.rot90(image, side)[:cut] = 0  # a view; as `crop_image` fills what is outside of a photo
    return image


HARD: dict[str, Change] = {"dark": dark, "blurred": blurred, "occluded": occluded, "truncated": truncated}
