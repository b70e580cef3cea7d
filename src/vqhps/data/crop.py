"""Square crops of images. Pixel centres lie at integer + 0.5, as everywhere; only this file knows that OpenCV's do not."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Transform = Float[np.ndarray, "2 3"]


def crop_transform(center: Float[np.ndarray, "2"], size: float, out: int, angle: float = 0.0) -> Transform:
    """Affine map from image pixels to pixels of a crop.

    Args:
        center: of the crop, image px.
        size: side of the crop, image px.
        out: side of the crop, px.
        angle: radians by which the content turns about the crop's centre, from x (right) to y (down).
    """
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) * (out / size)
    return np.concatenate([linear, (out / 2 - linear @ np.asarray(center, float))[:, None]], 1)


def flip_transform(transform: Transform, out: int) -> Transform:
    """The same crop, mirrored left to right."""
    return transform * [[-1], [1]] + [[0, 0, out], [0, 0, 0]]


def apply_transform(transform: Transform, points: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 2"]:
    """Move points."""
    return points @ transform[:, :2].T + transform[:, 2]


def invert_transform(transform: Transform) -> Transform:
    """The map back."""
    inverse = np.linalg.inv(transform[:, :2])
    return np.concatenate([inverse, -(inverse @ transform[:, 2:])], 1)


def pixels_to_crop(points: Float[np.ndarray, "P 2"], out: int) -> Float[np.ndarray, "P 2"]:
    """Pixels of a crop to crop coordinates in [-1, 1]."""
    return points * (2 / out) - 1


def warp(image: UInt8[np.ndarray, "H W 3"], transform: Transform, out: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resample an image; what lies outside of it is black.

    A crop of more than twice the output's resolution is averaged down first, so that it does not alias.

    Args:
        image: any channels.
        transform: from image pixels to output pixels.
        out: side of the output, px.
    """
    shrink = int(1 / np.sqrt(abs(np.linalg.det(transform[:, :2]))))
    if shrink >= 2:
        height, width = (max(1, -(-n // shrink)) for n in image.shape[:2])
        scale = np.array([image.shape[1] / width, image.shape[0] / height])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        transform = np.concatenate([transform[:, :2] * scale, transform[:, 2:]], 1)
    half = np.array([0.5, 0.5])
    matrix = np.concatenate([transform[:, :2], (apply_transform(transform, half[None])[0] - half)[:, None]], 1)
    return cv2.warpAffine(image, matrix, (out, out), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def crop_image(
    image: UInt8[np.ndarray, "H W 3"], center: Float[np.ndarray, "2"], size: float, out: int
) -> UInt8[np.ndarray, "S S 3"]:
    """The upright crop of side `out` px around `center`; see `crop_transform`."""
    return warp(image, crop_transform(center, size, out), out)
