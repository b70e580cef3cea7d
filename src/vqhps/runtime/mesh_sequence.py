"""Meshes of a video as a file a frame and person, which is how 3D programs import sequences of meshes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vqhps.runtime.export_mesh import obj_content, ply_content, whole_folder
from vqhps.runtime.motion import predictions

if TYPE_CHECKING:
    from vqhps.runtime.motion_files import Advance, Motion

SequenceKind = Literal["obj", "ply"]

_CONTENT = {"obj": obj_content, "ply": ply_content}
_NOBODY = (np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]))  # vertices and faces: a triangle without size


def write_mesh_sequence(motion: Motion, told: Advance) -> list[Path]:
    """Write the folder `<stem>_obj` or `<stem>_ply`, where the options want one."""
    kind = motion.options.sequence
    if kind is None:
        return []
    with np.load(motion.npz, allow_pickle=False) as archive:
        people = np.unique(archive["person"]).tolist()

    def frames() -> Iterator[dict[int, np.ndarray]]:
        for number, rows in enumerate(motion.by_frame()):
            yield {person: found.vertices for person, found in predictions(rows, motion.focal, motion.size).items()}
            told(number + 1, kind)

    folder = motion.npz.with_name(f"{motion.source.stem}_{kind}")
    write_sequence(folder, frames(), people, motion.bundle.faces, kind)
    return [folder]


def write_sequence(
    folder: Path,
    frames: Iterable[Mapping[int, np.ndarray]],
    people: Sequence[int],
    faces: np.ndarray,
    kind: SequenceKind,
) -> None:
    """Write `person_0/person_0_000000.obj` (or `.ply`) and so on: every person in every frame.

    Importers play what they find one after the other and heed no gaps in the numbers. So where somebody is not seen,
    there is a file of one triangle without size, at the camera.

    Args:
        folder: for the folders of the people; what it held before is removed.
        frames: meshes (V, 3) by person, of each frame: m, camera axes; stored in those of `write_glb`.
        people: everybody who is in any of the frames.
        faces: (F, 3) of the meshes.
        kind: of the files.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    content = _CONTENT[kind]
    with whole_folder(folder) as temporary:
        for person in people:
            (temporary / f"person_{person}").mkdir()
        for number, meshes in enumerate(frames):
            for person in people:
                path = temporary / f"person_{person}" / f"person_{person}_{number:06d}.{kind}"
                path.write_bytes(content(meshes[person], faces) if person in meshes else content(*_NOBODY))
