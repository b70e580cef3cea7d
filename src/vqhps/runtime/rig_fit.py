"""Parameters of a rigged body out of its meshes: closed-form first guess, then Gauss-Newton over all bones at once.

The first guess turns each bone by the weighted Procrustes fit of the vertices that follow it. Each Gauss-Newton step
then solves for small turns of all bones about their heads and for the root's position together, on some frames for the
shape as well; what a turn of a bone does to a vertex is its cross product with a lever, so that all the sums a step
needs are in one Gram matrix. Only the bones that the rig says move are turned. What then is left in all frames alike,
turned back to the rest pose, becomes an offset of the person's rest mesh; the joints stay those of its shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_vector, nearest_rotation
from vqhps.runtime.rig import Rest, Rig, forward_kinematics

SHAPE_FRAMES = 16
"""Meshes of a person that its shape is fitted to, at most."""

_BATCH = 16  # frames at a time, to bound the memory
_STEPS = 5  # of Gauss-Newton from the closed form, the shape being known
_SHAPE_STEPS = 6  # with the shape to be found
_DAMPING = 1e-5  # m^2 for each unit of weight: without it, bones that the vertices say little of are turned too far
_SHAPE_RIDGE = 0.2  # of the mean square distance left: the pull of a coefficient, of unit variance, to zero
_OFFSET_RIDGE = 1.0  # frames: so many without any offset are put beside those seen
_FARTHEST = 1e5  # m


@dataclass(frozen=True)
class Fit:
    """A person's parameters. Conventions in `docs/animation.md`.

    Attributes:
        rotations: (F, K, 3, 3), each relative to the parent bone, acts on column vectors; of the root: body axes ->
            axes of the meshes.
        translation: (F, 3) m, of the root's head.
        rest: the body, the same in all frames.
        error_mm: (F,) mean distance of the posed body's vertices from those of the meshes.
    """

    rotations: np.ndarray
    translation: np.ndarray
    rest: Rest
    error_mm: np.ndarray


def fit_rest(rig: Rig, vertices: np.ndarray) -> Rest:
    """The rest pose of a person from meshes in different poses: a shape of the rig, and an offset of the vertices.

    Args:
        rig: of the body.
        vertices: (F, V, 3) m, in any axes; at most `SHAPE_FRAMES` of them, evenly spread, are looked at.

    Raises:
        VqhpsError: another body, or vertices that are not finite.
    """
    _check(rig, vertices)
    chosen = np.unique(np.linspace(0, len(vertices) - 1, SHAPE_FRAMES).round().astype(int))
    points, _ = _points(rig, vertices[chosen])
    bones, rest = _Bones(rig), rig.rest()
    turn, root = bones.closed_form(points, rest)
    for _ in range(_SHAPE_STEPS):
        turn, root, shape = bones.step(points, turn, root, rest, reshape=True)
        rest = rig.rest(shape)
    for _ in range(_STEPS):
        turn, root, _ = bones.step(points, turn, root, rest)
    return replace(rest, vertices=rest.vertices + rig.follow(bones.offset(points, turn, root, rest)))


def fit(rig: Rig, vertices: np.ndarray, rest: Rest | None = None) -> Fit:
    """Pose a rigged body like meshes of one person.

    Args:
        rig: of the body.
        vertices: (F, V, 3) m, in any axes, of any float type; F >= 1.
        rest: of the person, where it is known from other frames; by default of these.

    Raises:
        VqhpsError: another body, or vertices that are not finite.
    """
    _check(rig, vertices)
    rest = fit_rest(rig, vertices) if rest is None else rest
    bones = _Bones(rig)
    parts = []
    for i in range(0, len(vertices), _BATCH):
        points, mean = _points(rig, vertices[i : i + _BATCH])
        turn, root = bones.closed_form(points, rest)
        for _ in range(_STEPS):
            turn, root, _ = bones.step(points, turn, root, rest)
        rotations, translation = bones.local(turn), (root + mean).astype(np.float32)
        offset = rig.pose(rotations, translation, rest) - vertices[i : i + _BATCH]
        error = 1000 * np.sqrt(np.einsum("fvi,fvi->fv", offset, offset)).mean(1)
        parts.append((rotations, translation, error))
    rotations, translation, error = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Fit(rotations, translation, rest, error)


def _check(rig: Rig, vertices: np.ndarray) -> None:
    count = len(rig.skin_bones)
    if vertices.ndim != 3 or vertices.shape[1:] != (count, 3) or len(vertices) == 0 or vertices.dtype.kind != "f":
        raise VqhpsError(
            f"the rig poses meshes of {count} vertices, (F, {count}, 3), got {vertices.dtype} {vertices.shape}"
        )
    if not (np.abs(vertices[:, rig.controls].astype(np.float32)) < _FARTHEST).all():
        raise VqhpsError("a mesh has vertices that are not finite, or 100 km away")


def _points(rig: Rig, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices (F, C, 3) that the fit looks at, minus their mean, and the mean (F, 1, 3) -> (F, 3)."""
    points = vertices[:, rig.controls].astype(np.float32)
    mean = points.mean(1)
    return points - mean[:, None], mean


