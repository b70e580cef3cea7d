"""Person boxes: the `Detector` interface, the shipped detector behind it, and fixed boxes in its place.

Boxes are xyxy px of the full frame.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.nanodet import NanoDet

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

_LONG_SIDES = (640, 320)  # px of the two looks: small people, and those who fill the photo
_AROUND, _AROUND_SIDE = 2.0, 256  # a closer look: its side over the long side of the box, and in px
_FAINT, _STAYED = 0.15, 0.4  # least score of whom one knows to be there, and overlap with where they should be


@dataclass(frozen=True)
class Detection:
    """One person in an image: `box` (4,) xyxy px, around the visible body; `score` in [0,1]."""

    box: Float[np.ndarray, "4"]
    score: float


class Detector(Protocol):
    """Anything that finds people in an image."""

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
        """Return the people of an RGB image, best first."""
        ...


def box_iou(a: Float[np.ndarray, "A 4"], b: Float[np.ndarray, "B 4"]) -> Float[np.ndarray, "A B"]:
    """Intersection over union of every pair of boxes (xyxy); 0 where both are empty."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    union = area_a[:, None] + area_b[None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def nms(boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, "N"], iou: float) -> list[int]:
    """Greedy non-maximum suppression: indices of boxes by falling score, none that overlaps a better one by more."""
    order, kept = np.argsort(-np.asarray(scores), kind="stable"), []
    overlap = box_iou(boxes, boxes)
    while order.size:
        kept.append(int(order[0]))
        order = order[1:][overlap[order[0], order[1:]] <= iou]
    return kept


class BoxDetector:
    """A detector that knows the answer: the same boxes for every image."""

    def __init__(self, boxes: Float[np.ndarray, "N 4"] | Sequence[Sequence[float]]):
        """Keep `boxes`, xyxy px; raises `VqhpsError` where they are no boxes."""
        self.boxes = _checked_boxes(boxes, "--box")

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
        """Return the boxes, each with score 1."""
        return [Detection(box=box, score=1.0) for box in self.boxes]


def read_boxes(path: Path | str) -> dict[str, Float[np.ndarray, "N 4"]]:
    """Read a boxes file: JSON `{"photo.jpg": [[x0, y0, x1, y1], ...], ...}`, px of the full frame.

    Returns:
        Boxes (N,4) xyxy by file name; N may be 0.

    Raises:
        VqhpsError: the file cannot be read, or an entry is no list of boxes; the message names the entry.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VqhpsError(f"boxes file {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise VqhpsError(
            f'boxes file {path} must be {{"photo.jpg": [[x0, y0, x1, y1], ...]}}, found a {type(content).__name__}'
        )
    return {name: _checked_boxes(boxes, f"boxes file {path}, entry {name!r}") for name, boxes in content.items()}


def _checked_boxes(boxes: Any, source: str) -> Float[np.ndarray, "N 4"]:
    """Boxes as floats (N,4), or an error that starts with `source`."""
    try:
        array = np.asarray(boxes, float)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.size == 0 and isinstance(boxes, list | tuple | np.ndarray) and len(boxes) == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise VqhpsError(f"{source}: expected a list of [x0, y0, x1, y1] in px, found {str(boxes)[:80]}")
    for box in array:
        if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
            raise VqhpsError(
                f"{source}: box {box.tolist()} needs finite x0 < x1 and y0 < y1 (xyxy px, not x y width height)"
            )
    return array


class PersonDetector:
    """The shipped detector: NanoDet-g looks at the whole photo in two sizes. Not thread-safe: one object a thread."""

    def __init__(self, score_threshold: float = 0.4, nms_iou: float = 0.6, max_people: int = 20, threads: int = 2):
        """Load the model.

        Args:
            score_threshold: least score of a person, in (0,1).
            nms_iou: boxes that overlap more are one person.
            max_people: in an image at most, best first.
            threads: of the model.

        Raises:
            VqhpsError: a setting is out of range, or the model is missing.
        """
        if not 0 < score_threshold < 1 or not 0 < nms_iou <= 1:
            raise VqhpsError(f"score_threshold {score_threshold} must be in (0, 1), nms_iou {nms_iou} in (0, 1]")
        self.score_threshold, self.nms_iou, self.max_people = score_threshold, nms_iou, max_people
        self._model = NanoDet(threads)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
        """Return the people of an RGB image, best first."""
        _check_image(image)
        looks = [self._model(image, side, self.score_threshold) for side in _LONG_SIDES]
        boxes, scores = (np.concatenate(part) for part in zip(*looks, strict=True))
        kept = nms(boxes, scores, self.nms_iou)[: self.max_people]
        return [Detection(boxes[i], float(scores[i])) for i in kept]

    def follow(self, image: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> Detection | None:
        """The person at about a box (xyxy px), by a closer look there; `None` if there is nobody."""
        _check_image(image)
        height, width = image.shape[:2]
        center, reach = (box[:2] + box[2:]) / 2, _AROUND / 2 * float((box[2:] - box[:2]).max())
        low = np.clip(np.floor(center - reach), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(center + reach), 0, (width, height)).astype(int)
        if (high - low).min() < 1:
            return None
        boxes, scores = self._model(image[low[1] : high[1], low[0] : high[0]], _AROUND_SIDE, _FAINT)
        boxes = boxes + np.tile(low, 2)
        overlap = box_iou(box, boxes)[0]
        if not (overlap >= _STAYED).any():
            return None
        best = int(np.argmax(np.where(overlap >= _STAYED, scores * overlap, 0)))
        return Detection(boxes[best], float(scores[best]))


def _check_image(image: np.ndarray) -> None:
    """Refuse what is no (H,W,3) uint8 array."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise VqhpsError(f"an image must be (H, W, 3) uint8 RGB, found shape {image.shape} {image.dtype}")
