"""Mesh hierarchies: from the faces of a body down to the vertices that become tokens, and from coarse meshes to full.

A level keeps the vertices that farthest-point sampling on geodesic distance picks, so that they spread evenly over the
surface instead of following the density of the mesh (half of a body mesh is face and fingers).
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from vqhps.errors import VqhpsError

if TYPE_CHECKING:
    from vqhps.body.anny import AnnyBody


@dataclass(frozen=True)
class Level:
    """One mesh of a hierarchy.

    Attributes:
        conv: neighbours of each vertex on this level, itself among them; nearest first.
        pool: neighbours of each vertex of the next coarser level on this one; `None` on the coarsest.
        unpool: neighbours of each vertex of this level on the next coarser one; `None` on the coarsest.
    """

    conv: Int[np.ndarray, "V M"]
    pool: Int[np.ndarray, "Vc P"] | None
    unpool: Int[np.ndarray, "V U"] | None


def build_hierarchy(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    sizes: tuple[int, ...],
    neighbours: int = 9,
    parents: int = 4,
) -> list[Level]:
    """Pooled meshes of a template, finest first.

    Args:
        vertices: template, metres.
        faces: of one connected mesh.
        sizes: vertices of each coarser level, the last being the number of tokens.
        neighbours: of a vertex in a convolution; pooling takes as many as leave no vertex out.
        parents: coarse vertices that a fine vertex is unpooled from.

    Raises:
        VqhpsError: the mesh is not connected, or the sizes do not shrink.
    """
    all_sizes = (len(vertices), *sizes)
    if any(a <= b for a, b in itertools.pairwise(all_sizes)):
        raise VqhpsError(f"the sizes of a mesh hierarchy must shrink, got {' -> '.join(map(str, all_sizes))}")
    distance = geodesic_distances(vertices, faces)
    order = farthest_points(distance, sizes[0])
    kept = np.arange(len(vertices))
    levels = []
    for size in sizes:
        coarse = order[:size]
        cross = distance[np.ix_(coarse, kept)]
        nearest = cross.argmin(0)
        share = np.bincount(nearest, minlength=size).max()
        pool = _nearest(distance, coarse, kept, max(neighbours, share))
        unpool = np.argsort(cross.T, 1, kind="stable")[:, :parents]
        levels.append(Level(_nearest(distance, kept, kept, neighbours), pool, unpool))
        kept = coarse
    levels.append(Level(_nearest(distance, kept, kept, neighbours), None, None))
    return levels


def _nearest(
    distance: Float[np.ndarray, "V V"], rows: Int[np.ndarray, "R"], columns: Int[np.ndarray, "C"], count: int
) -> Int[np.ndarray, "R M"]:
    """The nearest `columns` of each of `rows`, as positions in `columns`."""
    parts = (np.argsort(distance[np.ix_(part, columns)], 1, kind="stable")[:, :count] for part in _chunks(rows))
    return np.concatenate(list(parts))


def _chunks(rows: Int[np.ndarray, "R"]) -> list[Int[np.ndarray, "r"]]:
    """Some rows at a time, to bound the memory of what is made of each."""
    return np.array_split(rows, len(rows) // 1024 + 1)


def geodesic_distances(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V V"]:
    """Shortest paths along the edges of a mesh, metres.

    Raises:
        VqhpsError: the mesh falls into several parts.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.unique(np.sort(edges, 1), axis=0)
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
    graph = coo_matrix((np.maximum(length, 1e-9), edges.T), shape=(len(vertices),) * 2).tocsr()
    parts = connected_components(graph, directed=False, return_labels=False)
    if parts != 1:
        raise VqhpsError(f"a mesh hierarchy needs one connected mesh; this one falls into {parts} parts")
    distance = np.empty((len(vertices),) * 2, np.float32)
    for part in _chunks(np.arange(len(vertices))):
        distance[part] = dijkstra(graph, directed=False, indices=part)
    return distance


