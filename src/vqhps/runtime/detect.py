"""Person boxes and 2D keypoints: the `Detector` interface, BlazePose behind it, and fixed boxes in its place.

Boxes are xyxy, keypoints xy, both in px of the full frame, pixel centres at integer + 0.5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.blazepose import (
    DETECTION_SIZE,
    ROI_SCALE,
    Candidates,
    Landmarks,
    PoseDetectionModel,
    PoseLandmarkModel,
    Roi,
    merge_candidates,
    roi_from_box,
    roi_from_points,
)
from vqhps.runtime.download import blazepose_models

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

_CANDIDATE_IOU = 0.3  # two candidates are one person from here on (MediaPipe's min_suppression_threshold)
_VISIBLE = 0.5
_SURE = 0.9  # presence from which the landmark model needs no second look
_TILE_SIDE, _TILE_OVERLAP = 0.6, 1 / 3  # of the long side of the photo, and of the tile: 2 x 2 tiles
_TILE_REACH = 1.5  # a tile leaves people whose square is larger than this many tiles to larger views
_FILLED = 0.75  # a tile is not looked at if the only person of the whole photo has so much of it in their square
_POSE_SIGMA, _SAME_POSE = (
    0.1,
    0.5,
)  # of the size of the person: how far its keypoints may stray; the similarity of one person


@dataclass(frozen=True)
class Detection:
    """One person in an image.

    Attributes:
        box: (4,) xyxy px, around the visible body.
        score: in [0,1].
        keypoints: (33,2) px of the full frame, in the order of `blazepose.KEYPOINT_NAMES`; may lie outside the image.
        keypoints3d: (33,3) m, camera axes (x right, y down, z forward), centred between the hips.
        confidence: (33,) in [0,1]: that the keypoint is in the image and not hidden.
    """

    box: Float[np.ndarray, "4"]
    score: float
    keypoints: Float[np.ndarray, "33 2"] | None = None
    keypoints3d: Float[np.ndarray, "33 3"] | None = None
    confidence: Float[np.ndarray, "33"] | None = None


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


def groups_by_similarity(
    similarity: Float[np.ndarray, "N N"], scores: Float[np.ndarray, "N"], limit: float
) -> list[np.ndarray]:
    """Greedy non-maximum suppression: best score first, each takes every remaining item more similar than `limit`.

    Returns:
        One index array a survivor, the survivor first, in order of falling score.
    """
    order = np.argsort(-scores, kind="stable")
    groups = []
    while order.size:
        same = similarity[order[0], order] > limit
        same[0] = True
        groups.append(order[same])
        order = order[~same]
    return groups


def nms(boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, "N"], iou: float) -> list[int]:
    """Indices of the boxes that non-maximum suppression keeps, by falling score."""
    return [int(group[0]) for group in groups_by_similarity(box_iou(boxes, boxes), np.asarray(scores), iou)]


def suppress(candidates: Candidates, weighted: bool) -> Candidates:
    """One candidate a person, by overlap of their boxes; `weighted` averages those that agree, as MediaPipe does."""
    groups = groups_by_similarity(box_iou(candidates.boxes, candidates.boxes), candidates.scores, _CANDIDATE_IOU)
    kept = candidates.subset(np.array([group[0] for group in groups], int))
    if weighted:
        for row, group in enumerate(groups):
            weights = candidates.scores[group] / candidates.scores[group].sum()
            kept.boxes[row] = weights @ candidates.boxes[group]
            kept.points[row] = np.tensordot(weights, candidates.points[group], 1)
    return kept


def pose_similarity(
    keypoints: Float[np.ndarray, "N 33 2"], boxes: Float[np.ndarray, "N 4"]
) -> Float[np.ndarray, "N N"]:
    """How alike poses are, in [0,1]: mean over keypoints of a Gaussian of distance by body size (like COCO's OKS)."""
    sizes = np.sqrt(np.clip((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1, None))
    squared = ((keypoints[:, None] - keypoints[None]) ** 2).sum(-1)
    scale = (_POSE_SIGMA * np.minimum(sizes[:, None], sizes[None])) ** 2
    return np.exp(-squared / (2 * scale[..., None])).mean(-1)


def views(width: int, height: int, levels: int) -> list[Roi]:
    """Square views that cover a photo: the whole, then grids of overlapping tiles, 0.6, 0.36, ... of its long side."""
    long = max(width, height)
    found = [Roi(np.array([width / 2, height / 2]), float(long))]
    for level in range(1, levels + 1):
        side = long * _TILE_SIDE**level
        if side < DETECTION_SIZE:
            break
        axes = []
        for length in (width, height):
            count = 1 + max(0, math.ceil((length - side) / (side * (1 - _TILE_OVERLAP)) - 1e-6))
            ends = (side / 2, length - side / 2) if count > 1 else (length / 2, length / 2)
            axes.append(np.linspace(*ends, count))
        found += [Roi(np.array([x, y]), side) for y in axes[1] for x in axes[0]]
    return found


def filled(tile: Roi, person: Roi) -> float:
    """Share of a tile that lies in the square of a person."""
    ticks = (np.arange(16) + 0.5) / 16
    points = tile.to_image(np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2))
    inside = person.from_image(points)
    return float(((inside >= 0) & (inside <= 1)).all(1).mean())


def visible_box(landmarks: Landmarks, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "4"]:
    """Tight box (xyxy px) around the visible part of a person: the mask and the visible keypoints, cut at the image."""
    height, width = image.shape[:2]
    inside = ((landmarks.keypoints >= 0) & (landmarks.keypoints <= (width, height))).all(1)
    seen = landmarks.keypoints[inside & (landmarks.visibility > _VISIBLE)]
    points = np.concatenate([seen, _mask_points(landmarks, seen)])
    if not len(points):
        points = landmarks.keypoints
    points = np.clip(points, 0, (width, height))
    return np.concatenate([points.min(0), points.max(0)])


def _mask_points(landmarks: Landmarks, seen: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "Q 2"]:
    """Image positions of the mask's pixels, of those connected parts only that hold a visible keypoint."""
    mask = landmarks.mask
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    roi = landmarks.roi
    cells = np.floor(roi.from_image(seen) * mask.shape[0]).astype(int)
    cells = cells[((cells >= 0) & (cells < mask.shape[0])).all(1)]
    held = np.unique(labels[cells[:, 1], cells[:, 0]])
    rows, columns = np.nonzero(np.isin(labels, held[held > 0]))
    return roi.to_image((np.stack([columns, rows], 1) + 0.5) / mask.shape[0])


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


class BlazePoseDetector:
    """People with 33 keypoints each, from MediaPipe's two BlazePose models. Not thread-safe: one object a thread.

    Made for people that stand out: those under a third of the photo's height are mostly missed. It looks at the whole
    photo and at `tile_levels` grids of overlapping tiles (2 x 2, then about 4 x 3): each level finds a few smaller
    people, costs time and brings false alarms; 0 is enough for one person that fills the frame.
    """

    def __init__(
        self,
        score_threshold: float = 0.5,
        nms_iou: float = 0.6,
        tile_levels: int = 1,
        max_people: int = 20,
        with_keypoints: bool = True,
        threads: int = 2,
        cache_dir: Path | None = None,
    ):
        """Load the models; the first use ever downloads them (see `download.blazepose_models`).

        Args:
            score_threshold: least score of a person, in (0,1]: detection score times presence by the landmark model.
            nms_iou: boxes that overlap more are one person.
            tile_levels: grids of tiles beside the whole photo; tiles under 224 px are not made.
            max_people: people that the landmark model looks at in an image at most, best candidates first.
            with_keypoints: False leaves keypoints out of the detections; the boxes and the time are the same.
            threads: of each model.
            cache_dir: where the models lie; None for the user's cache.

        Raises:
            VqhpsError: ai-edge-litert is missing, or the models cannot be fetched.
        """
        if not 0 < score_threshold <= 1 or not 0 < nms_iou <= 1 or tile_levels < 0:
            given = f"score_threshold {score_threshold}, nms_iou {nms_iou}, tile_levels {tile_levels}"
            raise VqhpsError(f"{given}: the first two must be in (0, 1], the third at least 0")
        self.score_threshold, self.nms_iou, self.tile_levels = score_threshold, nms_iou, tile_levels
        self.max_people, self.with_keypoints = max_people, with_keypoints
        detection, landmark = blazepose_models(cache_dir)
        self._detection = PoseDetectionModel(detection, threads)
        self._landmark = PoseLandmarkModel(landmark, threads)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
        """Return the people of an RGB image, best first."""
        _check_image(image)
        candidates = self._candidates(image)
        found = []
        for points, score in zip(
            candidates.points[: self.max_people], candidates.scores[: self.max_people], strict=True
        ):
            landmarks = self._look(image, roi_from_points(points[0], points[1]))
            detection = _detection(landmarks, visible_box(landmarks, image), float(score) * landmarks.presence)
            if detection.score >= self.score_threshold:
                found.append(detection)
        found = self._distinct(found)
        return found if self.with_keypoints else [Detection(box=d.box, score=d.score) for d in found]

    def landmarks(self, image: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> Detection:
        """Keypoints of the person in a given box, without detection.

        The landmark model starts from an upright square of 1.25 times the box.

        Args:
            image: RGB.
            box: xyxy px.

        Returns:
            The detection: `box` as given; `score` in [0,1]: how sure the model is of a person (low: distrust it).
        """
        _check_image(image)
        box = _checked_boxes([box], "box")[0]
        landmarks = self._look(image, roi_from_box(box))
        return _detection(landmarks, box, landmarks.presence)

    def follow(self, image: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> Detection | None:
        """The person near a box (xyxy px), without detection, in the box they fill now; `None` if there is nobody."""
        landmarks = self._look(image, roi_from_box(box))
        detection = _detection(landmarks, visible_box(landmarks, image), landmarks.presence)
        whole = (detection.box[2:] - detection.box[:2] > 1).all()
        return detection if whole and landmarks.presence >= self.score_threshold else None

    def _look(self, image: UInt8[np.ndarray, "H W 3"], roi: Roi) -> Landmarks:
        """Run the landmark model; if unsure, once more where its points put the person, and keep the surer look."""
        first = self._landmark(image, roi)
        if first.presence >= _SURE:
            return first
        return max(first, self._landmark(image, first.next_roi), key=lambda landmarks: landmarks.presence)

    def _candidates(self, image: UInt8[np.ndarray, "H W 3"]) -> Candidates:
        """Coarse candidates of all views, one a person; tiles leave people larger than themselves to larger views, and
        are not looked at where the one person of the whole photo fills them."""
        height, width = image.shape[:2]
        squares = views(width, height, self.tile_levels)
        shrink = min(1.0, DETECTION_SIZE / squares[-1].size)  # what the finest tile can use; one resize for all views
        small = image
        if shrink < 1:
            small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        scale = np.array([width / small.shape[1], height / small.shape[0]])
        parts: list[Candidates] = []
        for index, view in enumerate(squares):
            if index and len(parts[0].scores) == 1 and filled(view, roi_from_points(*parts[0].points[0, :2])) > _FILLED:
                continue
            part = self._detection(small, Roi(view.center / scale, view.size / scale.max()), self.score_threshold)
            part = suppress(part.scaled(scale), weighted=True)
            sizes = 2 * ROI_SCALE * np.linalg.norm(part.points[:, 1] - part.points[:, 0], axis=1)
            parts.append(part.subset(sizes <= (_TILE_REACH * view.size if index else np.inf)))
        return suppress(merge_candidates(parts), weighted=False)

    def _distinct(self, found: list[Detection]) -> list[Detection]:
        """Drop whoever is found twice: overlapping boxes, or matching poses; best first."""
        if not found:
            return []
        boxes = np.stack([detection.box for detection in found])
        poses = pose_similarity(np.stack([d.keypoints for d in found if d.keypoints is not None]), boxes)
        same = np.maximum(box_iou(boxes, boxes) / self.nms_iou, poses / _SAME_POSE)
        groups = groups_by_similarity(same, np.array([detection.score for detection in found]), 1.0)
        return [found[group[0]] for group in groups]


def _detection(landmarks: Landmarks, box: Float[np.ndarray, "4"], score: float) -> Detection:
    """A detection from the landmark model's answer."""
    return Detection(box, score, landmarks.keypoints, landmarks.keypoints3d, landmarks.visibility)


def _check_image(image: np.ndarray) -> None:
    """Refuse what is no (H,W,3) uint8 array."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise VqhpsError(f"an image must be (H, W, 3) uint8 RGB, found shape {image.shape} {image.dtype}")
