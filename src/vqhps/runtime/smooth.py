"""Less jitter: the moving average of the paper, and the One-Euro filter where only the past is known.

Both work on tables of rows in order of frames (`Table`), as they come; memory is bounded by the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from vqhps.geometry import nearest_rotation, rotate

Smoothing = Literal["average", "one-euro", "none"]

WINDOW = 10
"""Frames of the moving average (Fiche et al., ECCV 2024); nothing is carried over a longer gap."""

_FARTHEST = 0.251  # s: frames farther away, in videos of few frames a second, do not count

_MIN_CUTOFF, _SPEED_CUTOFF = 1.5, 1.0  # Hz: Casiez et al., CHI 2012
_BETA, _BETA_TURN = 5.0, 1.0  # Hz per m/s, Hz per rad/s


@dataclass(frozen=True)
class Table:
    """The people of the frames `start` to `start + len(times) - 1`.

    Attributes:
        start: number of the first frame.
        times: (F,) s, of each frame.
        rows: columns by name, one row a person and frame, sorted by frame, then person; see `docs/video.md`.
    """

    start: int
    times: np.ndarray
    rows: dict[str, np.ndarray]

    @property
    def stop(self) -> int:
        """Number of the frame after the last."""
        return self.start + len(self.times)

    def part(self, start: int, stop: int) -> Table:
        """The frames from `start` until before `stop`."""
        start, stop = max(start, self.start), min(stop, self.stop)
        chosen = slice(*np.searchsorted(self.rows["frame"], [start, stop]))
        times = self.times[start - self.start : max(stop, start) - self.start]
        return Table(start, times, {name: column[chosen] for name, column in self.rows.items()})


def join(tables: list[Table]) -> Table:
    """Tables that follow each other as one."""
    rows = {name: np.concatenate([t.rows[name] for t in tables]) for name in tables[0].rows}
    return Table(tables[0].start, np.concatenate([t.times for t in tables]), rows)


def smooth(tables: Iterable[Table], kind: Smoothing) -> Iterator[Table]:
    """Smooth what follows each other; the tables that come out have the same rows, but may be cut elsewhere.

    Rotation is averaged on its manifold, the joints and vertices in the axes of the body, the translation beside
    them; `joints` is put together from these. Boxes, crops, cameras and tokens stay those of the single frame, and so
    does `joints2d`, which whoever knows the camera projects anew.
    """
    if kind == "none":
        yield from tables
    elif kind == "average":
        yield from _average(tables)
    else:
        euro = _OneEuro()
        for table in tables:
            yield Table(table.start, table.times, euro(table.rows))


def _average(tables: Iterable[Table]) -> Iterator[Table]:
    """Every frame is given out as soon as the frames of its window are there."""
    half = WINDOW // 2
    kept: Table | None = None
    given = 0
    for table in tables:
        if kept is None:
            kept, given = table, table.start
        else:
            kept = join([kept, table])
        if kept.stop - half > given:
            yield _averaged(kept, given, kept.stop - half)
            given = kept.stop - half
            kept = kept.part(given - half, kept.stop)
    if kept is not None and kept.stop > given:
        yield _averaged(kept, given, kept.stop)


def _averaged(table: Table, start: int, stop: int) -> Table:
    result = table.part(start, stop)
    rows = {name: column.copy() for name, column in result.rows.items()}
    spaces = body_space(table.rows)
    for person in np.unique(rows["person"]):
        mine = np.flatnonzero(table.rows["person"] == person)
        frames, times = table.rows["frame"][mine], table.rows["time"][mine]
        for row in np.flatnonzero(rows["person"] == person):
            near, weights = _window(frames, times, int(np.searchsorted(frames, rows["frame"][row])))
            chosen = mine[near]
            mixed = {name: np.tensordot(weights, column[chosen], 1) for name, column in spaces.items()}
            mixed["rotation"] = nearest_rotation(mixed["rotation"])  # the chordal mean (Moakher, SIAM J. 2002)
            _put(rows, int(row), mixed)
    return Table(result.start, result.times, rows)


def _window(frames: np.ndarray, times: np.ndarray, at: int) -> tuple[slice, np.ndarray]:
    """Rows around one of a person and their weights: as many frames before as after, so that nothing lags at the
    ends."""
    half, frame, time = WINDOW // 2, int(frames[at]), times[at]
    low = max(np.searchsorted(frames, frame - half), np.searchsorted(times, time - _FARTHEST))
    high = min(np.searchsorted(frames, frame + half + 1), np.searchsorted(times, time + _FARTHEST))
    reach = min(half, frame - int(frames[low]), int(frames[high - 1]) - frame)
    low, high = np.searchsorted(frames, [frame - reach, frame + reach + 1])
    weights = np.where(np.abs(frames[low:high] - frame) == half, 0.5, 1.0)  # an even window: its ends count half
    return slice(low, high), weights / weights.sum()


def body_space(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns that are smoothed: joints in the axes of the body, vertices where kept, rotation, translation."""
    joints = (rows["joints"] - rows["translation"][:, None]) @ rows["rotation"]
    columns = {"joints": joints, "rotation": rows["rotation"], "translation": rows["translation"]}
    return columns | ({"vertices": rows["vertices"]} if "vertices" in rows else {})


