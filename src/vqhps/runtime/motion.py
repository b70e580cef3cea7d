"""People through the frames of a video: detected every few frames, tracked, predicted in batches between.

Between two looks of the detector a person's box moves on a straight line from one detection to the other, so that
nobody is followed into the void and all bodies of a segment go through the network at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqhps.crop import crop_image
from vqhps.errors import VqhpsError
from vqhps.geometry import crop_from_box, default_focal, rotate
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.predictor import Prediction, Predictor, place, to_pixels
from vqhps.runtime.smooth import Smoothing, Table, smooth
from vqhps.runtime.threads import in_threads, prefetch
from vqhps.runtime.track import Track, Tracker
from vqhps.runtime.video import Frame

_MOST, _LONGEST = 6, 0.25  # frames and s from one look of the detector to the next, where nothing else is said
_AHEAD = 8  # frames read ahead


@dataclass(frozen=True)
class Segment:
    """The frames from one look to the next, without that of the next, and who is in them.

    Attributes:
        frames: in order.
        people: (offset among the frames, person, box, score), sorted by offset, then person.
        state: of the tracker after the next look.
        size: width and height, px.
    """

    frames: list[Frame]
    people: list[tuple[int, int, np.ndarray, float]]
    state: dict[str, Any]
    size: tuple[int, int]


@dataclass(frozen=True)
class TrackedFrame:
    """One frame of `track_people`: `people` are predictions by the number of the person."""

    index: int
    time: float
    image: np.ndarray
    people: dict[int, Prediction]


def track_people(
    predictor: Predictor,
    frames: Iterable[Frame] | Iterable[np.ndarray],
    every: int | None = None,
    smoothing: Smoothing = "average",
    fps: float = 25.0,
    focal: float | None = None,
) -> Iterator[TrackedFrame]:
    """Follow the people of a video and recover their bodies; memory is bounded whatever its length.

    Args:
        predictor: finds and recovers.
        frames: of `video.open_source`, or images (H, W, 3) uint8 RGB of one size.
        every: frames from one look of the detector to the next; by default six, or what a quarter of a second has.
        smoothing: of bodies and their motion; a frame comes out some frames after it went in.
        fps: frames a second of images.
        focal: px; a guess from the size of the frames by default.
    """
    items: Iterable[Any] = frames
    numbered = (f if isinstance(f, Frame) else Frame(i, i / fps, f) for i, f in enumerate(items))
    waiting: deque[Frame] = deque()
    size: list[tuple[int, int]] = []
    focals: list[float] = []

    def tables() -> Iterator[Table]:
        for segment, table in predict_segments(predictor, numbered, Tracker(), every, focal, True, False):
            size[:], focals[:] = [segment.size], [focal or default_focal(*segment.size)]
            waiting.extend(segment.frames)
            yield table

    for table in smooth(tables(), smoothing):
        for number in range(table.start, table.stop):
            frame = waiting.popleft()
            rows = table.part(number, number + 1).rows
            people = predictions(rows, focals[0], size[0])
            yield TrackedFrame(frame.index, frame.time, frame.image, people)


def predictions(rows: dict[str, np.ndarray], focal: float, size: tuple[int, int]) -> dict[int, Prediction]:
    """The rows of one frame, with vertices, as predictions by person."""
    if not len(rows["person"]):
        return {}
    vertices = rotate(rows["rotation"], rows["vertices"].astype(np.float32)) + rows["translation"][:, None]
    rows = rows | {"joints2d": to_pixels(rows["joints"].astype(np.float64), focal, size).astype(np.float32)}
    names = ("box", "joints", "joints2d", "rotation", "translation", "camera", "crop_center")
    return {
        int(person): Prediction(
            **{name: rows[name][i] for name in names},
            score=float(rows["score"][i]),
            vertices=vertices[i],
            crop_size=float(rows["crop_size"][i]),
            focal=focal,
            indices=rows["indices"][i].astype(np.int64),
        )
        for i, person in enumerate(rows["person"])
    }


def predict_segments(
    predictor: Predictor,
    frames: Iterable[Frame],
    tracker: Tracker,
    every: int | None,
    focal: float | None,
    keep_vertices: bool,
    resumed: bool,
) -> Iterator[tuple[Segment, Table]]:
    """Segments of a video and their raw rows, in order; reading, detecting and predicting run beside each other.

    Args:
        predictor: finds and recovers.
        frames: in order; the first belongs to the state of the tracker where `resumed`.
        tracker: who is known so far; changed.
        every: see `track_people`.
        focal: px; a guess by default.
        keep_vertices: whether the rows have `vertices`.
        resumed: whether the tracker has looked at the first frame already.
    """
    if every is not None and every < 1:
        raise VqhpsError(f"the detector must look every 1 frame or more, got {every}")
    if focal is not None and not (np.isfinite(focal) and focal > 0):
        raise VqhpsError(f"the focal length must be a positive number of pixels, got {focal}")
    reader = prefetch(frames, _AHEAD)
    try:
        yield from in_threads(
            lambda segment: (segment, _bodies(predictor.bundle, segment, focal, keep_vertices)),
            _segments(predictor, reader, tracker, every, resumed),
        )
    finally:
        reader.close()


def _segments(
    predictor: Predictor, frames: Iterable[Frame], tracker: Tracker, every: int | None, resumed: bool
) -> Iterator[Segment]:
    """Cut the frames at the looks of the detector."""
    buffer: list[Frame] = []
    for frame in frames:
        if not buffer and not resumed:
            _look(predictor, tracker, frame)
        if buffer and _due(buffer, frame, every):
            begin = tracker.seen()
            _look(predictor, tracker, frame)
            yield _segment(buffer, begin, tracker, frame.time)
            buffer = []
        buffer.append(frame)
    if buffer:
        begin, end = tracker.seen(), buffer[-1]
        if len(buffer) > 1:
            _look(predictor, tracker, end)
        elif end.index == 0:  # a video of one frame: nobody can be found twice
            tracker.number_all()
            begin = tracker.seen()
        yield _segment(buffer, begin, tracker, end.time)


def _due(since: list[Frame], frame: Frame, every: int | None) -> bool:
    """Whether the detector has to look at a frame, after others since its last look."""
    if every is not None:
        return len(since) == every
    return len(since) == _MOST or frame.time - since[0].time >= _LONGEST


def _look(predictor: Predictor, tracker: Tracker, frame: Frame) -> None:
    found = predictor.detect(frame.image)
    tracker.update(frame.image, found, frame.time, lambda box: predictor.follow(frame.image, box))


def _segment(frames: list[Frame], begin: list[Track], tracker: Tracker, end: float) -> Segment:
    """Who is where in frames that a look begins and another, at time `end`, ends."""
    after = {track.key: track for track in tracker.seen()}
    numbers = tracker.numbers()
    people = []
    for track in begin:
        goal, person = after.get(track.key), numbers.get(track.key)
        if person is None:
            continue
        for offset, frame in enumerate(frames):
            share = (frame.time - track.time) / max(end - track.time, 1e-6)
            if goal is not None:
                box = track.box + share * (goal.box - track.box)
                people.append((offset, person, box, track.score + share * (goal.score - track.score)))
            elif share < 0.5:  # lost at the next look: nobody knows when, so half way
                people.append((offset, person, track.box, track.score))
    height, width = frames[0].image.shape[:2]
    return Segment(frames, sorted(people, key=lambda p: p[:2]), tracker.state(), (width, height))


def empty_rows(tokens: int, vertices: int | None) -> dict[str, np.ndarray]:
    """The columns of a table without rows; `docs/video.md` says what they mean.

    Args:
        tokens: of a body.
        vertices: of its mesh; `None` for a table without meshes.
    """
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "frame": (np.int32, ()), "time": (np.float64, ()), "person": (np.int32, ()), "box": (np.float32, (4,)),
        "score": (np.float32, ()), "indices": (np.uint16, (tokens,)), "rotation": (np.float32, (3, 3)),
        "translation": (np.float32, (3,)), "camera": (np.float32, (3,)), "crop_center": (np.float32, (2,)),
        "crop_size": (np.float32, ()), "joints": (np.float32, (17, 3)), "joints2d": (np.float32, (17, 2)),
    }  # fmt: skip
    if vertices is not None:
        shapes["vertices"] = (np.float16, (vertices, 3))
    return {name: np.zeros((0, *shape), kind) for name, (kind, shape) in shapes.items()}


def _bodies(bundle: Bundle, segment: Segment, focal: float | None, keep_vertices: bool) -> Table:
    """Raw rows of a segment."""
    frames, columns = segment.frames, empty_rows(bundle.info.tokens, bundle.vertices if keep_vertices else None)
    times = np.array([frame.time for frame in frames])
    if not segment.people:
        return Table(frames[0].index, times, columns)
    offsets = np.array([offset for offset, *_ in segment.people])
    boxes = np.stack([box for _, _, box, _ in segment.people])
    center, size = crop_from_box(boxes, bundle.info.crop_scale)
    crops = [
        crop_image(frames[o].image, c, s, bundle.info.input_size) for o, c, s in zip(offsets, center, size, strict=True)
    ]
    output = bundle.run(np.stack(crops))
    placed = place(output, center, size, focal or default_focal(*segment.size), segment.size)
    values: dict[str, Any] = {
        "frame": offsets + frames[0].index, "time": times[offsets], "person": [p for _, p, _, _ in segment.people],
        "box": boxes, "score": [score for *_, score in segment.people], "indices": output.indices,
        "rotation": placed.rotation, "translation": placed.translation, "camera": placed.camera, "crop_center": center,
        "crop_size": size, "joints": placed.joints, "joints2d": placed.joints2d,
    }  # fmt: skip
    if keep_vertices:
        values["vertices"] = output.vertices @ output.rotation  # camera of the crop -> canonical
    rows = {name: np.asarray(values[name]).astype(column.dtype) for name, column in columns.items()}
    return Table(frames[0].index, times, rows)
