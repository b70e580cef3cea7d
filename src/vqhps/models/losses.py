"""Losses that several methods have, each once."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqhps.geometry import rotate
from vqhps.models.output import Output


def mesh_terms(
    output: Output, batch: Mapping[str, Tensor], regressor: Float[Tensor, "J Vc"]
) -> dict[str, Float[Tensor, "B"]]:
    """Errors of a canonical mesh and its rotation, one value a sample: `rotation`, mean squared error of the matrix;
    `vertices`, L1 of canonical vertices; `joints`, L1 of joints in camera axes; metres.

    Args:
        output: on the coarse mesh.
        batch: `rotation` (B,3,3) and `canonical_vertices` (B,Vc,3).
        regressor: of `output.joints`.
    """
    canonical = output.vertices @ output.rotation  # the inverse rotation, on rows
    joints = regressor @ rotate(batch["rotation"], batch["canonical_vertices"])
    return {
        "rotation": (output.rotation - batch["rotation"]).square().mean((1, 2)),
        "vertices": (canonical - batch["canonical_vertices"]).abs().mean((1, 2)),
        "joints": (output.joints - joints).abs().mean((1, 2)),
    }


def over_known(terms: Mapping[str, Float[Tensor, "B"]], known: Float[Tensor, "B"]) -> dict[str, Float[Tensor, ""]]:
    """Means over the samples that have a label (1, not 0)."""
    return {name: (value * known).sum() / known.sum().clamp(min=1) for name, value in terms.items()}


def edge_error(
    vertices: Float[Tensor, "B V 3"], truth: Float[Tensor, "B V 3"], edges: Int[Tensor, "E 2"]
) -> Float[Tensor, "B"]:
    """L1 of the lengths of edges, metres, one value a sample; it does not matter how the meshes are turned or posed."""
    ours, theirs = ((x[:, edges[:, 0]] - x[:, edges[:, 1]]).norm(dim=2) for x in (vertices, truth))
    return (ours - theirs).abs().mean(1)


def keypoint_error(keypoints: Float[Tensor, "B 17 2"], batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """L1 of the known key points in crop coordinates."""
    known = batch["keypoints_weight"]
    apart = (keypoints - batch["keypoints2d"]).abs().mean(-1)
    return (apart * known).sum() / known.sum().clamp(min=1)


def weighted(losses: Mapping[str, Float[Tensor, ""]], weights: Any) -> dict[str, Float[Tensor, ""]]:
    """Losses times their weights of the same name; those of weight zero are left out."""
    return {name: value * getattr(weights, name) for name, value in losses.items() if getattr(weights, name) > 0}


def neighbour_targets(codebook: Float[Tensor, "G K D"], sigma: float) -> Float[Tensor, "G K K"]:
    """Soft targets for each code: a normal density over the codes by their distance.

    Args:
        codebook: codes.
        sigma: width, as a share of the root mean square distance of a book's codes from their mean.
    """
    spread = (codebook - codebook.mean(1, keepdim=True)).square().sum(2).mean(1)
    squared = torch.cdist(codebook, codebook).square()
    return (-squared / (2 * sigma**2 * spread[:, None, None])).softmax(2)
