"""Errors of meshes and key points, one value a sample. Pure functions on numpy arrays."""

import numpy as np
from jaxtyping import Bool, Float

from vqhps.geometry import procrustes

Points = Float[np.ndarray, "B P 3"]


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