class _Bones:
    """The bones that move, each with the vertices of those that hang on it without moving; K is their number here."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        carrier = list(range(len(rig.names)))  # of each bone, the bone that moves it
        for bone, parent in enumerate(rig.parents):
            if parent >= 0 and not rig.moves[bone]:
                carrier[bone] = carrier[parent]
        self.kept = [bone for bone in range(len(carrier)) if carrier[bone] == bone]
        position = {bone: i for i, bone in enumerate(self.kept)}
        self.parents = tuple(position[carrier[rig.parents[b]]] if rig.parents[b] >= 0 else -1 for b in self.kept)
        dense = rig.weights[rig.controls]
        self.weights = np.zeros((len(self.kept), len(dense)), np.float32)
        for bone, to in enumerate(carrier):
            self.weights[position[to]] += dense[:, bone]
        self.below = self._with_descendants(self.weights.copy(), 0)  # shares of a bone and all that hang on it
        share = rig.control_weights / rig.control_weights.sum()
        self.share = share.astype(np.float32)

    def _at(self, rest: Rest) -> tuple[np.ndarray, np.ndarray]:
        """Rest vertices (C, 3) and heads (K, 3)."""
        return rest.vertices[self.rig.controls], rest.joints[self.kept]

    def closed_form(self, points: np.ndarray, body: Rest) -> tuple[np.ndarray, np.ndarray]:
        """Turns (F, K, 3, 3) of the bones from the rest pose, each for itself, and the root's place (F, 3)."""
        rest, _ = self._at(body)
        weight = self.weights * self.share
        total = np.maximum(weight.sum(1), 1e-9)[:, None]
        outer = np.einsum("fpi,pj->fpij", points, rest).reshape(*points.shape[:2], 9)
        moment = ((weight / total) @ outer).reshape(len(points), len(self.kept), 3, 3)
        means = (weight / total) @ points, (weight / total) @ rest
        turn = nearest_rotation(moment - np.einsum("fki,kj->fkij", *means)).astype(np.float32)
        return turn, self.recentred(points, turn, body)

    def recentred(self, points: np.ndarray, turn: np.ndarray, rest: Rest) -> np.ndarray:
        """The root's place (F, 3) that fits best with these turns."""
        posed = self._levers(turn, np.zeros((len(points), 3), np.float32), *self._at(rest))[0].sum(1)
        return np.einsum("p,fip->fi", self.share, points.transpose(0, 2, 1) - posed)

    def _levers(
        self, turn: np.ndarray, root: np.ndarray, rest: np.ndarray, joints: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each bone adds to each vertex (F, K, 3, C), and where the bones' heads are (F, K, 3)."""
        head = forward_kinematics(self.parents, self._relative(turn), root, joints)[1]
        offset = head - np.einsum("fkij,kj->fki", turn, joints)
        placed = turn.reshape(len(turn), -1, 3) @ rest.T
        return (placed.reshape(*turn.shape[:3], -1) + offset[..., None]) * self.weights[:, None], head

    def step(
        self, points: np.ndarray, turn: np.ndarray, root: np.ndarray, rest: Rest, reshape: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One Gauss-Newton step of all turns, the root's place and, with `reshape`, the one shape of all frames."""
        joints = rest.joints[self.kept]
        parts, head = self._levers(turn, root, *self._at(rest))
        lever = self._with_descendants(parts.copy(), 1) - self.below[:, None] * head[..., None]
        fields = [points.transpose(0, 2, 1) - parts.sum(1)]
        if reshape:
            basis = zip(self.rig.control_basis, self.rig.joint_basis[:, self.kept], strict=True)
            fields += [self._levers(turn, 0 * root, *column)[0].sum(1) for column in basis]
        delta, change = _solve(lever, np.stack(fields, 1), self.share, rest.shape)
        small = matrix_from_vector(delta[:, :-1]).astype(np.float32)
        local = self._relative(turn, small @ turn)
        local = local @ (1.5 * np.eye(3, dtype=np.float32) - 0.5 * local.transpose(0, 1, 3, 2) @ local)  # or it drifts
        turned = forward_kinematics(self.parents, local, root, joints)[0]
        return turned, root + delta[:, -1].astype(np.float32), rest.shape + change.astype(np.float32)

    def offset(self, points: np.ndarray, turn: np.ndarray, root: np.ndarray, rest: Rest) -> np.ndarray:
        """How the rest vertices (C, 3) have to be moved so that the posed ones fit best; pulled to zero."""
        parts, _ = self._levers(turn, root, *self._at(rest))
        left = points.transpose(0, 2, 1) - parts.sum(1)
        blended = np.einsum("kc,fkij->fcij", self.weights, turn)
        normal = np.einsum("fcij,fcik->cjk", blended, blended) + _OFFSET_RIDGE * np.eye(3)
        return np.linalg.solve(normal, np.einsum("fcij,fic->cj", blended, left)[..., None])[..., 0].astype(np.float32)

    def _relative(self, turn: np.ndarray, new: np.ndarray | None = None) -> np.ndarray:
        """Rotations relative to the parents, of `new` turns relative to `turn` of the parents."""
        result = (turn if new is None else new).copy()
        for bone, parent in enumerate(self.parents):
            if parent >= 0:
                result[:, bone] = turn[:, parent].transpose(0, 2, 1) @ result[:, bone]
        return result

    def _with_descendants(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Add to each bone's values those of all that hang on it, in place."""
        by_bone = np.moveaxis(values, axis, 0)
        for bone in range(len(self.parents) - 1, 0, -1):
            by_bone[self.parents[bone]] += by_bone[bone]
        return values

    def local(self, turn: np.ndarray) -> np.ndarray:
        """Rotations (F, K, 3, 3) of all bones of the rig, exact to single precision."""
        result = np.tile(np.eye(3, dtype=np.float32), (len(turn), len(self.rig.names), 1, 1))
        result[:, self.kept] = nearest_rotation(self._relative(turn))
        return result


def _solve(
    lever: np.ndarray, fields: np.ndarray, share: np.ndarray, shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve the normal equations of a Gauss-Newton step.

    A turn w of a bone moves a vertex of lever l by w x l; so for two levers the equations hold l.m 1 - m l^T. The shape
    is common to all frames: their turns are eliminated from its equations (Schur complement).

    Args:
        lever: (F, K, 3, C) m.
        fields: (F, 1 + n, 3, C) m: what is left to explain, and what each coefficient of the shape does.
        share: (C,) weights.
        shape: (N,) coefficients now; N = n, or n = 0, and they stay.

    Returns:
        (F, K + 1, 3): turns of the bones, rad, and the shift of the root, m; and the change (N,) of the shape.
    """
    frames, count = lever.shape[:2]
    n, vertices = 3 * count, lever.shape[-1]
    ones = np.ones((frames, 1, vertices), np.float32)
    rows = np.concatenate([lever.reshape(frames, n, -1), fields.reshape(frames, -1, vertices), ones], 1) * np.sqrt(
        share
    )
    gram = (rows @ rows.transpose(0, 2, 1)).astype(np.float64)
    block = gram[:, :n, :n].reshape(frames, count, 3, count, 3)
    inner = np.einsum("fkili->fkl", block)[:, :, None, :, None] * np.eye(3)[:, None]
    normal = np.zeros((frames, n + 3, n + 3))
    normal[:, :n, :n] = (inner - block.transpose(0, 1, 4, 3, 2)).reshape(frames, n, n)
    normal[:, :n, n:] = _across(gram[:, :n, -1].reshape(frames, count, 3)).reshape(frames, n, 3)
    normal[:, n:, :n] = normal[:, :n, n:].transpose(0, 2, 1)
    normal[:, n:, n:] = np.eye(3)  # the shares sum to one
    normal[:, np.arange(n), np.arange(n)] += _DAMPING
    mixed = gram[:, :n, n:-1].reshape(frames, count, 3, -1, 3)
    moment = np.stack([mixed[:, :, i, :, j] - mixed[:, :, j, :, i] for i, j in ((1, 2), (2, 0), (0, 1))], 2)
    sums = gram[:, n:-1, -1].reshape(frames, -1, 3).transpose(0, 2, 1)
    right = np.concatenate([moment.reshape(frames, n, -1), sums], 1)
    solved = np.linalg.solve(normal, right)
    pose, change = solved[..., 0], np.zeros(len(shape))
    if fields.shape[1] > 1:
        with_fields = gram[:, n:-1, n:-1].reshape(frames, fields.shape[1], 3, -1, 3)
        left = np.einsum("fajbj->ab", with_fields) - np.einsum("fra,frb->ab", right, solved)
        ridge = _SHAPE_RIDGE * left[0, 0] / frames
        change = np.linalg.solve(left[1:, 1:] + ridge * np.eye(len(shape)), left[1:, 0] - ridge * shape)
        pose = pose - solved[..., 1:] @ change
    return pose.reshape(frames, count + 1, 3), change


def _across(vector: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) of the cross product with vectors (..., 3)."""
    x, y, z = np.moveaxis(vector, -1, 0)
    return np.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], -1).reshape(*vector.shape, 3)
