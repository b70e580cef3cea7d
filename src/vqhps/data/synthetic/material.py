"""Surface colour: textures, recolouring and patterns, all evaluated at hit points only."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vqhps.errors import VqhpsError

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# sRGB colours of natural hair: black, dark brown, brown, red, blond, grey.
_HAIR = (
    np.array([[22, 20, 20], [52, 36, 26], [92, 62, 40], [122, 62, 32], [186, 150, 96], [160, 158, 156]], np.float32)
    / 255
)


@dataclasses.dataclass(frozen=True)
class Material:
    """One surface: `colour = recolour @ [texture, 1]`, mixed with `second` by a pattern over the rest position.

    Attributes:
        texture: (H,W,3 or 4) uint8 RGB(A).
        recolour: (3,4) affine map of sRGB in [0,1].
        second: the other affine map of a patterned surface; None without a pattern.
        pattern: (1 or 2,3) wave vectors, rad/m; the sign of the product of their sines chooses between the two maps.
        gloss: strength of the highlight.
        translucent: whether the texture's alpha cuts holes.
    """

    texture: Int[np.ndarray, "H W C"]
    recolour: Float[np.ndarray, "3 4"]
    second: Float[np.ndarray, "3 4"] | None = None
    pattern: Float[np.ndarray, "W 3"] | None = None
    gloss: float = 0.0
    translucent: bool = False


def sample_texture(texture: Int[np.ndarray, "H W C"], uv: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N C"]:
    """Bilinear look-up, v down, repeating; values in [0,1]."""
    height, width = texture.shape[:2]
    place = (uv - np.floor(uv)).astype(np.float32) * np.array([width, height], np.float32) - np.float32(0.5)
    return bilinear(texture, place, cv2.BORDER_REPLICATE).astype(np.float32) / 255


def read_picture(path: Path) -> UInt8[np.ndarray, "H W C"]:
    """An image file, RGB or RGBA.

    Raises:
        VqhpsError: it is missing or damaged.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3:
        raise VqhpsError(f"{path} cannot be read as a colour image; get the file again")
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def bilinear(image: Int[np.ndarray, "H W C"], place: Float[np.ndarray, "N 2"], border: int) -> Int[np.ndarray, "N C"]:
    """Pixels at places (pixel centres at integers), by OpenCV, which wants less than 32,768 columns."""
    width = 1024
    rows = max(1, -(-len(place) // width))
    padded = np.zeros((rows * width, 2), np.float32)
    padded[: len(place)] = place
    x, y = padded.T.reshape(2, rows, width)
    found = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border)
    return found.reshape(rows * width, -1)[: len(place)]


def surface_colour(
    material: Material, uv: Float[np.ndarray, "N 2"], rest: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "N 3"]:
    """Linear-light albedo at points.

    Args:
        material: what the points are made of.
        uv: texture coordinates.
        rest: positions on the rest pose, metres: patterns follow them.
    """
    colour = sample_texture(material.texture, uv)[:, :3]
    first = colour @ material.recolour[:, :3].T + material.recolour[:, 3]
    if material.second is not None and material.pattern is not None:
        second = colour @ material.second[:, :3].T + material.second[:, 3]
        wave = np.prod(np.sin(rest @ material.pattern.T), axis=1, keepdims=True)
        first = second + (3 * wave + 0.5).clip(0, 1) * (first - second)
    return np.clip(first, 0.004, 1) ** 2.2


def opaque(material: Material, uv: Float[np.ndarray, "N 2"], threshold: float) -> Bool[np.ndarray, "N"]:
    """Whether the texture's alpha is above a threshold at points."""
    return sample_texture(material.texture, uv)[:, 3] > threshold


def identity_colour() -> Float[np.ndarray, "3 4"]:
    """The affine map that changes nothing."""
    return np.eye(3, 4, dtype=np.float32)


def flat_texture() -> Int[np.ndarray, "8 8 3"]:
    """A white texture, for surfaces that only have a colour."""
    return np.full((8, 8, 3), 255, np.uint8)


def random_colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """An sRGB colour as clothes have: half of them nearly grey, the others of any hue."""
    value = rng.uniform(0.06, 0.95)
    saturation = rng.beta(1, 6) if rng.random() < 0.45 else rng.uniform(0.2, 0.95)
    hsv = np.array([[[rng.uniform(0, 360), saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def repaint(colour: Float[np.ndarray, "3"], mean: float, contrast: float = 1.0) -> Float[np.ndarray, "3 4"]:
    """Affine map that keeps a texture's shading but gives it one colour.

    Args:
        colour: sRGB in [0,1].
        mean: mean luma of the texture, in [0,1].
        contrast: strength of the texture's own shading.
    """
    gain = contrast / max(mean, 0.15)
    return np.concatenate([np.outer(colour, _LUMA) * gain, colour[:, None] * (1 - gain * mean)], 1).astype(np.float32)


def hue_turn(rng: np.random.Generator) -> Float[np.ndarray, "3 4"]:
    """A random turn around the grey axis with some brightness, contrast and saturation."""
    angle, grey = rng.uniform(-np.pi, np.pi), np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), grey)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(grey, grey)
    keep = rng.uniform(0.3, 1.2)
    turn = keep * turn + (1 - keep) * np.ones((3, 3)) / 3
    contrast = rng.uniform(0.6, 1.3)
    offset = np.full((3, 1), rng.uniform(-0.12, 0.15) + 0.4 * (1 - contrast))
    return np.concatenate([contrast * turn, offset], 1).astype(np.float32)


def mean_luma(texture: Int[np.ndarray, "H W C"]) -> float:
    """Mean luma of the used part of a texture, in [0,1]."""
    pixels = texture[::4, ::4].reshape(-1, texture.shape[2]).astype(np.float32) / 255
    luma = pixels[:, :3] @ _LUMA
    used = luma > 0.02 if texture.shape[2] == 3 else pixels[:, 3] > 0.5
    return float(luma[used].mean()) if used.any() else 0.5


def cloth(rng: np.random.Generator, texture: Int[np.ndarray, "H W C"], luma: float) -> Material:
    """A garment's material: as it came, turned in hue, or in one colour; sometimes striped, checked or dotted."""
    mode = rng.random()
    recolour = identity_colour() if mode < 0.2 else hue_turn(rng)
    if mode > 0.45:
        recolour = repaint(random_colour(rng), luma, rng.uniform(0.6, 1.1))
    second = pattern = None
    if rng.random() < 0.25:
        second, pattern = repaint(random_colour(rng), luma, rng.uniform(0.6, 1.0)), _waves(rng)
    return Material(texture, recolour, second, pattern, rng.uniform(0, 0.12))


def _waves(rng: np.random.Generator) -> Float[np.ndarray, "W 3"]:
    """Stripes (one wave and a constant), or checks (two waves)."""
    frequency = np.exp(rng.uniform(np.log(20), np.log(110)))
    kind = rng.integers(3)
    if kind == 2:
        return np.array([[0, frequency, 0], [frequency, 0, frequency * 0.3]], np.float32)
    axis = np.array([0, 1, 0], np.float32) if kind == 0 else np.array([1, 0, 0.3], np.float32)
    return (axis * frequency)[None].astype(np.float32)


def hair_material(rng: np.random.Generator, texture: Int[np.ndarray, "H W 4"], luma: float) -> Material:
    """Hair as it came or in a natural colour, seldom in any."""
    draw = rng.random()
    colour = random_colour(rng) if draw > 0.95 else _HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.8, 1.2)
    recolour = identity_colour() if draw < 0.3 else repaint(colour, luma)
    return Material(texture, recolour, gloss=rng.uniform(0.02, 0.15), translucent=True)


def skin_material(rng: np.random.Generator, texture: Int[np.ndarray, "H W 3"]) -> Material:
    """Skin with a little change of tone."""
    recolour = identity_colour()
    recolour[:, :3] *= rng.uniform(0.8, 1.12) * rng.uniform(0.95, 1.05, (3, 1)).astype(np.float32)
    return Material(texture, recolour, gloss=rng.uniform(0.02, 0.12))
