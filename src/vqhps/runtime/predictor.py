"""From a photo to the people in it: detector, crop, graph, and back into the full frame."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqhps.crop import crop_image
from vqhps.errors import VqhpsError
from vqhps.geometry import crop_from_box, default_focal, full_translation, project_perspective, ray_rotation, rotate
from vqhps.runtime.bundle import Bundle, BundleOutput, default_bundle

if TYPE_CHECKING:
    from vqhps.runtime.detect import Detection, Detector
    from vqhps.runtime.motion import TrackedFrame
    from vqhps.runtime.smooth import Smoothing

logger = logging.getLogger(__name__)

_MIN_SCALE = 0.05  # 1/m: a crop of 40 m; a network that says less (or a negative scale) has no idea


@dataclass(frozen=True)
class Prediction:
    """One person in a photo. Camera axes: x right, y down, z forward; pixels are those of the photo.

    Attributes:
        box: (4,) xyxy px.
        score: of the detection, in [0, 1].
        vertices: (V, 3) m, in the camera frame of the photo.
        joints: (17, 3) m, COCO-17, same frame.
        joints2d: (17, 2) px, perspective projection of `joints`.
        rotation: (3, 3) canonical -> camera of the photo.
        translation: (3,) m, position of the canonical body's origin in the camera frame of the photo.
        camera: (3,) weak perspective of the crop, `(s, tx, ty)`: 1/m, m, m.
        crop_center: (2,) px.
        crop_size: side of the square crop, px.
        focal: px; the principal point is the centre of the photo.
        indices: (T,) tokens of the body, those nearest to its mesh.
    """

    box: np.ndarray
    score: float
    vertices: np.ndarray
    joints: np.ndarray
    joints2d: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    camera: np.ndarray
    crop_center: np.ndarray
    crop_size: float
    focal: float
    indices: np.ndarray


class Predictor:
    """Finds people in photos and recovers their body meshes. Not thread-safe: one object a thread."""

    def __init__(self, bundle: Bundle | Path | str | None = None, detector: Detector | None = None) -> None:
        """Load the model.

        Args:
            bundle: a loaded bundle or its folder; the shipped one by default.
            detector: finds the people where no boxes are given; the shipped one by default, loaded when first needed.
        """
        if bundle is None:
            bundle = default_bundle()
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self._detector = detector

    def predict(
        self, image: np.ndarray, boxes: Sequence[Sequence[float]] | np.ndarray | None = None, focal: float | None = None
    ) -> list[Prediction]:
        """Recover every person of a photo.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
            boxes: (N, 4) xyxy px around each person; found by the detector by default.
            focal: px; a guess from the size of the photo by default.

        Returns:
            One entry a box, or, without boxes, a person found, best first; empty where nobody is found.

        Raises:
            VqhpsError: the image, a box or the focal length is not what it should be.
        """
        height, width = _check_image(image)
        if focal is None:
            focal = default_focal(width, height)
        if not (np.isfinite(focal) and focal > 0):
            raise VqhpsError(f"the focal length must be a positive number of pixels, got {focal}")
        people = self.detect(image) if boxes is None else _given(boxes, width, height)
        if not people:
            return []
        center, size = crop_from_box(np.stack([p.box for p in people]).astype(np.float64), self.bundle.info.crop_scale)
        side = self.bundle.info.input_size
        crops = np.stack([crop_image(image, c, s, side) for c, s in zip(center, size, strict=True)])
        return _to_full_frame(people, self.bundle.run(crops), (center, size), focal, (width, height))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find the people of an RGB image (H, W, 3) uint8."""
        if self._detector is None:
            from vqhps.runtime.detect import PersonDetector

            self._detector = PersonDetector()
        return self._detector(image)

    def follow(self, image: np.ndarray, box: np.ndarray) -> Detection | None:
        """Find the person near a box (4,) xyxy px without detection; `None` for nobody, or a detector that cannot."""
        follow = getattr(self._detector, "follow", None)
        return None if follow is None else follow(image, box)

    def track(
        self,
        video: Path | str | Iterable[np.ndarray],
        smoothing: Smoothing = "average",
        fps: float = 25.0,
        focal: float | None = None,
    ) -> Iterator[TrackedFrame]:
        """Follow the people of a video: frame by frame, whose body is where.

        Args:
            video: a file, a folder or pattern of images, the number of a webcam, or images (H, W, 3) uint8 RGB.
            smoothing: of bodies and their motion; see `vqhps.runtime.smooth`.
            fps: frames a second of images.
            focal: px; a guess by default.

        Returns:
            Frames with `people`, predictions by the number that each person keeps.

        Raises:
            VqhpsError: the video cannot be read.
        """
        from vqhps.runtime.motion import track_people
        from vqhps.runtime.video import open_source

        frames: Any = open_source(str(video), fps).frames() if isinstance(video, Path | str) else video
        return track_people(self, frames, smoothing=smoothing, fps=fps, focal=focal)


