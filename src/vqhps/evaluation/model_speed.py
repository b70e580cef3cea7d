"""How fast an image model is: its checkpoint run by torch and its bundles, in turns, against a matrix product."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vqhps.checkpoint import load_checkpoint
from vqhps.errors import VqhpsError
from vqhps.evaluation.tokenizer_speed import in_turns, matmul_peak
from vqhps.runtime.bundle import Bundle


def bench_model(checkpoint: Path, bundles: Sequence[Path], runs: int = 20, peak_size: int = 2048) -> dict[str, Any]:
    """Time predictions of one crop.

    Args:
        checkpoint: of an image model that is given images only; run as it is, in single precision.
        bundles: exported from it.
        runs: repetitions; the medians are reported.
        peak_size: side of the matrices.

    Returns:
        `threads`; `peak_gflops`, of a single-precision matrix product in the same run; `gflop` of a prediction
        (products and convolutions); for `torch` and each bundle `ms`, `speedup` over torch, `peak_share`, the share of
        that peak, and `mean_mm`, how far its vertices are from torch's on random crops.

    Raises:
        VqhpsError: fewer than one run, no image model, or a bundle that cannot be loaded.
    """
    if runs < 1:
        raise VqhpsError(f"the number of runs must be at least 1, got {runs}")
    model: Any = load_checkpoint(checkpoint).requires_grad_(False)
    if not hasattr(model, "predict"):
        raise VqhpsError(f"{checkpoint} holds no image model")
    loaded = {path.name: Bundle.load(path) for path in bundles}
    size = next(iter(loaded.values())).info.input_size if loaded else model.backbone.input_size or 224
    crops = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    images = model.normalise(torch.from_numpy(crops))
    with FlopCounterMode(display=False) as counter:
        model.predict(images[:1])
    work = counter.get_total_flops()
    actions: dict[str, Any] = {"torch": lambda: model.predict(images[:1])}
    actions |= {name: (lambda bundle=bundle: bundle.run(crops[:1])) for name, bundle in loaded.items()}
    peak = matmul_peak(peak_size)
    times = in_turns(actions, runs, "predictions")
    peak = max(peak, matmul_peak(peak_size))
    expected = model.predict(images).vertices.numpy()
    report: dict[str, Any] = {
        "runs": runs, "threads": torch.get_num_threads(), "peak_gflops": round(peak / 1e9, 1),
        "gflop": round(work / 1e9, 2),
    }  # fmt: skip
    return report | {name: _row(name, times, work / peak, loaded, crops, expected) for name in times}


def _row(
    name: str,
    times: Mapping[str, float],
    least: float,
    bundles: Mapping[str, Bundle],
    crops: np.ndarray,
    expected: np.ndarray,
) -> dict[str, float]:
    row = {"ms": round(1000 * times[name], 2), "peak_share": round(least / times[name], 3)}
    if name in bundles:
        apart = np.linalg.norm(bundles[name].run(crops).vertices - expected, axis=-1)
        row |= {"speedup": round(times["torch"] / times[name], 2), "mean_mm": round(1000 * float(apart.mean()), 3)}
    return row
