"""Untrained tokenizers: of the default body with its upsampler and regressors, or of registered meshes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from vqhps.body.anny import anny_body
from vqhps.body.topology import Level, build_hierarchy, upsampler
from vqhps.errors import VqhpsError
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


def registered_tokenizer(
    config: MeshVQVAEConfig,
    template: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    levels: Sequence[Level] = (),
) -> MeshVQVAE:
    """An untrained tokenizer of any fixed topology, which reads and writes the full mesh; vertices count alike.

    Args:
        config: settings.
        template: canonical mesh, metres.
        faces: of the mesh; of one connected part for the network `conv`.
        levels: hierarchy for the network `conv`; computed from the faces by default.

    Raises:
        VqhpsError: the hierarchy does not fit the mesh or the settings, or none can be computed.
    """
    count = len(template)
    if config.network == "components" and config.components + 32 > 3 * count:  # the sketch takes 32 more
        raise VqhpsError(f"a mesh of {count} vertices has fewer than {config.components} + 32 components: lower them")
    tensors = {
        "faces": torch.from_numpy(faces),
        "template": torch.from_numpy(template),
        "upsample_indices": torch.arange(count)[:, None],
        "upsample_weights": torch.ones(count, 1),
        "weight": torch.full((count,), 1 / count),
    }
    if config.network == "conv":
        levels = levels or build_hierarchy(template, faces, config.sizes, config.neighbours)
        found, wanted = [len(level.conv) for level in levels], [count, *config.sizes]
        if found != wanted:
            raise VqhpsError(f"the hierarchy is {_chain(found)}; meshes and settings need {_chain(wanted)}")
        tensors |= BodyMesh.level_tensors(levels)
    return MeshVQVAE(config, BodyMesh(tensors))


def _chain(sizes: Sequence[int]) -> str:
    return " -> ".join(map(str, sizes))
