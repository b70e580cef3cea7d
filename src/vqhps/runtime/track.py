"""Who is who from one look of the detector to the next: stable numbers through crossings and short occlusions.

`supervision` (ByteTrack) brings matplotlib, SciPy and requests into the base install, `trackers` also a second copy of
OpenCV; both associate by overlap only, which is weak where boxes come every few frames. Here a pair is as alike as its
boxes, times how alike the clothes' colours are. Like ByteTrack, who is not found is looked for once more, less
strictly, where the motion so far puts them (`follow`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vqhps.runtime.detect import Detection, box_iou

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

Look = Callable[[np.ndarray], Detection | None]
"""From a box (4,) xyxy px to the person there, if there is one."""

_KEPT = 2.0  # s: how long somebody who is hidden keeps their number
_LEAST = 0.1  # similarity of a detection and a track that may be one person
_SPREAD, _GROWTH = 0.25, 2.0  # of the size of the person: deviation of a predicted box, and its growth a second
_REACH = 1.0  # s: how far ahead the motion is believed
_SAME_BOX = 0.6  # overlap from which two detections are one person
_BINS, _SHARES = (8, 8), (0.0, 0.8)  # of the colours of clothes: red and green over all, which shadows leave alone


@dataclass(frozen=True)
class Track:
    """One person so far.

    Attributes:
        key: tells tracks apart, from the first time found.
        person: number, from 0; `None` until they are found a second time.
        box: (4,) xyxy px, where last found.
        score: of the last detection, in [0, 1].
        colors: (64,) histogram of the clothes, sum 1.
        velocity: (2,) px/s of the centre of the box.
        time: s, when last found.
    """

    key: int
    person: int | None
    box: Float[np.ndarray, "4"]
    score: float
    colors: Float[np.ndarray, "64"]
    velocity: Float[np.ndarray, "2"]
    time: float

    def ahead(self, time: float) -> Track:
        """Where they will be at a later time, s, at constant velocity; the time last found stays."""
        step = self.velocity * min(time - self.time, _REACH)
        return replace(self, box=self.box + np.tile(step, 2))


class Tracker:
    """Numbers people over the looks of a detector. `state` and `restore` carry it over an interruption."""

    def __init__(self) -> None:
        """Nobody is known yet."""
        self._tracks: list[Track] = []
        self._next_key = self._next = 0
        self._time = -np.inf

    def seen(self) -> list[Track]:
        """Those found at the last look, unnumbered ones included."""
        return [track for track in self._tracks if track.time == self._time]

    def update(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        detections: Sequence[Detection],
        time: float,
        follow: Look | None = None,
    ) -> None:
        """Take a look.

        Args:
            image: RGB, for the colours of clothes.
            detections: of the detector.
            time: s, later than that of the look before.
            follow: looks for one person in a box; asked for everybody whom the detector does not find.
        """
        found = [(d, clothes(image, d.box)) for d in detections]
        ahead = [track.ahead(time) for track in self._tracks]
        pairs = assign(similarities(ahead, found, time))
        tracks, taken = [], {column for _, column in pairs}
        chosen = dict(pairs)
        for index, (track, guess) in enumerate(zip(self._tracks, ahead, strict=True)):
            match = found[chosen[index]] if index in chosen else None
            if match is None and follow is not None and track.person is not None and time - track.time <= _REACH:
                match = _followed(image, guess, follow, [d for d, _ in found])
                if match is not None:
                    found.append(match)
                    taken.add(len(found) - 1)
            if match is not None:
                tracks.append(self._numbered(_renewed(track, *match, time)))
            elif track.person is not None and time - track.time <= _KEPT:
                tracks.append(track)
        for index, (detection, colors) in enumerate(found):
            if index not in taken:
                tracks.append(Track(self._next_key, None, *_measured(detection), colors, np.zeros(2), time))
                self._next_key += 1
        self._tracks, self._time = tracks, time

    def number_all(self) -> None:
        """Give a number to whoever has none."""
        self._tracks = [self._numbered(track) for track in self._tracks]

    def numbers(self) -> dict[int, int]:
        """Numbers of people by key of their tracks."""
        return {track.key: track.person for track in self._tracks if track.person is not None}

    def _numbered(self, track: Track) -> Track:
        if track.person is not None:
            return track
        self._next += 1
        return replace(track, person=self._next - 1)

    def state(self) -> dict[str, Any]:
        """Everything it knows, as JSON takes it."""
        tracks = [
            {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in vars(track).items()}
            for track in self._tracks
        ]
        return {"tracks": tracks, "next": self._next, "next_key": self._next_key, "time": self._time}

    @staticmethod
    def restore(state: dict[str, Any]) -> Tracker:
        """The tracker that gave this state."""
        tracker = Tracker()
        tracker._next, tracker._next_key, tracker._time = state["next"], state["next_key"], state["time"]
        tracker._tracks = [
            Track(**{name: np.array(v) if isinstance(v, list) else v for name, v in track.items()})  # type: ignore[arg-type]
            for track in state["tracks"]
        ]
        return tracker


def _measured(detection: Detection) -> tuple[np.ndarray, float]:
    return np.asarray(detection.box, np.float64), float(detection.score)


def _renewed(track: Track, detection: Detection, colors: np.ndarray, time: float) -> Track:
    """The track with what was found now; its velocity and colours follow halfway."""
    box, score = _measured(detection)
    moved = ((box - track.box)[:2] + (box - track.box)[2:]) / 2
    velocity = (track.velocity + moved / max(time - track.time, 1e-6)) / 2
    return Track(track.key, track.person, box, score, (track.colors + colors) / 2, velocity, time)


def _followed(
    image: np.ndarray, guess: Track, follow: Look, found: Sequence[Detection]
) -> tuple[Detection, np.ndarray] | None:
    """Look for somebody where they should be; whoever is found already does not count."""
    detection = follow(guess.box)
    if detection is None or (box_iou(detection.box, np.array([d.box for d in found])) > _SAME_BOX).any():
        return None
    match = (detection, clothes(image, detection.box))
    return match if similarities([guess], [match], guess.time)[0, 0] >= _LEAST else None


def similarities(
    tracks: Sequence[Track], found: Sequence[tuple[Detection, np.ndarray]], time: float
) -> Float[np.ndarray, "T D"]:
    """How alike every track, moved ahead to `time`, and every detection with its colours are, in [0, 1]."""
    result = np.zeros((len(tracks), len(found)))
    for row, track in enumerate(tracks):
        size = np.sqrt(max((track.box[2:] - track.box[:2]).prod(), 1.0))
        spread = _SPREAD * (1 + _GROWTH * max(time - track.time, 0.0))
        for column, (detection, colors) in enumerate(found):
            error = np.sqrt(np.mean((track.box - detection.box) ** 2)) / size
            alike = float(np.exp(-0.5 * (error / spread) ** 2))
            result[row, column] = alike * (0.5 + 0.5 * np.sqrt(track.colors * colors).sum())
    return result


def assign(similarity: Float[np.ndarray, "T D"]) -> list[tuple[int, int]]:
    """Pairs (row, column) by falling similarity, each row and column once, none under the least."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set(), set()
    for flat in np.argsort(-similarity, axis=None, kind="stable"):
        row, column = divmod(int(flat), similarity.shape[1])
        if similarity[row, column] < _LEAST:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def clothes(image: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "64"]:
    """Shares of red and green in the middle half of a box (xyxy px) as a histogram of sum 1; flat if outside."""
    height, width = image.shape[:2]
    quarter = (box[2:] - box[:2]) / 4
    x0, y0 = np.clip(np.floor(box[:2] + quarter), 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(box[2:] - quarter), 0, (width, height)).astype(int)
    part = image[y0:y1, x0:x1]
    if part.size == 0:
        return np.full(_BINS[0] * _BINS[1], 1 / (_BINS[0] * _BINS[1]))
    step = max(1, min(part.shape[:2]) // 32)
    pixels = part[::step, ::step].astype(np.float32) + 1
    shares = np.clip(pixels[..., :2] / pixels.sum(-1, keepdims=True), *_SHARES)
    counts = (
        cv2.calcHist([shares], [0, 1], None, list(_BINS), [_SHARES[0], _SHARES[1] + 1e-3] * 2)
        .ravel()
        .astype(np.float64)
    )
    return counts / counts.sum()
