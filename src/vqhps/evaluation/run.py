"""Evaluation of an image model on people with known meshes, and what all evaluations share.

The model is a function from crops to arrays, so that a torch checkpoint and an ONNX bundle go through the same code.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tqdm import tqdm

from vqhps.body.anny import AnnyBody, anny_body
from vqhps.body.named import named_body
from vqhps.body.smpl import SMPLBody
from vqhps.data.crops import crop_keypoints, crop_places, crop_rotations, plain_crops
from vqhps.data.hard import Change
from vqhps.data.sample import CROP_SCALE, Shards
from vqhps.errors import VqhpsError
from vqhps.evaluation.metrics import (
    LIMBS,
    confidence_interval,
    correct_keypoints,
    correlation,
    edge_ratios,
    limb_lengths,
    volume_litres,
)
from vqhps.evaluation.protocols import PROTOCOLS, mesh_errors
from vqhps.geometry import crop_from_box, matrix_from_quaternion, project, rotate
from vqhps.runtime.bundle import Bundle
from vqhps.version import __version__


@dataclass(frozen=True)
class Bodies:
    """What a model says of N crops: `vertices` (N, V, 3) and `joints` (N, 17, 3) in metres, `camera` (N, 3)."""

    vertices: Float[np.ndarray, "N V 3"]
    joints: Float[np.ndarray, "N 17 3"]
    camera: Float[np.ndarray, "N 3"]


Model = Callable[[UInt8[np.ndarray, "N S S 3"], Float[np.ndarray, "N 3"]], Bodies]
"""Crops, and their places in the photos (see `vqhps.data.crops.crop_places`), to bodies."""


def bundle_model(bundle: Bundle) -> Model:
    """A bundle as the evaluators take it."""

    def run(crops: UInt8[np.ndarray, "N S S 3"], places: Float[np.ndarray, "N 3"]) -> Bodies:
        output = bundle.run(crops)
        return Bodies(output.vertices, output.joints, output.camera)

    return run


def mean_body_model() -> Model:
    """The least a model must beat: always the same body, standing, arms down a little, facing the camera, filling its
    crop."""
    body = anny_body("full")
    vertices = (body.template - body.template.mean(0)) * [1, -1, -1]
    joints = body.joint_regressors["coco17"] @ vertices
    extent = np.ptp(vertices[:, :2], axis=0).max()
    camera = np.array([2 / (1.25 * extent), 0.0, 0.0])
    shift = (vertices[:, :2].max(0) + vertices[:, :2].min(0)) / 2
    camera[1:] = -shift

    def run(crops: UInt8[np.ndarray, "N S S 3"], places: Float[np.ndarray, "N 3"]) -> Bodies:
        return Bodies(*(np.repeat(x[None], len(crops), 0).astype(np.float32) for x in (vertices, joints, camera)))

    return run


def evaluate_people(
    model: Model, input_size: int, shards: Shards, out: Path | None = None, data: str = "synthetic-test",
    crop_scale: float = CROP_SCALE, body_models: Path | None = None, change: Change | None = None,
    most: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Errors on people with known meshes, on the full mesh, under every protocol.

    Meshes are compared in the axes of a camera that looks at the centre of the crop, as if the intrinsics of the photo
    were known: turning both meshes into the photo's camera changes no error.

    Args:
        model: to be evaluated.
        input_size: side of its crops, px.
        shards: of the test split.
        out: folder for `results.csv` (a row a sample) and `results.json`.
        data: name of the data set, for the records.
        crop_scale: side of the model's crops over the long side of the box.
        body_models: folder of body files, searched first.
        change: what is done to each crop first, see `vqhps.data.hard`.
        most: only the first so many samples.

    Returns:
        The summary: means by protocol and metric, mm, PCK of the visible key points, the 95 % confidence interval of
        each (`interval_95`), by `bounds` how far the worst predicted and the worst true meshes are from the
        template: see `edge_ratios` and `volume_litres`; and by `proportions` the medians over samples of limb lengths
        and volumes over the true ones, and the correlation of volumes.
    """
    everybody = np.arange(len(shards))[:most]
    names = np.unique(shards.labels["body"])
    bodies_of = {n: anny_body("full") if n == "anny" else named_body(str(n), body_models) for n in names}
    rotations, regressors = crop_rotations(shards), bodies_of[names[0]].joint_regressors
    template, faces = bodies_of[names[0]].template, bodies_of[names[0]].faces
    columns: dict[str, list[np.ndarray]] = {}
    for rows in tqdm(np.array_split(everybody, -(-len(everybody) // 32)), data, unit="batch"):
        crops = _changed(plain_crops(shards, rows, input_size, crop_scale), rows, change)
        bodies = model(crops, crop_places(shards, rows, crop_scale))
        true = rotate(rotations[rows], _meshes(shards, rows, bodies_of))
        if bodies.vertices.shape != true.shape:
            raise VqhpsError(
                f"the model's meshes have {bodies.vertices.shape[1]} vertices, those of {data} {true.shape[1]}: name a "
                "bundle of that body with --bundle"
            )
        values = {
            f"{name} {metric}": errors
            for name, protocol in PROTOCOLS.items()
            if protocol.joint_set in regressors
            for metric, errors in mesh_errors(protocol, bodies.vertices, true, regressors[protocol.joint_set]).items()
        }
        keypoints, truth = project(bodies.joints, bodies.camera), crop_keypoints(shards, rows, crop_scale)
        boxes = shards.labels["box"][rows]
        diagonal = np.hypot(*(boxes[:, 2:] - boxes[:, :2]).T) * 2 / crop_from_box(boxes, crop_scale)[1]
        visible = shards.labels["keypoints_visible"][rows] == 2
        values |= pck_columns(keypoints, truth, visible, diagonal)
        for of, meshes in (("", bodies.vertices), ("true ", true)):
            shortest, longest = edge_ratios(meshes, template, faces).T
            values |= {f"{of}shortest edges": shortest, f"{of}longest edges": longest}
            values |= {f"{of}volume": volume_litres(meshes, faces)}
            limbs = limb_lengths(regressors["coco17"] @ meshes).T
            values |= {f"{of}{name} length": length for name, length in zip(LIMBS, limbs, strict=True)}
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    bodily = {n: v for n, v in table.items() if n.endswith((" edges", "volume", " length"))}
    summary = summarise({n: v for n, v in table.items() if n not in bodily})
    summary["bounds"] = {n: [float(v.min()), float(v.max())] for n, v in bodily.items() if not n.endswith(" length")}
    whole = ("volume", *(f"{limb} length" for limb in LIMBS))
    summary["proportions"] = {n: float(np.median(table[n] / table[f"true {n}"])) for n in whole}
    summary["proportions"]["volume correlation"] = correlation(table["volume"], table["true volume"])
    samples = [f"{shards.paths[shards.shard[row]].name}:{shards.number[row]}" for row in everybody]
    write_results(out, data, samples, table, summary)
    return summary


def _changed(crops: UInt8[np.ndarray, "R S S 3"], rows: np.ndarray, change: Change | None) -> np.ndarray:
    """Crops after a change that is the same for a sample each time."""
    if change is None:
        return crops
    return np.stack([change(c, np.random.default_rng((0, int(r)))) for c, r in zip(crops, rows, strict=True)])


def _meshes(shards: Shards, rows: np.ndarray, bodies: dict[str, AnnyBody | SMPLBody]) -> Float[np.ndarray, "R V 3"]:
    """True meshes of samples before their rotation, full, metres."""
    labels = {name: shards.labels[name][rows] for name in ("pose", "shape", "body")}
    pose = matrix_from_quaternion(torch.from_numpy(labels["pose"].astype(np.float32)))
    shape = torch.from_numpy(labels["shape"])
    parts = {name: np.flatnonzero(labels["body"] == name) for name in np.unique(labels["body"])}
    meshes = [bodies[name].forward(pose[part], shape[part]).numpy() for name, part in parts.items()]
    return np.concatenate(meshes)[np.argsort(np.concatenate(list(parts.values())))]


def pck_columns(predicted: Any, true: Any, labelled: Any, diagonal: Any, of: str = "") -> dict[str, np.ndarray]:
    """Columns for `summarise`: correct key points at three shares of the diagonals of the boxes, and labelled ones.

    Args:
        predicted: (N, J, 2), in any unit.
        true: (N, J, 2), in the same unit.
        labelled: (N, J).
        diagonal: (N,) in that unit.
        of: put before the names of the columns: whose key points they are, and a space.
    """
    columns: dict[str, np.ndarray] = {}
    for share in (0.05, 0.1, 0.2):
        correct, count = correct_keypoints(predicted, true, labelled, diagonal, share)
        columns |= {f"{of}correct@{share}": correct, "labelled": count}
    return columns


def summarise(table: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over samples, and `interval_95`: the 95 % confidence interval of each, over samples too.

    Args:
        table: a column a metric; `... correct@SHARE` and `labelled` make `... PCK@SHARE`.
    """
    labelled = table.get("labelled")
    summary: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for column, values in table.items():
        if column == "labelled":
            continue
        weights = labelled if "correct@" in column else None
        name = column.replace("correct@", "PCK@")
        summary[name] = float(values.sum() / max(len(values) if weights is None else weights.sum(), 1))
        intervals[name] = list(confidence_interval(values, weights)) if len(values) else [float("nan")] * 2
    return {**summary, "interval_95": intervals}


def write_results(
    out: Path | None, data: str, names: Sequence[str], table: dict[str, np.ndarray], summary: dict[str, Any]
) -> None:
    """Write `results.csv`, a row a sample, and `results.json`, the summary, to a folder if one is given."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.csv.partial").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *table])
        writer.writerows([name, *(f"{v:.4f}" for v in row)] for name, *row in zip(names, *table.values(), strict=True))
    (out / "results.csv.partial").replace(out / "results.csv")
    content = {"data": data, "samples": len(names), "version": __version__, "date": date.today().isoformat(), **summary}
    (out / "results.json.partial").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "results.json.partial").replace(out / "results.json")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, first twelve digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
