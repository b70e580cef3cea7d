"""The rig of the default body: bones, skinning weights and shapes in numpy. No torch, no body model.

A rigged body is a shape (coefficients of the rest mesh, the same in every frame) and, for each frame, a rotation of
every bone and the position of the root. Rest axes are the body's: x to its left, y up, z to the front; the bones of
the rest pose have no rotation of their own, so a rotation of zero everywhere is the rest pose.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.bundle import read_arrays, read_faces

FORMAT = 1
"""Version of `rig.npz`."""

NEIGHBOURS = 6
"""Control vertices that a vertex takes its change of shape from."""

_BLEND = 0.1  # m: how far apart two vertices of different bones count as being
_BATCH = 8  # frames at a time, to bound the memory
_NAMES = (
    "format", "names", "parents", "moves", "tip_parents", "template", "template_step", "skin_bones", "skin_weights",
    "joints", "joint_basis", "controls", "control_weights", "basis", "basis_step", "phenotypes", "phenotype_map",
)  # fmt: skip


@dataclass(frozen=True)
class Rest:
    """A body in its rest pose, m, body axes, the head of the root bone at the origin.

    Attributes:
        shape: (n,) coefficients that it has.
        vertices: (V, 3) of this shape, or near it.
        joints: (K, 3) heads of the bones.
        tips: (L, 3) ends of the bones without children.
    """

    shape: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    tips: np.ndarray


class Rig:
    """Bones, skinning weights and shapes of a body. Build it with `Rig.load` or `default_rig`.

    Attributes:
        names: of the K bones, parents before children.
        parents: (K,) of each bone; -1 for the root, which is the first.
        moves: (K,) which bones the training data moves; the others keep the identity.
        tip_parents: (L,) bones without children, which end in a tip.
        faces: (F, 3) int32.
        skin_bones, skin_weights: (V, 4) uint8: a vertex follows these bones by these shares of 255, which they sum to.
        controls: (C,) vertices that a fit looks at.
        control_weights: (C,) how many vertices each of them stands for.
        phenotype_names: what `phenotypes` gives, each from 0 to 1.
    """

    def __init__(self, arrays: dict[str, np.ndarray], faces: np.ndarray) -> None:
        """Hold the parts; `arrays` as `vqhps export rig` writes them."""
        self.names = tuple(str(name) for name in arrays["names"])
        self.parents = tuple(int(parent) for parent in arrays["parents"])
        self.moves = arrays["moves"]
        self.tip_parents = tuple(int(parent) for parent in arrays["tip_parents"])
        self.faces = faces
        self.skin_bones, self.skin_weights = arrays["skin_bones"], arrays["skin_weights"]
        self.controls, self.control_weights = arrays["controls"], arrays["control_weights"]
        self.phenotype_names = tuple(str(name) for name in arrays["phenotypes"])
        self._template = arrays["template"] * arrays["template_step"].astype(np.float32)
        self._joints, self._joint_basis = arrays["joints"], arrays["joint_basis"]
        self._basis = arrays["basis"] * arrays["basis_step"].astype(np.float32)[:, None, None]
        self._phenotype_map = arrays["phenotype_map"].astype(np.float32)

    @staticmethod
    def load(path: Path | str, body: Path | str) -> Rig:
        """Read a rig.

        Args:
            path: `.npz` that `vqhps export rig` wrote.
            body: `.npz` with the `faces` of the same body.

        Raises:
            VqhpsError: a file is missing, damaged, of another version, or they do not belong together.
        """
        arrays = dict(zip(_NAMES, read_arrays(Path(path), _NAMES), strict=True))
        if int(arrays["format"]) != FORMAT:
            raise VqhpsError(f"{path} has rig format {arrays['format']}, this version of vqhps reads {FORMAT}")
        faces = read_faces(Path(body))
        if faces.max() != len(arrays["template"]) - 1:
            raise VqhpsError(f"{path} and {body} are of different bodies: {len(arrays['template'])} vertices, and not")
        return Rig(arrays, faces)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """(V, K) float32 shares of the bones in each vertex."""
        dense = np.zeros((len(self._template), len(self.names)), np.float32)
        rows = np.arange(len(dense))[:, None]
        np.add.at(dense, (rows, self.skin_bones), self.skin_weights.astype(np.float32) / 255)
        return dense

    @functools.cached_property
    def _spread(self) -> tuple[np.ndarray, np.ndarray]:
        return spread(self._template, self.weights, self.controls)

    @functools.cached_property
    def control_basis(self) -> np.ndarray:
        """(n, C, 3) m: what a coefficient of the shape does to the vertices that a fit looks at."""
        rows, shares = (part[self.controls] for part in self._spread)
        return np.einsum("cn,scni->sci", shares, self._basis[:, rows])

    @property
    def joint_basis(self) -> np.ndarray:
        """(n, K, 3) m: what a coefficient of the shape does to the heads of the bones."""
        return self._joint_basis[:, : len(self.names)]

    def rest(self, shape: np.ndarray | None = None) -> Rest:
        """The rest pose of a shape (n,); of the mean one by default."""
        shape = np.zeros(len(self._basis), np.float32) if shape is None else np.asarray(shape, np.float32)
        vertices = self._template + self.follow(np.tensordot(shape, self._basis, 1))
        joints = self._joints + np.tensordot(shape, self._joint_basis, 1)
        count = len(self.names)
        return Rest(shape, vertices, joints[:count], joints[count:])

    def follow(self, moved: np.ndarray) -> np.ndarray:
        """How the vertices (V, 3) of the rest pose move when the `controls` move by (C, 3)."""
        rows, shares = self._spread
        return np.einsum("vn,vni->vi", shares, moved[rows])

    def phenotypes(self, shape: np.ndarray) -> dict[str, float]:
        """Age, gender, ... of a shape (n,), each from 0 to 1 as Anny has them: a quadratic regression."""
        values = np.clip(quadratic(np.asarray(shape, np.float32)[None]) @ self._phenotype_map, 0, 1)[0]
        return dict(zip(self.phenotype_names, values.tolist(), strict=True))

    def bones(
        self, rotations: np.ndarray, translation: np.ndarray, joints: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where bones are; see `forward_kinematics`."""
        return forward_kinematics(self.parents, rotations, translation, joints)

    def pose(self, rotations: np.ndarray, translation: np.ndarray, rest: Rest) -> np.ndarray:
        """Posed meshes by linear blend skinning.

        Args:
            rotations: (F, K, 3, 3), each relative to the parent bone; of the root: body axes -> those of the result.
            translation: (F, 3) m, of the root's head.
            rest: the body.

        Returns:
            (F, V, 3) float32 m.
        """
        result = np.empty((len(rotations), *rest.vertices.shape), np.float32)
        for i in range(0, len(rotations), _BATCH):
            part = slice(i, i + _BATCH)
            turn, head = self.bones(rotations[part], translation[part], rest.joints)
            offset = head - np.einsum("fkij,kj->fki", turn, rest.joints)
            count = len(turn)
            blended = self.weights @ np.concatenate([turn.reshape(count, -1, 9), offset], 2).astype(np.float32)
            turned = np.einsum("fvij,vj->fvi", blended[..., :9].reshape(count, -1, 3, 3), rest.vertices)
            result[part] = turned + blended[..., 9:]
        return result


