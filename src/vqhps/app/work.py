"""The model behind the page, and the jobs that it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vqhps.app import clip, photo
from vqhps.app.jobs import Job, Line
from vqhps.app.limits import Limits
from vqhps.errors import VqhpsError
from vqhps.runtime.detect import Detection, Detector, PersonDetector
from vqhps.runtime.predictor import Predictor

Result = photo.PhotoResult | clip.ClipResult


class Worker:
    """Takes photos and clips, one at a time."""

    def __init__(self, bundle: Path | None = None, limits: Limits = Limits(), detector: Detector | None = None) -> None:
        """Load the model.

        Args:
            bundle: its folder; the shipped one by default.
            limits: of files and time.
            detector: finds the people; the shipped one by default.

        Raises:
            VqhpsError: the bundle or the detector cannot be loaded.
        """
        self.limits = limits
        self.line = Line(limits.waiting)
        self._detector = detector or PersonDetector(max_people=limits.photo_people)
        self._bundle = Predictor(bundle).bundle

    def start(
        self, owner: str, path: Path, focal: float | None, out: Path, finished: Callable[[bool], None]
    ) -> Job[Result]:
        """Put a file in line; what the same owner gave before is stopped.

        Args:
            owner: whose it is.
            path: of a photo or clip, which nobody has opened before: it may be anything.
            focal: px; from EXIF, else guessed, by default.
            out: folder for the files that it becomes.
            finished: told at the very end whether there is a result.

        Raises:
            VqhpsError: too many wait already. The job's `result` says what is wrong with the file; names no folder.
        """
        is_clip = path.suffix.lower() in clip.ENDINGS
        seconds = self.limits.clip_seconds if is_clip else self.limits.photo_seconds

        def work(job: Job[Result]) -> Result:
            try:
                return self._clip(job, path, focal, out) if is_clip else self._photo(job, path, focal, out)
            except VqhpsError as error:
                kind, message = type(error), str(error)
            # a new one: the old one holds the frames of the work, and with them open files and threads
            raise kind(message.replace(f"{out}/", "").replace(str(path), path.name))

        return self.line.add(owner, seconds, work, finished)

    def _photo(self, job: Job[Result], path: Path, focal: float | None, out: Path) -> Result:
        few = _Few(self._detector, self.limits.photo_people, lambda: job.done("finding people"))
        return photo.predict_photo(job, Predictor(self._bundle, few), path, focal, out, self.limits)

    def _clip(self, job: Job[Result], path: Path, focal: float | None, out: Path) -> Result:
        few = _Few(self._detector, self.limits.clip_people, job.check)
        return clip.predict_clip(job, Predictor(self._bundle, few), path, focal, out, self.limits)


class _Few:
    """A detector of which only the best are taken; `found` is called after each look."""

    def __init__(self, detector: Detector, people: int, found: Callable[[], None]) -> None:
        self._detector, self._people, self._found = detector, people, found

    def __call__(self, image: np.ndarray) -> list[Detection]:
        found = self._detector(image)
        self._found()
        return found[: self._people]

    def follow(self, image: np.ndarray, box: np.ndarray) -> Detection | None:
        """See `Predictor.follow`."""
        follow = getattr(self._detector, "follow", None)
        return None if follow is None else follow(image, box)
