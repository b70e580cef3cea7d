"""How fast the mesh convolutions are, against the published order of operations at equal weights."""

import copy
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn
from tqdm import tqdm

from vqhps.body.anny import anny_body
from vqhps.body.topology import Level, build_hierarchy
from vqhps.errors import VqhpsError
from vqhps.tokenizer.mesh_conv import MeshConv, MeshPool
from vqhps.tokenizer.mesh_vqvae import BodyMesh, MeshVQVAEConfig
from vqhps.tokenizer.networks import ConvNetwork
from vqhps.tokenizer.published_order import PublishedOrder

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-5  # relative, of outputs and gradients
_SMPL_SIZES = (6890, 1925, 400, 54)
# Mean and largest number of neighbours in the published SMPL connections, finest level first.
_CONV = ((7.0, 10), (10.6, 21), (14.0, 26), (10.3, 19))
_POOL = ((19.3, 32), (33.0, 56), (41.3, 66))
_UNPOOL = ((5.4, 11), (6.9, 14), (5.6, 11))


def bench_tokenizer(runs: int = 5, quick: bool = False) -> dict[str, Any]:
    """Time the convolutional network (encoder and decoder, channels 3-32-64-128-9), in turns with the published order.

    Meshes: `smpl-size`, a sphere of 6890 -> 1925 -> 400 -> 54 vertices with as many neighbours as the published SMPL
    connections have, and `anny`, the default coarse mesh and hierarchy.

    Args:
        runs: repetitions; the medians are reported.
        quick: a miniature sphere alone, batch 1 and 2: to see that it works.

    Returns:
        `threads`; `peak_gflops`, of a large single-precision matrix product; for each mesh and batch size
        `output_error` and `gradient_error` (relative), and for `forward` and training `step` (forward, backward, Adam)
        `published_ms`, `ours_ms`, `ratio` and `peak_share`, the share of that peak that our order keeps busy, sums
        computed anew in the backward pass not counted.

    Raises:
        VqhpsError: fewer than one run, or the two orders disagree.
    """
    if runs < 1:
        raise VqhpsError(f"the number of runs must be at least 1, got {runs}")
    if quick:
        meshes, batches = {"miniature": lambda: sphere_hierarchy((120, 60, 30, 10))}, (1, 2)
    else:
        meshes, batches = {"smpl-size": lambda: sphere_hierarchy(_SMPL_SIZES), "anny": _anny_hierarchy}, (1, 16)
    peak = matmul_peak(512 if quick else 2048)
    report: dict[str, Any] = {"runs": runs, "threads": torch.get_num_threads(), "peak_gflops": round(peak / 1e9, 1)}
    for name, build in meshes.items():
        levels = build()
        for batch in batches:
            logger.info("%s, batch %d", name, batch)
            report[f"{name}, batch {batch}"] = _compare(levels, batch, runs, peak)
    return report


def sphere_hierarchy(sizes: tuple[int, ...]) -> list[Level]:
    """Evenly covered spheres of four sizes with as many neighbours, nearest first, as the published SMPL meshes."""
    rng = np.random.default_rng(0)
    spheres = [_sphere(size) for size in sizes]

    def table(to: int, of: int, mean: float, largest: int) -> Int[np.ndarray, "V M"]:
        nearest = cKDTree(spheres[of]).query(spheres[to], largest)[1]
        count = rng.normal(mean, mean / 4, len(nearest)).round().clip(1, largest)
        return np.where(np.arange(largest) < count[:, None], nearest, sizes[of])

    levels = [
        Level(table(i, i, *_CONV[i]), table(i + 1, i, *_POOL[i]), table(i, i + 1, *_UNPOOL[i]))
        for i in range(len(sizes) - 1)
    ]
    return [*levels, Level(table(-1, -1, *_CONV[-1]), None, None)]