def forward_kinematics(
    parents: tuple[int, ...], rotations: np.ndarray, translation: np.ndarray, joints: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rotations from the rest pose and positions of bones.

    Args:
        parents: of the K bones, parents first; -1 for the root.
        rotations: (F, K, 3, 3), each relative to the parent bone.
        translation: (F, 3) m, of the root's head.
        joints: (K, 3) m, heads in the rest pose.

    Returns:
        (F, K, 3, 3) rest -> posed, and (F, K, 3) m, heads.
    """
    turn, head = np.empty_like(rotations), np.empty((*rotations.shape[:2], 3), rotations.dtype)
    for bone, parent in enumerate(parents):
        if parent < 0:
            turn[:, bone], head[:, bone] = rotations[:, bone], translation
        else:
            turn[:, bone] = turn[:, parent] @ rotations[:, bone]
            head[:, bone] = head[:, parent] + turn[:, parent] @ (joints[bone] - joints[parent])
    return turn, head


def spread(template: np.ndarray, weights: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From which control vertices each vertex takes its change of shape.

    Those nearest in position and skinning weights together, so that no finger borrows from the next one, by the
    inverse of their squared distance.

    Args:
        template: (V, 3) m.
        weights: (V, K) skinning weights.
        controls: (C,) vertices.

    Returns:
        (V, N) positions in `controls`, and (V, N) shares that sum to one.
    """
    places = np.concatenate([template, _BLEND * weights], 1).astype(np.float32)
    some = places[controls]
    rows, shares = [], []
    for part in np.array_split(places, 8):
        square = (part**2).sum(1)[:, None] + (some**2).sum(1) - 2 * part @ some.T
        near = np.argpartition(square, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        share = 1 / np.maximum(np.take_along_axis(square, near, 1), 1e-6)
        rows.append(near)
        shares.append((share / share.sum(1, keepdims=True)).astype(np.float32))
    return np.concatenate(rows), np.concatenate(shares)


def quadratic(shape: np.ndarray) -> np.ndarray:
    """Features (B, 1 + n + n (n + 1) / 2) of shapes (B, n): one, each, and each product of two."""
    first, second = np.triu_indices(shape.shape[1])
    return np.concatenate([np.ones_like(shape[:, :1]), shape, shape[:, first] * shape[:, second]], 1)


_BUNDLES = Path(__file__).parents[1] / "bundles"


@functools.cache
def default_rig() -> Rig:
    """The rig of the body that ships with the package."""
    return Rig.load(_BUNDLES / "rig.npz", default_faces())


def default_faces() -> Path:
    """The `.npz` with the faces of that body."""
    return _BUNDLES / "tokenizer" / "body.npz"
