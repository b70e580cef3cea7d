"""Evaluation of an image model: rendered people with known meshes, and photos with labelled key points.

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
from vqhps.body.smpl import SMPLBody
from vqhps.crop import crop_image
from vqhps.data.bodies import named_body
from vqhps.data.crops import crop_keypoints, crop_rotations, plain_crops
from vqhps.data.sample import CROP_SCALE, Shards
from vqhps.errors import VqhpsError
from vqhps.evaluation.metrics import confidence_interval, correct_keypoints
from vqhps.evaluation.protocols import PROTOCOLS, mesh_errors
from vqhps.geometry import crop_from_box, crop_to_full, matrix_from_quaternion, project, rotate
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.photo import read_photo
from vqhps.version import __version__


@dataclass(frozen=True)
class Bodies:
    """What a model says of N crops: `vertices` (N, V, 3) and `joints` (N, 17, 3) in metres, `camera` (N, 3)."""

    vertices: Float[np.ndarray, "N V 3"]
    joints: Float[np.ndarray, "N 17 3"]
    camera: Float[np.ndarray, "N 3"]


Model = Callable[[UInt8[np.ndarray, "N S S 3"]], Bodies]


def bundle_model(bundle: Bundle) -> Model:
    """A bundle as the evaluators take it."""

    def run(crops: UInt8[np.ndarray, "N S S 3"]) -> Bodies:
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

    def run(crops: UInt8[np.ndarray, "N S S 3"]) -> Bodies:
        return Bodies(*(np.repeat(x[None], len(crops), 0).astype(np.float32) for x in (vertices, joints, camera)))

    return run


def evaluate_people(
    model: Model, input_size: int, shards: Shards, out: Path | None = None, data: str = "synthetic-test",
    crop_scale: float = CROP_SCALE, body_models: Path | None = None,
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

    Returns:
        The summary: means by protocol and metric, mm, PCK of the visible key points, and the 95 % confidence interval
        of each (`interval_95`).
    """
    names = np.unique(shards.labels["body"])
    bodies_of = {n: anny_body("full") if n == "anny" else named_body(str(n), body_models) for n in names}
    rotations, regressors = crop_rotations(shards), bodies_of[names[0]].joint_regressors
    columns: dict[str, list[np.ndarray]] = {}
    for rows in tqdm(np.array_split(np.arange(len(shards)), -(-len(shards) // 32)), data, unit="batch"):
        bodies = model(plain_crops(shards, rows, input_size, crop_scale))
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
        values |= _pck_columns(keypoints, truth, visible, diagonal)
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    summary = summarise(table)
    samples = [f"{p.name}:{n}" for p, n in zip(np.array(shards.paths)[shards.shard], shards.number, strict=True)]
    write_results(out, data, samples, table, summary)
    return summary


def _meshes(shards: Shards, rows: np.ndarray, bodies: dict[str, AnnyBody | SMPLBody]) -> Float[np.ndarray, "R V 3"]:
    """True meshes of samples before their rotation, full, metres."""
    labels = {name: shards.labels[name][rows] for name in ("pose", "shape", "body")}
    pose = matrix_from_quaternion(torch.from_numpy(labels["pose"].astype(np.float32)))
    shape = torch.from_numpy(labels["shape"])
    parts = {name: np.flatnonzero(labels["body"] == name) for name in np.unique(labels["body"])}
    meshes = [bodies[name].forward(pose[part], shape[part]).numpy() for name, part in parts.items()]
    return np.concatenate(meshes)[np.argsort(np.concatenate(list(parts.values())))]


def evaluate_coco(
    model: Model, input_size: int, folder: Path, out: Path | None = None, least: int = 10
) -> dict[str, Any]:
    """PCK of the mesh's COCO-17 joints, reprojected, on photos with given boxes.

    Args:
        model: to be evaluated.
        input_size: side of its crops, px.
        folder: `images/` and `person_keypoints_free.json` in COCO format.
        out: folder for `results.csv` and `results.json`.
        least: labelled key points a person must have to count in the main figure.

    Returns:
        The summary: PCK at 0.1 and 0.2 of the diagonal of the box, over persons with `least` or more labelled key
        points and over all labelled persons.
    """
    people = labelled_people(folder)
    crops, center, size = [], *crop_from_box(np.stack([p.box for p in people]))
    for person, c, s in zip(people, center, size, strict=True):
        crops.append(crop_image(read_photo(person.photo).image, c, float(s), input_size))
    parts = [model(np.stack(crops[i : i + 32])) for i in range(0, len(crops), 32)]
    projected = np.concatenate([project(p.joints, p.camera) for p in parts])
    keypoints = crop_to_full(projected, center, size)
    labelled = np.stack([p.labelled for p in people])
    diagonal = np.array([np.hypot(*(p.box[2:] - p.box[:2])) for p in people])
    table = _pck_columns(keypoints, np.stack([p.keypoints for p in people]), labelled, diagonal)
    enough = labelled.sum(1) >= least
    summary = summarise({name: v[enough] for name, v in table.items()})
    everyone = summarise(table)
    intervals = summary.pop("interval_95") | {f"{n}, all": v for n, v in everyone.pop("interval_95").items()}
    summary |= {f"{name}, all": value for name, value in everyone.items()} | {"interval_95": intervals}
    summary |= {"persons": int(enough.sum()), "persons, all": len(people)}
    write_results(out, "coco_free", [f"{p.photo.name}:{p.id}" for p in people], table, summary)
    return summary


def _pck_columns(predicted: Any, true: Any, labelled: Any, diagonal: Any) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for share in (0.05, 0.1, 0.2):
        correct, count = correct_keypoints(predicted, true, labelled, diagonal, share)
        columns |= {f"correct@{share}": correct, "labelled": count}
    return columns


def summarise(table: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over samples, and `interval_95`: the 95 % confidence interval of each, over samples too.

    Args:
        table: a column a metric; `correct@SHARE` and `labelled` make `PCK@SHARE`.
    """
    labelled = table.get("labelled")
    summary: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for column, values in table.items():
        if column == "labelled":
            continue
        weights = labelled if column.startswith("correct@") else None
        name = column.replace("correct@", "PCK@")
        summary[name] = float(values.sum() / max(len(values) if weights is None else weights.sum(), 1))
        intervals[name] = list(confidence_interval(values, weights)) if len(values) else [float("nan")] * 2
    return {**summary, "interval_95": intervals}


@dataclass(frozen=True)
class LabelledPerson:
    """A person of a COCO file: `box` (4,) xyxy px, `keypoints` (17, 2) px, `labelled` (17,)."""

    id: int
    photo: Path
    box: Float[np.ndarray, "4"]
    keypoints: Float[np.ndarray, "17 2"]
    labelled: np.ndarray


def labelled_people(folder: Path) -> list[LabelledPerson]:
    """Persons with labelled key points, crowds left out.

    Raises:
        VqhpsError: the annotation file is missing or not in COCO format.
    """
    path = folder / "person_keypoints_free.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        photos = {image["id"]: folder / "images" / Path(image["file_name"]).name for image in content["images"]}
        people = []
        for person in content["annotations"]:
            points = np.array(person.get("keypoints") or [0] * 51, float).reshape(17, 3)
            if person.get("iscrowd") or not points[:, 2].any():
                continue
            x, y, w, h = person["bbox"]
            box = np.array([x, y, x + w, y + h], float)
            photo = photos[person["image_id"]]
            # COCO counts pixels by their number; here a pixel's centre lies at its number + 0.5.
            people.append(LabelledPerson(person["id"], photo, box, points[:, :2] + 0.5, points[:, 2] > 0))
        return people
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise VqhpsError(f"{path} is not a COCO key point file: {error!r}") from error


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
