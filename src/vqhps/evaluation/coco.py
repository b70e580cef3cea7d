"""Evaluation of an image model on real photos with labelled key points, beside those of BlazePose."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from vqhps.body.joints import COCO17
from vqhps.crop import crop_image
from vqhps.errors import VqhpsError
from vqhps.evaluation.blazepose import KEYPOINT_NAMES, PoseLandmarkModel
from vqhps.evaluation.run import Model, pck_columns, summarise, write_results
from vqhps.geometry import crop_from_box, crop_to_full, default_focal, project
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.export_mesh import write_png
from vqhps.runtime.photo import read_photo
from vqhps.runtime.predictor import Predictor
from vqhps.runtime.render import render_overlay

_COCO_OF_BLAZEPOSE = [KEYPOINT_NAMES.index(name) for name in COCO17]
_MAIN = 0.1  # share of the diagonal of the box, for the table of joints and the worst persons
_WORST, _PANEL_PX, _AROUND = 10, 480, 1.5  # pictures; side of one; side over the long side of the box


def evaluate_coco(
    model: Model,
    input_size: int,
    folder: Path,
    out: Path | None = None,
    least: int = 10,
    beside: PoseLandmarkModel | None = None,
) -> dict[str, Any]:
    """PCK of the mesh's COCO-17 joints, reprojected, on photos with given boxes.

    Args:
        model: to be evaluated.
        input_size: side of its crops, px.
        folder: `images/` and `person_keypoints_free.json` in COCO format.
        out: folder for `results.csv` and `results.json`.
        least: labelled key points a person must have to count in the main figure.
        beside: measured in the same run: its own key points in the same boxes.

    Returns:
        The summary: PCK at shares of the diagonal of the box, over persons with `least` or more labelled key points and
        over all labelled persons, and `joints`: PCK@0.1 of each joint, over the former.
    """
    people = labelled_people(folder)
    crops, center, size = [], *crop_from_box(np.stack([p.box for p in people]))
    landmarks, places = [], []
    for person, c, s in zip(people, center, size, strict=True):
        photo = read_photo(person.photo)
        image = photo.image
        offset = c - np.array(image.shape[1::-1]) / 2
        places.append(np.array([*offset, s]) / (photo.focal or default_focal(image.shape[1], image.shape[0])))
        crops.append(crop_image(image, c, float(s), input_size))
        if beside is not None:
            landmarks.append(beside.in_box(image, person.box).keypoints[_COCO_OF_BLAZEPOSE])
    parts = [model(np.stack(crops[i : i + 32]), np.stack(places[i : i + 32])) for i in range(0, len(crops), 32)]
    projected = np.concatenate([project(p.joints, p.camera) for p in parts])
    found = {"": crop_to_full(projected, center, size)}
    if landmarks:
        found["blazepose "] = np.stack(landmarks)
    labelled = np.stack([p.labelled for p in people])
    true = np.stack([p.keypoints for p in people])
    diagonal = np.array([np.hypot(*(p.box[2:] - p.box[:2])) for p in people])
    table: dict[str, np.ndarray] = {}
    for name, keypoints in found.items():
        table |= pck_columns(keypoints, true, labelled, diagonal, name)
    enough = labelled.sum(1) >= least
    summary = summarise({name: v[enough] for name, v in table.items()})
    everyone = summarise(table)
    intervals = summary.pop("interval_95") | {f"{n}, all": v for n, v in everyone.pop("interval_95").items()}
    summary |= {f"{name}, all": value for name, value in everyone.items()} | {"interval_95": intervals}
    summary |= {"persons": int(enough.sum()), "persons, all": len(people)}
    summary["joints"] = _joint_table(found, true, labelled & enough[:, None], diagonal)
    write_results(out, "coco_free", [f"{p.photo.name}:{p.id}" for p in people], table, summary)
    return summary


def _joint_table(
    found: dict[str, Float[np.ndarray, "N 17 2"]],
    true: Float[np.ndarray, "N 17 2"],
    labelled: Bool[np.ndarray, "N 17"],
    diagonal: Float[np.ndarray, "N"],
) -> dict[str, dict[str, float]]:
    """PCK of each joint by name, and how many persons have it labelled."""
    rows: dict[str, dict[str, float]] = {}
    for joint, name in enumerate(COCO17):
        seen = labelled[:, joint]
        rows[name] = {"labelled": int(seen.sum())}
        for of, keypoints in found.items():
            apart = np.linalg.norm(keypoints[seen, joint] - true[seen, joint], axis=1)
            rows[name][f"{of}PCK@{_MAIN}"] = float((apart <= _MAIN * diagonal[seen]).mean()) if seen.any() else np.nan
    return rows


def draw_worst(bundle: Bundle, folder: Path, results: Path, out: Path, least: int = 10) -> list[Path]:
    """Draw the persons whose joints are farthest off: photo with the labelled key points in green and those of the mesh
    in red, and the mesh over the photo.

    Args:
        bundle: the model that was measured.
        folder: the photos, as for `evaluate_coco`.
        results: the folder to which that wrote its results.
        out: folder for the pictures, worst first.
        least: labelled key points a person must have.
    """
    people = {f"{p.photo.name}:{p.id}": p for p in labelled_people(folder)}
    with (results / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["labelled"]) >= least]
    rows.sort(key=lambda row: float(row[f"correct@{_MAIN}"]) / float(row["labelled"]))
    predictor, written = Predictor(bundle), []
    for rank, row in enumerate(rows[:_WORST]):
        person = people[row["sample"]]
        photo = read_photo(person.photo)
        (found,) = predictor.predict(photo.image, person.box[None], photo.focal)
        center, long = (person.box[:2] + person.box[2:]) / 2, float((person.box[2:] - person.box[:2]).max())
        cut = (center, _AROUND * long, _PANEL_PX)
        marked = Image.fromarray(crop_image(photo.image, *cut))
        draw = ImageDraw.Draw(marked)
        for points, colour in ((person.keypoints[person.labelled], "lime"), (found.joints2d[person.labelled], "red")):
            for x, y in (points - center) * (_PANEL_PX / cut[1]) + _PANEL_PX / 2:
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline=colour, width=2)
        mesh = crop_image(render_overlay(photo.image, [found], bundle.faces), *cut)
        written.append(out / f"worst-{rank + 1:02d}-{person.photo.stem}-{person.id}.png")
        write_png(written[-1], np.concatenate([np.asarray(marked), mesh], 1))
    return written


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
