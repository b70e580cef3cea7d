"""Torch tokenizer -> the two ONNX graphs of a `MeshTokenizer`, checked against torch before anything is written."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqhps.body.anny import anny_body
from vqhps.body.model import canonical
from vqhps.body.topology import bone_weights, upsampler
from vqhps.errors import VqhpsError
from vqhps.export import halve_weights, staged_folder, trace
from vqhps.runtime.bundle import FORMAT, available_cores
from vqhps.runtime.tokenizer import MeshTokenizer, TokenizerInfo
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE, blend
from vqhps.version import __version__

logger = logging.getLogger(__name__)

_CHECKED = 64  # meshes that are compared and timed
_PASSES = 7
_TOLERANCE_M = 1e-4  # of a vertex, against torch
_HALF_LIMIT_MM = 0.05  # deviation that half-precision weights may cause; beyond, the graph keeps single precision
_TIE = 1e-4  # of the spread of the codes: two codes that differ by less in distance are equally near
_FAR = 0.03  # of the template's diagonal


@dataclass(frozen=True)
class TokenizerReport:
    """What the checks found, on meshes that random tokens decode to.

    Attributes:
        single_mm: largest deviation of a vertex from torch, weights in single precision.
        written_mm: the same of the graphs as written.
        half: whether they are written in half precision.
        equal_tokens: share of tokens equal to torch's, as written; the others are ties in single precision.
        bytes: size of both graphs.
        cores: of this machine that the timings used.
        meshes_per_second: canonical full meshes, encoded, decoded and compared.
        turned_meshes_per_second: the same with their rotation to be found.
    """

    single_mm: float
    written_mm: float
    half: bool
    equal_tokens: float
    bytes: int
    cores: int
    meshes_per_second: float
    turned_meshes_per_second: float


class EncoderGraph(nn.Module):
    """Canonical full meshes to tokens.

    Args:
        model: the tokenizer.
        rows: (Vc, N) full vertices that each coarse one is blended from.
        shares: (Vc, N) of the blend.
    """

    rows: Int[Tensor, "Vc N"]
    shares: Float[Tensor, "Vc N"]

    def __init__(self, model: MeshVQVAE, rows: Int[Tensor, "Vc N"], shares: Float[Tensor, "Vc N"]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("rows", rows)
        self.register_buffer("shares", shares)

    def coarse(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B Vc 3"]:
        """What the tokenizer reads of full meshes."""
        return canonical(blend(vertices, self.rows, self.shares))

    def forward(self, vertices: Float[Tensor, "B V 3"]) -> Int[Tensor, "B T"]:
        """Tokens."""
        return self.model.encode(self.coarse(vertices))


class DecoderGraph(nn.Module):
    """Tokens to canonical full meshes."""

    def __init__(self, model: MeshVQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, indices: Int[Tensor, "B T"]) -> Float[Tensor, "B V 3"]:
        """Vertices minus their mean, metres."""
        return canonical(self.model.upsample(self.model.decode(indices)))


def export_tokenizer(model: MeshVQVAE, out: Path, notes: str) -> TokenizerReport:
    """Write the folder that `MeshTokenizer.load` reads; `out` is replaced in one step, at the end.

    Args:
        model: of the default body or of registered meshes.
        out: the folder, whose name becomes the tokenizer's.
        notes: what it was trained on.

    Raises:
        VqhpsError: torch cannot export the model, or the graphs differ from it.
    """
    model = model.cpu().eval().requires_grad_(False)
    rows, shares, extras, body = _body_of(model)
    graphs = {"encoder": EncoderGraph(model, rows, shares).eval(), "decoder": DecoderGraph(model).eval()}
    tokens = torch.randint(model.num_codes, (_CHECKED, model.num_tokens), generator=torch.Generator().manual_seed(0))
    template = canonical(model.upsample(model.mesh.get_buffer("template")[None]))[0].numpy()
    info = TokenizerInfo(
        format=FORMAT,
        name=out.name,
        version=__version__,
        body=body,
        vertices=len(template),
        tokens=model.num_tokens,
        codes=model.num_codes,
        far_mm=round(1000 * _FAR * float(np.linalg.norm(np.ptp(template, axis=0))), 1),
        licence="Apache-2.0",
        notes=notes,
    )
    with staged_folder(out, "tokenizer.json") as staging:
        (staging / "tokenizer.json").write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
        with (staging / "body.npz").open("wb") as file:
            faces = model.mesh.get_buffer("faces").numpy().astype(np.int32)
            np.savez_compressed(file, faces=faces, template=template, **extras)
        vertices = graphs["decoder"](tokens)
        trace(graphs["encoder"], {"vertices": vertices[:2]}, ["indices"], staging / "encoder.onnx")
        trace(graphs["decoder"], {"indices": tokens[:2]}, ["vertices"], staging / "decoder.onnx")
        report = _check(staging, graphs, tokens, vertices)
    logger.info("wrote %s: %s", out, asdict(report))
    return report


def _body_of(model: MeshVQVAE) -> tuple[Tensor, Tensor, dict[str, Any], str]:
    """How the coarse mesh follows from the full one, the vertices that tell the root's rotation and the joints, the
    body's name."""
    count = len(model.mesh.get_buffer("upsample_indices"))
    if count == len(model.mesh.get_buffer("template")):
        joints = dict(model.mesh.named_buffers()).get("regressor_coco17", torch.zeros(0, count))
        extras = {"root_weight": np.ones(count, np.float32), "joint_regressor": joints.numpy()}
        return torch.arange(count)[:, None], torch.ones(count, 1), extras, "registered"
    full, coarse = anny_body("full"), anny_body("coarse")
    if count != len(full.template):
        raise VqhpsError(f"a tokenizer with an upsampler to {count} vertices is not one of this package's body")
    rows, shares = upsampler(coarse, full)
    extras = {"root_weight": bone_weights(full)[:, 0] ** 2, "joint_regressor": full.joint_regressors["coco17"]}
    return torch.as_tensor(rows).long(), torch.as_tensor(shares), extras, full.name


