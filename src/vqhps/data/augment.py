"""Training augmentation: where to crop (geometry, labels follow) and how the crop looks (colour, blur, occlusion)."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_MIRROR = np.diag([-1.0, 1.0, 1.0])
Image = UInt8[np.ndarray, "S S 3"]


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each augmentation; `p_*` are probabilities.

    Attributes:
        p_flip: mirror left to right.
        rotation_deg: standard deviation of the in-plane rotation, cut at two of them.
        p_rotation: apply a rotation at all.
        scale: the crop's side is multiplied by 1 +- this, uniformly.
        shift: the crop's centre moves by up to this share of its side.
        colour: strength of brightness, contrast, gain, gamma, saturation and hue changes.
        p_colour, p_gray, p_blur, p_low_resolution, p_noise, p_jpeg, p_erase: the others.
    """

    p_flip: float = 0.5
    rotation_deg: float = 30.0
    p_rotation: float = 0.4
    scale: float = 0.2
    shift: float = 0.08
    colour: float = 0.3
    p_colour: float = 0.8
    p_gray: float = 0.05
    p_blur: float = 0.1
    p_low_resolution: float = 0.2
    p_noise: float = 0.15
    p_jpeg: float = 0.2
    p_erase: float = 0.3


@dataclass(frozen=True)
class View:
    """A random crop of a stored image; see `vqhps.crop.crop_image` for the arguments.

    Attributes:
        center: stored px.
        size: side, stored px.
        angle_deg: by which the content turns, before mirroring.
        flip: whether it is mirrored.
    """

    center: Float[np.ndarray, "2"]
    size: float
    angle_deg: float
    flip: bool

    def rotated(self, rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
        """A rotation canonical -> camera as this view shows it; a mirrored body keeps its own left and right."""
        angle = np.radians(self.angle_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ rotation
        return (_MIRROR @ turned @ _MIRROR if self.flip else turned).astype(np.float32)

    def placed(self, point: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """A point, from the photo's optical axis, in a photo that was turned and mirrored about that axis as this view
        shows it: with `rotated`, the same scene to another camera."""
        angle = np.radians(self.angle_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.array([[cos, -sin], [sin, cos]]) @ point
        return turned * [-1, 1] if self.flip else turned


def random_view(center: Float[np.ndarray, "2"], size: float, config: AugmentConfig, rng: np.random.Generator) -> View:
    """Draw a crop around a person.

    Args:
        center: of the plain crop, stored px.
        size: side of the plain crop, stored px.
        config: strengths.
        rng: source of all randomness.
    """
    flip = bool(rng.random() < config.p_flip)
    turn = rng.random() < config.p_rotation
    angle = float(config.rotation_deg * np.clip(rng.normal(), -2, 2)) if turn else 0.0
    center = center + rng.uniform(-1, 1, 2) * config.shift * size
    return View(center, size * (1 + rng.uniform(-1, 1) * config.scale), angle, flip)


def augment_image(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Change the look of a crop: erased patches, resolution, blur, colour, noise, JPEG, in this order."""
    if rng.random() < config.p_erase:
        image = erase(image, rng)
    if rng.random() < config.p_low_resolution:
        image = low_resolution(image, rng)
    if rng.random() < config.p_blur:
        image = blur(image, rng)
    if rng.random() < config.p_colour:
        image = colour(image, config.colour, rng)
    if rng.random() < config.p_gray:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < config.p_noise:
        image = noise(image, rng)
    if rng.random() < config.p_jpeg:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 70))]
        image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR))
    return image


def erase(image: Image, rng: np.random.Generator) -> Image:
    """Cover one to three rectangles with a flat colour or another part of the image."""
    image, side = image.copy(), len(image)
    for _ in range(rng.integers(1, 4)):
        height, width = (rng.uniform(0.08, 0.35, 2) * side).astype(int)
        y, x, from_y, from_x = (int(rng.integers(0, side - n)) for n in (height, width, height, width))
        flat = rng.random() < 0.5
        patch = rng.integers(0, 256, 3) if flat else image[from_y : from_y + height, from_x : from_x + width].copy()
        image[y : y + height, x : x + width] = patch
    return image


def low_resolution(image: Image, rng: np.random.Generator) -> Image:
    """Shrink and enlarge, as a small person in a photo."""
    side = len(image)
    small = max(16, int(side / np.exp(rng.uniform(np.log(1.3), np.log(4.0)))))
    image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR)


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Out of focus, or moved."""
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.0))
    length, angle = int(rng.integers(3, 12)), rng.uniform(0, np.pi)
    kernel = np.zeros((length, length), np.float32)
    middle, along = length / 2, np.array([np.cos(angle), np.sin(angle)]) * length / 2
    ends = [tuple(int(v) for v in np.clip(middle + s * along, 0, length - 1)) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def colour(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Brightness, contrast, gain of each channel and gamma by one table; saturation and hue in HSV half of the time."""
    contrast, gamma = np.exp(rng.uniform(-strength, strength, 2))
    gain = np.exp(rng.uniform(-strength, strength) + rng.uniform(-strength / 3, strength / 3, 3))
    ramp = (np.arange(256)[:, None] / 255) ** gamma
    table = ((ramp * gain - 0.5) * contrast + 0.5) * 255
    image = cv2.LUT(image, table.clip(0, 255).astype(np.uint8)[:, None])
    if rng.random() < 0.5:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    steps = np.arange(256)
    hue = (steps + rng.uniform(-40, 40) * strength) % 180
    saturation = steps * np.exp(rng.uniform(-2, 1) * strength)
    table = np.stack([hue, saturation.clip(0, 255), steps], 1).astype(np.uint8)[:, None]
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB)


def noise(image: Image, rng: np.random.Generator) -> Image:
    """Normal noise, of each channel or of all together."""
    sigma = rng.uniform(2, 14)
    channels = 3 if rng.random() < 0.5 else 1
    grain = rng.standard_normal((*image.shape[:2], channels), dtype=np.float32) * sigma
    return (image + grain).clip(0, 255).astype(np.uint8)
