"""How long a prediction takes on this machine."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.bundle import Bundle, available_cores, default_bundle
from vqhps.runtime.detect import PersonDetector
from vqhps.runtime.motion_files import VideoOptions, predict_video
from vqhps.runtime.photo import read_photo
from vqhps.runtime.predictor import Predictor
from vqhps.runtime.render import render_overlay
from vqhps.runtime.video import open_source


def bench_predict(photo: Path, runs: int = 20, bundle: Bundle | Path | None = None) -> dict[str, float]:
    """Time the stages of a prediction.

    Args:
        photo: a photo with people.
        runs: repetitions; the medians are reported.
        bundle: the model; the shipped one by default.

    Returns:
        `load_ms` and `first_ms` (the first prediction, which also loads the detector), then medians: `read_ms`,
        `detect_ms`, `predict_ms` (detection included), `person_ms` (that, a person), `bodies_ms` (crops, network and
        cameras, boxes given), `overlay_ms`; `people`, `cores`, and `peak_mb` of this process where the system tells.

    Raises:
        VqhpsError: the photo cannot be read, or nobody is on it.
    """
    if runs < 1:
        raise VqhpsError(f"the number of runs must be at least 1, got {runs}")
    start = time.perf_counter()
    predictor = Predictor(bundle)
    load = _since(start)
    image = read_photo(photo).image
    start = time.perf_counter()
    people = predictor.predict(image)
    first = _since(start)
    if not people:
        raise VqhpsError(f"{photo}: no person found")
    boxes = np.stack([person.box for person in people])
    predict = _median(lambda: predictor.predict(image), runs)
    return {
        "load_ms": load,
        "first_ms": first,
        "read_ms": _median(lambda: read_photo(photo), runs),
        "detect_ms": _median(lambda: predictor.detect(image), runs),
        "predict_ms": predict,
        "person_ms": round(predict / len(people), 2),
        "bodies_ms": _median(lambda: predictor.predict(image, boxes), runs),
        "overlay_ms": _median(lambda: render_overlay(image, people, predictor.bundle.faces), runs),
        "people": len(people),
        "cores": available_cores(),
        **_peak(),
    }


def bench_video(video: Path, bundle: Path | None = None) -> dict[str, float]:
    """Time `vqhps video` without overlay, end to end: decode, detect, track, predict, smooth, write NPZ and JSON.

    Args:
        video: a file.
        bundle: folder of a model; the shipped one by default.

    Returns:
        `frames`, `people`, `frames_a_second` of all that (models loaded, first frame not seen before), and
        `decoded_a_second` of reading alone.

    Raises:
        VqhpsError: the video cannot be read.
    """
    predictor = Predictor(default_bundle(1) if bundle is None else Bundle.load(bundle, 1), PersonDetector(threads=1))
    start = time.perf_counter()
    frames = sum(1 for _ in open_source(str(video)).frames())
    decoding = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = predict_video(predictor, open_source(str(video)), Path(folder), VideoOptions(overlay=False))
        seconds = time.perf_counter() - start
    return {
        "frames": result.frames,
        "people": result.people,
        "frames_a_second": round(result.frames / seconds, 1),
        "decoded_a_second": round(frames / decoding, 1),
    }


def _since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)


def _median(action: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(_since(start))
    return round(float(np.median(times)), 2)


def _peak() -> dict[str, float]:
    """Peak memory in MB; empty on Windows."""
    try:
        import resource
    except ImportError:
        return {}
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes or kilobytes
    return {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
