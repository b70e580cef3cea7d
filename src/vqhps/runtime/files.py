"""Photos in, files out: what `vqhps predict` does with each photo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime import export_mesh, render
from vqhps.runtime.photo import Photo, read_photo
from vqhps.runtime.predictor import Prediction, Predictor
from vqhps.runtime.threads import in_threads


@dataclass(frozen=True)
class Outputs:
    """Which files to write for a photo `a.jpg`.

    Attributes:
        overlay: `a_overlay.png`: the meshes over the photo.
        side: `a_side.png`: the meshes from the side.
        glb: `a_0.glb`, `a_1.glb`, ...: a mesh a person.
        obj: `a_0.obj`, `a_1.obj`, ...: the same in another format.
        npz: `a.npz`: everything, as arrays.
        json: `a.json`: everything but the meshes.
    """

    overlay: bool = True
    side: bool = True
    glb: bool = True
    obj: bool = True
    npz: bool = True
    json: bool = True


@dataclass(frozen=True)
class Result:
    """What became of one photo: the files written, or why there are none."""

    photo: Path
    people: int
    files: tuple[Path, ...]
    error: VqhpsError | None


def predict_photos(
    predictor: Predictor,
    photos: Sequence[Path],
    out: Path,
    outputs: Outputs = Outputs(),
    boxes: Mapping[str, np.ndarray] | np.ndarray | None = None,
    focal: float | None = None,
) -> Iterator[Result]:
    """Predict photo by photo; one that fails does not stop the others. Files are written while the next is predicted.

    Args:
        predictor: the model.
        photos: paths.
        out: folder for the files; made if needed.
        outputs: which files to write.
        boxes: (N, 4) xyxy px for every photo, or by file name; found by the detector by default.
        focal: px; by default from EXIF, else a guess from the size of the photo.
    """
    first_of: dict[str, Path] = {}

    def predict(path: Path) -> Callable[[], Result]:
        try:
            other = first_of.setdefault(path.stem, path)
            if other is not path:
                raise VqhpsError(
                    f"{path} would overwrite the files of {other}: rename it, or use another call and folder"
                )
            photo = read_photo(path)
            people = predictor.predict(photo.image, _boxes_of(path, boxes), focal or photo.focal)
            if not people:
                raise VqhpsError(f"{path}: no person found; give a box with --box x0 y0 x1 y1")
            return lambda: _written(predictor, path, photo, people, out, outputs)
        except VqhpsError as error:
            failed = Result(path, 0, (), error)
            return lambda: failed

    return in_threads(lambda write: write(), map(predict, photos))


def _written(
    predictor: Predictor, path: Path, photo: Photo, people: Sequence[Prediction], out: Path, outputs: Outputs
) -> Result:
    try:
        files = write_outputs(predictor, path, photo, people, out, outputs)
        return Result(path, len(people), tuple(files), None)
    except VqhpsError as error:
        return Result(path, 0, (), error)


def _boxes_of(path: Path, boxes: Mapping[str, np.ndarray] | np.ndarray | None) -> np.ndarray | None:
    if not isinstance(boxes, Mapping):
        return boxes
    if path.name not in boxes:
        raise VqhpsError(f"{path}: the boxes file has no entry '{path.name}'")
    return boxes[path.name]


def write_outputs(
    predictor: Predictor, path: Path, photo: Photo, people: Sequence[Prediction], out: Path, outputs: Outputs
) -> list[Path]:
    """Write the chosen files of one photo and return their paths.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    faces, info = predictor.bundle.faces, predictor.bundle.info
    height, width = photo.image.shape[:2]
    written = []

    def add(ending: str) -> Path:
        written.append(out / f"{path.stem}{ending}")
        return written[-1]

    if outputs.overlay:
        export_mesh.write_png(add("_overlay.png"), render.render_overlay(photo.image, people, faces))
    if outputs.side:
        export_mesh.write_png(add("_side.png"), render.render_side(people, faces))
    for index, person in enumerate(people):
        if outputs.glb:
            export_mesh.write_glb(add(f"_{index}.glb"), person.vertices, faces, render.person_color(index))
        if outputs.obj:
            export_mesh.write_obj(add(f"_{index}.obj"), person.vertices, faces)
    if outputs.npz:
        export_mesh.write_npz(add(".npz"), people, faces, (width, height))
    if outputs.json:
        export_mesh.write_json(add(".json"), people, info, path.name, (width, height))
    return written
