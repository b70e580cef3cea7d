"""Errors of meshes and key points, one value a sample. Pure functions on numpy arrays."""

import numpy as np
from jaxtyping import Bool, Float, Int

from vqhps.geometry import procrustes

Points = Float[np.ndarray, "B P 3"]

LIMBS = ("upper arm", "forearm", "thigh", "shin")
_LIMB_ENDS = ((5, 7), (7, 9), (11, 13), (13, 15))  # left; right is the number after


def mean_distance_mm(predicted: Points, true: Points) -> Float[np.ndarray, "B"]:
    """Mean Euclidean distance of corresponding points in metres, in mm: MPJPE of joints, PVE of vertices."""
    return 1000 * np.linalg.norm(predicted - true, axis=-1).mean(1)


def aligned_distance_mm(predicted: Points, true: Points) -> Float[np.ndarray, "B"]:
    """The same after moving, turning and scaling each prediction onto its truth: PA-MPJPE and PA-PVE."""
    return mean_distance_mm(procrustes(predicted, true), true)


def correct_keypoints(
    predicted: Float[np.ndarray, "B J 2"],
    true: Float[np.ndarray, "B J 2"],
    labelled: Bool[np.ndarray, "B J"],
    reference: Float[np.ndarray, "B"],
    share: float,
) -> tuple[Float[np.ndarray, "B"], Float[np.ndarray, "B"]]:
    """How many labelled key points lie within `share * reference` px of the truth.

    Returns:
        correct and labelled key points of each sample; PCK is the sum of the first over the sum of the second.
    """
    near = np.linalg.norm(predicted - true, axis=-1) <= share * reference[:, None]
    return (near & labelled).sum(1).astype(float), labelled.sum(1).astype(float)


def confidence_interval(
    values: Float[np.ndarray, "N"], weights: Float[np.ndarray, "N"] | None = None, resamples: int = 2000
) -> tuple[float, float]:
    """Bounds of the mean over samples that 95 % of bootstrap resamples stay within (percentile method, fixed seed).

    Args:
        values: one a sample; with `weights`, numerators of a ratio of sums such as PCK.
        weights: its denominators; ones by default.
        resamples: how many.
    """
    weights = np.ones(len(values)) if weights is None else weights
    rng, means = np.random.default_rng(0), np.empty(resamples)
    chunk = max(1, 2_000_000 // len(values))  # bounds the memory
    for start in range(0, resamples, chunk):
        rows = rng.integers(len(values), size=(min(chunk, resamples - start), len(values)))
        means[start : start + chunk] = values[rows].sum(1) / np.maximum(weights[rows].sum(1), 1e-12)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def edge_ratios(
    vertices: Float[np.ndarray, "B V 3"], template: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "B 2"]:
    """How much shorter and longer than the template's the edges of meshes are: 0.1 and 99.9 % quantiles of the ratios.

    A torn mesh has edges many times as long; a collapsed one, many times as short.
    """
    return np.quantile(_edge_ratios(vertices, template, faces), (0.001, 0.999), axis=1).T


def edge_distortion(
    vertices: Float[np.ndarray, "B V 3"], template: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "B"]:
    """By how much, as a share, edges of a mesh are longer or shorter than the template's, once the mesh has its size:
    mean absolute logarithm of the ratios, about their median."""
    logarithms = np.log(_edge_ratios(vertices, template, faces).clip(1e-6))
    return np.abs(logarithms - np.median(logarithms, axis=1, keepdims=True)).mean(1)


def _edge_ratios(
    vertices: Float[np.ndarray, "B V 3"], template: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "B E"]:
    """Length of each edge over the template's; those without length there say nothing and are left out."""
    edges = np.unique(np.sort(np.concatenate([faces[:, :2], faces[:, 1:], faces[:, ::2]]), 1), axis=0)
    rest = np.linalg.norm(template[edges[:, 0]] - template[edges[:, 1]], axis=1)
    edges, rest = edges[rest > 0], rest[rest > 0]
    return np.linalg.norm(vertices[:, edges[:, 0]] - vertices[:, edges[:, 1]], axis=2) / rest


def volume_litres(vertices: Float[np.ndarray, "B V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "B"]:
    """Volume that meshes in metres enclose, by the divergence theorem; negative if they are turned inside out."""
    a, b, c = (vertices[:, faces[:, i]].astype(np.float64) for i in range(3))
    return 1000 * (a * np.cross(b, c)).sum((1, 2)) / 6


def limb_lengths(joints: Float[np.ndarray, "B 17 3"]) -> Float[np.ndarray, "B 4"]:
    """Length of each of `LIMBS`, the mean of left and right, in the unit of the joints (COCO-17)."""
    ends = np.array(_LIMB_ENDS)
    sides = [np.linalg.norm(joints[:, part[:, 0]] - joints[:, part[:, 1]], axis=2) for part in (ends, ends + 1)]
    return (sides[0] + sides[1]) / 2


def correlation(a: Float[np.ndarray, "N"], b: Float[np.ndarray, "N"]) -> float:
    """Pearson's correlation; 0 where one of them is always the same."""
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / spread) if spread > 1e-9 * len(a) else 0.0
