"""Reading photos from files one does not trust: upright RGB, the focal length, and one clear line for anything else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vqhps.crop import crop_image
from vqhps.errors import VqhpsError

MAX_PIXELS = 150_000_000
"""Larger photos are refused: a small file can unpack to any size."""

MIN_SIDE = 16  # px
_EXIF_IFD, _FOCAL_35MM = 0x8769, 0xA405
_DIAGONAL_35MM = math.hypot(36, 24)  # mm; EXIF relates the two focal lengths by the diagonal of the frame


@dataclass(frozen=True)
class Photo:
    """A photo as people look at it.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright by its EXIF orientation.
        focal: px, from EXIF `FocalLengthIn35mmFilm`; `None` where it is not known.
    """

    image: np.ndarray
    focal: float | None


def read_photo(path: Path | str, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None) -> Photo:
    """Read a photo; of an animation, the first frame; transparency becomes white.

    Args:
        path: of the file.
        max_pixels: a larger photo is refused by its header, before it is decoded.
        formats: Pillow's names of those that may be opened; all it knows by default.

    Raises:
        VqhpsError: it is missing, a folder, no image, damaged, too large or too small.
    """
    path = Path(path)
    if path.is_dir():
        raise VqhpsError(f"{path} is a folder: give photos, as in {path / '*.jpg'}")
    if not path.exists():
        raise VqhpsError(f"{path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large and oddly tagged files; both are dealt with here
            with Image.open(path, formats=None if formats is None else _known(formats)) as opened:
                _check_size(path, opened.size, max_pixels)
                return Photo(_to_rgb(ImageOps.exif_transpose(opened)), _focal(opened))
    except VqhpsError:
        raise
    except Image.DecompressionBombError as error:
        raise VqhpsError(f"{path} is too large ({error})") from error
    except UnidentifiedImageError as error:
        raise VqhpsError(
            f"{path} is not an image, or of a format that cannot be read: convert it to JPEG or PNG"
        ) from error
    except Exception as error:  # decoders raise many kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VqhpsError(f"{path} cannot be read as an image ({reason})") from error


def _known(formats: Sequence[str]) -> list[str]:
    """Those that this build of Pillow has."""
    Image.init()
    return [name for name in formats if name in Image.OPEN]


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise VqhpsError(f"{path} has {width} x {height} pixels, more than {max_pixels / 1e6:g} million: scale it down")
    if min(width, height) < MIN_SIDE:
        raise VqhpsError(
            f"{path} has {width} x {height} pixels: too small, at least {MIN_SIDE} x {MIN_SIDE} are needed"
        )


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow would clip at 255
        values = np.asarray(image, np.float64)
        top = 255.0 if values.max() <= 255 else 65535.0
        grey = np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _focal(image: Any) -> float | None:
    """Focal length in px; the photo's width and height may stand in either order, only the diagonal counts."""
    try:
        equivalent = float(image.getexif().get_ifd(_EXIF_IFD).get(_FOCAL_35MM, 0))
    except Exception:  # a damaged EXIF block is no reason to refuse the photo
        return None
    if not (math.isfinite(equivalent) and 4 <= equivalent <= 2000):  # 0 means unknown
        return None
    return equivalent * math.hypot(*image.size) / _DIAGONAL_35MM


def check_crops(photos: Sequence[Path], size: int) -> np.ndarray:
    """(N, size, size, 3) crops to compare two implementations on: three squares of each photo, or eight made-up
    pictures."""
    if not photos:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
        return np.stack([crop_image(c, np.array([4.0, 4.0]), 8.0, size) for c in coarse])
    crops = []
    for path in photos:
        image = read_photo(path).image
        middle, side = np.array([image.shape[1], image.shape[0]]) / 2, float(max(image.shape[:2]))
        crops += [crop_image(image, middle, side * share, size) for share in (1.0, 0.6, 0.35)]
    return np.stack(crops)
