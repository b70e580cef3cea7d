"""The one crop: how a square of a photo becomes the input of a network, in training and at prediction time.

Pixel coordinates are continuous: the centre of the pixel in column i lies at i + 0.5.
"""

import math

import cv2
import numpy as np

from vqhps.errors import VqhpsError

_SHRINK = 2  # from this many photo pixels a crop pixel on, bilinear sampling would skip pixels: average blocks first


def crop_matrix(
    center: np.ndarray, size: float, output_size: int, rotation_deg: float = 0.0, flip: bool = False
) -> np.ndarray:
    """Affine map from full-frame pixels to crop pixels.

    Args:
        center: (2,) of the crop, full-frame px.
        size: side of the crop, full-frame px.
        output_size: side of the crop in its own px.
        rotation_deg: turns the content about the centre; positive is clockwise as seen (x towards y): 3D points in
            camera axes turn by the same angle about +z.
        flip: mirrors left and right, after the rotation.

    Returns:
        (2, 3): `crop = matrix[:, :2] @ full + matrix[:, 2]`.
    """
    angle = math.radians(rotation_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if flip:
        turn[0] *= -1
    linear = turn * (output_size / size)
    return np.hstack([linear, (output_size / 2 - linear @ np.asarray(center, np.float64))[:, None]])


def crop_image(
    image: np.ndarray, center: np.ndarray, size: float, output_size: int, rotation_deg: float = 0.0, flip: bool = False
) -> np.ndarray:
    """Cut a square out of a photo and resample it; outside the photo is black.

    Bilinear; where one crop pixel covers two photo pixels or more, blocks of photo pixels are averaged first.

    Args:
        image: (H, W, 3) uint8.
        center: (2,) of the crop, full-frame px.
        size: side of the crop, full-frame px.
        output_size: side S of the result.
        rotation_deg: see `crop_matrix`.
        flip: see `crop_matrix`.

    Returns:
        (S, S, 3) uint8.

    Raises:
        VqhpsError: the crop has no positive, finite size.
    """
    center = np.asarray(center, np.float64)
    if not (np.isfinite(center).all() and math.isfinite(size) and size > 0):
        raise VqhpsError(
            f"a crop needs a finite centre and a positive size in pixels, got centre {center}, size {size}"
        )
    full_to_crop = crop_matrix(center, size, output_size, rotation_deg, flip)
    linear = np.linalg.inv(full_to_crop[:, :2])
    offset = -linear @ full_to_crop[:, 2]
    factor = int(size / output_size)
    if factor >= _SHRINK:
        reach = size * math.sqrt(0.5) + 2 * factor
        image, corner = _shrunk_window(image, center, reach, factor)
        linear, offset = linear / factor, (offset - corner) / factor
    offset = offset + linear @ (0.5, 0.5) - 0.5  # OpenCV has pixel centres at integers
    matrix = np.hstack([linear, offset[:, None]])
    return cv2.warpAffine(image, matrix, (output_size, output_size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _shrunk_window(image: np.ndarray, center: np.ndarray, reach: float, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Average `factor` x `factor` blocks of the window `center` +- `reach`; also its top-left corner (2,), photo px."""
    limit = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(center - reach), 0, limit).astype(int)
    high = np.clip(np.ceil(center + reach), low, limit).astype(int)
    window = image[low[1] : high[1], low[0] : high[0]]
    if window.size == 0:
        return np.zeros((1, 1, 3), image.dtype), low
    missing = -(high - low) % factor
    window = cv2.copyMakeBorder(window, 0, int(missing[1]), 0, int(missing[0]), cv2.BORDER_CONSTANT)
    shape = (window.shape[1] // factor, window.shape[0] // factor)
    return cv2.resize(window, shape, interpolation=cv2.INTER_AREA), low
