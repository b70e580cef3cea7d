"""Panoramas: background pixels and image-based light.

Panorama axes: y up; column 0.5 looks along -z, columns run to +x; row 0 is the zenith.
"""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int

from vqhps.data.synthetic.material import bilinear, read_picture
from vqhps.data.synthetic.split import Split, panorama_split
from vqhps.errors import VqhpsError

_SUN_RADIUS = 0.22  # rad: what counts as part of the brightest light
_SUN_FACTOR = 6.0  # times the mean radiance from which on light counts as the sun


@dataclasses.dataclass(frozen=True)
class Panorama:
    """An environment.

    Attributes:
        name: file stem.
        image: (H,W,3) uint8 sRGB.
        mean: mean linear colour of the image, for exposure.
        harmonics: (9,3) order-2 irradiance over pi of all but the sun, for unit mean radiance.
        sun_direction: (3,) towards the brightest light.
        sun: (3,) irradiance over pi of the sun on a surface that faces it.
    """

    name: str
    image: Int[np.ndarray, "H W 3"]
    mean: float
    harmonics: Float[np.ndarray, "9 3"]
    sun_direction: Float[np.ndarray, "3"]
    sun: Float[np.ndarray, "3"]


def load_panoramas(data_root: Path, split: Split) -> list[Panorama]:
    """Read the panoramas of a split.

    Raises:
        VqhpsError: the folder has no panoramas or lacks their radiance.
    """
    folder = Path(data_root) / "backgrounds"
    table = folder / "radiance_64x32.npz"
    if not table.is_file():
        raise VqhpsError(f"no {table}; point data_root to the folder that holds clothes/, backgrounds/, mocap/")
    images = {p.stem: p for p in folder.glob("*.jpg")}
    with np.load(table, allow_pickle=False) as radiance:
        return [_panorama(n, images[n], radiance[n]) for n in panorama_split(list(images), split)]


def _panorama(name: str, path: Path, radiance: Float[np.ndarray, "h w 3"]) -> Panorama:
    image = read_picture(path)
    light = radiance.astype(np.float64)
    directions, solid = _directions(*light.shape[:2])
    luma = light.mean(-1)
    light = light / (luma * solid).sum() * solid.sum()
    luma = light.mean(-1)
    top = np.unravel_index(np.argmax(luma), luma.shape)
    near = (directions @ directions[top] > np.cos(_SUN_RADIUS)) & (luma > _SUN_FACTOR)
    sun = (light * near[..., None] * solid[..., None]).sum((0, 1)) / np.pi
    centre = (directions * (near * luma * solid)[..., None]).sum((0, 1)) if near.any() else directions[top]
    rest = np.where(near[..., None], np.minimum(light, _SUN_FACTOR / 2), light)
    basis = harmonics(directions.reshape(-1, 3))
    bands = np.array([np.pi] + [2 * np.pi / 3] * 3 + [np.pi / 4] * 5) / np.pi
    weights = np.einsum("nk,nc,n->kc", basis, rest.reshape(-1, 3), solid.reshape(-1)) * bands[:, None]
    mean = float(((image[::4, ::4] / 255.0) ** 2.2).mean())
    unit = centre / np.linalg.norm(centre)
    return Panorama(name, image, mean, weights.astype(np.float32), unit.astype(np.float32), sun.astype(np.float32))


def _directions(height: int, width: int) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Unit direction and solid angle of each pixel."""
    polar = (np.arange(height) + 0.5) / height * np.pi
    around = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    polar, around = np.meshgrid(polar, around, indexing="ij")
    direction = np.stack([np.sin(polar) * np.sin(around), np.cos(polar), -np.sin(polar) * np.cos(around)], -1)
    return direction, np.sin(polar) * (np.pi / height) * (2 * np.pi / width)


def harmonics(n: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 9"]:
    """Real spherical harmonics up to order 2 (Ramamoorthi and Hanrahan, SIGGRAPH 2001)."""
    x, y, z = n.T
    return np.stack(
        [
            np.full_like(x, 0.282095), 0.488603 * y, 0.488603 * z, 0.488603 * x, 1.092548 * x * y, 1.092548 * y * z,
            0.315392 * (3 * z * z - 1), 1.092548 * x * z, 0.546274 * (x * x - y * y),
        ],
        1,
    )  # fmt: skip


def look_up(image: Int[np.ndarray, "H W 3"], directions: Float[np.ndarray, "N 3"]) -> Int[np.ndarray, "N 3"]:
    """Panorama pixels in some directions (any length), bilinear."""
    height, width = image.shape[:2]
    x, y, z = directions.T
    around = np.arctan2(x, -z) / np.float32(2 * np.pi) + np.float32(0.5)
    polar = np.arctan2(np.hypot(x, z), y) / np.float32(np.pi)
    place = np.stack([around * width - 0.5, polar * height - 0.5], 1).astype(np.float32)
    return bilinear(image, place, cv2.BORDER_WRAP)