def _check_image(image: np.ndarray) -> tuple[int, int]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise VqhpsError(f"an image must be an (H, W, 3) uint8 array in RGB, got {got}")
    if min(image.shape[:2]) == 0:
        raise VqhpsError(f"an image must not be empty, got shape {image.shape}")
    return image.shape[0], image.shape[1]


def _given(boxes: Sequence[Sequence[float]] | np.ndarray, width: int, height: int) -> list[Detection]:
    """Boxes of the user as detections with score 1."""
    from vqhps.runtime.detect import BoxDetector, Detection

    people = [Detection(box=box, score=1.0) for box in BoxDetector(boxes).boxes]
    for person in people:
        x0, y0, x1, y1 = person.box
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise VqhpsError(f"the box {x0:g} {y0:g} {x1:g} {y1:g} lies outside the photo of {width} x {height} px")
    return people


@dataclass(frozen=True)
class Placed:
    """N bodies in the camera of the photo; shapes and units as in `Prediction`, `turn` (N, 3, 3): crop -> photo."""

    turn: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    camera: np.ndarray
    joints: np.ndarray
    joints2d: np.ndarray


def place(
    output: BundleOutput, center: np.ndarray, size: np.ndarray, focal: float, photo_size: tuple[int, int]
) -> Placed:
    """Move bodies from the cameras of their crops, which look at the crop's centre, into that of the photo.

    Args:
        output: of the graph, for N crops.
        center: (N, 2) px, of the crops.
        size: (N,) px, their sides.
        focal: px.
        photo_size: width and height, px.
    """
    count = len(center)
    camera = output.camera.astype(np.float64)
    if (camera[:, 0] < _MIN_SCALE).any():
        logger.warning("the model is unsure how far away a person is; the distance is cut off")
        camera[:, 0] = np.maximum(camera[:, 0], _MIN_SCALE)
    principal = np.tile(np.asarray(photo_size, np.float64) / 2, (count, 1))
    focals = np.full(count, float(focal))
    turn = ray_rotation(center, focals, principal)
    translation = full_translation(camera, center, size, focals, principal)
    joints = rotate(turn, output.joints.astype(np.float64)) + translation[:, None]
    joints2d = to_pixels(joints, focal, photo_size)
    return Placed(turn, turn @ output.rotation, translation, camera, joints, joints2d)


def to_pixels(points: np.ndarray, focal: float, photo_size: tuple[int, int]) -> np.ndarray:
    """Camera-frame points (N, P, 3) in metres to px (N, P, 2) of a photo whose principal point is its centre."""
    intrinsics = np.tile(np.diag([focal, focal, 1.0]), (len(points), 1, 1))
    intrinsics[:, :2, 2] = np.asarray(photo_size, np.float64) / 2
    return project_perspective(points, intrinsics)


def _to_full_frame(
    people: list[Detection],
    output: BundleOutput,
    crop: tuple[np.ndarray, np.ndarray],
    focal: float,
    photo_size: tuple[int, int],
) -> list[Prediction]:
    """One prediction a person."""
    center, size = crop
    placed = place(output, center, size, focal, photo_size)
    vertices = rotate(placed.turn, output.vertices.astype(np.float64)) + placed.translation[:, None]
    return [
        Prediction(
            box=np.asarray(person.box, np.float32),
            score=float(person.score),
            vertices=vertices[i].astype(np.float32),
            joints=placed.joints[i].astype(np.float32),
            joints2d=placed.joints2d[i].astype(np.float32),
            rotation=placed.rotation[i].astype(np.float32),
            translation=placed.translation[i].astype(np.float32),
            camera=placed.camera[i].astype(np.float32),
            crop_center=center[i].astype(np.float32),
            crop_size=float(size[i]),
            focal=float(focal),
            indices=output.indices[i],
        )
        for i, person in enumerate(people)
    ]