def _check(
    folder: Path, graphs: Mapping[str, nn.Module], tokens: Int[Tensor, "B T"], vertices: Float[Tensor, "B V 3"]
) -> TokenizerReport:
    """Compare with torch, store the weights in half precision where it does not matter, and take the time."""
    expected = graphs["encoder"](vertices)
    single = MeshTokenizer.load(folder)
    single_mm = _deviation_mm(single, tokens, vertices)
    if single_mm > 1000 * _TOLERANCE_M:
        raise VqhpsError(f"the ONNX decoder differs from torch by {single_mm:.2f} mm: not written")
    _require_ties(graphs["encoder"], vertices, _tokens_of(single, vertices), expected)
    paths = [folder / f"{name}.onnx" for name in graphs]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        halve_weights(path, keep=[])
    written_mm = _deviation_mm(MeshTokenizer.load(folder), tokens, vertices)
    half = written_mm <= _HALF_LIMIT_MM
    if not half:
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
    written = MeshTokenizer.load(folder)
    return TokenizerReport(
        single_mm=single_mm,
        written_mm=_deviation_mm(written, tokens, vertices),
        half=half,
        equal_tokens=float((_tokens_of(written, vertices) == expected.numpy()).mean()),
        bytes=sum(path.stat().st_size for path in paths),
        cores=available_cores(),
        meshes_per_second=_per_second(written, vertices.numpy(), _still(vertices)),
        turned_meshes_per_second=_per_second(written, vertices.numpy(), None),
    )


def _tokens_of(tokenizer: MeshTokenizer, vertices: Float[Tensor, "B V 3"]) -> Int[np.ndarray, "B T"]:
    return tokenizer.encode(vertices.numpy(), _still(vertices)).indices


def _still(vertices: Float[Tensor, "B V 3"]) -> Float[np.ndarray, "B 3 3"]:
    """No rotation, for canonical meshes."""
    return np.broadcast_to(np.eye(3, dtype=np.float32), (len(vertices), 3, 3))


def _deviation_mm(tokenizer: MeshTokenizer, tokens: Int[Tensor, "B T"], vertices: Float[Tensor, "B V 3"]) -> float:
    return float(1000 * np.linalg.norm(tokenizer.decode(tokens.numpy()) - vertices.numpy(), axis=-1).max())


def _require_ties(graph: nn.Module, vertices: Tensor, found: np.ndarray, expected: Tensor) -> None:
    """Tokens may differ from torch's only where two codes are equally near.

    Raises:
        VqhpsError: they differ elsewhere.
    """
    model: MeshVQVAE = graph.model  # type: ignore[assignment]
    latents = model.latents(graph.coarse(vertices))  # type: ignore[operator]
    distance = [(latents - model.quantizer.codes(i)).norm(dim=-1) for i in (torch.from_numpy(found), expected)]
    if (distance[0] - distance[1]).max() > _TIE * model.codebook.std():
        raise VqhpsError("the ONNX encoder chooses other tokens than torch: not written")


def _per_second(tokenizer: MeshTokenizer, meshes: np.ndarray, rotation: np.ndarray | None) -> float:
    """Median of some passes; `encode` decodes as well, to tell the distance."""
    times = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        tokenizer.encode(meshes, rotation)
        times.append(time.perf_counter() - start)
    return round(len(meshes) / float(np.median(times)), 1)
