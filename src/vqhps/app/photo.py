"""What the page does with a photo: what `vqhps predict` does, within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vqhps.app.files import check_bytes, write_zip
from vqhps.app.jobs import Job
from vqhps.app.limits import Limits
from vqhps.errors import VqhpsError
from vqhps.runtime import export_mesh, render
from vqhps.runtime.files import Outputs, write_outputs
from vqhps.runtime.photo import read_photo
from vqhps.runtime.predictor import Prediction, Predictor

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
"""Of the files that are taken as photos."""

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")  # for Pillow: some others run programs
_SHOWN_SIDE = 1600  # px of the picture in the page
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Person:
    """A row of the table: `color` (3,) in [0, 1], `score` in [0, 1], `distance` along the view in m."""

    color: np.ndarray
    score: float
    distance: float


@dataclass(frozen=True)
class PhotoResult:
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


def predict_photo(
    job: Job, predictor: Predictor, path: Path, focal: float | None, out: Path, limits: Limits
) -> PhotoResult:
    """Predict a photo and write its files.

    Args:
        job: told how far the work is.
        predictor: finds and recovers.
        path: of the photo, which nobody has opened before: it may be anything.
        focal: px; from EXIF, else guessed, by default.
        out: folder for the files.
        limits: of the photo.

    Raises:
        VqhpsError: it is no photo, beyond a limit, or without people; the job was stopped or took too long.
    """
    check_bytes(path, limits.photo_bytes)
    photo = read_photo(path, limits.photo_pixels, _FORMATS)
    job.done("reading the photo")
    people = predictor.predict(photo.image, focal=focal or photo.focal)
    job.done("bodies")
    if not people:
        raise VqhpsError(f"{path.name}: no person found; people should be seen well and not be too small")
    faces = predictor.bundle.faces
    overlay = render.render_overlay(photo.image, people, faces)
    shown = out / f"{path.stem}_overlay.jpg"
    _write_jpeg(shown, overlay)
    job.done("drawing")
    export_mesh.write_png(out / f"{path.stem}_overlay.png", overlay)
    written = write_outputs(predictor, path, photo, people, out, Outputs(overlay=False))
    glbs = [file for file in written if file.suffix == ".glb"]
    model = glbs[0] if len(glbs) == 1 else _write_scene(out / f"{path.stem}_all.glb", people, faces)
    archive = write_zip(out / f"{path.stem}.zip", [out / f"{path.stem}_overlay.png", *written, model])
    job.done("writing the files")
    source = "as given" if focal else "from the photo's EXIF" if photo.focal else "a guess"
    return PhotoResult(
        _rows(people), shown, model, _radius(people), (archive, *glbs), job.times, people[0].focal, source
    )


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
