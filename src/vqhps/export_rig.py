"""Anny -> the small file that `Rig` reads: bones, skinning weights, a basis of rest shapes; and how exact it is.

The shape basis is the principal components of rest meshes (with the heads and tips of the bones) over Anny's own
distribution, kept on some control vertices from which the others follow (`spread`).
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from vqhps.body.anny import AnnyBody, anny_body
from vqhps.body.topology import bone_weights, random_pose
from vqhps.runtime.export_mesh import whole_file
from vqhps.runtime.rig import FORMAT, Rig, quadratic, spread

logger = logging.getLogger(__name__)

_ADULTS, _ALL_AGES = 400, 200  # bodies that the basis is made of
_COMPONENTS = 16
_CONTROLS = 1000
_HELD_OUT = 300  # adults that errors are measured on
_POSED = 48  # of them posed
_FOR_PHENOTYPES = 6000
_TEMPLATE_STEP = 2.0**-14  # m
_FIXED = ("HipJoint", "Thumb", "FingerBase", "HandFinger1")  # ends of the names of bones that no motion data moves


@dataclass(frozen=True)
class RigReport:
    """What the checks found, on adults that the basis has not seen.

    Attributes:
        rest_mm: mean vertex distance of rest meshes in the basis from Anny's.
        posed_mm: the same of meshes in random poses of 0.35 rad a bone and axis.
        phenotype_error: mean absolute error of each phenotype, which lie in 0 to 1, from the coefficients.
        bytes: size of the file.
    """

    rest_mm: float
    posed_mm: float
    phenotype_error: dict[str, float]
    bytes: int


@torch.no_grad()
def export_rig(out: Path, faces: Path) -> RigReport:
    """Write the rig of the default body.

    Args:
        out: `.npz` to write.
        faces: `.npz` with the body's faces, to read it back with.
    """
    body = anny_body("full")
    bones, shares = quantised_skin(bone_weights(body))
    rng = np.random.default_rng(0)
    phenotypes = np.concatenate([body.sample_shape(_ADULTS, rng), body.sample_shape(_ALL_AGES, rng, children=True)])
    rests = _rests(body, phenotypes)
    mean = rests.mean(0)
    template = np.round(mean[: len(bones)] / _TEMPLATE_STEP).astype(np.int16)
    weights = np.zeros((len(bones), len(body.bone_names)), np.float32)
    np.add.at(weights, (np.arange(len(bones))[:, None], bones), shares / np.float32(255))
    controls, counts = _controls(mean[: len(bones)], weights)
    components, scale = _components(rests - mean)
    basis, step = _at_controls(components[:, : len(bones)], *spread(template * _TEMPLATE_STEP, weights, controls))
    arrays = {
        "format": np.int64(FORMAT),
        "names": np.array(body.bone_names),
        "parents": np.array(body.bone_parents, np.int8),
        "moves": np.array([not name.endswith(_FIXED) for name in body.bone_names]),
        "tip_parents": np.array(_leaves(body), np.int8),
        "template": template,
        "template_step": np.float32(_TEMPLATE_STEP),
        "skin_bones": bones,
        "skin_weights": shares,
        "joints": mean[len(bones) :].astype(np.float32),
        "joint_basis": components[:, len(bones) :].astype(np.float32),
        "controls": controls.astype(np.uint16),
        "control_weights": counts.astype(np.float32),
        "basis": basis,
        "basis_step": step,
        "phenotypes": np.array(body.shape_names),
    }
    more = body.sample_shape(_FOR_PHENOTYPES, rng)
    inverse = components.reshape(len(components), -1) / scale[:, None] ** 2

    def coefficients(values: np.ndarray) -> np.ndarray:
        parts = (_rests(body, part) for part in np.array_split(values, len(values) // 100 + 1))
        return np.concatenate([(part - mean).reshape(len(part), -1) @ inverse.T for part in parts])

    features = quadratic(coefficients(more))
    ridge = 1e-3 * len(more) * np.eye(features.shape[1])
    arrays["phenotype_map"] = np.linalg.solve(features.T @ features + ridge, features.T @ more).astype(np.float32)
    with whole_file(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    test = body.sample_shape(_HELD_OUT, np.random.default_rng(1))
    report = _check(Rig.load(out, faces), body, test, coefficients(test), out.stat().st_size)
    logger.info("wrote %s: %s", out, report)
    return report


def quantised_skin(weights: Float[np.ndarray, "V K"]) -> tuple[Int[np.ndarray, "V 4"], Int[np.ndarray, "V 4"]]:
    """The four bones that move each vertex most, and their shares in 255ths, which sum to 255; heaviest first."""
    bones = np.argsort(-weights, 1, kind="stable")[:, :4]
    shares = np.take_along_axis(weights, bones, 1).astype(np.float64)
    exact = 255 * shares / shares.sum(1, keepdims=True)
    whole = np.floor(exact).astype(np.int64)
    rank = np.argsort(np.argsort(whole - exact, 1, kind="stable"), 1, kind="stable")
    whole += rank < (255 - whole.sum(1, keepdims=True))
    return np.where(whole > 0, bones, 0).astype(np.uint8), whole.astype(np.uint8)


def _leaves(body: AnnyBody) -> list[int]:
    return [bone for bone in range(len(body.bone_names)) if bone not in body.bone_parents]


def _rests(body: AnnyBody, phenotypes: Float[np.ndarray, "B S"]) -> Float[np.ndarray, "B P 3"]:
    """Rest meshes, then heads of all bones, then tips of those without children; m, body axes, root at the origin."""
    parts = []
    for part in np.array_split(phenotypes, len(phenotypes) // 50 + 1):
        vertices, heads, tails = body.rest_with_tails(torch.from_numpy(part))
        parts.append(torch.cat([vertices, heads, tails[:, _leaves(body)]], 1).numpy())
    return np.concatenate(parts)


def _controls(
    template: Float[np.ndarray, "V 3"], weights: Float[np.ndarray, "V K"]
) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "C"]]:
    """Vertices spread over what each bone moves most, more where there are more, and how many each stands for."""
    owner = weights.argmax(1)
    size = np.sqrt(np.bincount(owner, minlength=weights.shape[1]))
    wanted = np.maximum(np.round(size / size.sum() * _CONTROLS), 1).astype(int)
    picked = []
    for bone in np.flatnonzero(size):
        own = np.flatnonzero(owner == bone)
        chosen = [int(own[np.linalg.norm(template[own] - template[own].mean(0), axis=1).argmax()])]
        nearest = np.linalg.norm(template[own] - template[chosen[0]], axis=1)
        for _ in range(min(wanted[bone], len(own)) - 1):
            chosen.append(int(own[nearest.argmax()]))
            nearest = np.minimum(nearest, np.linalg.norm(template[own] - template[chosen[-1]], axis=1))
        picked += chosen
    controls = np.sort(np.array(picked))
    places = np.concatenate([template, weights], 1)
    return controls, np.bincount(cKDTree(places[controls]).query(places)[1], minlength=len(controls))


def _components(offsets: Float[np.ndarray, "B P 3"]) -> tuple[Float[np.ndarray, "n P 3"], Float[np.ndarray, "n"]]:
    """Principal components, each as large as its standard deviation, and their lengths."""
    flat = offsets.reshape(len(offsets), -1)
    values, vectors = np.linalg.eigh(flat @ flat.T.astype(np.float64))
    values, vectors = values[::-1][:_COMPONENTS], vectors[:, ::-1][:, :_COMPONENTS]
    components = (vectors / np.sqrt(len(flat))).T @ flat
    return components.reshape(_COMPONENTS, -1, 3), np.sqrt(values / len(flat))


def _at_controls(
    components: Float[np.ndarray, "n V 3"], rows: Int[np.ndarray, "V N"], shares: Float[np.ndarray, "V N"]
) -> tuple[Int[np.ndarray, "n C 3"], Float[np.ndarray, "n"]]:
    """Values at the control vertices from which all vertices follow best, as whole multiples of a step each."""
    index = (np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel())
    blend = csr_matrix((shares.ravel().astype(np.float64), index), shape=(len(rows), int(rows.max()) + 1))
    gram = (blend.T @ blend).toarray()
    flat = components.transpose(1, 0, 2).reshape(len(rows), -1)
    solved = np.linalg.solve(gram + 1e-3 * np.eye(len(gram)), blend.T @ flat)
    values = solved.reshape(len(gram), len(components), 3).transpose(1, 0, 2)
    step = np.abs(values).max((1, 2)) / 2047  # twelve bits: the rest is noise that does not compress
    return np.round(values / step[:, None, None]).astype(np.int16), step.astype(np.float32)


def _check(
    rig: Rig, body: AnnyBody, phenotypes: Float[np.ndarray, "B S"], shapes: Float[np.ndarray, "B n"], size: int
) -> RigReport:
    truth = _rests(body, phenotypes)
    rests = [rig.rest(shape) for shape in shapes]
    count = len(rests[0].vertices)
    found = np.stack([rest.vertices for rest in rests])
    few = slice(0, _POSED)
    pose = random_pose(_POSED, len(rig.names), np.random.default_rng(2))
    posed = body.forward(pose, torch.from_numpy(phenotypes[few])).numpy()
    none = np.zeros((1, 3), np.float32)
    ours = np.concatenate([rig.pose(p[None], none, rest) for p, rest in zip(pose.numpy(), rests[few], strict=True)])
    guessed = np.array([list(rig.phenotypes(shape).values()) for shape in shapes])
    error = np.abs(guessed - phenotypes).mean(0)
    return RigReport(
        rest_mm=float(1000 * np.linalg.norm(found - truth[:, :count], axis=-1).mean()),
        posed_mm=float(1000 * np.linalg.norm(ours - posed, axis=-1).mean()),
        phenotype_error={name: round(float(e), 4) for name, e in zip(rig.phenotype_names, error, strict=True)},
        bytes=size,
    )
