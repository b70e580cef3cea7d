"""The motion of people as parameters of the rig, and as files of them: NPZ, JSON, CSV of joints, BVH.

Conventions in `docs/animation.md`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from vqhps.geometry import quaternion_from_matrix, rotate
from vqhps.runtime.export_mesh import plain, whole_file, y_up
from vqhps.runtime.rig import Rest, Rig
from vqhps.runtime.rig_fit import Fit

SCHEMA = 1
"""Version of the JSON and NPZ layouts."""

_CENTIMETRES = 100.0  # in a metre: the unit of BVH files
_ROWS = 500  # of a JSON array written at a time


@dataclass(frozen=True)
class PersonMotion:
    """One person over the frames in which it was seen; m, camera axes (x right, y down, z forward).

    Attributes:
        person: number.
        frames: (F,) numbers of the frames, rising, not always one by one.
        times: (F,) s.
        rotations: (F, K, 3, 3), each relative to the parent bone; of the root: body axes -> camera axes.
        translation: (F, 3) m, of the root's head.
        rest: the body, the same in all frames.
        error_mm: (F,) mean vertex distance from the predicted meshes.
    """

    person: int
    frames: np.ndarray
    times: np.ndarray
    rotations: np.ndarray
    translation: np.ndarray
    rest: Rest
    error_mm: np.ndarray

    @staticmethod
    def placed(
        fit: Fit, person: int, frames: np.ndarray, times: np.ndarray, rotation: np.ndarray, translation: np.ndarray
    ) -> PersonMotion:
        """The motion of a body fitted to canonical meshes, put where they stand.

        Args:
            fit: of canonical meshes.
            person: number.
            frames: (F,) numbers.
            times: (F,) s.
            rotation: (F, 3, 3) canonical -> camera axes.
            translation: (F, 3) m, of the canonical origin.
        """
        rotations = fit.rotations.copy()
        rotations[:, 0] = rotation @ rotations[:, 0]
        root = rotate(rotation, fit.translation[:, None])[:, 0] + translation
        return PersonMotion(person, frames, times, rotations, root.astype(np.float32), fit.rest, fit.error_mm)

    def joints(self, rig: Rig) -> np.ndarray:
        """(F, K, 3) m, heads of the bones, camera axes."""
        return rig.bones(self.rotations, self.translation, self.rest.joints)[1]

    def vertices(self, rig: Rig, which: slice = slice(None)) -> np.ndarray:
        """(F, V, 3) m, posed meshes of some frames, camera axes."""
        return rig.pose(self.rotations[which], self.translation[which], self.rest)

    def quaternions(self) -> np.ndarray:
        """(F, K, 4) `rotations` as w, x, y, z, of the sign that makes each nearest to the one before it."""
        quaternion = quaternion_from_matrix(self.rotations)
        flips = (quaternion[1:] * quaternion[:-1]).sum(-1, keepdims=True) < 0
        signs = np.cumprod(np.where(flips, -1, 1), axis=0)
        return np.concatenate([quaternion[:1], quaternion[1:] * signs])


@dataclass(frozen=True)
class Timeline:
    """The frames of a clip, evenly spaced.

    Attributes:
        frames: (T,) numbers.
        start: time of the first, s.
        step: time between two, s.
    """

    frames: np.ndarray
    start: float
    step: float

    @staticmethod
    def of(people: Sequence[PersonMotion]) -> Timeline:
        """From the first frame in which anybody was seen to the last; a lone frame takes 1/30 s."""
        number, index = np.unique(np.concatenate([p.frames for p in people]), return_index=True)
        times = np.concatenate([p.times for p in people])[index]
        if len(number) == 1:
            return Timeline(number, float(times[0]), 1 / 30)
        every = int(np.gcd.reduce(np.diff(number)))
        frames = np.arange(number[0], number[-1] + 1, every)
        return Timeline(frames, float(times[0]), float(times[-1] - times[0]) / (len(frames) - 1))

    def seconds(self) -> np.ndarray:
        """(T,) s since the first frame."""
        return np.arange(len(self.frames)) * self.step

    def seen(self, person: PersonMotion) -> np.ndarray:
        """(T,) whether a person was seen in each frame."""
        return np.isin(self.frames, person.frames)

    def held(self, person: PersonMotion) -> np.ndarray:
        """(T,) for each frame, the position in `person.frames` of the last one seen by then, or the first one."""
        return np.maximum(np.searchsorted(person.frames, self.frames, side="right") - 1, 0)


def write_motion_npz(path: Path, people: Sequence[PersonMotion], rig: Rig) -> None:
    """Write all parameters as plain arrays, frames of all people one after the other."""
    rows = {
        "frame": np.concatenate([p.frames for p in people]).astype(np.int32),
        "time": np.concatenate([p.times for p in people]),
        "person": np.repeat([p.person for p in people], [len(p.frames) for p in people]).astype(np.int32),
        "rotations": np.concatenate([p.rotations for p in people]).astype(np.float32),
        "translation": np.concatenate([p.translation for p in people]).astype(np.float32),
        "error_mm": np.concatenate([p.error_mm for p in people]).astype(np.float32),
        "people": np.array([p.person for p in people], np.int32),
        "shape": np.stack([p.rest.shape for p in people]),
        "phenotypes": np.array([list(rig.phenotypes(p.rest.shape).values()) for p in people], np.float32),
        "rest_joints": np.stack([p.rest.joints for p in people]),
        "rest_vertices": np.stack([p.rest.vertices for p in people]).astype(np.float32),
        "bones": np.array(rig.names),
        "parents": np.array(rig.parents, np.int32),
        "phenotype_names": np.array(rig.phenotype_names),
        "schema": np.int64(SCHEMA),
    }
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **rows)  # type: ignore[arg-type]


def write_motion_json(path: Path, people: Sequence[PersonMotion], rig: Rig) -> None:
    """Write all parameters, rotations as quaternions w, x, y, z; some frames at a time."""

    def entry(file: TextIO, person: PersonMotion) -> None:
        head = {
            "person": person.person,
            "phenotypes": plain(rig.phenotypes(person.rest.shape)),
            "shape": plain(person.rest.shape),
            "rest_joints": plain(person.rest.joints),
        }
        file.write(json.dumps(head)[:-1])
        rows = {
            "frame": person.frames,
            "time": person.times,
            "rotations": person.quaternions(),
            "translation": person.translation,
            "error_mm": person.error_mm,
        }
        for name, values in rows.items():
            file.write(f', "{name}": [')
            for start in range(0, len(values), _ROWS):
                file.write((", " if start else "") + json.dumps(plain(values[start : start + _ROWS]))[1:-1])
            file.write("]")
        file.write("}")

    head = {"schema": SCHEMA, "bones": list(rig.names), "parents": list(rig.parents)}
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "people": [')
        for number, person in enumerate(people):
            file.write(", " if number else "")
            entry(file, person)
        file.write("]}\n")


def write_joints_csv(path: Path, people: Sequence[PersonMotion], rig: Rig) -> None:
    """Write the heads of the bones, m, camera axes: one line a person and frame, sorted by frame, then person."""
    frames = np.concatenate([p.frames for p in people])
    times = np.concatenate([p.times for p in people])
    numbers = np.repeat([p.person for p in people], [len(p.frames) for p in people])
    joints = np.concatenate([p.joints(rig).reshape(len(p.frames), -1) for p in people])
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["frame", "time", "person", *(f"{name}_{axis}" for name in rig.names for axis in "xyz")])
        for row in np.lexsort([numbers, frames]):
            places = (f"{value:.5f}" for value in joints[row])
            table.writerow([frames[row], f"{times[row]:.5f}", numbers[row], *places])


def write_bvh(path: Path, person: PersonMotion, rig: Rig, timeline: Timeline) -> None:
    """Write one person as BVH: centimetres, y up, rotations Z X Y in degrees.

    Args:
        path: `.bvh`.
        person: where it was not seen, its last pose is held (before it was, its first).
        rig: of its body.
        timeline: frames of the file, those of the whole clip, so that the files of several people keep step.
    """
    lines = ["HIERARCHY"]
    order = _hierarchy(lines, rig, person.rest, 0, 0)
    local = person.rotations.astype(np.float64)
    local[:, 0] = y_up(local[:, 0].transpose(0, 2, 1)).transpose(0, 2, 1)
    angles = np.unwrap(np.degrees(euler_zxy(local[:, order])), period=360, axis=0)
    values = np.concatenate([_CENTIMETRES * y_up(person.translation), angles.reshape(len(local), -1)], 1)
    lines += ["MOTION", f"Frames: {len(timeline.frames)}", f"Frame Time: {timeline.step:.8f}", ""]
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write("\n".join(lines))
        for row in timeline.held(person):
            file.write(" ".join(f"{value:.5f}" for value in values[row]) + "\n")


def _hierarchy(lines: list[str], rig: Rig, rest: Rest, bone: int, depth: int) -> list[int]:
    """Append a bone and all below it; return them in this order."""
    indent, parent = "  " * depth, rig.parents[bone]
    offset = rest.joints[bone] - (rest.joints[parent] if parent >= 0 else rest.joints[bone])

    def text(vector: np.ndarray) -> str:
        return "OFFSET " + " ".join(f"{_CENTIMETRES * value:.5f}" for value in vector)

    lines += [
        f"{indent}{'JOINT' if parent >= 0 else 'ROOT'} {rig.names[bone]}",
        indent + "{",
        f"{indent}  {text(offset)}",
    ]
    channels = "Zrotation Xrotation Yrotation"
    root = f"{indent}  CHANNELS 6 Xposition Yposition Zposition {channels}"
    lines.append(f"{indent}  CHANNELS 3 {channels}" if parent >= 0 else root)
    order = [bone]
    for child in (b for b, p in enumerate(rig.parents) if p == bone):
        order += _hierarchy(lines, rig, rest, child, depth + 1)
    if bone in rig.tip_parents:
        end = text(rest.tips[rig.tip_parents.index(bone)] - rest.joints[bone])
        lines += [f"{indent}  End Site", indent + "  {", f"{indent}    {end}", indent + "  }"]
    lines.append(indent + "}")
    return order


def euler_zxy(rotation: np.ndarray) -> np.ndarray:
    """Angles (..., 3) a, b, c in radians with rotation (..., 3, 3) = Rz(a) Rx(b) Ry(c)."""
    a = np.arctan2(-rotation[..., 0, 1], rotation[..., 1, 1])
    b = np.arcsin(np.clip(rotation[..., 2, 1], -1, 1))
    c = np.arctan2(-rotation[..., 2, 0], rotation[..., 2, 2])
    return np.stack([a, b, c], -1)
