"""How a metric is computed, by name."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from vqhps.body.joints import H36M17, H36M17_TO_14
from vqhps.evaluation.metrics import aligned_distance_mm, mean_distance_mm


@dataclass(frozen=True)
class Protocol:
    """A way to measure.

    Attributes:
        name: of the protocol.
        joints: rows of `h36m17` that MPJPE takes the mean over.
        origin: what both meshes are centred on: the mean of the vertices, or the pelvis joint.
    """

    name: str
    joints: tuple[int, ...]
    origin: Literal["vertices", "pelvis"]


PROTOCOLS = {
    "authors": Protocol("authors", tuple(range(len(H36M17))), "vertices"),
    "standard": Protocol("standard", H36M17_TO_14, "pelvis"),
}


def mesh_errors(
    protocol: Protocol,
    predicted: Float[np.ndarray, "B V 3"],
    true: Float[np.ndarray, "B V 3"],
    regressor: Float[np.ndarray, "17 V"],
) -> dict[str, Float[np.ndarray, "B"]]:
    """PVE, PA-PVE, MPJPE and PA-MPJPE of each sample, mm.

    Args:
        protocol: how.
        predicted, true: full meshes in the axes of the same camera, metres.
        regressor: `h36m17` of that mesh.
    """
    centred = []
    for vertices in (predicted, true):
        joints = regressor @ vertices
        origin = vertices.mean(1, keepdims=True) if protocol.origin == "vertices" else joints[:, :1]
        centred.append((vertices - origin, (joints - origin)[:, list(protocol.joints)]))
    (vertices, joints), (true_vertices, true_joints) = centred
    return {
        "PVE": mean_distance_mm(vertices, true_vertices),
        "PA-PVE": aligned_distance_mm(vertices, true_vertices),
        "MPJPE": mean_distance_mm(joints, true_joints),
        "PA-MPJPE": aligned_distance_mm(joints, true_joints),
    }
