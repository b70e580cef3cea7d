"""Sequences of mesh files: every person in every frame, as an independent reader sees them."""

import numpy as np
import pytest
import trimesh

from shared import tiny_mesh
from vqhps.errors import VqhpsError
from vqhps.runtime.mesh_sequence import write_sequence

VERTICES, FACES = tiny_mesh()
PLACE = np.array([0.2, -0.1, 4.0], np.float32)


def frames():
    """Person 0 walks away; person 12 is there in the second frame only."""
    for i in range(3):
        yield {0: VERTICES + PLACE * [1, 1, 1 + i]} | ({12: VERTICES - [1, 0, -5]} if i == 1 else {})


@pytest.mark.parametrize("kind", ["obj", "ply"])
def test_every_person_in_every_frame(tmp_path, kind):
    write_sequence(tmp_path / "a", frames(), [0, 12], FACES, kind)
    names = [f"person_{p}/person_{p}_{i:06d}.{kind}" for p in (0, 12) for i in range(3)]
    assert sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*.*")) == names
    for i, meshes in enumerate(frames()):
        for person in (0, 12):
            file = tmp_path / "a" / f"person_{person}" / f"person_{person}_{i:06d}.{kind}"
            mesh = trimesh.load(file, process=False)
            if person in meshes:
                np.testing.assert_allclose(mesh.vertices, meshes[person] * [1, -1, -1], atol=1e-5)
                np.testing.assert_array_equal(mesh.faces, FACES)
                assert mesh.volume > 0.1  # metres, and not inside out
            else:
                assert len(mesh.faces) == 1 and mesh.area == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_frames_are_written_as_they_come(tmp_path):
    seen = []

    def watched():
        for meshes in frames():
            seen.append(len(list(tmp_path.rglob("*.ply"))))
            yield meshes

    write_sequence(tmp_path / "a", watched(), [0], FACES, "ply")
    assert seen == [0, 1, 2]


def test_whole_or_not_at_all(tmp_path):
    write_sequence(tmp_path / "a", frames(), [0], FACES, "obj")

    def broken():
        yield {0: VERTICES}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sequence(tmp_path / "a", broken(), [0], FACES, "obj")
    assert len(list(tmp_path.rglob("*.obj"))) == 3 and [p.name for p in tmp_path.iterdir()] == ["a"]
    write_sequence(tmp_path / "a", list(frames())[:1], [0], FACES, "obj")  # no file of an earlier, longer one is left
    assert len(list(tmp_path.rglob("*.obj"))) == 1
    (tmp_path / "b").write_text("a file")
    with pytest.raises(VqhpsError, match="cannot write"):
        write_sequence(tmp_path / "b", frames(), [0], FACES, "obj")
    assert (tmp_path / "b").read_text() == "a file"
