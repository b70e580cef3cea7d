"""What the page does with a photo: one at a time, within limits, timed."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime import export_mesh, render
from vqhps.runtime.detect import Detection, Detector, PersonDetector
from vqhps.runtime.files import Outputs, write_outputs
from vqhps.runtime.photo import read_photo
from vqhps.runtime.predictor import Prediction, Predictor

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""Those that are opened, as Pillow names them: some others run programs or read more files."""

_SHOWN_SIDE = 1600  # px of the picture in the page
_JPEG_QUALITY = 88

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Limits:
    """How much the page takes.

    Attributes:
        file_bytes: of one file.
        pixels: of a photo.
        people: on a photo; the best detections are kept.
        seconds: of work for one file, waiting for others included.
        waiting: files in the queue.
    """

    file_bytes: int = 30_000_000
    pixels: int = 40_000_000
    people: int = 20
    seconds: float = 120.0
    waiting: int = 8


@dataclass(frozen=True)
class Person:
    """A row of the table: `color` (3,) in [0, 1], `score` in [0, 1], `distance` along the view in m."""

    color: np.ndarray
    score: float
    distance: float


@dataclass(frozen=True)
class Result:
    """What a photo became.

    Attributes:
        people: best first.
        overlay: JPEG of the photo with the meshes, at most 1600 px.
        model: GLB of all people together.
        radius: m, of a sphere around all of them.
        files: to download: a zip of everything, then the GLB of each person.
        times: stage and ms, in order.
        focal: px.
        focal_from: where that is from.
    """

    people: tuple[Person, ...]
    overlay: Path
    model: Path
    radius: float
    files: tuple[Path, ...]
    times: dict[str, float]
    focal: float
    focal_from: str


class Stages:
    """Times of the stages of a job; a job that was given up ends at the next stage."""

    def __init__(self) -> None:
        """Start the clock."""
        self.times: dict[str, float] = {}
        self.given_up = threading.Event()
        self._last = time.perf_counter()

    def done(self, name: str) -> None:
        """The stage `name` ends here."""
        if self.given_up.is_set():
            raise VqhpsError("given up")
        now = time.perf_counter()
        self.times[name] = (now - self._last) * 1000
        self._last = now


class Worker:
    """The model and the one thread that it works on."""

    def __init__(self, bundle: Path | None = None, limits: Limits = Limits(), detector: Detector | None = None) -> None:
        """Load the model.

        Args:
            bundle: its folder; the shipped one by default.
            limits: of a file.
            detector: finds the people; the shipped one by default.

        Raises:
            VqhpsError: the bundle or the detector cannot be loaded.
        """
        self.limits = limits
        self._detector = detector or PersonDetector(max_people=limits.people)
        self._predictor = Predictor(bundle, self._find)
        self._pool = ThreadPoolExecutor(1, "vqhps")
        self._stages = Stages()

    def photo(self, path: Path, focal: float | None, out: Path) -> Result:
        """Predict a photo and write its files.

        Args:
            path: of the photo, which nobody has opened before: it may be anything.
            focal: px; from EXIF, else guessed, by default.
            out: folder for the files.

        Raises:
            VqhpsError: it is no photo, beyond a limit, without people, or took too long; names no folder.
        """
        try:
            return self._within_time(lambda stages: self._photo(stages, path, focal, out))
        except VqhpsError as error:
            raise VqhpsError(str(error).replace(str(path), path.name)) from error

    def close(self) -> None:
        """Start no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _within_time(self, job: Callable[[Stages], Outcome]) -> Outcome:
        stages = Stages()
        future = self._pool.submit(job, stages)
        try:
            return future.result(self.limits.seconds)
        except FutureTimeout:
            stages.given_up.set()
            future.cancel()
            raise VqhpsError(
                f"this took longer than {self.limits.seconds:g} seconds and was stopped: "
                "try again later, or a smaller photo"
            ) from None

    def _photo(self, stages: Stages, path: Path, focal: float | None, out: Path) -> Result:
        self._stages = stages
        _check_bytes(path, self.limits.file_bytes)
        photo = read_photo(path, self.limits.pixels, FORMATS)
        stages.done("reading the photo")
        people = self._predictor.predict(photo.image, focal=focal or photo.focal)
        stages.done("bodies")
        if not people:
            raise VqhpsError(f"{path.name}: no person found; people should be seen well and not be too small")
        faces = self._predictor.bundle.faces
        overlay = render.render_overlay(photo.image, people, faces)
        shown = out / f"{path.stem}_overlay.jpg"
        _write_jpeg(shown, overlay)
        stages.done("drawing")
        export_mesh.write_png(out / f"{path.stem}_overlay.png", overlay)
        written = write_outputs(self._predictor, path, photo, people, out, Outputs(overlay=False))
        glbs = [file for file in written if file.suffix == ".glb"]
        model = glbs[0] if len(glbs) == 1 else _write_scene(out / f"{path.stem}_all.glb", people, faces)
        archive = _write_zip(out / f"{path.stem}.zip", [out / f"{path.stem}_overlay.png", *written, model])
        stages.done("writing the files")
        source = "as given" if focal else "from the photo's EXIF" if photo.focal else "a guess"
        return Result(
            _rows(people), shown, model, _radius(people), (archive, *glbs), stages.times, people[0].focal, source
        )

    def _find(self, image: np.ndarray) -> list[Detection]:
        """The predictor's detector."""
        found = self._detector(image)
        self._stages.done("finding people")
        return found[: self.limits.people]


def _check_bytes(path: Path, limit: int) -> None:
    if not path.exists():
        raise VqhpsError(f"{path.name} is gone: files are kept for an hour, give it again")
    if path.stat().st_size > limit:
        raise VqhpsError(f"{path.name} is larger than {limit / 1e6:g} MB: scale it down")


def _rows(people: Sequence[Prediction]) -> tuple[Person, ...]:
    return tuple(Person(render.person_color(i), p.score, float(p.translation[2])) for i, p in enumerate(people))


def _radius(people: Sequence[Prediction]) -> float:
    points = np.concatenate([person.vertices for person in people])
    return float(np.linalg.norm(points.max(axis=0) - points.min(axis=0)) / 2)


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    shrink = min(1.0, _SHOWN_SIDE / max(image.shape[:2]))
    if shrink < 1:
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    with export_mesh.whole_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _write_scene(path: Path, people: Sequence[Prediction], faces: np.ndarray) -> Path:
    """One GLB of all people, each a mesh in its colour, in the axes of `write_glb`."""
    from trimesh import Scene, Trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    scene = Scene()
    for index, person in enumerate(people):
        color = [*export_mesh.linear_light(render.person_color(index)), 1.0]
        paint = PBRMaterial(baseColorFactor=color, metallicFactor=0.0, roughnessFactor=0.8)
        points = export_mesh.y_up(person.vertices)
        mesh = Trimesh(points, faces, visual=TextureVisuals(material=paint), process=False)
        scene.add_geometry(mesh, geom_name=f"person {index + 1}")
    with export_mesh.whole_file(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb", include_normals=True))
    return path


def _write_zip(path: Path, files: Sequence[Path]) -> Path:
    with export_mesh.whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", compresslevel=1) as archive:
        for file in dict.fromkeys(files):
            stored = file.suffix in (".png", ".npz")  # pictures are packed already, coordinates hardly pack
            archive.write(file, file.name, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    return path
