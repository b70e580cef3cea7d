"""Any system's meshes or joints under the same protocols, from files."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from vqhps.body.anny import anny_body
from vqhps.body.smpl import SMPLBody, find_body_file
from vqhps.errors import VqhpsError
from vqhps.evaluation.protocols import PROTOCOLS, Protocol, joint_errors, mesh_errors
from vqhps.evaluation.run import summarise, write_results
from vqhps.pickles import read_npz

_BATCH = 64
_SETS = {17: "h36m17", 24: "smpl24"}
_METRICS = ("PVE", "MPJPE", "PA-MPJPE")


@dataclass(frozen=True)
class Meshes:
    """What a file holds of N samples: `names` (N,), and vertices (N,V,3), joints (N,J,3) or both, metres."""

    path: Path
    names: np.ndarray
    vertices: Float[np.ndarray, "N V 3"] | None
    joints: Float[np.ndarray, "N J 3"] | None

    def rows(self, names: np.ndarray) -> np.ndarray:
        """Where these names stand.

        Raises:
            VqhpsError: one is missing.
        """
        order = np.argsort(self.names)
        places = np.searchsorted(self.names[order], names).clip(max=len(order) - 1)
        rows = order[places]
        if missing := sorted(set(names[self.names[rows] != names])):
            raise VqhpsError(f"{self.path} lacks {len(missing)} of {len(names)} samples, the first is '{missing[0]}'")
        return rows


def read_meshes(path: Path) -> Meshes:
    """Read a file of `names` and `vertices`, `joints` or both.

    Raises:
        VqhpsError: it is damaged, holds neither, or they do not fit.
    """
    try:
        table = read_npz(path, ("names", "vertices", "joints"))
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror}") from error
    if "names" not in table or table.keys() == {"names"}:
        raise VqhpsError(f"{path} needs 'names' (N,) and 'vertices' (N,V,3) or 'joints' (N,J,3), metres, camera axes")
    names = table.pop("names").astype(str)
    if names.ndim != 1 or len(set(names)) != len(names) or not len(names):
        raise VqhpsError(f"{path}: 'names' must be a list of different names, found {len(set(names.ravel()))} of "
                         f"{names.size}")  # fmt: skip
    for name, values in table.items():
        if values.dtype.kind != "f" or values.shape[:1] + values.shape[2:] != (len(names), 3):
            raise VqhpsError(f"{path}: '{name}' is {values.dtype} {values.shape}, not ({len(names)}, n, 3) in metres")
        if bad := int((~np.isfinite(values)).any((1, 2)).sum()):
            raise VqhpsError(f"{path}: '{name}' is not finite in {bad} samples; leave them out of both files")
    if "joints" in table and table["joints"].shape[1] not in _SETS:
        count = table["joints"].shape[1]
        raise VqhpsError(f"{path} has {count} joints; known are 17 of Human3.6M (h36m17) and 24 of SMPL (smpl24)")
    return Meshes(path, names, table.get("vertices"), table.get("joints"))


def evaluate_predictions(
    predictions: Path, truth: Path, out: Path | None = None, body_models: Path | None = None
) -> dict[str, Any]:
    """Errors of predicted meshes or joints, of all samples of the truth, under every protocol that they allow.

    Meshes of both files must have the same vertices. From meshes of Anny or SMPL joints are regressed; where both files
    bring joints, those are taken. From joints alone follow MPJPE and PA-MPJPE of the protocols that centre on joints.

    Args:
        predictions: `.npz`, see `read_meshes`.
        truth: `.npz` of the same form; its samples are looked up in the other by name.
        out: folder for `results.csv` and `results.json`.
        body_models: folder of body files, searched first: SMPL meshes need the user's.

    Returns:
        The summary: means, `interval_95`, `samples`.

    Raises:
        VqhpsError: a file is damaged, a sample has no prediction, or the two have nothing in common.
    """
    theirs, true = read_meshes(predictions), read_meshes(truth)
    rows = theirs.rows(true.names)
    columns: dict[str, list[np.ndarray]] = {}
    if theirs.vertices is not None and true.vertices is not None:
        if theirs.vertices.shape[1] != true.vertices.shape[1]:
            counts = f"{theirs.vertices.shape[1]} vertices, {truth} {true.vertices.shape[1]}"
            raise VqhpsError(f"{predictions} has meshes of {counts}: they must be the same")
        regressors = _regressors(true.vertices.shape[1], body_models)
    else:
        regressors = {}
    shared = _shared_joints(theirs, true)
    if not regressors and shared is None:
        raise VqhpsError(f"{predictions} and {truth} have neither meshes nor the same joints in common")
    for start in tqdm(range(0, len(rows), _BATCH), "predictions", unit="batch", disable=None):
        part = slice(start, start + _BATCH)
        for protocol in PROTOCOLS.values():
            for metric, errors in _errors(protocol, theirs, rows[part], true, part, regressors, shared).items():
                columns.setdefault(f"{protocol.name} {metric}", []).append(errors)
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    summary = summarise(table) | {"samples": len(rows)}
    write_results(out, truth.name, list(true.names), table, summary)
    return summary


def _errors(
    protocol: Protocol,
    theirs: Meshes,
    rows: np.ndarray,
    true: Meshes,
    part: slice,
    regressors: dict[str, Float[np.ndarray, "J V"]],
    shared: str | None,
) -> dict[str, np.ndarray]:
    """Of one batch, what the protocol gives there."""
    errors: dict[str, np.ndarray] = {}
    if protocol.joint_set in regressors:
        assert theirs.vertices is not None and true.vertices is not None
        regressor = regressors[protocol.joint_set]
        errors = mesh_errors(
            protocol, theirs.vertices[rows].astype(float), true.vertices[part].astype(float), regressor
        )
    if protocol.joint_set == shared and protocol.origin:
        assert theirs.joints is not None and true.joints is not None
        mine, own = (j.astype(float) for j in (theirs.joints[rows], true.joints[part]))
        centred = (j - j[:, list(protocol.origin)].mean(1, keepdims=True) for j in (mine, own))
        errors |= joint_errors(protocol, *centred)
    return errors


def _shared_joints(a: Meshes, b: Meshes) -> str | None:
    if a.joints is None or b.joints is None or a.joints.shape[1] != b.joints.shape[1]:
        return None
    return _SETS[a.joints.shape[1]]


def _regressors(count: int, body_models: Path | None) -> dict[str, Float[np.ndarray, "J V"]]:
    """Joint regressors of the body with so many vertices.

    Raises:
        VqhpsError: no body that is known has them, or the user's files are missing.
    """
    anny = anny_body("full")
    if count == len(anny.template):
        return anny.joint_regressors
    if count != 6890:
        raise VqhpsError(f"meshes of {count} vertices are neither Anny's ({len(anny.template)}) nor SMPL's (6890)")
    body = SMPLBody(find_body_file("smpl", folder=body_models))
    if "h36m17" not in body.joint_regressors:
        raise VqhpsError("the joints of Human3.6M are missing: put J_regressor_h36m.npy beside the SMPL file")
    return body.joint_regressors


def published_rows(dataset: str) -> list[dict[str, str]]:
    """What others report on a data set, with method, protocol, PVE, MPJPE and PA-MPJPE in mm, and the source.

    Raises:
        VqhpsError: nothing is known of it.
    """
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [row for row in rows if row["dataset"] == dataset]
    if not found:
        raise VqhpsError(f"no published results on '{dataset}'; there are some on "
                         f"{', '.join(sorted({row['dataset'] for row in rows}))}")  # fmt: skip
    return found


def beside_published(summary: dict[str, Any], dataset: str, name: str) -> str:
    """A table of a summary's means and the published ones on a data set, a line a method and protocol."""
    lines = [f"{'method':24} {'protocol':10} " + " ".join(f"{m:>9}" for m in _METRICS)]
    for protocol in PROTOCOLS:
        values = [summary.get(f"{protocol} {metric}") for metric in _METRICS]
        if any(value is not None for value in values):
            cells = " ".join(f"{'-' if v is None else format(v, '.1f'):>9}" for v in values)
            lines.append(f"{name:24} {protocol:10} {cells}")
    for row in published_rows(dataset):
        cells = " ".join(f"{row[metric] or '-':>9}" for metric in _METRICS)
        lines.append(f"{row['method']:24} {row['protocol']:10} {cells}")
    return "\n".join(lines)