def farthest_points(distance: Float[np.ndarray, "V V"], count: int) -> Int[np.ndarray, "count"]:
    """Indices of `count` vertices, each the farthest from those before it; the first is the most central."""
    picked = [int(distance.max(1).argmin())]
    to_picked = distance[picked[0]].copy()
    for _ in range(count - 1):
        picked.append(int(to_picked.argmax()))
        np.minimum(to_picked, distance[picked[-1]], out=to_picked)
    return np.asarray(picked)


def upsampler(
    full: "AnnyBody", coarse: "AnnyBody", neighbours: int = 12, bodies: int = 96
) -> tuple[Int[np.ndarray, "V N"], Float[np.ndarray, "V N"]]:
    """Each full vertex as a linear blend of coarse vertices that move with it.

    Given the bodies the other way round, each coarse vertex as a blend of full ones.

    Neighbours are the nearest in position and skinning weights together, so that no finger borrows from the next one;
    the weights are a ridge regression over random bodies and sum to one.

    Returns:
        indices into the coarse mesh, and weights; `upsample` applies them.
    """
    blend = [np.concatenate([b.template, 0.1 * bone_weights(b)], 1) for b in (full, coarse)]
    indices = cKDTree(blend[1]).query(blend[0], neighbours)[1]
    rng = np.random.default_rng(0)
    pose = random_pose(bodies, len(full.bone_names), rng)
    shape = torch.from_numpy(full.sample_shape(bodies, rng))
    targets, sources = full.forward(pose, shape).numpy(), coarse.forward(pose, shape).numpy()
    return indices, fit_blend(indices, sources, targets)


def fit_blend(
    indices: Int[np.ndarray, "V N"], sources: Float[np.ndarray, "B Vc 3"], targets: Float[np.ndarray, "B V 3"]
) -> Float[np.ndarray, "V N"]:
    """Weights, each row summing to one, with which blends of source vertices come closest to target vertices: ridge
    regression.

    Args:
        indices: the source vertices that each target vertex is blended from.
        sources, targets: the same bodies on both meshes, metres.
    """
    neighbours = indices.shape[1]
    weights = np.empty(indices.shape, np.float32)
    for chunk in np.array_split(np.arange(len(indices)), 16):
        x = sources[:, indices[chunk]].transpose(1, 0, 3, 2).reshape(len(chunk), -1, neighbours).astype(np.float64)
        y = targets[:, chunk].transpose(1, 0, 2).reshape(len(chunk), -1, 1).astype(np.float64)
        last, y = x[..., -1:], y - x[..., -1:]  # the last weight is one minus the others
        x = x[..., :-1] - last
        gram = x.transpose(0, 2, 1) @ x
        ridge = 1e-4 * np.trace(gram, axis1=1, axis2=2)[:, None, None] / gram.shape[-1] * np.eye(gram.shape[-1])
        solved = np.linalg.solve(gram + ridge, x.transpose(0, 2, 1) @ y)[..., 0]
        weights[chunk] = np.concatenate([solved, 1 - solved.sum(1, keepdims=True)], 1)
    return weights


def random_pose(
    count: int, bones: int, rng: np.random.Generator, sigma: float = 0.35
) -> Float[torch.Tensor, "B K 3 3"]:
    """Independent random rotations of every bone but the root, `sigma` radians an axis."""
    from scipy.spatial.transform import Rotation

    vectors = rng.normal(0, sigma, (count, bones, 3))
    vectors[:, 0] = 0
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    return torch.from_numpy(matrices.reshape(count, bones, 3, 3).astype(np.float32))


def bone_weights(body: "AnnyBody") -> Float[np.ndarray, "V K"]:
    """How much each vertex follows each bone."""
    indices, weights = body.model.vertex_bone_indices.numpy(), body.model.vertex_bone_weights.numpy()
    dense = np.zeros((len(indices), len(body.bone_names)), np.float32)
    np.add.at(dense, (np.arange(len(indices))[:, None], indices), weights)
    return dense


def upsampling_matrix(
    indices: Int[np.ndarray, "V N"], weights: Float[np.ndarray, "V N"], coarse_count: int
) -> csr_matrix:
    """The blend as a sparse (V, Vc) matrix."""
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    return csr_matrix((weights.ravel(), (rows, indices.ravel())), shape=(len(indices), coarse_count))
