"""From the file of a video's or photo's predictions to animated bodies; meshes pass through memory some at a time."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.body_motion import (
    PersonMotion,
    Timeline,
    write_bvh,
    write_joints_csv,
    write_motion_json,
    write_motion_npz,
)
from vqhps.runtime.export_motion import View, write_animation_glb
from vqhps.runtime.rig import Rest, Rig
from vqhps.runtime.rig_fit import SHAPE_FRAMES, Fit, fit, fit_rest
from vqhps.runtime.viewer import write_viewer

_CHUNK = 64  # meshes read at a time
_ROWS = ("frame", "time", "person", "rotation", "translation")


@dataclass(frozen=True)
class Predictions:
    """Predicted people of a clip, but for their meshes, which stay in the file; one row a person and frame.

    Attributes:
        path: the `.npz`.
        frame: (N,) number of the frame, rising.
        time: (N,) s.
        person: (N,) number of the person.
        rotation: (N, 3, 3) axes of the meshes -> camera axes.
        translation: (N, 3) m, of the meshes' origin.
        view: the camera.
    """

    path: Path
    frame: np.ndarray
    time: np.ndarray
    person: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    view: View

    @staticmethod
    def open(path: Path) -> Predictions:
        """Read a file of `vqhps video --vertices` or, as a clip of one frame, one of `vqhps predict`.

        Raises:
            VqhpsError: it is missing, damaged, or neither.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                video = "person" in archive.files
                names = (*_ROWS, "focal", "size") if video else ("focal", "image_size", "box")
                missing = [name for name in (*names, "vertices") if name not in archive.files]
                if missing:
                    raise VqhpsError(
                        f"{path} has no {missing[0]}: give what `vqhps video --vertices` or `vqhps predict` wrote"
                    )
                values = {name: archive[name] for name in names}
                with zipfile.ZipFile(path) as parts, parts.open("vertices.npy") as file:
                    shape = _header(file)[0]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise VqhpsError(f"{path} cannot be read as .npz ({str(error).splitlines()[0]})") from error
        return Predictions._of_video(path, values, shape) if video else Predictions._of_photo(path, values, shape)

    @staticmethod
    def _of_video(path: Path, values: dict[str, np.ndarray], shape: tuple[int, ...]) -> Predictions:
        rows = [values[name] for name in _ROWS]
        if shape[0] == 0:
            raise VqhpsError(f"{path} holds no person")
        if any(len(row) != shape[0] for row in rows):
            raise VqhpsError(f"{path}: {', '.join(_ROWS)} must have as many rows as vertices, {shape[0]}")
        frame, time, person, rotation, translation = rows
        keys = np.stack([frame, person], 1).tolist()
        if any(a >= b for a, b in itertools.pairwise(keys)):
            raise VqhpsError(f"{path}: rows must be sorted by frame, then person, each once")
        if not all(np.isfinite(row).all() for row in rows):
            raise VqhpsError(f"{path} holds numbers that are not finite")
        return Predictions(
            path, frame, time, person, rotation, translation, _view(path, values["focal"], values["size"])
        )

    @staticmethod
    def _of_photo(path: Path, values: dict[str, np.ndarray], shape: tuple[int, ...]) -> Predictions:
        count = shape[0]
        none, still = np.zeros(count, np.int32), np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
        view = _view(path, values["focal"], values["image_size"])
        people = np.arange(count, dtype=np.int32)
        return Predictions(path, none, none.astype(np.float64), people, still, np.zeros((count, 3), np.float32), view)

    def meshes(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Which rows, and their meshes (R, V, 3), in order, some at a time."""
        try:
            with zipfile.ZipFile(self.path) as parts, parts.open("vertices.npy") as file:
                shape, dtype = _header(file)
                size = int(np.prod(shape[1:])) * dtype.itemsize
                for start in range(0, shape[0], _CHUNK):
                    count = min(_CHUNK, shape[0] - start)
                    rows = np.frombuffer(file.read(count * size), dtype).reshape(count, *shape[1:])
                    yield slice(start, start + count), rows
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise VqhpsError(f"the meshes of {self.path} cannot be read ({str(error).splitlines()[0]})") from error


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a `.npy` file, which then stands at its first number."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if columns_first or dtype.kind != "f" or len(shape) != 3:
        raise ValueError(f"vertices must be (N, V, 3) numbers, got {dtype} {shape}")
    return shape, dtype


def _view(path: Path, focal: np.ndarray, size: np.ndarray) -> View:
    if focal.size != 1 or size.size != 2 or not (np.isfinite(focal).all() and float(focal) > 0 and (size > 0).all()):
        raise VqhpsError(f"{path}: focal must be a number of pixels, and the size two")
    return View(float(focal), (int(size[0]), int(size[1])))


def fit_people(
    rig: Rig, predictions: Predictions, advance: Callable[[int], object] = lambda rows: None
) -> list[PersonMotion]:
    """Fit the rig to every person: its one rest pose to some of its meshes, then its pose to each.

    Args:
        rig: of the body.
        predictions: of a clip.
        advance: told after every chunk how many meshes it had; each is read twice.

    Raises:
        VqhpsError: the meshes are of another body, damaged or not finite.
    """
    numbers = np.unique(predictions.person)
    rows = {int(p): np.flatnonzero(predictions.person == p) for p in numbers}
    rests = _rests(rig, predictions, rows, advance)
    parts: dict[int, list[Fit]] = {number: [] for number in rows}
    for part, meshes in predictions.meshes():
        for number in np.unique(predictions.person[part]).tolist():
            parts[number].append(fit(rig, meshes[predictions.person[part] == number], rests[number]))
        advance(len(meshes))
    people = []
    for number, own in rows.items():
        fields = (
            np.concatenate([getattr(f, n) for f in parts[number]]) for n in ("rotations", "translation", "error_mm")
        )
        rotations, translation, error = fields
        whole = Fit(rotations, translation, parts.pop(number)[0].rest, error)
        where = (predictions.rotation[own], predictions.translation[own])
        people.append(PersonMotion.placed(whole, number, predictions.frame[own], predictions.time[own], *where))
    return people


def _rests(
    rig: Rig, predictions: Predictions, rows: dict[int, np.ndarray], advance: Callable[[int], object]
) -> dict[int, Rest]:
    """The rest pose of each person, from meshes spread over its frames."""
    wanted = {
        number: own[np.unique(np.linspace(0, len(own) - 1, SHAPE_FRAMES).astype(int))] for number, own in rows.items()
    }
    kept: dict[int, list[np.ndarray]] = {number: [] for number in rows}
    for part, meshes in predictions.meshes():
        for number, chosen in wanted.items():
            inside = chosen[(chosen >= part.start) & (chosen < part.stop)] - part.start
            kept[number] += list(meshes[inside])
        advance(len(meshes))
    return {number: fit_rest(rig, np.stack(meshes)) for number, meshes in kept.items()}


@dataclass(frozen=True)
class Files:
    """Which files to write of a clip `a`.

    Attributes:
        glb: `a.glb`: everybody, skinned and animated, and the camera.
        bvh: `a_0.bvh`, ...: a skeleton a person.
        csv: `a_joints.csv`: where the joints are.
        viewer: `a.html`: to look at in a browser.
        npz: `a_motion.npz`: all parameters, as arrays.
        json: `a_motion.json`: the same.
    """

    glb: bool = True
    bvh: bool = True
    csv: bool = True
    viewer: bool = True
    npz: bool = True
    json: bool = True


def write_files(out: Path, stem: str, people: Sequence[PersonMotion], rig: Rig, view: View, files: Files) -> list[Path]:
    """Write the chosen files and return their paths.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    written: list[Path] = []

    def add(ending: str) -> Path:
        written.append(out / f"{stem}{ending}")
        return written[-1]

    if files.glb:
        write_animation_glb(add(".glb"), people, rig, view)
    if files.bvh:
        timeline = Timeline.of(people)
        for person in people:
            write_bvh(add(f"_{person.person}.bvh"), person, rig, timeline)
    if files.csv:
        write_joints_csv(add("_joints.csv"), people, rig)
    if files.viewer:
        write_viewer(add(".html"), people, rig, view, stem)
    if files.npz:
        write_motion_npz(add("_motion.npz"), people, rig)
    if files.json:
        write_motion_json(add("_motion.json"), people, rig)
    return written
