"""The shipped rig against Anny itself, and the fit against motion that is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rigged_people import random_turns
from vqhps.body.anny import anny_body
from vqhps.errors import VqhpsError
from vqhps.export_rig import quantised_skin
from vqhps.geometry import rotate
from vqhps.runtime.rig import Rig, default_faces, default_rig
from vqhps.runtime.rig_fit import fit, fit_rest


@pytest.fixture(scope="module")
def rig() -> Rig:
    return default_rig()


def distance_mm(a: np.ndarray, b: np.ndarray) -> float:
    return float(1000 * np.linalg.norm(a - b, axis=-1).mean())


def test_it_is_annys(rig):
    body = anny_body("full")
    assert rig.names == body.bone_names and rig.parents == body.bone_parents
    assert (rig.faces != body.faces).any(1).mean() < 1e-3  # near ties: a few quads may be cut along the other diagonal
    phenotypes = rig.phenotypes(np.zeros(len(rig.joint_basis)))
    assert tuple(phenotypes) == body.shape_names and all(0 <= value <= 1 for value in phenotypes.values())


def test_fit_finds_anny(rig):
    """Meshes of Anny itself, a shape the basis has not seen: vertices, turns and phenotypes."""
    body, rng = anny_body("full"), np.random.default_rng(5)
    shape = body.sample_shape(1, rng)
    turns = random_turns(rig, 4, rng)
    vertices = body.forward(torch.from_numpy(turns), torch.from_numpy(shape).expand(4, -1)).numpy()
    found = fit(rig, vertices + np.float32([0.3, 0.2, 4.0]))
    assert found.error_mm.mean() < 2 and found.error_mm.shape == (4,)
    cosine = (np.einsum("fkij,fkij->fk", found.rotations, turns) - 1) / 2
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 3
    np.testing.assert_allclose(found.translation, [[0.3, 0.2, 4.0]] * 4, atol=0.01)
    assert np.abs(np.array(list(rig.phenotypes(found.rest.shape).values())) - shape[0]).mean() < 0.1


def test_fit_of_the_rigs_own_meshes_is_exact(rig):
    rng = np.random.default_rng(3)
    rest = rig.rest(rng.normal(0, 1, len(rig.joint_basis)))
    turns, root = random_turns(rig, 20, rng, 0.5), rng.normal(0, 1, (20, 3)).astype(np.float32)
    vertices = rig.pose(turns, root, rest)
    found = fit(rig, vertices)
    assert found.error_mm.max() < 0.5
    np.testing.assert_allclose(found.rest.vertices, rest.vertices, atol=2e-3)
    np.testing.assert_allclose(
        found.rotations @ found.rotations.transpose(0, 1, 3, 2), [[np.eye(3)] * 31] * 20, atol=1e-5
    )
    np.testing.assert_array_equal(found.rotations[:, ~rig.moves], np.broadcast_to(np.eye(3), (20, 8, 3, 3)))
    again = fit(rig, vertices[17:], fit_rest(rig, vertices))
    np.testing.assert_allclose(again.rotations, found.rotations[17:], atol=1e-4)
    assert distance_mm(rig.pose(again.rotations, again.translation, again.rest), vertices[17:]) < 0.5


def test_fit_turns_with_the_meshes(rig):
    """A turn of all meshes is one of the root and of nothing else; half precision is enough."""
    rng = np.random.default_rng(4)
    vertices = rig.pose(random_turns(rig, 2, rng), np.zeros((2, 3), np.float32), rig.rest())
    turn = random_turns(rig, 1, rng, 2.0)[0, 1]
    a, b = fit(rig, vertices), fit(rig, rotate(turn, vertices).astype(np.float16))
    np.testing.assert_allclose(b.rotations[:, 0], turn @ a.rotations[:, 0], atol=0.01)
    assert np.abs(b.rotations[:, 1:] - a.rotations[:, 1:]).mean() < 0.005


def test_what_all_frames_have_in_common_becomes_the_rest_mesh(rig):
    """A head too narrow for any shape: of many frames nearly all of it is carried, of one half; joints stay."""
    rng = np.random.default_rng(6)
    body = rig.rest(rng.normal(0, 1, len(rig.joint_basis)))
    head = rig.weights[:, rig.names.index("Head")] > 0.99
    narrow = body.vertices * np.where(head[:, None], [0.8, 1, 1], 1).astype(np.float32)
    vertices = rig.pose(random_turns(rig, 12, rng), np.zeros((12, 3), np.float32), replace(body, vertices=narrow))
    many, one = fit(rig, vertices), fit(rig, vertices[:1])
    assert many.error_mm.mean() < 0.35 * distance_mm(narrow, body.vertices) < one.error_mm.mean()
    width = np.ptp(body.vertices[head, 0])
    assert np.ptp(many.rest.vertices[head, 0]) < 0.9 * width < np.ptp(one.rest.vertices[head, 0]) < 0.95 * width
    np.testing.assert_array_equal(many.rest.joints, rig.rest(many.rest.shape).joints)


def test_fit_of_something_else(rig):
    with pytest.raises(VqhpsError, match="meshes of 13718 vertices"):
        fit(rig, np.zeros((2, 100, 3), np.float32))
    bad = rig.rest().vertices[None].copy()
    bad[0, rig.controls[3]] = np.nan
    with pytest.raises(VqhpsError, match="not finite"):
        fit(rig, bad)


def test_damaged_rig(tmp_path):
    (tmp_path / "rig.npz").write_bytes(b"no")
    with pytest.raises(VqhpsError, match="cannot be read"):
        Rig.load(tmp_path / "rig.npz", default_faces())


def test_skin_in_bytes():
    weights = np.random.default_rng(0).dirichlet(np.full(9, 0.3), 500)
    bones, shares = quantised_skin(weights)
    assert (shares.astype(int).sum(1) == 255).all()
    dense = np.zeros_like(weights)
    np.add.at(dense, (np.arange(500)[:, None], bones), shares / 255)
    kept = np.where(weights >= np.sort(weights, 1)[:, [-4]], weights, 0)
    np.testing.assert_allclose(dense, kept / kept.sum(1, keepdims=True), atol=1 / 255)
    assert (bones[shares == 0] == 0).all()  # as the glTF validator wants it
