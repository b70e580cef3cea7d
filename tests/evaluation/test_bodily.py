"""How bodily meshes are: what is a body has no distance from one, what cuts itself is counted."""

import numpy as np
import torch
import trimesh
from scipy.spatial.transform import Rotation

from tiny_shards import random_bodies, random_poses, symmetric_tokenizer
from vqhps.evaluation.bodily import bodily_measures, intersecting_pairs, nearest_body_mm
from vqhps.evaluation.metrics import edge_distortion
from vqhps.geometry import rotate


@torch.no_grad()
def turned(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded bodies in the axes of some camera, and their rotation."""
    tokenizer = symmetric_tokenizer()
    bodies = random_bodies(*random_poses(count, np.random.default_rng(0)))
    bodies = tokenizer.decode(tokenizer.encode(bodies))
    rotation = torch.from_numpy(Rotation.random(count, random_state=0).as_matrix().astype(np.float32))
    return rotate(rotation, bodies), rotation


def test_a_decoded_body_is_its_own_nearest_however_it_is_turned_and_moved() -> None:
    vertices, rotation = turned()
    tokenizer = symmetric_tokenizer()
    moved = vertices + torch.tensor([0.3, -0.2, 4.0])
    assert nearest_body_mm(tokenizer, moved, rotation).max() < 0.5
    off = torch.from_numpy(Rotation.from_euler("y", 5, degrees=True).as_matrix().astype(np.float32))
    assert nearest_body_mm(tokenizer, moved, rotation @ off).max() < 15  # the rotation need not be exact
    noise = 0.02 * torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0))
    assert nearest_body_mm(tokenizer, vertices + noise, rotation).min() > 20


def test_two_boxes_cut_each_other_where_they_should() -> None:
    one = trimesh.creation.box()
    other = one.copy()
    faces = np.concatenate([one.faces, other.faces + len(one.vertices)])

    def pairs(shift: tuple[float, float, float]) -> int:
        return intersecting_pairs(np.concatenate([one.vertices, other.vertices * 0.9 + shift]), faces)

    assert pairs((1.2, 0, 0)) == pairs((0, 0, 0)) == 0  # beside it, and inside of it
    expected = _pairs_by_rays(np.concatenate([one.vertices, other.vertices * 0.9 + (0.5, 0.11, 0.07)]), faces)
    assert pairs((0.5, 0.11, 0.07)) == expected > 10


def _pairs_by_rays(vertices: np.ndarray, faces: np.ndarray) -> int:
    """The same by solving for where each edge meets each triangle, one by one."""
    count = 0
    for i, first in enumerate(faces):
        for second in faces[i + 1 :]:
            if set(first) & set(second):
                continue
            hits = False
            for edges, triangle in ((first, second), (second, first)):
                a, b, c = vertices[triangle]
                for p, q in zip(vertices[edges], vertices[np.roll(edges, -1)], strict=True):
                    matrix = np.stack([p - q, b - a, c - a], 1)
                    if abs(np.linalg.det(matrix)) > 1e-12:
                        t, u, v = np.linalg.solve(matrix, p - a)
                        hits |= bool(0 < t < 1 and u > 0 and v > 0 and u + v < 1)
            count += hits
    return count


def test_edge_distortion_knows_no_size() -> None:
    box = trimesh.creation.box()
    larger = np.stack([box.vertices * 3, box.vertices * (1, 1, 1)])
    np.testing.assert_allclose(edge_distortion(larger, box.vertices, box.faces), 0, atol=1e-9)
    longer = (box.vertices * (1, 1, 2))[None]
    lengths = np.array([1] * 8 + [2] * 4 + [5**0.5 / 2**0.5] * 4 + [1] * 2)
    expected = np.abs(np.log(lengths) - np.median(np.log(lengths))).mean()
    np.testing.assert_allclose(edge_distortion(longer, box.vertices, box.faces), expected, rtol=1e-6)


def test_measures_have_a_value_a_mesh() -> None:
    vertices, rotation = turned()
    box = trimesh.creation.icosphere(subdivisions=2)
    found = bodily_measures(symmetric_tokenizer(), vertices, rotation, vertices[0].numpy(), np.asarray(box.faces))
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(found, (3,))
    assert found["edge distortion"][0] == 0