def _sphere(count: int) -> Float[np.ndarray, "V 3"]:
    """Points on a Fibonacci spiral."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.pi * (3 - 5**0.5) * np.arange(count)
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)


def _anny_hierarchy() -> list[Level]:
    body, config = anny_body("coarse"), MeshVQVAEConfig()
    return build_hierarchy(body.template, body.faces, config.sizes, config.neighbours)


def conv_network(levels: list[Level]) -> ConvNetwork:
    """The published network on a hierarchy, with the same random weights every time."""
    sizes = tuple(len(level.conv) for level in levels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MeshVQVAEConfig(network="conv", sizes=sizes[1:], code_dim=9)
        return ConvNetwork(config, BodyMesh(BodyMesh.level_tensors(levels)))


def matmul_peak(size: int) -> float:
    """Floating-point operations a second of a square single-precision matrix product, the best of five."""
    a = torch.rand(size, size)
    product = torch.empty_like(a)
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, a, out=product)) for _ in range(5))


def flops(network: ConvNetwork, batch: int) -> int:
    """Floating-point operations of a forward pass in our order; a training step takes three times as many."""
    total, channels = 0, 3
    for layer in (*network.encoder, *network.decoder):
        if isinstance(layer, MeshConv):
            bases, c_in, c_out = layer.bases.shape
            total += 2 * bases * (layer.edges.gatherers * c_in * c_out + len(layer.edges.slots) * min(c_in, c_out))
            channels = c_out
        elif isinstance(layer, MeshPool):
            total += 2 * len(layer.edges.slots) * channels
    return batch * total


class _Ours(nn.Module):
    def __init__(self, network: ConvNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, offsets: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        """Encode and decode, without quantization."""
        return self.network.decode(self.network.encode(offsets))


def _compare(levels: list[Level], batch: int, runs: int, peak: float) -> dict[str, Any]:
    network = conv_network(levels)
    bodies = 0.1 * torch.randn(batch, len(levels[0].conv), 3, generator=torch.Generator().manual_seed(1))
    models = {"published": PublishedOrder(network), "ours": _Ours(copy.deepcopy(network))}
    report: dict[str, Any] = check_equal(models["published"], models["ours"], bodies)
    steps = {name: _training_step(model, bodies) for name, model in models.items()}
    forwards = {name: _forward(model, bodies) for name, model in models.items()}
    operations = flops(network, batch)
    for kind, actions, work in (("forward", forwards, operations), ("step", steps, 3 * operations)):
        times = in_turns(actions, runs, kind)
        report[kind] = {f"{name}_ms": round(1000 * seconds, 2) for name, seconds in times.items()} | {
            "ratio": round(times["published"] / times["ours"], 2),
            "peak_share": round(work / times["ours"] / peak, 3),
        }
    return report


def check_equal(published: nn.Module, ours: nn.Module, bodies: Float[Tensor, "B V 3"]) -> dict[str, float]:
    """Relative errors of our outputs (largest) and gradients (norm, worst parameter).

    Raises:
        VqhpsError: one of them is not below 1e-5.
    """
    outputs = [_loss(model, bodies) for model in (published, ours)]
    theirs, mine = (output.detach() for output, _ in outputs)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()))
        for model, (_, loss) in zip((published, ours), outputs, strict=True)
    ]
    errors = {
        "output_error": float((mine - theirs).abs().max() / theirs.abs().max()),
        "gradient_error": max(float((b - a).norm() / a.norm()) for a, b in zip(*gradients, strict=True)),
    }
    for name, error in errors.items():
        if not error <= _TOLERANCE:
            raise VqhpsError(
                f"ours and the published order disagree: {name} {error:.2g}, at most {_TOLERANCE:g} allowed"
            )
    return errors


def _loss(model: nn.Module, bodies: Float[Tensor, "B V 3"]) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, ""]]:
    output = model(bodies)
    return output, (output - bodies).norm(dim=-1).mean()


def _forward(model: nn.Module, bodies: Float[Tensor, "B V 3"]) -> Callable[[], Any]:
    return torch.no_grad()(lambda: model(bodies))


def _training_step(model: nn.Module, bodies: Float[Tensor, "B V 3"]) -> Callable[[], Any]:
    optimizer = torch.optim.Adam(model.parameters(), 5e-5)

    def step() -> None:
        optimizer.zero_grad()
        _loss(model, bodies)[1].backward()
        optimizer.step()

    return step


def in_turns(
    actions: dict[str, Callable[[], Any]], runs: int, label: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each by a clock, after a run that does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in tqdm(range(runs + 1), label, leave=False, disable=None):
        for name, action in actions.items():
            times[name].append(_seconds(action, clock))
    return {name: float(np.median(seconds[1:])) for name, seconds in times.items()}


def _seconds(action: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    action()
    return clock() - start
