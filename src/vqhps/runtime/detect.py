"""Person boxes: the `Detector` interface, the shipped detector behind it, and fixed boxes in its place.

Boxes are xyxy px of the full frame.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from vqhps.crop import crop_image
from vqhps.errors import VqhpsError
from vqhps.runtime.nanodet import NanoDet

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

_LONG_SIDES = (640, 384)  # px of the two looks: small people, and those who fill the photo
_MULTIPLE = 32  # of the sides of what the network looks at, px
_POSSIBLE, _SURE = 0.3, 0.6  # scores below which nobody is, and from which no closer look is needed
_CLOSER, _CLOSER_SIDE, _MOST_CLOSER = 2.0, 256, 8  # a closer look: side over that of the box, px, number at most
_SAME = 0.5  # overlap of a box and what the closer look finds there
_CONTAINED = 0.8  # share of a box in a better one from which it is a part of that person
_STAYED = 0.4  # overlap of a person and where they should be


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


def nms(
    boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, "N"], iou: float, contained: float = 1.0
) -> list[int]:
    """Greedy non-maximum suppression: indices of boxes by falling score, none that overlaps a better one by more than
    `iou`, or more than whose share `contained` lies in a better one."""
    boxes, order, kept = np.asarray(boxes, float).reshape(-1, 4), np.argsort(-np.asarray(scores), kind="stable"), []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(int(best))
        rest = boxes[order]
        shared = np.clip(np.minimum(rest[:, 2:], boxes[best, 2:]) - np.maximum(rest[:, :2], boxes[best, :2]), 0, None)
        inside = shared.prod(1) > contained * (rest[:, 2:] - rest[:, :2]).prod(1)
        order = order[(box_iou(boxes[best], rest)[0] <= iou) & ~inside]
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
    """The shipped detector. Not thread-safe: one object a thread.

    NanoDet-g looks at the whole photo in two sizes, and once more, closer, at everybody it is not sure of and who is no
    part of somebody it is sure of.
    """

    def __init__(self, score_threshold: float = 0.4, nms_iou: float = 0.55, max_people: int = 20, threads: int = 2):
        """Load the model.

        Args:
            score_threshold: least score of a person, in [0.3, 1).
            nms_iou: boxes that overlap more are one person.
            max_people: in an image at most, best first.
            threads: of the model.

        Raises:
            VqhpsError: a setting is out of range, or the model is missing.
        """
        if not _POSSIBLE <= score_threshold < 1 or not 0 < nms_iou <= 1:
            raise VqhpsError(
                f"score_threshold {score_threshold} must be in [{_POSSIBLE}, 1), nms_iou {nms_iou} in (0, 1]"
            )
        self.score_threshold, self.nms_iou, self.max_people = score_threshold, nms_iou, max_people
        self._model = NanoDet(threads)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
        """Return the people of an RGB image, best first."""
        _check_image(image)
        looks, seen = [], image
        for side in _LONG_SIDES:
            seen = _shrunk(seen, image.shape[:2], side)  # from the look before: shrinking a photo takes time
            looks.append(self._look(seen, image.shape[:2]))
        boxes, scores = (np.concatenate(part) for part in zip(*looks, strict=True))
        kept = nms(boxes, scores, self.nms_iou)
        boxes, scores = boxes[kept], scores[kept]
        apart = _apart(boxes, scores)
        boxes, scores = boxes[apart], scores[apart]
        unsure = np.flatnonzero(scores < _SURE)[:_MOST_CLOSER]
        closer = self._closer(image, boxes[unsure], _SAME)
        scores[unsure] /= 2
        for index, found in zip(unsure, closer, strict=True):
            if found is not None:
                boxes[index] = (boxes[index] + found.box) / 2
                scores[index] += found.score / 2
        people = np.flatnonzero(scores >= self.score_threshold)
        kept = nms(boxes[people], scores[people], self.nms_iou, _CONTAINED)[: self.max_people]
        return [Detection(boxes[i], float(scores[i])) for i in people[kept]]

    def follow(self, image: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> Detection | None:
        """The person at about a box (xyxy px), by a closer look there; `None` if there is nobody."""
        _check_image(image)
        (found,) = self._closer(image, np.asarray(box, float)[None], _STAYED)
        return found if found is not None and found.score >= _POSSIBLE else None

    def _look(
        self, pixels: UInt8[np.ndarray, "h w 3"], photo: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N"]]:
        """Boxes, cut at a photo of that height and width, and scores of all who are possible in what `_shrunk` made of
        it."""
        size = np.array(photo[::-1])
        ((boxes, scores),) = self._model(pixels[None], _POSSIBLE)
        boxes = np.clip(boxes * np.tile(size / pixels.shape[1::-1], 2), 0, np.tile(size, 2))
        whole = (boxes[:, 2:] - boxes[:, :2]).min(1) >= 1
        return boxes[whole], scores[whole]

    def _closer(
        self, image: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "N 4"], overlap: float
    ) -> list[Detection | None]:
        """Who is at each box in a closer look, if anybody possible overlaps it by `overlap` or more."""
        if not len(boxes):
            return []
        centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, _CLOSER * (boxes[:, 2:] - boxes[:, :2]).max(1)
        squares = [crop_image(image, c, float(s), _CLOSER_SIDE) for c, s in zip(centers, sides, strict=True)]
        result: list[Detection | None] = []
        for box, center, side, (found, scores) in zip(
            boxes, centers, sides, self._model(np.stack(squares), _POSSIBLE / 2), strict=True
        ):
            found = found * (side / _CLOSER_SIDE) + np.tile(center - side / 2, 2)
            found = np.clip(found, 0, np.tile(image.shape[1::-1], 2))
            fits = box_iou(box, found)[0] >= overlap
            best = int(np.argmax(np.where(fits, scores, -1))) if fits.any() else None
            result.append(None if best is None else Detection(found[best], float(scores[best])))
        return result


def _shrunk(seen: UInt8[np.ndarray, "H W 3"], photo: tuple[int, int], long_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """A photo of that height and width, `long_side` px long or as long as it is, in whole steps of the network; `seen`
    is the photo or a larger such image of it."""
    scale = min(1.0, long_side / max(photo))
    height, width = (max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in photo)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(seen, (width, height), interpolation=way)


def _apart(boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """Which boxes are no unsure ones that lie mostly in a sure one, as parts of that person: no look at them is worth
    its time."""
    sure = scores >= _SURE
    shared = np.clip(
        np.minimum(boxes[:, None, 2:], boxes[None, sure, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, sure, :2]),
        0,
        None,
    ).prod(-1)
    return sure | ~(shared > _CONTAINED * (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]).any(1)


def _check_image(image: np.ndarray) -> None:
    """Refuse what is no (H,W,3) uint8 array."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise VqhpsError(f"an image must be (H, W, 3) uint8 RGB, found shape {image.shape} {image.dtype}")
