"""How the error of a tokenizer falls with the bits it may spend: one table, one plot."""

import csv
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vqhps.data.bodies import BodyStream, test_bodies
from vqhps.data.mocap import load_poses
from vqhps.errors import VqhpsError
from vqhps.evaluation.tokenizer import tokenizer_errors
from vqhps.tokenizer.build import anny_tokenizer
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE, MeshVQVAEConfig
from vqhps.tokenizer.networks import ComponentNetwork

_BATCH = 512
_CODE_DIM = {1: 3, 2: 5, 4: 6}  # of a depth: more bits a latent pay for more components
_WHOLE = ("latents", "codes", "depth", "code_dim", "bits")
_MEAN_OF_RMS = math.sqrt(8 / (3 * math.pi))  # mean length of an isotropic normal error over its root mean square
_MARKERS = "osDv"
_OTHERS = (  # bits, mm
    ("Mesh-VQ-VAE, published (SMPL)", 486, 4.7, "*"),  # VQ-HPS, ECCV 2024
    ("108 components in 54 pairs", 486, 5.0, "x"),  # product quantizer without a network, on this body
)


@dataclass(frozen=True)
class Point:
    """One tokenizer: `latents` x `depth` tokens of `codes` codes; PVE on the full mesh, mm; coarse meshes a second,
    encoded and decoded by torch in batches."""

    latents: int
    codes: int
    depth: int
    code_dim: int
    bits: int
    pve_mm: float
    meshes_per_second: float


def rate_distortion(
    data_root: Path,
    out: Path,
    latents: Sequence[int] = (27, 54, 108),
    codes: Sequence[int] = (256, 512, 1024),
    depths: Sequence[int] = (1, 2, 4),
    bodies: int = 20_480,
) -> list[Point]:
    """Fit a tokenizer of each setting to the same bodies, without gradient steps, and measure it.

    Every setting gets the same principal components and ten rounds of k-means a codebook. Held-out CMU subjects, as
    `evaluate tokenizer`. Writes `rate_distortion.csv`, a row at a time, so that a stopped run goes on, and
    `rate_distortion.png`.

    Args:
        data_root: folder that holds `mocap/`.
        out: folder for the files.
        latents: N, see `Point`.
        codes: K.
        depths: levels of residual quantization.
        bodies: to fit to.

    Raises:
        VqhpsError: a depth without a length of code, or the table in `out` is another's.
    """
    if unknown := set(depths) - set(_CODE_DIM):
        raise VqhpsError(f"depth {min(unknown)}: only {', '.join(map(str, _CODE_DIM))} are known")
    out.mkdir(parents=True, exist_ok=True)
    table = out / "rate_distortion.csv"
    points = _read(table)
    done = {(p.latents, p.codes, p.depth) for p in points}
    todo = [s for s in itertools.product(latents, codes, depths) if s not in done]
    stream = BodyStream(load_poses(data_root, "train", 0.06))
    train = torch.cat([stream.batch(_BATCH, (0, 0, i)) for i in range(max(1, bodies // _BATCH))])
    coarse, full, _ = test_bodies(data_root)
    rank = max(256, *(n * _CODE_DIM[d] for n, _, d in itertools.product(latents, codes, depths)))
    base = anny_tokenizer(MeshVQVAEConfig(sizes=(400, 300, min(latents)), code_dim=_CODE_DIM[1], components=rank))
    offsets = train - base.mesh.get_buffer("template")
    assert isinstance(base.network, ComponentNetwork)
    torch.manual_seed(0)
    base.network.initialise(offsets, base.mesh.get_buffer("weight"))
    for setting in tqdm(todo, desc="rate-distortion", unit="tokenizer", disable=not todo):
        points.append(_measure(base, offsets, coarse, full, *setting))
        _write(table, points)
    points.sort(key=lambda p: (p.bits, p.latents, p.codes))
    plot(points, gaussian_bound(base.network.deviation), out / "rate_distortion.png")
    return points


@torch.no_grad()
def _measure(
    base: MeshVQVAE,
    offsets: Float[Tensor, "N Vc 3"],
    coarse: Float[Tensor, "M Vc 3"],
    full: Float[Tensor, "M V 3"],
    latents: int,
    codes: int,
    depth: int,
) -> Point:
    rank = base.config.components
    sizes = (400, 300, latents)
    config = MeshVQVAEConfig(sizes=sizes, num_codes=codes, code_dim=_CODE_DIM[depth], depth=depth, components=rank)
    model = MeshVQVAE(config, base.mesh).eval()
    for name in ("mean", "scale", "basis", "deviation"):
        model.network.get_buffer(name).copy_(base.network.get_buffer(name))
    torch.manual_seed(0)
    model.quantizer.initialise(torch.cat([model.network.encode(part) for part in offsets.split(64)]))
    pve = tokenizer_errors(model, coarse, full)["pve_mm"].mean().item()
    start, count = time.perf_counter(), min(len(coarse), 512)
    model.decode(model.encode(coarse[:count]))
    rate = count / (time.perf_counter() - start)
    bits = int(latents * depth * math.log2(codes))
    return Point(latents, codes, depth, config.code_dim, bits, round(pve, 3), round(rate, 1))


def gaussian_bound(deviation: Float[Tensor, "R"]) -> list[tuple[float, float]]:
    """Bits and mean vertex error in mm below which no code of a Gaussian source with these components can go.

    Reverse water-filling (Cover and Thomas, section 10.3.3) over principal components; what lies beyond the given ones
    counts as zero, which keeps it a bound.

    Args:
        deviation: standard deviation of each component, metres.
    """
    variance = deviation.double().numpy() ** 2
    curve = []
    for level in np.geomspace(variance.max() / 4, variance.min(), 60):
        bits = 0.5 * np.log2(np.maximum(variance / level, 1)).sum()
        error = np.sqrt(np.minimum(variance, level).sum())
        curve.append((float(bits), float(1000 * _MEAN_OF_RMS * error)))
    return curve


def plot(points: Sequence[Point], bound: Sequence[tuple[float, float]], path: Path) -> None:
    """Draw error over bits, a line for each depth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*bound, strict=True), color="0.6", linestyle="--", label="Gaussian bound")
    for name, bits, error, marker in _OTHERS:
        axes.plot([bits], [error], marker, color="black", markersize=10, label=name)
    for number, depth in enumerate(sorted({p.depth for p in points})):
        marker = _MARKERS[number % len(_MARKERS)]
        mine = [p for p in points if p.depth == depth]
        axes.plot([p.bits for p in mine], [p.pve_mm for p in mine], marker, label=f"depth {depth}", alpha=0.8)
        for p in mine:
            axes.annotate(f"{p.latents}x{p.codes}", (p.bits, p.pve_mm), (4, 3), textcoords="offset points", fontsize=6)
    axes.set(xlabel="bits a mesh", ylabel="PVE, mm", xscale="log", yscale="log", xlim=(180, 5000), ylim=(0.3, 20))
    ticks = (250, 500, 1000, 2000, 4000)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_yticks((0.5, 1, 2, 5, 10, 20), ["0.5", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


def _read(table: Path) -> list[Point]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            Point(
                **{name: int(r[name]) for name in _WHOLE},
                pve_mm=float(r["pve_mm"]),
                meshes_per_second=float(r["meshes_per_second"]),
            )
            for r in rows
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise VqhpsError(f"{table} is not a table of this command; move it away") from error


def _write(table: Path, points: Sequence[Point]) -> None:
    partial = table.with_name(table.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[f.name for f in fields(Point)], *(astuple(p) for p in points)])
    partial.replace(table)
