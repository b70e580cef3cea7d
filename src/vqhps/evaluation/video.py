"""Predictions on a video against its truth: who is found and kept, where the joints are, and how they move."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vqhps.body.joints import COCO17
from vqhps.errors import VqhpsError
from vqhps.evaluation.metrics import aligned_distance_mm, mean_distance_mm
from vqhps.evaluation.run import write_results
from vqhps.evaluation.tracking import Matches, Tracks, match
from vqhps.pickles import read_npz

_HIPS = [COCO17.index("left_hip"), COCO17.index("right_hip")]
_WELL = 0.5  # share of joints seen: side on, a person hides a third of them itself
_SHIFTS = 5  # frames
_SMOOTH = 5  # frames: for the lag only
_ROW = {"frame": (), "person": (), "box": (4,), "joints": (17, 3), "joints2d": (17, 2)}
_VIDEO = ("frames", "fps", "size")
_SHOWN = ("MOTA", "IDF1", "id_switches", "recall", "precision", "mpjpe_mm", "pa_mpjpe_mm", "accel_mm", "jitter_mm",
          "lag_frames")  # fmt: skip

Joints = Float[np.ndarray, "N 17 3"]


@dataclass(frozen=True)
class People:
    """What a file says of a video: tracks, `joints` (N,17,3) in metres and camera axes, `visible` (N,), and the
    video's `frames`, `fps`, and `size` (width, height)."""

    path: Path
    tracks: Tracks
    joints: Joints
    visible: Float[np.ndarray, "N"]
    video: tuple[float, ...]


def read_people(path: Path, truth: bool = False) -> People:
    """Read a file that `vqhps video` or `vqhps prepare synthetic-video` wrote.

    Raises:
        VqhpsError: it is damaged, lacks something, or is in disorder.
    """
    wanted = {**_ROW, "visible": ()} if truth else _ROW
    try:
        table = read_npz(path, (*wanted, *_VIDEO))
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror}") from error
    if missing := [name for name in (*wanted, *_VIDEO) if name not in table]:
        raise VqhpsError(f"{path} lacks {', '.join(missing)}; see docs/evaluation.md for what it has to hold")
    count = table["frame"].shape[:1]
    for name, shape in wanted.items():
        if table[name].shape != (*count, *shape) or table[name].dtype.kind not in "iuf":
            raise VqhpsError(f"{path}: '{name}' is {table[name].dtype} {table[name].shape}, not (N, {shape})")
        if not np.isfinite(table[name]).all():
            raise VqhpsError(f"{path}: '{name}' is not finite everywhere; leave such rows out")
    order = np.lexsort([table["person"], table["frame"]])
    rows = {name: table[name][order] for name in wanted}
    frame, person = rows["frame"].astype(np.int64), rows["person"].astype(np.int64)
    if ((np.diff(frame) == 0) & (np.diff(person) == 0)).any():
        raise VqhpsError(f"{path}: a person is twice in one frame")
    tracks = Tracks(frame, person, rows["box"].astype(float), rows["joints2d"].astype(float))
    video = tuple(float(x) for name in _VIDEO for x in table[name].reshape(-1))
    return People(path, tracks, rows["joints"].astype(float), rows.get("visible", np.ones(len(frame))), video)


def evaluate_video(predictions: Sequence[Path], truth: Path, out: Path | None = None) -> dict[str, dict[str, Any]]:
    """Score predictions on a video.

    Joints are COCO's 17. `mpjpe_mm` and `pa_mpjpe_mm` are centred between the hips. `accel_mm` is the mean length of
    the difference of the second differences of predicted and true joints in mm / frame^2, `jitter_mm` and
    `jitter_true_mm` that of the third differences of either in mm / frame^3, over consecutive frames of one person
    under one number; centred between the hips, and with `camera` in camera axes. `lag_frames` is by how much the
    prediction is late, see `lag`.

    Args:
        predictions: files of the same video.
        truth: of the video.
        out: folder for `results.csv` (a row a true person and frame) and `results.json`; where there are several
            predictions, each has a folder in it.

    Returns:
        By the name of each prediction: the metrics over everybody of whom anything is seen, and again as
        `well visible` over those of whom half of the joints are.

    Raises:
        VqhpsError: a file is damaged, or they are not of one video.
    """
    true = read_people(truth, truth=True)
    summaries: dict[str, dict[str, Any]] = {}
    for name, path in zip(_names(predictions), predictions, strict=True):
        found = read_people(path)
        if found.video != true.video:
            raise VqhpsError(
                f"{path} is of a video of (frames, fps, width, height) {found.video}, {truth} of {true.video}"
            )
        summary, table = _score(true, found, true.visible > 0)
        summary["well visible"] = _score(true, found, true.visible >= _WELL)[0]
        summary |= {"frames": true.video[0], "fps": true.video[1]}
        rows = [f"{f}:{p}" for f, p in zip(true.tracks.frame, true.tracks.person, strict=True)]
        folder = out if out is None or len(predictions) == 1 else out / name
        write_results(folder, truth.name, rows, table, {"predictions": str(path), **summary})
        summaries[name] = summary
    return summaries


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names, all different: file names, or else the paths from where they differ."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    start = os.path.commonpath([path.resolve().parent for path in paths])
    names = [path.resolve().relative_to(start).with_suffix("").as_posix() for path in paths]
    if len(set(names)) < len(names):
        raise VqhpsError("the same predictions are given twice")
    return names


