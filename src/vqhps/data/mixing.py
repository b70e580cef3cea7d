"""Poses put together from the limbs of several: many more than were ever recorded."""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float

from vqhps.body.anny import anny_body
from vqhps.data.mocap import PoseBank

_LIMBS = {  # first bone of each part that may come from another pose, and how often it does in a mixed body
    "LeftShoulder": 0.7, "RightShoulder": 0.7, "LHipJoint": 0.25, "RHipJoint": 0.25, "LowerBack": 0.4, "Neck": 0.5,
}  # fmt: skip


def mix_limbs(
    pose: Float[np.ndarray, "N K 3 3"], bank: PoseBank, rng: np.random.Generator, share: float
) -> Float[np.ndarray, "N K 3 3"]:
    """The poses (local rotations), with the limbs of some from others of the bank.

    Args:
        pose: local rotations of the bones; stays as it is.
        bank: where the other limbs come from.
        rng: source of randomness.
        share: of the poses that are changed.
    """
    pose = pose.copy()
    mixed = rng.random(len(pose)) < share
    for limb, rate in _LIMBS.items():
        rows = np.flatnonzero(mixed & (rng.random(len(pose)) < rate))
        other = rng.integers(len(bank), size=len(rows))
        bones = np.flatnonzero(_bones_of(limb))
        pose[np.ix_(rows, bones)] = bank.pose[np.ix_(other, bones)]
    return pose


@cache
def _bones_of(limb: str) -> Bool[np.ndarray, "K"]:
    """Bones of a part: its first bone and those that hang on it, for the back without arms, neck and head."""
    body = anny_body("coarse")
    inside = np.zeros(len(body.bone_names), bool)
    for bone, (name, parent) in enumerate(zip(body.bone_names, body.bone_parents, strict=True)):
        inside[bone] = name == limb or (parent >= 0 and inside[parent] and name not in _LIMBS)
    return inside
