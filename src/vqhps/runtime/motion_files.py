"""A video in, files out: what `vqhps video` does, chunk by chunk, so that a stopped run goes on where it stopped."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.geometry import default_focal
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.export_mesh import SCHEMA, plain, whole_file
from vqhps.runtime.mesh_sequence import SequenceKind, write_mesh_sequence
from vqhps.runtime.motion import empty_rows, predict_segments
from vqhps.runtime.motion_pictures import write_pictures
from vqhps.runtime.motion_tokens import matching_tokenizer, write_motion_tokens
from vqhps.runtime.npz_stream import video_values, write_columns
from vqhps.runtime.predictor import Predictor, to_pixels
from vqhps.runtime.smooth import Smoothing, Table, join, smooth
from vqhps.runtime.track import Tracker
from vqhps.runtime.video import Source, Webcam

logger = logging.getLogger(__name__)

CHUNK = 16
"""Segments of a chunk: what an interruption costs at most."""

_PERSON = (
    "box", "score", "joints", "joints2d", "rotation", "translation", "camera", "crop_center", "crop_size", "indices",
)  # fmt: skip
Advance = Callable[[int, str], None]
"""Told how many frames are done now, and of what: `predict`, then files."""


@dataclass(frozen=True)
class VideoOptions:
    """What to make of a video.

    Attributes:
        vertices: whether the NPZ holds the mesh of every row.
        overlay: whether to write `<stem>_overlay.mp4`.
        smoothing: of bodies and their motion.
        every: frames from one look of the detector to the next; see `vqhps.runtime.motion.track_people`.
        focal: px; a guess from the size of the frames by default.
        side_by_side: whether to write `<stem>_side_by_side.mp4`: the overlay, and the scene from the side.
        sequence: whether and how to write each mesh as a file, in `<stem>_obj/` or `<stem>_ply/`.
        tokens: whether to write `<stem>.vqt`: meshes as tokens, some 100 bytes each.
    """

    vertices: bool = False
    overlay: bool = True
    smoothing: Smoothing = "average"
    every: int | None = None
    focal: float | None = None
    side_by_side: bool = False
    sequence: SequenceKind | None = None
    tokens: bool = False

    @property
    def meshes(self) -> bool:
        """Whether meshes have to be kept until the end."""
        return any((self.vertices, self.overlay, self.side_by_side, self.sequence, self.tokens))


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
        """The smoothed rows, a few frames at a time; `meshes`: with vertices, where `options.meshes` had them kept."""
        chunks = (read_chunk(path, meshes)[0] for path in chunk_files(self.chunks))
        for table in smooth(chunks, self.options.smoothing):
            pixels = to_pixels(table.rows["joints"].astype(np.float64), self.focal, self.size)
            yield Table(table.start, table.times, table.rows | {"joints2d": pixels.astype(np.float32)})

    def by_frame(self) -> Iterator[dict[str, np.ndarray]]:
        """The smoothed rows of each frame, with vertices."""
        for table in self.tables(True):
            for number in range(table.start, table.stop):
                yield table.part(number, number + 1).rows


Writer = Callable[[Motion, Advance], list[Path]]
"""Writes files or folders beside the NPZ, if the options want them, and returns their paths."""


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
    if options.tokens:
        matching_tokenizer(predictor.bundle)  # says so at once if there is none
    chunks = out / f"{source.stem}.chunks"
    if isinstance(source, Webcam) and (options.overlay or options.side_by_side):
        out.mkdir(parents=True, exist_ok=True)
        source.record = out / f"{source.stem}.mp4"
    _predict_chunks(predictor, source, chunks, options, told)
    last = read_chunk(chunk_files(chunks)[-1])
    size = (int(last[1]["size"][0]), int(last[1]["size"][1]))
    focal = options.focal or default_focal(*size)
    motion = Motion(out / f"{source.stem}.npz", source, predictor.bundle, options, size, focal, last[0].stop, chunks)
    people = write_arrays(motion)
    files = [motion.npz, *(path for writer in WRITERS for path in writer(motion, told))]
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
    info = predictor.bundle.info
    settings = {
        "schema": SCHEMA, "source": source.identity, "bundle": [info.name, info.version, info.body],
        "every": options.every, "focal": options.focal, "vertices": options.meshes,
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
    segments = predict_segments(predictor, frames, tracker, options.every, options.focal, options.meshes, start > 0)
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
    info, options = motion.bundle.info, motion.options
    columns = empty_rows(info.tokens, motion.bundle.vertices if options.vertices else None)
    singles = video_values(motion.focal, motion.size, motion.frames, motion.source.fps, options.smoothing)
    scratch = motion.chunks / "columns"
    return len(write_columns(motion.npz, scratch, motion.tables(options.vertices), columns, singles))


def write_frames(motion: Motion, told: Advance) -> list[Path]:
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
    return [path]


def _value(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else float(value)


WRITERS: list[Writer] = [write_frames, write_motion_tokens, write_pictures, write_mesh_sequence]
"""What is written once the NPZ is complete, in this order."""
