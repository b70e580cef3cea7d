"""A tokenizer that knows the swaying capsules without training: their principal components, k-means codes."""

import torch

from shared import tiny_bodies, tiny_tokenizer
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE


def fitted_tokenizer() -> MeshVQVAE:
    """In eval mode; rebuilds `tiny_bodies` to some 10 mm."""
    model = tiny_tokenizer().eval()
    bodies = tiny_bodies(512)
    model.network.initialise(bodies - model.mesh.get_buffer("template"), model.mesh.get_buffer("weight"))
    with torch.no_grad():
        model.quantizer.initialise(model.latents(bodies))
    return model
