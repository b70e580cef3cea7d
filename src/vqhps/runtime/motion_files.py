"""A video in, files out: what `vqhps video` does, chunk by chunk, so that a stopped run goes on where it stopped."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.geometry import default_focal
from vqhps.runtime.bundle import Bundle, available_cores
from vqhps.runtime.export_mesh import SCHEMA, plain, whole_file
from vqhps.runtime.motion import EVERY, empty_rows, predict_segments, predictions, prefetch
from vqhps.runtime.predictor import Predictor, to_pixels
from vqhps.runtime.render import person_color, render_overlay
from vqhps.runtime.smooth import Smoothing, Table, join, smooth
from vqhps.runtime.track import Tracker
from vqhps.runtime.video import Frame, Source, VideoWriter, Webcam

logger = logging.getLogger(__name__)

CHUNK = 16
"""Segments of a chunk: what an interruption costs at most."""

_PERSON = (
    "box", "score", "joints", "joints2d", "rotation", "translation", "camera", "crop_center", "crop_size", "indices",
)  # fmt: skip
Advance = Callable[[int, str], None]
"""Told how many frames are done now, and of what: `predict` or `overlay`."""


@dataclass(frozen=True)
class VideoOptions:
    """What to make of a video.

    Attributes:
        vertices: whether the NPZ holds the mesh of every row.
        overlay: whether to write `<stem>_overlay.mp4`.
        smoothing: of bodies and their motion.
        every: frames from one look of the detector to the next.
        focal: px; a guess from the size of the frames by default.
    """

    vertices: bool = False
    overlay: bool = True
    smoothing: Smoothing = "average"
    every: int = EVERY
    focal: float | None = None


@dataclass(frozen=True)
class Motion:
    """A finished video, for those who write files of it.

    Attributes:
        npz: the file of arrays, which is there.
        source: of the frames.
        bundle: the model.
        options: of the run.
        size: width and height of the frames, px.
        focal: px.
        frames: their number.
        chunks: the folder of raw chunks.
    """

    npz: Path
    source: Source
    bundle: Bundle
    options: VideoOptions
    size: tuple[int, int]
    focal: float
    frames: int
    chunks: Path

    def tables(self, meshes: bool) -> Iterator[Table]:
        """The smoothed rows, a few frames at a time; `meshes`: with vertices, kept for `--vertices` and the overlay."""
        chunks = (read_chunk(path, meshes)[0] for path in chunk_files(self.chunks))
        for table in smooth(chunks, self.options.smoothing):
            pixels = to_pixels(table.rows["joints"].astype(np.float64), self.focal, self.size)
            yield Table(table.start, table.times, table.rows | {"joints2d": pixels.astype(np.float32)})


Writer = Callable[[Motion, Advance], Path | None]
"""Writes one file beside the NPZ and returns its path, or `None` where the options want none."""


@dataclass(frozen=True)
class VideoResult:
    """What became of a video: how many frames and people, and the files."""

    frames: int
    people: int
    files: tuple[Path, ...]


def predict_video(
    predictor: Predictor,
    source: Source,
    out: Path,
    options: VideoOptions = VideoOptions(),
    advance: Advance | None = None,
) -> VideoResult:
    """Recover the people of a video and write `<stem>.npz`, `<stem>.json` and what else the options want.

    A run that was stopped goes on after its last finished chunk, with the same result as one that was not.

    Args:
        predictor: finds and recovers.
        source: of the frames.
        out: folder for the files; made if needed.
        options: what to write, and how.
        advance: told of the progress.

    Raises:
        VqhpsError: nothing can be read, or the folder cannot be written to.
    """
    told = advance or (lambda count, what: None)
    chunks = out / f"{source.stem}.chunks"
    if isinstance(source, Webcam) and options.overlay:
        out.mkdir(parents=True, exist_ok=True)
        source.record = out / f"{source.stem}.mp4"
    _predict_chunks(predictor, source, chunks, options, told)
    last = read_chunk(chunk_files(chunks)[-1])
    size = (int(last[1]["size"][0]), int(last[1]["size"][1]))
    focal = options.focal or default_focal(*size)
    motion = Motion(out / f"{source.stem}.npz", source, predictor.bundle, options, size, focal, last[0].stop, chunks)
    people = write_arrays(motion)
    files = [motion.npz, *(path for writer in WRITERS if (path := writer(motion, told)) is not None)]
    shutil.rmtree(chunks)
    return VideoResult(motion.frames, people, tuple(files))


def chunk_files(folder: Path) -> list[Path]:
    """The finished chunks, in order."""
    return sorted(folder.glob("[0-9]*.npz"))


def read_chunk(path: Path, meshes: bool = False) -> tuple[Table, dict[str, Any]]:
    """Rows of a chunk, with vertices or without, and what its `about` says: `state`, `size`, `end`.

    Raises:
        VqhpsError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files if meshes or name != "vertices"}
        about = json.loads(str(columns.pop("about")))
        return Table(about["start"], columns.pop("times"), columns), about
    except Exception as error:  # numpy raises many kinds for damaged archives
        raise VqhpsError(f"{path} cannot be read ({error}): remove {path.parent} and start again") from error


