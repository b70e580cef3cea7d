"""How fast an image model is: its checkpoint run by torch and its bundles, in turns with a matrix product."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.utils.flop_counter import FlopCounterMode

from vqhps.checkpoint import load_checkpoint
from vqhps.errors import VqhpsError
from vqhps.evaluation.tokenizer_speed import in_turns
from vqhps.models.backbones import WITHOUT_DEPTHWISE
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.photo import check_crops


def bench_model(
    checkpoint: Path, bundles: Sequence[Path], photos: Sequence[Path] = (), runs: int = 20, peak_size: int = 2048
) -> dict[str, Any]:
    """Time predictions of one crop, each with as many threads as torch has (`OMP_NUM_THREADS`); these wait for each
    other as torch's do, without giving up their cores.

    With one thread times are of the processor, which others at work on it hardly lengthen; with more, of the wall
    clock.

    Args:
        checkpoint: of an image model that is given images only; run in single precision, and with its backbones in
            bfloat16 if that makes them faster.
        bundles: exported from it.
        photos: to compare meshes on; made-up pictures by default.
        runs: repetitions; the medians are reported.
        peak_size: side of the matrices.

    Returns:
        `threads`; `clock`; `crops`, how many the meshes are compared on; `gflop` of a prediction (products and
        convolutions); `peak_gflops`, of a single-precision matrix product by torch or numpy, whichever is faster, in
        turns with the predictions; for `torch`,
        `torch-bfloat16` and each bundle `ms`, `speedup` over torch, `peak_share`, the share of that peak, and
        `mean_mm` and `worst_crop_mm`, how far its vertices are from torch's, over all crops and in the worst one.

    Raises:
        VqhpsError: fewer than one run, no image model, or a bundle that cannot be loaded.
    """
    if runs < 1:
        raise VqhpsError(f"the number of runs must be at least 1, got {runs}")
    model: Any = load_checkpoint(checkpoint).requires_grad_(False)
    if not hasattr(model, "predict"):
        raise VqhpsError(f"{checkpoint} holds no image model")
    threads = torch.get_num_threads()
    loaded = {path.name: Bundle.load(path, threads, spin=True) for path in bundles}
    size = next(iter(loaded.values())).info.input_size if loaded else model.backbone.input_size or 224
    crops = check_crops(photos, size)
    predictors = _predictors(model, checkpoint, loaded, crops)
    with FlopCounterMode(display=False) as counter:
        predictors["torch"](0)
    matrix = torch.rand(peak_size, peak_size)
    product = torch.empty_like(matrix)
    array, result = matrix.numpy(), np.empty((peak_size, peak_size), np.float32)
    products: dict[str, Callable[[], Any]] = {
        "product by torch": lambda: torch.mm(matrix, matrix, out=product),
        "product by numpy": lambda: np.matmul(array, array, out=result),
    }
    actions = dict(products)
    actions |= {name: functools.partial(predict, 0) for name, predict in predictors.items()}
    clock = "processor" if threads == 1 else "wall"
    times = in_turns(actions, runs, "predictions", time.process_time if clock == "processor" else time.perf_counter)
    work, peak = counter.get_total_flops(), 2 * peak_size**3 / min([times.pop(name) for name in products])
    vertices = {n: np.concatenate([predict(i) for i in range(len(crops))]) for n, predict in predictors.items()}
    report: dict[str, Any] = {
        "runs": runs, "threads": threads, "clock": clock, "crops": len(crops), "gflop": round(work / 1e9, 2),
        "peak_gflops": round(peak / 1e9, 1),
    }  # fmt: skip
    return report | {name: _row(name, times, work / peak, vertices) for name in times}


def _predictors(
    model: Any, checkpoint: Path, bundles: Mapping[str, Bundle], crops: UInt8[np.ndarray, "N S S 3"]
) -> dict[str, Callable[[int], Float[np.ndarray, "1 V 3"]]]:
    """By name, what gives the vertices of a crop."""
    images = model.normalise(torch.from_numpy(crops))
    models = {"torch": model}
    if model.backbone.name in WITHOUT_DEPTHWISE:
        models["torch-bfloat16"] = load_checkpoint(checkpoint).requires_grad_(False)
        models["torch-bfloat16"].to_bfloat16()

    def of_model(name: str, crop: int) -> Float[np.ndarray, "1 V 3"]:
        return models[name].predict(images[crop : crop + 1]).vertices.numpy()

    def of_bundle(name: str, crop: int) -> Float[np.ndarray, "1 V 3"]:
        return bundles[name].run(crops[crop : crop + 1]).vertices

    return {n: functools.partial(of_model, n) for n in models} | {n: functools.partial(of_bundle, n) for n in bundles}


def _row(
    name: str, times: Mapping[str, float], least: float, vertices: Mapping[str, Float[np.ndarray, "N V 3"]]
) -> dict[str, float]:
    row = {"ms": round(1000 * times[name], 2), "peak_share": round(least / times[name], 3)}
    if name != "torch":
        apart = 1000 * np.linalg.norm(vertices[name] - vertices["torch"], axis=-1).mean(1)
        row |= {"speedup": round(times["torch"] / times[name], 2), "mean_mm": round(float(apart.mean()), 3)}
        row["worst_crop_mm"] = round(float(apart.max()), 3)
    return row
