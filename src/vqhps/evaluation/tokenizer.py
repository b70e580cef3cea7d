"""How exactly a tokenizer rebuilds bodies."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from vqhps.body.anny import anny_body
from vqhps.data.bodies import BodyStream, test_bodies
from vqhps.data.meshes import MeshFile
from vqhps.data.mocap import EVERYDAY_TEST_CLIPS, SOURCES, Source, load_poses
from vqhps.errors import VqhpsError
from vqhps.evaluation.figures import draw_figures
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE
from vqhps.tokenizer.quantizer import perplexity


class TokenizerErrors(TypedDict):
    """`pve_mm` (N,): mean vertex error of each body on the full mesh; `vertices_mm` (V,): mean error of each vertex;
    `perplexity`: codes in use, mean over tokens."""

    pve_mm: Float[Tensor, "N"]
    vertices_mm: Float[Tensor, "V"]
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
    by_vertex = torch.zeros(full.shape[1])
    for small, large in zip(coarse.split(batch), full.split(batch), strict=True):
        indices = model.encode(small)
        rebuilt = model.upsample(model.decode(indices))
        rebuilt = rebuilt - rebuilt.mean(1, keepdim=True)
        apart = 1000 * (rebuilt - large).norm(dim=-1)
        errors.append(apart.mean(1))
        by_vertex += apart.sum(0)
        tokens.append(indices)
    model.train(training)
    used = perplexity(torch.cat(tokens), model.num_codes)
    return {"pve_mm": torch.cat(errors), "vertices_mm": by_vertex / len(full), "perplexity": used}


@torch.no_grad()
def unused_codes(model: MeshVQVAE, stream: BodyStream | MeshFile, batches: int = 64, batch: int = 512) -> int:
    """How many codes, of all codebooks together, no token of random training bodies takes."""
    books = len(model.codebook)
    used = torch.zeros(books, model.num_codes, dtype=torch.bool)
    for number in range(batches):
        for part in stream.batch(batch, (1, number)).split(128):
            used[model.book_of_token, model.encode(part)] = True
    return int((~used).sum())


def evaluate_tokenizer(
    checkpoint: Path, root: Path, out: Path | None = None, figures: Path | None = None, unseen: Source | None = None
) -> dict[str, Any]:
    """PVE of a tokenizer on held-out bodies, on the full mesh, mm, and the use of its codes.

    Args:
        checkpoint: of the tokenizer, or of an image model that holds it.
        root: folder that holds `mocap/`, or an `.npz` of registered meshes.
        out: folder for `results.csv`, a row a body.
        figures: folder for pictures, see `evaluation.figures`.
        unseen: the default body: measure on all of this motion set, for tokenizers trained without it.
    """
    from vqhps.checkpoint import load_tokenizer

    model = load_tokenizer(checkpoint)
    data, stream, coarse, full, names = _held_out(root, unseen)
    expected = model.mesh.get_buffer("template").shape
    if coarse.shape[1:] != expected:
        raise VqhpsError(f"{root} holds bodies of {coarse.shape[1]} vertices, the tokenizer reads {expected[0]}")
    errors = tokenizer_errors(model, coarse, full)
    pve = errors["pve_mm"]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "results.csv.partial").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("body", "PVE_mm"), *zip(names, pve.tolist(), strict=True)])
        (out / "results.csv.partial").replace(out / "results.csv")
    if figures is not None:
        draw_figures(model, coarse, full, pve, figures)
    worst = int(pve.argmax())
    return {
        "data": data,
        "bodies": len(pve),
        "PVE_mm": pve.mean().item(),
        **_weighted(model, full, errors, names, root),
        "PVE_mm median": pve.median().item(),
        "PVE_mm 95%": pve.quantile(0.95).item(),
        "PVE_mm worst": pve.max().item(),
        "worst body": names[worst],
        "perplexity": errors["perplexity"],
        "perplexity share of K": errors["perplexity"] / model.num_codes,
        "codes": model.codebook.shape[0] * model.num_codes,
        "codes unused by 32,768 training bodies": unused_codes(model, stream),
    }


def _weighted(
    model: MeshVQVAE, full: Float[Tensor, "N V 3"], errors: TokenizerErrors, names: Sequence[str], root: Path
) -> dict[str, float]:
    """Errors weighted by the surface of each vertex, of each part of the body, and of everyday motion, mm."""
    apart, faces = errors["vertices_mm"], model.mesh.get_buffer("faces")
    a, b, c = (full[0][faces[:, i]] for i in range(3))
    areas = torch.linalg.cross(b - a, c - a).norm(dim=1)
    surface = torch.zeros(len(apart)).index_add_(0, faces.flatten(), areas.repeat_interleave(3))
    found = {"PVE_mm by surface": ((apart * surface).sum() / surface.sum()).item()}
    if root.suffix == ".npz":
        return found
    found |= {f"PVE_mm {part}": apart[torch.from_numpy(mask)].mean().item() for part, mask in anny_body().parts.items()}
    everyday = torch.tensor([name in EVERYDAY_TEST_CLIPS for name in names])
    return {**found, "PVE_mm walking": errors["pve_mm"][everyday].mean().item()} if everyday.any() else found


def _held_out(root: Path, unseen: Source | None) -> tuple[str, BodyStream | MeshFile, Tensor, Tensor, Sequence[str]]:
    """What the data are, training bodies, held-out coarse and full ones, and their names."""
    if root.suffix == ".npz":
        file = MeshFile.open(root)
        held = file.held_out()
        names = [f"mesh {i}" for i in range(file.training_count, len(file.vertices))]
        return f"the last {len(held)} meshes of {root.name}", file, held, held, names
    coarse, full, clips = test_bodies(root, unseen=unseen)
    stream = BodyStream(load_poses(root, "train", 0.06, tuple(s for s in SOURCES if s != unseen)))
    data = f"motion set {unseen}" if unseen else "CMU subjects 06, 13, 49, 55, 93, 135"
    return f"{data}; full mesh, centred", stream, coarse, full, clips
