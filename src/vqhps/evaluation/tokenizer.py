"""How exactly a tokenizer rebuilds bodies."""

import csv
from pathlib import Path
from typing import Any, TypedDict

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


def evaluate_tokenizer(checkpoint: Path, data_root: Path, out: Path | None = None) -> dict[str, Any]:
    """PVE of a tokenizer on the held-out CMU subjects, on the full mesh, mm.

    Args:
        checkpoint: of the tokenizer, or of an image model that holds it.
        data_root: folder that holds `mocap/`.
        out: folder for `results.csv`, a row a body.
    """
    from vqhps.checkpoint import load_tokenizer
    from vqhps.data.bodies import test_bodies

    model = load_tokenizer(checkpoint)
    coarse, full, clips = test_bodies(data_root)
    errors = tokenizer_errors(model, coarse, full)
    pve = errors["pve_mm"]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "results.csv.partial").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("clip", "PVE_mm"), *zip(clips, pve.tolist(), strict=True)])
        (out / "results.csv.partial").replace(out / "results.csv")
    worst = int(pve.argmax())
    return {
        "data": "CMU subjects 06, 13, 49, 55, 93, 135; full mesh, centred",
        "bodies": len(pve),
        "PVE_mm": pve.mean().item(),
        "PVE_mm median": pve.median().item(),
        "PVE_mm 95%": pve.quantile(0.95).item(),
        "PVE_mm worst": pve.max().item(),
        "worst clip": clips[worst],
        "perplexity": errors["perplexity"],
    }
