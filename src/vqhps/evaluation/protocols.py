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
        joints: rows of the joint set that MPJPE takes the mean over.
        origin: joints whose mean both meshes are centred on; the mean of all vertices if there are none.
        joint_set: name of the joint regressor.
    """

    name: str
    joints: tuple[int, ...]
    origin: tuple[int, ...]
    joint_set: Literal["h36m17", "smpl24"] = "h36m17"


PROTOCOLS = {
    "authors": Protocol("authors", tuple(range(len(H36M17))), ()),
    "standard": Protocol("standard", H36M17_TO_14, (0,)),
    "smpl24": Protocol("smpl24", tuple(range(24)), (1, 2), "smpl24"),
}
"""By name: that of the VQ-HPS paper; that of most papers on 3DPW, centred on the pelvis; that of EMDB, centred between
the hips, for bodies of the SMPL family."""


def mesh_errors(
    protocol: Protocol,
    predicted: Float[np.ndarray, "B V 3"],
    true: Float[np.ndarray, "B V 3"],
    regressor: Float[np.ndarray, "J V"],
) -> dict[str, Float[np.ndarray, "B"]]:
    """PVE, PA-PVE, MPJPE and PA-MPJPE of each sample, mm.

    Args:
        protocol: how.
        predicted: full meshes, camera axes, metres.
        true: full meshes in the axes of the same camera, metres.
        regressor: the protocol's joint set of that mesh.
    """
    joints, true_joints = regressor @ predicted, regressor @ true
    own, others = list(protocol.origin), (joints, true_joints) if protocol.origin else (predicted, true)
    origin, true_origin = ((x[:, own] if own else x).mean(1, keepdims=True) for x in others)
    return {
        "PVE": mean_distance_mm(predicted - origin, true - true_origin),
        "PA-PVE": aligned_distance_mm(predicted, true),
        **joint_errors(protocol, joints - origin, true_joints - true_origin),
    }


def joint_errors(
    protocol: Protocol, predicted: Float[np.ndarray, "B J 3"], true: Float[np.ndarray, "B J 3"]
) -> dict[str, Float[np.ndarray, "B"]]:
    """MPJPE and PA-MPJPE of each sample, mm, from centred joints of the protocol's joint set, metres."""
    chosen = list(protocol.joints)
    return {
        "MPJPE": mean_distance_mm(predicted[:, chosen], true[:, chosen]),
        "PA-MPJPE": aligned_distance_mm(predicted[:, chosen], true[:, chosen]),
    }
