"""How well and how fast the rig is fitted: to motion of people that no training has seen, and to predictions."""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vqhps.body.anny import anny_body, to_anny_axes
from vqhps.body.model import canonical
from vqhps.data.mocap import load_clips
from vqhps.errors import VqhpsError
from vqhps.geometry import rotate
from vqhps.runtime.animate import Predictions, fit_people
from vqhps.runtime.rig import Rest, default_rig
from vqhps.runtime.rig_fit import fit
from vqhps.runtime.tokenizer import default_tokenizer

_INVERTED = 2  # meshes of a clip that Anny's own inverter is given


def evaluate_rig(data_root: Path, clips: int, frames: int, inverter: bool = False) -> dict[str, Any]:
    """Fit clips of the held-out subjects, each on an adult of its own, one shape a clip.

    Args:
        data_root: folder that holds `mocap/`.
        clips: how many, drawn at random (seed 0).
        frames: meshes of each, evenly spread.
        inverter: also run Anny's own inverter, mesh by mesh, on the first meshes of each clip.

    Returns:
        For `true` meshes, and for `predicted` ones, those that the shipped tokenizer makes of them: `mean_mm` and
        `p95_mm` of the vertex distance to these meshes, over meshes; `phenotype_error`, mean absolute, from 0 to 1;
        `angle_deg`, mean error of the turns of the bones that move, from their parents; `ms`, wall time a mesh, the fit
        of the shape included, and `cpu_ms`. With `inverter`, the same of it.

    Raises:
        VqhpsError: no clips or frames are asked for, or there is no motion.
    """
    if clips < 1 or frames < 1:
        raise VqhpsError("give at least one clip and one frame")
    rng = np.random.default_rng(0)
    body, found = anny_body("full"), load_clips(data_root, "test")
    tokenizer, report = default_tokenizer(), {}
    cases: dict[str, list[Any]] = {"true": [], "predicted": []}
    for number in rng.permutation(len(found))[:clips]:
        pose = found[number].pose[np.linspace(0, len(found[number].pose) - 1, frames).astype(int)]
        shape = body.sample_shape(1, rng)
        posed = canonical(body.forward(torch.from_numpy(pose), torch.from_numpy(shape).expand(frames, -1))).numpy()
        still = np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1))
        cases["true"].append((posed, pose, shape[0]))
        cases["predicted"].append((tokenizer.decode(tokenizer.encode(posed, still).indices), pose, shape[0]))
    for name, case in cases.items():
        report[name] = _fits(case)
        if inverter:
            report[name]["inverter"] = _inverted([vertices[:_INVERTED] for vertices, _, _ in case])
    return {"clips": clips, "frames": frames, **report}


def _fits(case: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    rig = default_rig()
    fit(rig, case[0][0][:1])  # what is made once
    errors, angles, phenotypes = [], [], []
    wall, cpu = time.perf_counter(), time.process_time()
    results = [fit(rig, vertices) for vertices, _, _ in case]
    count = sum(len(vertices) for vertices, _, _ in case)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for result, (_, pose, shape) in zip(results, case, strict=True):
        errors.append(result.error_mm)
        relative = result.rotations[:, rig.moves].transpose(0, 1, 3, 2) @ pose[:, rig.moves]
        cosine = (np.trace(relative, axis1=2, axis2=3) - 1) / 2
        angles.append(np.degrees(np.arccos(np.clip(cosine[:, 1:], -1, 1))))  # canonical meshes have no root's turn
        phenotypes.append(np.abs(np.array(list(rig.phenotypes(result.rest.shape).values())) - shape))
    phenotype_error = dict(zip(rig.phenotype_names, np.mean(phenotypes, 0).round(3).tolist(), strict=True))
    times = {"ms": round(1000 * wall / count, 1), "cpu_ms": round(1000 * cpu / count, 1)}
    angle = round(float(np.concatenate(angles).mean()), 2)
    return {**_summary(np.concatenate(errors)), "angle_deg": angle, "phenotype_error": phenotype_error, **times}


def _summary(errors: Float[np.ndarray, "N"]) -> dict[str, Any]:
    return {
        "meshes": len(errors),
        "mean_mm": round(float(errors.mean()), 2),
        "p95_mm": round(float(np.quantile(errors, 0.95)), 2),
    }


def evaluate_fit(path: Path) -> dict[str, Any]:
    """Fit the rig to predicted meshes as `vqhps animate` does.

    Args:
        path: what `vqhps video --vertices` or `vqhps predict` wrote.

    Returns:
        `mean_mm` and `p95_mm` of the vertex distance to the predicted meshes, over meshes; `parts`: the mean by part of
        the body; `people`: by number, how many `meshes`, their `mean_mm`, and `offset_mm`, mean length of the offset of
        the rest mesh from that of the shape; `ms`, wall time a mesh, the fit of the rest pose included, and `cpu_ms`.

    Raises:
        VqhpsError: the file is no such file.
    """
    rig, predictions = default_rig(), Predictions.open(path)
    fit(rig, rig.rest().vertices[None])  # what is made once
    wall, cpu = time.perf_counter(), time.process_time()
    people = {one.person: one for one in fit_people(rig, predictions)}
    count = len(predictions.frame)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    masks = {"all": np.ones(len(rig.skin_bones), bool), **anny_body("full").parts}
    shares = np.stack([mask / mask.sum() for mask in masks.values()])
    errors: dict[int, list[np.ndarray]] = {number: [] for number in people}  # by part
    for part, meshes in predictions.meshes():
        for mesh, number, turn, place in zip(
            meshes.astype(np.float32), predictions.person[part].tolist(), predictions.rotation[part],
            predictions.translation[part], strict=True,
        ):  # fmt: skip
            row = len(errors[number])
            posed = people[number].vertices(rig, slice(row, row + 1))[0]
            errors[number].append(1000 * shares @ np.linalg.norm(posed - rotate(turn, mesh) - place, axis=-1))
    table = np.concatenate(list(errors.values()))
    return {
        **_summary(table[:, 0]),
        "parts": dict(zip(list(masks)[1:], table.mean(0)[1:].round(2).tolist(), strict=True)),
        "people": {
            number: {
                "meshes": len(rows),
                "mean_mm": round(float(np.mean(rows, 0)[0]), 2),
                "offset_mm": round(_offset_mm(people[number].rest), 2),
            }
            for number, rows in errors.items()
        },
        "ms": round(1000 * wall / count, 1),
        "cpu_ms": round(1000 * cpu / count, 1),
    }


def _offset_mm(rest: Rest) -> float:
    return float(1000 * np.linalg.norm(rest.vertices - default_rig().rest(rest.shape).vertices, axis=-1).mean())


def _inverted(parts: list[Float[np.ndarray, "F V 3"]]) -> dict[str, Any]:
    """Anny's own inverter: Procrustes fits and finite differences in turns, for each mesh by itself."""
    from anny.anny_inverter import AnnyInverter

    vertices = torch.from_numpy(np.concatenate(parts)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inverter = AnnyInverter(anny_body("full").model)
        wall, cpu = time.perf_counter(), time.process_time()
        target = to_anny_axes(vertices)
        found = torch.cat([inverter(mesh[None])[2].detach() for mesh in target])
    errors = 1000 * (found - target).norm(dim=-1).mean(1).numpy()
    count = len(vertices)
    times = {"ms": 1000 * (time.perf_counter() - wall) / count, "cpu_ms": 1000 * (time.process_time() - cpu) / count}
    return {**_summary(errors), **{name: round(value, 1) for name, value in times.items()}}
