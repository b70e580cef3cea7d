"""Meshes of a user: read from disk as needed, split, refused where they are not meshes."""

import numpy as np
import pytest

from shared import tiny_bodies, tiny_mesh
from vqhps.data.meshes import MeshFile
from vqhps.errors import VqhpsError

VERTICES, FACES = tiny_bodies(60).numpy() + np.float32([1, 2, 3]), tiny_mesh()[1]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_meshes_are_read_centred(tmp_path, save, order):
    save(tmp_path / "m.npz", faces=FACES, vertices=np.asarray(VERTICES, order=order))
    file = MeshFile.open(tmp_path / "m.npz")
    assert isinstance(file.vertices, np.memmap) == (save is np.savez)
    np.testing.assert_array_equal(file.vertices, VERTICES)
    held = file.held_out()
    assert (file.training_count, len(held)) == (57, 3)
    np.testing.assert_allclose(held, VERTICES[57:] - VERTICES[57:].mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(file.faces, FACES)
    assert np.abs(file.template.mean(0)).max() < 1e-6


def test_batches_follow_their_seed_and_leave_out_the_held(tmp_path):
    marked = VERTICES.copy()
    marked[57:] = 9 * marked[57:]  # three held-out giants
    np.savez(tmp_path / "m.npz", vertices=marked, faces=FACES)
    file = MeshFile.open(tmp_path / "m.npz")
    batches = [file.batch(200, (0, step)) for step in (1, 2, 1)]
    np.testing.assert_array_equal(batches[0], batches[2])
    assert not np.array_equal(batches[0], batches[1])
    assert batches[0].norm(dim=-1).max() < 2 < file.held_out().norm(dim=-1).max()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vertices": VERTICES}, "damaged, or no .npz"),
        ({"faces": FACES}, "damaged, or no .npz"),
        ({"vertices": VERTICES[0], "faces": FACES}, r"must be \(N, V, 3\) metres, got float32 \(162, 3\)"),
        ({"vertices": VERTICES[:1], "faces": FACES}, r"must be \(N, V, 3\)"),
        ({"vertices": VERTICES.astype(int), "faces": FACES}, "metres, got int64"),
        ({"vertices": VERTICES[:, :100], "faces": FACES}, "vertex numbers below 100"),
        ({"vertices": np.array([{}] * 6, dtype=object).reshape(2, 1, 3), "faces": FACES}, "allow_pickle=False"),
    ],
)
def test_other_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(VqhpsError, match=message) as caught:
        MeshFile.open(tmp_path / "m.npz")
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path):
    with pytest.raises(VqhpsError, match="cannot read"):
        MeshFile.open(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", vertices=VERTICES, faces=FACES)
    (tmp_path / "m.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:5000])
    with pytest.raises(VqhpsError, match="damaged"):
        MeshFile.open(tmp_path / "m.npz")


def test_a_mesh_that_is_not_finite_is_named(tmp_path):
    broken = VERTICES.copy()
    broken[58, 7, 1] = np.inf
    np.savez(tmp_path / "m.npz", vertices=broken, faces=FACES)
    with pytest.raises(VqhpsError, match="mesh 58 has vertices that are not finite"):
        MeshFile.open(tmp_path / "m.npz").held_out()