def _predict_chunks(predictor: Predictor, source: Source, folder: Path, options: VideoOptions, told: Advance) -> None:
    """Make the chunks that are missing."""
    keep = options.vertices or options.overlay
    info = predictor.bundle.info
    settings = {
        "schema": SCHEMA, "source": source.identity, "bundle": [info.name, info.version, info.body],
        "every": options.every, "focal": options.focal, "vertices": keep,
    }  # fmt: skip
    _claim(folder, settings)
    tracker, start, done = Tracker(), 0, chunk_files(folder)
    if done:
        table, about = read_chunk(done[-1])
        if about["end"]:
            return
        tracker, start = Tracker.restore(about["state"]), table.stop
        logger.info("%s: goes on after %d finished frames", source.name, start)
        told(start, "predict")
    frames = source.frames(start)
    segments = predict_segments(predictor, frames, tracker, options.every, options.focal, keep, start > 0)
    parts: list[Table] = []
    number = len(done)
    state: dict[str, Any] = {}
    size = (0, 0)
    for segment, table in segments:
        parts.append(table)
        state, size = segment.state, segment.size
        told(table.stop, "predict")
        if len(parts) == CHUNK:
            _write_chunk(folder / f"{number:06d}.npz", join(parts), {"state": state, "size": size, "end": False})
            parts, number = [], number + 1
    if not parts and number == 0:
        raise VqhpsError(f"{source.name} has no frames")
    if parts:
        _write_chunk(folder / f"{number:06d}.npz", join(parts), {"state": state, "size": size, "end": True})


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder of chunks; chunks of another video or other settings are removed."""
    path = folder / "settings.json"
    text = json.dumps(settings, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if chunk_files(folder):
        logger.info("%s: the video or the settings changed: starts from the beginning", folder)
        for chunk in chunk_files(folder):
            chunk.unlink()
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_chunk(path: Path, table: Table, about: dict[str, Any]) -> None:
    text = json.dumps({"start": table.start, **about})
    arrays: dict[str, Any] = {**table.rows, "times": table.times, "about": np.array(text)}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def write_arrays(motion: Motion) -> int:
    """Write `<stem>.npz` without holding its columns in memory; return the number of people.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    wanted = empty_rows(motion.bundle, motion.options.vertices)
    folder = motion.chunks / "columns"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    people: set[int] = set()
    count = 0
    for table in motion.tables(motion.options.vertices):
        count += len(table.rows["frame"])
        people |= set(table.rows["person"].tolist())
        for name in wanted:
            with (folder / name).open("ab") as column:
                table.rows[name].tofile(column)
    singles: dict[str, Any] = {
        "focal": np.float64(motion.focal), "size": np.array(motion.size, np.int32), "frames": np.int64(motion.frames),
        "fps": np.float64(motion.source.fps), "smoothing": np.array(motion.options.smoothing),
        "schema": np.int64(SCHEMA),
    }  # fmt: skip
    with whole_file(motion.npz) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, empty in wanted.items():
            header = {"descr": empty.dtype.str, "fortran_order": False, "shape": (count, *empty.shape[1:])}
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                with (folder / name).open("rb") as column:
                    shutil.copyfileobj(column, member, 1 << 16)
        for name, value in singles.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, np.asarray(value))
    return len(people)


def write_frames(motion: Motion, told: Advance) -> Path:
    """Write `<stem>.json`, a line a frame; see `docs/output-schema.md`."""
    path = motion.npz.with_suffix(".json")
    info, source = motion.bundle.info, motion.source
    head = {
        "schema": SCHEMA, "video": Path(source.name).name, "width": motion.size[0], "height": motion.size[1],
        "fps": round(source.fps, 5), "focal": round(motion.focal, 3), "smoothing": motion.options.smoothing,
        "bundle": {"name": info.name, "version": info.version, "body": info.body, "joints": info.joints},
    }  # fmt: skip
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head, indent=1)[:-2] + ',\n "frames": [')
        comma = "\n"
        for table in motion.tables(False):
            for number, moment in enumerate(table.times, table.start):
                rows = table.part(number, number + 1).rows
                people = [
                    {"person": int(person)} | {name: plain(_value(rows[name][i])) for name in _PERSON}
                    for i, person in enumerate(rows["person"])
                ]
                frame = {"frame": number, "time": round(float(moment), 5), "people": people}
                file.write(f"{comma}{json.dumps(frame, separators=(',', ':'))}")
                comma = ",\n"
        file.write("\n]}\n")
    return path


def _value(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else float(value)


def write_overlay(motion: Motion, told: Advance) -> Path | None:
    """Write `<stem>_overlay.mp4`: the meshes over the frames, a colour a person."""
    if not motion.options.overlay:
        return None
    path = motion.npz.with_name(f"{motion.source.stem}_overlay.mp4")
    workers = max(1, min(available_cores(), 4))
    running: deque[tuple[float, Future[np.ndarray]]] = deque()
    with (
        whole_file(path) as temporary,
        VideoWriter(temporary, motion.source.fps) as video,
        ThreadPoolExecutor(workers) as pool,
    ):

        def finish_one() -> None:
            moment, picture = running.popleft()
            video.write(picture.result(), moment)

        for frame, rows in zip(prefetch(motion.source.replay(), workers), _by_frame(motion), strict=False):
            running.append((frame.time, pool.submit(_drawn, motion, frame, rows)))
            if len(running) > workers:
                finish_one()
            told(frame.index + 1, "overlay")
        while running:
            finish_one()
    return path


def _by_frame(motion: Motion) -> Iterator[dict[str, np.ndarray]]:
    for table in motion.tables(True):
        for number in range(table.start, table.stop):
            yield table.part(number, number + 1).rows


def _drawn(motion: Motion, frame: Frame, rows: dict[str, np.ndarray]) -> np.ndarray:
    people = predictions(rows, motion.focal, motion.size)
    colors = [person_color(person) for person in people]
    return render_overlay(frame.image, list(people.values()), motion.bundle.faces, colors=colors)


WRITERS: list[Writer] = [write_frames, write_overlay]
"""What is written once the NPZ is complete, in this order."""
