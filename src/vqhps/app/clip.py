"""What the page does with a clip: what `vqhps video` and `vqhps animate` do, within limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqhps.app.files import check_bytes, write_zip
from vqhps.app.jobs import Job
from vqhps.app.limits import Limits
from vqhps.errors import VqhpsError
from vqhps.runtime.animate import Files, Predictions, fit_people, write_files
from vqhps.runtime.body_motion import PersonMotion
from vqhps.runtime.motion_files import VideoOptions, predict_video
from vqhps.runtime.predictor import Predictor
from vqhps.runtime.render import person_color
from vqhps.runtime.rig import default_rig
from vqhps.runtime.video import Frame, VideoFile

ENDINGS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".ts")
"""Of the files that are taken as clips."""

_CONTAINERS = ("mov", "matroska", "avi", "mpegts")  # as FFmpeg names them: some others name more files to read


@dataclass(frozen=True)
class Mover:
    """A row of the table.

    Attributes:
        person: number.
        color: (3,) in [0, 1].
        frames: in which it was seen.
        distance: along the view, mean, m.
        error_mm: of the fit to its meshes, mean.
    """

    person: int
    color: np.ndarray
    frames: int
    distance: float
    error_mm: float


@dataclass(frozen=True)
class ClipResult:
    """What a clip became.

    Attributes:
        people: by their numbers.
        frames: how many were decoded.
        overlay: MP4 of the clip with the meshes.
        viewer: HTML page of the people in 3D.
        files: to download: a zip of everything, then some of it.
        times: stage and ms, in order.
        focal: px.
        focal_from: where that is from.
        notes: what went wrong with the file, one line each.
    """

    people: tuple[Mover, ...]
    frames: int
    overlay: Path
    viewer: Path
    files: tuple[Path, ...]
    times: dict[str, float]
    focal: float
    focal_from: str
    notes: tuple[str, ...]


class Clip(VideoFile):
    """A video file that nobody has opened before: it may be anything."""

    def __init__(self, path: Path, limits: Limits) -> None:
        """Look at its header; raises `VqhpsError` where it is no video or beyond a limit."""
        check_bytes(path, limits.clip_bytes)
        super().__init__(path, limits.clip_pixels, _CONTAINERS)
        self._limits = limits
        if self.total is not None:
            self._check(self.total, self.total / self.fps)

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """See `Source`; the header may have promised less."""
        for frame in super().frames(start):
            self._check(frame.index + 1, frame.time)
            yield frame

    def _check(self, frames: int, seconds: float) -> None:
        if seconds > self._limits.clip_length:
            raise VqhpsError(f"{self.name} lasts more than {self._limits.clip_length:g} seconds: cut out a part")
        if frames > self._limits.clip_frames:
            raise VqhpsError(f"{self.name} has more than {self._limits.clip_frames} frames: cut out a part")


def predict_clip(
    job: Job, predictor: Predictor, path: Path, focal: float | None, out: Path, limits: Limits
) -> ClipResult:
    """Recover the people of a clip and write its files.

    Args:
        job: told how far the work is.
        predictor: finds and recovers.
        path: of the clip.
        focal: px; guessed by default.
        out: folder for the files.
        limits: of the clip.

    Raises:
        VqhpsError: it is no video, beyond a limit, or without people; the job was stopped or took too long.
    """
    rig = default_rig()
    if predictor.bundle.faces.max() + 1 != len(rig.skin_bones):
        raise VqhpsError("the model here has a body without a skeleton: it takes photos only")
    clip = Clip(path, limits)

    def told(count: int, what: str) -> None:
        if what == "overlay" and not job.times:
            job.done("bodies")
        job.at("Finding bodies" if what == "predict" else "Drawing", count, clip.total or 0)

    video = predict_video(predictor, clip, out, VideoOptions(vertices=True, focal=focal), told)
    if video.people == 0:
        raise VqhpsError(f"{path.name}: no person found; people should be seen well and not be too small")
    job.done("drawing")
    meshes, *others = video.files
    predictions = Predictions.open(meshes)
    read = 0

    def fitted(count: int) -> None:
        nonlocal read
        read += count
        job.at("Fitting the skeleton", read, 2 * len(predictions.frame))

    people = fit_people(rig, predictions, fitted)
    job.done("fitting the skeleton")
    written = write_files(out, path.stem, people, rig, predictions.view, Files())
    meshes.unlink()  # much larger than all others
    archive = write_zip(out / f"{path.stem}.zip", [*others, *written])
    job.done("writing the files")
    named = {file.name.removeprefix(path.stem): file for file in [*others, *written]}
    wanted = (".glb", "_overlay.mp4", ".html", "_motion.npz", "_motion.json")
    files = [archive, *(named[ending] for ending in wanted), *(f for f in written if f.suffix == ".bvh")]
    return ClipResult(
        people=_rows(people),
        frames=video.frames,
        overlay=named["_overlay.mp4"],
        viewer=named[".html"],
        files=tuple(files),
        times=job.times,
        focal=predictions.view.focal,
        focal_from="as given" if focal else "a guess",
        notes=tuple(text.replace(str(path), path.name) for text in clip.notes),
    )


def _rows(people: Sequence[PersonMotion]) -> tuple[Mover, ...]:
    return tuple(
        Mover(
            p.person, person_color(p.person), len(p.frames), float(p.translation[:, 2].mean()), float(p.error_mm.mean())
        )
        for p in people
    )
