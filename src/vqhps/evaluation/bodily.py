"""How much like a body a predicted mesh is, whatever its error."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqhps.evaluation.metrics import edge_distortion
from vqhps.geometry import fit_rotation, rotate
from vqhps.models.method import Tokenizer

_ROUNDS = 4  # of finding the nearest body and turning it onto the mesh


@torch.no_grad()
def nearest_body_mm(
    tokenizer: Tokenizer, vertices: Float[Tensor, "B Vc 3"], rotation: Float[Tensor, "B 3 3"]
) -> Float[Tensor, "B"]:
    """Mean distance of the vertices of meshes from those of the bodies that the tokenizer makes of them, mm.

    Args:
        tokenizer: trained on bodies.
        vertices: on its coarse mesh, metres, in any axes.
        rotation: canonical -> those axes, about.
    """
    centred = vertices - vertices.mean(1, keepdim=True)
    best = torch.full((len(vertices),), torch.inf)
    for _ in range(_ROUNDS):
        body = tokenizer.decode(tokenizer.encode(centred @ rotation))
        body = body - body.mean(1, keepdim=True)
        rotation = fit_rotation(body, centred)
        best = best.minimum(1000 * (rotate(rotation, body) - centred).norm(dim=-1).mean(1))
    return best


def intersecting_pairs(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> int:
    """How many pairs of triangles of a mesh, without a corner in common, cut each other."""
    corners = vertices[faces].astype(np.float64)
    first, second = _near_pairs(corners)
    apart = (faces[first][:, :, None] != faces[second][:, None]).all((1, 2))
    first, second = first[apart], second[apart]
    cut = np.zeros(len(first), bool)
    for one, other in ((first, second), (second, first)):
        for start, end in ((0, 1), (1, 2), (2, 0)):
            cut |= _pierces(corners[one, start], corners[one, end], corners[other])
    return int(cut.sum())


def _near_pairs(corners: Float[np.ndarray, "F 3 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of triangles whose boxes overlap, found along x."""
    low, high = corners.min(1), corners.max(1)
    order = low[:, 0].argsort()
    reach = np.searchsorted(low[order, 0], high[order, 0], "right")
    count = reach - np.arange(len(order)) - 1
    first = np.repeat(np.arange(len(order)), count)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    first, second = order[first], order[second]
    overlap = ((low[first, 1:] <= high[second, 1:]) & (low[second, 1:] <= high[first, 1:])).all(1)
    return first[overlap], second[overlap]


def _pierces(
    start: Float[np.ndarray, "P 3"], end: Float[np.ndarray, "P 3"], triangle: Float[np.ndarray, "P 3 3"]
) -> np.ndarray:
    """Whether segments pass through triangles, by the signs of the volumes that they span."""
    a, b, c = triangle.transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    sides = ((start - a) * normal).sum(1) * ((end - a) * normal).sum(1) < 0
    along = end - start
    turns = [(np.cross(p - start, q - start) * along).sum(1) > 0 for p, q in ((a, b), (b, c), (c, a))]
    return sides & (turns[0] == turns[1]) & (turns[1] == turns[2])


def bodily_measures(
    tokenizer: Tokenizer,
    vertices: Float[Tensor, "B Vc 3"],
    rotation: Float[Tensor, "B 3 3"],
    template: Float[np.ndarray, "Vc 3"],
    faces: Int[np.ndarray, "F 3"],
) -> dict[str, Float[np.ndarray, "B"]]:
    """Of each mesh: `nearest body mm`, see `nearest_body_mm`; `intersecting pairs` of triangles; `edge distortion`,
    see `edge_distortion`; true bodies have some of each too.

    Args:
        tokenizer: trained on bodies.
        vertices, rotation: see `nearest_body_mm`.
        template, faces: of the coarse mesh.
    """
    meshes = vertices.numpy()
    return {
        "nearest body mm": nearest_body_mm(tokenizer, vertices, rotation).numpy(),
        "intersecting pairs": np.array([float(intersecting_pairs(mesh, faces)) for mesh in meshes]),
        "edge distortion": edge_distortion(meshes, template, faces),
    }
