"""BlazePose's landmark network as it comes, run by LiteRT, to compare with: 33 landmarks of the person in a box.

Pre- and post-processing follow MediaPipe's `pose_landmark` graph (Bazarevsky et al., "BlazePose: On-device Real-time
Body Pose tracking", 2020). Image coordinates are px of the full frame, centres at integer + 0.5.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.download import blazepose_models

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

# fmt: off
KEYPOINT_NAMES: tuple[str, ...] = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb",
    "right_thumb", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "left_heel",
    "right_heel", "left_foot_index", "right_foot_index",
)
# fmt: on
"""The 33 landmarks in order; left and right are the person's own."""

NUM_KEYPOINTS = len(KEYPOINT_NAMES)
LANDMARK_SIZE = 256
ROI_SCALE = 1.25
"""Side of the square crop over the size of the person (MediaPipe's value)."""

_SURE = 0.9  # presence from which no second look is needed
_CENTRE, _CIRCLE = NUM_KEYPOINTS, NUM_KEYPOINTS + 1  # the landmark model's two auxiliary points


@dataclass(frozen=True)
class Roi:
    """A rotated square in the image: `center` (2,) px, `size` of the side px, `rotation` rad (clockwise as seen)."""

    center: Float[np.ndarray, "2"]
    size: float
    rotation: float = 0.0

    def matrix(self) -> Float[np.ndarray, "2 3"]:
        """Affine map from square coordinates ([0,1], top left to bottom right) to image px."""
        linear = self.size * rotation2d(self.rotation)
        return np.hstack([linear, (self.center - linear @ np.array([0.5, 0.5]))[:, None]])

    def to_image(self, points: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 2"]:
        """Map points from square coordinates ([0,1]) to image px."""
        matrix = self.matrix()
        return points @ matrix[:, :2].T + matrix[:, 2]

    def from_image(self, points: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 2"]:
        """Map image px to square coordinates; those of the square are in [0,1]."""
        matrix = self.matrix()
        return (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T


@dataclass(frozen=True)
class Landmarks:
    """One person as the landmark model sees it.

    `presence` in [0,1]: that there is a person; `keypoints` (33,2) px of the image; `next_roi`: where a second look
    would go.
    """

    presence: float
    keypoints: Float[np.ndarray, "33 2"]
    next_roi: Roi


def rotation2d(angle: float) -> Float[np.ndarray, "2 2"]:
    """Rotation matrix of the image plane; a positive `angle` (rad) turns x (right) to y (down)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function, safe for large arguments."""
    return 1.0 / (1.0 + np.exp(-np.clip(x, -80.0, 80.0)))


def roi_from_points(center: Float[np.ndarray, "2"], circle: Float[np.ndarray, "2"]) -> Roi:
    """The square around a person: `center` between the hips, `circle` above the head at full-body distance, px."""
    dx, dy = circle - center
    turn = math.pi / 2 - math.atan2(-dy, dx)
    rotation = (turn + math.pi) % (2 * math.pi) - math.pi
    return Roi(np.asarray(center, float), 2 * ROI_SCALE * float(np.hypot(dx, dy)), rotation)


def roi_from_box(box: Float[np.ndarray, "4"]) -> Roi:
    """The upright square around a box (xyxy px): 1.25 times its longer side."""
    box = np.asarray(box, float)
    return Roi((box[:2] + box[2:]) / 2, ROI_SCALE * float((box[2:] - box[:2]).max()))


def sample_roi(image: UInt8[np.ndarray, "H W 3"], roi: Roi, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resample the square `roi` of an image to `size` x `size` px; outside repeats the image's edge."""
    step = roi.size / size
    source = roi
    if step >= 2:  # bilinear sampling would skip pixels: shrink the neighbourhood by area first
        reach = roi.size * 0.75 + 2
        x0, y0 = np.clip(np.floor(roi.center - reach), 0, None).astype(int)
        x1, y1 = np.maximum(np.ceil(roi.center + reach).astype(int), 0)
        image = image[y0:y1, x0:x1]
        if image.size == 0:
            return np.zeros((size, size, 3), np.uint8)
        old = np.array([image.shape[1], image.shape[0]])
        new = np.maximum(np.round(old / step).astype(int), 1)
        image = cv2.resize(image, (int(new[0]), int(new[1])), interpolation=cv2.INTER_AREA)
        source = Roi((roi.center - (x0, y0)) * new / old, roi.size / step, roi.rotation)
    matrix = source.matrix()
    pixels = np.hstack([matrix[:, :2] / size, matrix[:, 2:]])  # target px -> source px, continuous
    pixels[:, 2] += pixels[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV puts pixel centres at integers
    return cv2.warpAffine(
        image, pixels, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what native code writes to file descriptor 2 (LiteRT logs there unasked while it loads a model)."""
    try:
        saved = os.dup(2)
    except OSError:  # no standard error at all: nothing to silence
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


class TfliteModel:
    """A TensorFlow Lite model of one input: float32 array -> outputs sorted by name. Not thread-safe."""

    def __init__(self, path: Path, threads: int = 1):
        """Load the model at `path`; raises `VqhpsError` where LiteRT is not installed."""
        try:
            with _silent_stderr():
                from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise VqhpsError(
                f"BlazePose needs ai-edge-litert, which cannot be imported ({error}): `pip install 'vqhps[train]'`"
            ) from error
        with _silent_stderr():
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        self._input: int = self._interpreter.get_input_details()[0]["index"]
        details = sorted(self._interpreter.get_output_details(), key=lambda detail: detail["name"])
        self._outputs: list[int] = [detail["index"] for detail in details]

    def __call__(self, x: Float[np.ndarray, "..."]) -> list[np.ndarray]:
        """Run the model once; `x` has the model's input shape without the batch dimension."""
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(x[None], np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index)[0] for index in self._outputs]


class PoseLandmarkModel:
    """`pose_landmark_full.tflite`: 33 landmarks and a presence score for the person in a square crop."""

    def __init__(self, threads: int = 2):
        """Load the model; the first use ever downloads it (see `download.blazepose_models`)."""
        self._model = TfliteModel(blazepose_models()[1], threads)

    def in_box(self, image: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> Landmarks:
        """Find the landmarks of the person in a box, xyxy px.

        It starts from an upright square of 1.25 times the box; if unsure, it looks once more where its points put the
        person, and keeps the surer look.
        """
        first = self(image, roi_from_box(box))
        if first.presence >= _SURE:
            return first
        return max(first, self(image, first.next_roi), key=lambda landmarks: landmarks.presence)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], roi: Roi) -> Landmarks:
        """Find the landmarks of the person that fills `roi`."""
        pixels = sample_roi(image, roi, LANDMARK_SIZE)
        flat, presence, _, heatmaps, _ = self._model(pixels.astype(np.float32) / 255.0)
        raw = flat.reshape(-1, 5).astype(float)
        points = refine_with_heatmaps(raw[:, :2] / LANDMARK_SIZE, heatmaps)
        placed = roi.to_image(points)
        return Landmarks(
            presence=float(presence[0]),
            keypoints=placed[:NUM_KEYPOINTS],
            next_roi=roi_from_points(placed[_CENTRE], placed[_CIRCLE]),
        )


def refine_with_heatmaps(
    points: Float[np.ndarray, "P 2"], heatmaps: Float[np.ndarray, "S S P"], kernel: int = 7, confidence: float = 0.5
) -> Float[np.ndarray, "P 2"]:
    """Replace points ([0,1]) by the mean of the heatmap (logits) around them where it is sure (MediaPipe's values)."""
    size, reach = heatmaps.shape[0], kernel // 2
    refined = points.copy()
    for index, (column, row) in enumerate(np.floor(points * size).astype(int)):
        if not (0 <= column < size and 0 <= row < size):
            continue
        x0, y0 = max(column - reach, 0), max(row - reach, 0)
        weights = sigmoid(heatmaps[y0 : row + reach + 1, x0 : column + reach + 1, index])
        if weights.max() < confidence:
            continue
        ys, xs = np.mgrid[y0 : y0 + weights.shape[0], x0 : x0 + weights.shape[1]]
        refined[index] = np.array([(xs * weights).sum(), (ys * weights).sum()]) / (weights.sum() * size)
    return refined
