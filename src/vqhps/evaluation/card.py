"""What was measured of a bundle, kept in the bundle itself."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqhps.config import to_dict
from vqhps.runtime.bundle import BundleInfo, Metric, read_info
from vqhps.runtime.export_mesh import whole_file

_GIVEN_BOXES = "boxes given, of the diagonal of the box"


def record_metrics(folder: Path, data: str, summary: Mapping[str, Any]) -> None:
    """Write the figures of an evaluation into a bundle's `bundle.json`, in place of earlier ones on the same data.

    Args:
        folder: of the bundle.
        data: name of the data set.
        summary: of `evaluate_people` or `evaluate_coco`: `PROTOCOL METRIC` in mm, and PCK; the detector's figures and
            those over all persons are left out.
    """
    info = read_info(folder / "bundle.json", BundleInfo)
    metrics = [metric for metric in info.metrics if metric.data != data]
    for key, value in summary.items():
        protocol, _, name = key.rpartition(" ")
        if key.startswith("PCK@") and "," not in key:
            metrics.append(Metric(key, round(value, 4), "share", _GIVEN_BOXES, data))
        elif name.endswith(("PVE", "MPJPE")):
            metrics.append(Metric(name, round(value, 2), "mm", protocol, data))
    content = to_dict(dataclasses.replace(info, metrics=tuple(metrics)))
    with whole_file(folder / "bundle.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
