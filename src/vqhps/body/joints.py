"""Named joint sets and the linear maps from vertices that give them."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls

if TYPE_CHECKING:
    from vqhps.body.anny import AnnyBody

COCO17 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
H36M17 = (
    "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "spine", "thorax",
    "nose", "head_top", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist",
)  # fmt: skip
# The 14 joints of the standard protocols, as indices into h36m17 (all but pelvis, spine, nose).
H36M17_TO_14 = (3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10)
COCO17_FLIP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


def anny_joint_regressors(body: "AnnyBody") -> dict[str, Float[np.ndarray, "J V"]]:
    """Regressors of an Anny mesh: `coco17` after anny's own key points, `h36m17` built from them.

    Spine and thorax are the heads of the bones `Spine` and `Neck`, regressed from the vertices around them; the top of
    the head is the highest vertex of the rest pose. The coarse mesh takes each weight to its nearest vertices.
    """
    from vqhps.body.anny import anny_body

    full = anny_body("full")
    if body.name != full.name:
        return {name: _move(full, body, weights) for name, weights in full.joint_regressors.items()}
    from anny.keypoints import KeypointsRegressor

    coco = KeypointsRegressor.coco(body.model, list(COCO17)).regression_weights.numpy().astype(np.float32)
    rows = {name: coco[i] for i, name in enumerate(COCO17)}
    rows["pelvis"] = (rows["left_hip"] + rows["right_hip"]) / 2
    rows["spine"] = _bone_head(body, "Spine")
    rows["thorax"] = _bone_head(body, "Neck")
    rows["head_top"] = np.eye(1, len(body.template), int(body.template[:, 1].argmax()), dtype=np.float32)[0]
    return {"coco17": coco, "h36m17": np.stack([rows[name] for name in H36M17])}


def _bone_head(body: "AnnyBody", name: str, neighbours: int = 80, bodies: int = 24) -> Float[np.ndarray, "V"]:
    """Non-negative weights that give the head of a bone from the rest vertices around it, over many shapes."""
    bone = body.bone_names.index(name)
    shape = torch.from_numpy(body.sample_shape(bodies, np.random.default_rng(0)))
    vertices, heads = (x.numpy() for x in body.rest(shape))
    near = np.linalg.norm(body.template - body.rest_joints[bone], axis=1).argsort()[:neighbours]
    inside = vertices[:, near].transpose(0, 2, 1).reshape(-1, neighbours)
    sums_to_one = 100.0
    weights, _ = nnls(
        np.concatenate([inside, np.full((1, neighbours), sums_to_one)]),
        np.concatenate([heads[:, bone].ravel(), [sums_to_one]]),
    )
    row = np.zeros(len(body.template), np.float32)
    row[near] = weights / weights.sum()
    return row


def _move(source: "AnnyBody", target: "AnnyBody", weights: Float[np.ndarray, "J Vs"]) -> Float[np.ndarray, "J Vt"]:
    """Express a regressor on another mesh of the same body: source vertices as blends of target vertices."""
    from vqhps.body.topology import upsampler

    indices, blend = upsampler(source, target)
    moved = np.zeros((len(weights), len(target.template)), np.float32)
    for j, row in enumerate(weights):
        used = row.nonzero()[0]
        np.add.at(moved[j], indices[used].ravel(), (row[used, None] * blend[used]).ravel())
    return moved