def _score(
    true: People, found: People, counted: Bool[np.ndarray, "N"]
) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, "N"]]]:
    """The summary over rows of the truth that count, and the columns of all rows: NaN where there is nothing."""
    matches = match(true.tracks, found.tracks, counted)
    number, columns, lags = motion_errors(true, found, matches, counted)
    means = {name: _mean(column) for name, column in columns.items()}
    scores = {**matches.scores, "id_switches": matches.switches, **means, **lags, "people": int(counted.sum())}
    return scores, {"found": number, "visible": true.visible, **columns}


def _mean(column: Float[np.ndarray, "N"]) -> float | None:
    known = column[np.isfinite(column)]
    return float(known.mean()) if len(known) else None


def motion_errors(
    true: People, found: People, matches: Matches, counted: Bool[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "N"], dict[str, Float[np.ndarray, "N"]], dict[str, float | None]]:
    """Of each row of the truth the number of its prediction (-1: none) and the errors; and the lags."""
    number = np.full(len(counted), -1.0)
    number[matches.found >= 0] = found.tracks.person[matches.found[matches.found >= 0]]
    rows = np.flatnonzero(counted & (matches.found >= 0))
    rows = rows[np.lexsort([true.tracks.frame[rows], true.tracks.person[rows]])]  # person after person
    frame, who = true.tracks.frame[rows], true.tracks.person[rows]
    breaks = (np.diff(frame) != 1) | (np.diff(who) != 0) | (np.diff(number[rows]) != 0)
    run = np.concatenate([[0], np.cumsum(breaks)]) if len(rows) else np.zeros(0, int)
    theirs, own = found.joints[matches.found[rows]], true.joints[rows]
    values: dict[str, np.ndarray] = {}
    lags: dict[str, float | None] = {}
    for space, (p, q) in {"": (_centred(theirs), _centred(own)), "_camera": (theirs, own)}.items():
        if not space:
            aligned = aligned_distance_mm(p, q) if len(p) else np.zeros(0)
            values |= {"mpjpe_mm": mean_distance_mm(p, q), "pa_mpjpe_mm": aligned}
        values[f"accel{space}_mm"] = _length(_difference(p, run, 2) - _difference(q, run, 2))
        values[f"jitter{space}_mm"] = _length(_difference(p, run, 3))
        values[f"jitter_true{space}_mm"] = _length(_difference(q, run, 3))
        lags[f"lag{space}_frames"] = lag(p, q, run)
    columns = {name: np.full(len(counted), np.nan) for name in values}
    for name, column in columns.items():
        column[rows] = values[name]
    return number, columns, lags


def _centred(joints: Joints) -> Joints:
    """Relative to the middle of the hips."""
    return joints - joints[:, _HIPS].mean(1, keepdims=True)


def _length(steps: Joints) -> Float[np.ndarray, "N"]:
    """Mean length over joints, mm."""
    return 1000 * np.linalg.norm(steps, axis=-1).mean(1)


def _difference(joints: Joints, run: Int[np.ndarray, "N"], order: int) -> Joints:
    """Differences over time of some order within runs, at the second of their frames; NaN where a run is too short."""
    out = np.full_like(joints, np.nan)
    if len(joints) > order:
        inside = run[order:] == run[:-order]
        out[1 : len(joints) - order + 1][inside] = np.diff(joints, order, axis=0)[inside]
    return out


def lag(predicted: Joints, true: Joints, run: Int[np.ndarray, "N"]) -> float | None:
    """By how many frames a prediction is late: the shift in time that brings it nearest to the truth.

    Shifts of -5 to 5 frames are tried on moving means of 5 frames of both; between them the least mean squared distance
    is found by a parabola. Early predictions have a negative lag.

    Args:
        predicted, true: joints, sorted by person and frame, metres.
        run: which rows are consecutive frames of one person.

    Returns:
        Frames; None where no run has 15 frames.
    """
    errors, count = np.zeros(2 * _SHIFTS + 1), 0
    for rows in np.split(np.arange(len(run)), np.flatnonzero(np.diff(run)) + 1):
        if len(rows) < 2 * _SHIFTS + _SMOOTH:
            continue
        p, q = (np.lib.stride_tricks.sliding_window_view(x[rows], _SMOOTH, axis=0).mean(-1) for x in (predicted, true))
        length = len(p) - 2 * _SHIFTS
        apart = [((p[s : s + length] - q[_SHIFTS : _SHIFTS + length]) ** 2).sum() for s in range(2 * _SHIFTS + 1)]
        errors += apart
        count += length
    if not count:
        return None
    best = int(errors.argmin())
    if 0 < best < 2 * _SHIFTS:
        before, at, after = errors[best - 1 : best + 2]
        bend = before - 2 * at + after
        return float(best - _SHIFTS + (0.5 * (before - after) / bend if bend > 0 else 0.0))
    return float(best - _SHIFTS)


def side_by_side(summaries: dict[str, dict[str, Any]]) -> str:
    """A table, a line a prediction, and the same again over well visible people."""
    width = max(len(name) for name in summaries)
    lines = []
    for title, part in (("everybody", None), ("well visible", "well visible")):
        lines.append(f"{title:{max(width, 12)}} " + " ".join(f"{m:>12}" for m in _SHOWN))
        for name, summary in summaries.items():
            values = [(summary if part is None else summary[part])[metric] for metric in _SHOWN]
            cells = ("-" if v is None else str(v) if isinstance(v, int) else format(v, ".3f") for v in values)
            lines.append(f"{name:{max(width, 12)}} " + " ".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
