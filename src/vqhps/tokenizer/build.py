"""A tokenizer for the default body: its meshes, hierarchy, upsampler and regressors."""

import numpy as np
import torch

from vqhps.body.anny import anny_body
from vqhps.body.topology import build_hierarchy, upsampler
from vqhps.tokenizer.mesh_vqvae import BodyMesh, MeshVQVAE, MeshVQVAEConfig


def anny_tokenizer(config: MeshVQVAEConfig) -> MeshVQVAE:
    """An untrained tokenizer of Anny's coarse mesh with the upsampler to the full one.

    The error of a coarse vertex counts by what the full mesh takes from it, halved with an even share, since half of
    the full mesh is face and hands.
    """
    coarse, full = anny_body("coarse"), anny_body("full")
    indices, weights = upsampler(full, coarse)
    taken = np.bincount(indices.ravel(), weights=weights.ravel(), minlength=len(coarse.template)).clip(0)
    tensors = {
        "faces": torch.from_numpy(full.faces),
        "template": torch.from_numpy(coarse.template - coarse.template.mean(0)),
        "upsample_indices": torch.as_tensor(indices).long(),
        "upsample_weights": torch.as_tensor(weights).float(),
        "weight": torch.as_tensor(0.5 * taken / taken.sum() + 0.5 / len(taken)).float(),
        **{f"regressor_{name}": torch.from_numpy(rows) for name, rows in coarse.joint_regressors.items()},
    }
    if config.network == "conv":
        tensors |= BodyMesh.level_tensors(
            build_hierarchy(coarse.template, coarse.faces, config.sizes, config.neighbours)
        )
    return MeshVQVAE(config, BodyMesh(tensors))