def _put(rows: dict[str, np.ndarray], row: int, values: dict[str, np.ndarray]) -> None:
    """Store smoothed values; joints go from the axes of the body to those of the camera."""
    for name, value in values.items():
        if name == "joints":
            value = rotate(values["rotation"], value) + values["translation"]
        rows[name][row] = value


class _OneEuro:
    """One filter a person; who is away for longer than the window starts anew."""

    def __init__(self) -> None:
        self._people: dict[int, _Filtered] = {}

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        smoothed = {name: column.copy() for name, column in rows.items()}
        spaces = body_space(rows)
        for row, (person, frame, time) in enumerate(zip(rows["person"], rows["frame"], rows["time"], strict=True)):
            raw = {name: column[row].astype(np.float64) for name, column in spaces.items()}
            state = self._people.get(int(person))
            if state is None or frame - state.frame > WINDOW:
                state = _Filtered(int(frame), float(time), raw, raw, _at_rest(raw))
            else:
                state = state.next(int(frame), float(time), raw)
            self._people[int(person)] = state
            _put(smoothed, row, state.values)
        last = int(rows["frame"][-1]) if len(rows["frame"]) else 0
        self._people = {p: s for p, s in self._people.items() if last - s.frame <= WINDOW}
        return smoothed


@dataclass(frozen=True)
class _Filtered:
    """State of one person: raw values of the last frame, filtered values, and filtered speeds of these."""

    frame: int
    time: float
    raw: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    speeds: dict[str, np.ndarray]

    def next(self, frame: int, time: float, raw: dict[str, np.ndarray]) -> _Filtered:
        """The state with one frame more; rotations take a step along the geodesic."""
        step = max(time - self.time, 1e-3)
        values, speeds = {}, {}
        for name, value in raw.items():
            turning = name == "rotation"
            moved = _turn(self.raw[name], value) if turning else value - self.raw[name]
            speeds[name] = self.speeds[name] + _share(_SPEED_CUTOFF, step) * (moved / step - self.speeds[name])
            speed = np.linalg.norm(speeds[name], axis=-1, keepdims=True)
            cutoff = _MIN_CUTOFF + (_BETA_TURN if turning else _BETA) * speed
            share = _share(cutoff, step)
            if turning:
                values[name] = self.values[name] @ cv2.Rodrigues(share * _turn(self.values[name], value))[0]
            else:
                values[name] = self.values[name] + share * (value - self.values[name])
        return _Filtered(frame, time, raw, values, speeds)


def _at_rest(raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.zeros(3) if name == "rotation" else np.zeros_like(value) for name, value in raw.items()}


def _turn(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Rotation vector (3,), rad, that takes one rotation to another: `new = old @ exp(turn)`."""
    return cv2.Rodrigues(old.T @ new)[0].ravel()


def _share(cutoff: float | np.ndarray, step: float) -> np.ndarray:
    """Share of the new value in a low-pass filter of this cut-off, Hz, at frames `step` s apart."""
    return np.asarray(1 / (1 + 1 / (2 * math.pi * cutoff * step)))
