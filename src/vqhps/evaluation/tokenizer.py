"""How exactly a tokenizer rebuilds bodies."""

from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from vqhps.tokenizer.mesh_vqvae import MeshVQVAE
from vqhps.tokenizer.quantizer import perplexity


class TokenizerErrors(TypedDict):
    """`pve_mm` (N,): mean vertex error of each body on the full mesh; `perplexity`: codes in use, mean over tokens."""

    pve_mm: Float[Tensor, "N"]
    perplexity: float


@torch.no_grad()
def tokenizer_errors(
    model: MeshVQVAE, coarse: Float[Tensor, "N Vc 3"], full: Float[Tensor, "N V 3"], batch: int = 128
) -> TokenizerErrors:
    """Encode and decode bodies.

    Args:
        model: the tokenizer; evaluated in eval mode.
        coarse: canonical coarse vertices, what it reads, metres.
        full: canonical full vertices, what its output is held against after upsampling, both minus their mean.
        batch: bodies at a time.
    """
    training = model.training
    model.eval()
    errors, tokens = [], []
    for small, large in zip(coarse.split(batch), full.split(batch), strict=True):
        indices = model.encode(small)
        rebuilt = model.upsample(model.decode(indices))
        rebuilt = rebuilt - rebuilt.mean(1, keepdim=True)
        errors.append(1000 * (rebuilt - large).norm(dim=-1).mean(1))
        tokens.append(indices)
    model.train(training)
    return {"pve_mm": torch.cat(errors), "perplexity": perplexity(torch.cat(tokens), model.num_codes)}
