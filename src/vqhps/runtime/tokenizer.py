"""Body meshes as discrete tokens and back, in ONNX Runtime: no torch, no body model."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.geometry import fit_rotation, rotate
from vqhps.runtime.bundle import open_session, read_arrays, read_faces, read_info, require_files

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "encoder.onnx", "decoder.onnx", "body.npz")
"""What the folder of a tokenizer holds."""

_BATCH = 16  # meshes a run, to bound the memory
_FARTHEST = 1e6  # m
_DOUBTFUL = 3  # a mesh rebuilt worse than this part of `far_mm` may be a mirrored one
_ROUNDS = 2  # of fitting an unknown rotation to the decoded mesh


@dataclass(frozen=True)
class TokenizerInfo:
    """What `tokenizer.json` says.

    Attributes:
        format: version of the folder's layout.
        name: of the tokenizer.
        version: of the package that wrote it.
        body: name of the body; a mesh must have its vertices in its order.
        vertices: number V of vertices.
        tokens: number T of tokens.
        codes: number K of codes.
        far_mm: a mesh rebuilt worse than this is no body of this kind.
        licence: of the weights.
        notes: on what the weights were trained on.
    """

    format: int
    name: str
    version: str
    body: str
    vertices: int
    tokens: int
    codes: int
    far_mm: float
    licence: str
    notes: str


@dataclass(frozen=True)
class Tokens:
    """Meshes as tokens, with where they stood.

    Attributes:
        indices: (B, T) int64 in [0, K).
        rotation: (B, 3, 3) canonical -> axes of the mesh, acts on column vectors.
        translation: (B, 3) m, vertex mean of the mesh.
        distance_mm: (B,) mean distance of the decoded vertices from those of the mesh.
    """

    indices: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    distance_mm: np.ndarray


class MeshTokenizer:
    """A tokenizer of full body meshes. Build it with `MeshTokenizer.load` or `default_tokenizer`."""

    def __init__(
        self, info: TokenizerInfo, body: dict[str, np.ndarray], graphs: dict[str, InferenceSession], fingerprint: str
    ) -> None:
        """Hold the parts.

        Args:
            info: the metadata.
            body: `faces` (F, 3) int32; `template` (V, 3) m, canonical; `root_weight` (V,), share of each vertex in
                telling how the body is turned; `joint_regressor` (17, V), COCO-17, or (0, V) of a body without.
            graphs: `encoder` from vertices to indices and `decoder` back, both of canonical full meshes.
            fingerprint: names the weights: tokens of other weights mean other bodies.
        """
        self.info = info
        self.faces = body["faces"]
        self.fingerprint = fingerprint
        self._template = body["template"]
        self._root_weight = body["root_weight"]
        self.has_joints = len(body["joint_regressor"]) > 0
        self._joint_regressor = body["joint_regressor"]
        self._graphs = graphs

    @staticmethod
    def load(folder: Path | str) -> MeshTokenizer:
        """Read what `vqhps export` of a tokenizer wrote.

        Raises:
            VqhpsError: the folder or a file is missing, damaged, or of another format version.
        """
        folder = Path(folder)
        require_files(folder, TOKENIZER_FILES)
        info = read_info(folder / "tokenizer.json", TokenizerInfo)
        names, count = ("template", "root_weight", "joint_regressor"), info.vertices
        body = dict(zip(names, read_arrays(folder / "body.npz", names), strict=True))
        body["faces"] = read_faces(folder / "body.npz")
        shapes = [body[name].shape for name in names]
        if shapes not in ([(count, 3), (count,), (j, count)] for j in (0, 17)) or body["faces"].max() >= count:
            raise VqhpsError(f"{folder}/body.npz is no body of {info.vertices} vertices: export the bundle again")
        graphs = {
            "encoder": open_session(folder / "encoder.onnx", ("vertices",), ("indices",)),
            "decoder": open_session(folder / "decoder.onnx", ("indices",), ("vertices",)),
        }
        digest = hashlib.sha256(b"".join((folder / f"{name}.onnx").read_bytes() for name in graphs)).hexdigest()
        return MeshTokenizer(info, body, graphs, digest[:16])

    def encode(self, vertices: np.ndarray, rotation: np.ndarray | None = None) -> Tokens:
        """Tokens of meshes that stand anywhere, turned anyhow.

        Where a mesh stands never matters. How it is turned is found by fitting the template's root (of a body without
        a known root, all of it) and then twice the decoded mesh; the tokens of a canonical mesh differ a little from
        those found with its true rotation, their error does not.

        Args:
            vertices: (B, V, 3) m, of the body's faces.
            rotation: (B, 3, 3) canonical -> axes of the mesh, where known; identities for canonical meshes.

        Returns:
            the tokens, and how far from each mesh they decode; `info.far_mm` and more are warned of.

        Raises:
            VqhpsError: another number of vertices, one that is not finite, or a mirrored mesh.
        """
        vertices = self._checked(vertices)
        if rotation is not None and (rotation.shape != (len(vertices), 3, 3) or not np.isfinite(rotation).all()):
            raise VqhpsError(f"rotations must be finite and ({len(vertices)}, 3, 3), got {rotation.shape}")
        parts = []
        for i in range(0, len(vertices), _BATCH):
            part = slice(i, i + _BATCH)
            parts.append(self._encode(vertices[part], None if rotation is None else rotation[part]))
        tokens = Tokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for number in np.flatnonzero(tokens.distance_mm > self.info.far_mm / _DOUBTFUL):
            if self._volume(vertices[number]) * self._volume(self._template) < 0:
                raise VqhpsError(f"mesh {number} is mirrored or inside out: its triangles face the wrong way")
        for number in np.flatnonzero(tokens.distance_mm > self.info.far_mm):
            distance = tokens.distance_mm[number]
            logger.warning("mesh %d is %.0f mm from the nearest body the tokens can say", number, distance)
        return tokens

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Canonical meshes of tokens.

        Args:
            indices: (B, T) integers in [0, K).

        Returns:
            (B, V, 3) float32 m, without global rotation, minus their vertex mean.

        Raises:
            VqhpsError: another number of tokens, or one out of range.
        """
        indices = np.asarray(indices)
        tokens, codes = self.info.tokens, self.info.codes
        if indices.ndim != 2 or indices.shape[1] != tokens or len(indices) == 0 or indices.dtype.kind not in "iu":
            raise VqhpsError(f"tokens must be (B, {tokens}) whole numbers, got {indices.dtype} {indices.shape}")
        if indices.min() < 0 or indices.max() >= codes:
            wrong = indices[(indices < 0) | (indices >= codes)][0]
            raise VqhpsError(f"tokens lie in 0 to {codes - 1}, got {wrong}")
        return self._run("decoder", "indices", indices.astype(np.int64))

    def joints(self, vertices: np.ndarray) -> np.ndarray:
        """COCO-17 joints (B, 17, 3) of meshes (B, V, 3), in their frame; (B, 0, 3) of a body without: `has_joints`."""
        return self._joint_regressor @ vertices

    def restore(self, tokens: Tokens) -> np.ndarray:
        """Meshes (B, V, 3) m of tokens, back where they stood."""
        return rotate(tokens.rotation, self.decode(tokens.indices)) + tokens.translation[:, None]

    def _checked(self, vertices: np.ndarray) -> np.ndarray:
        vertices, count = np.asarray(vertices), self.info.vertices
        if vertices.dtype.kind in "iu":
            vertices = vertices.astype(np.float64)
        if vertices.dtype.kind != "f":
            raise VqhpsError(f"vertices must be numbers in metres, got {vertices.dtype}")
        if vertices.ndim != 3 or vertices.shape[1:] != (count, 3) or len(vertices) == 0:
            raise VqhpsError(f"this tokenizer reads meshes of {count} vertices, (B, {count}, 3), got {vertices.shape}")
        finite = (np.abs(vertices) < _FARTHEST).all((1, 2))  # false for NaN as well
        if not finite.all():
            raise VqhpsError(f"mesh {finite.argmin()} has vertices that are not finite, or 1,000 km away")
        return vertices

    def _volume(self, vertices: np.ndarray) -> float:
        """What a mesh encloses, m^3; negative if its triangles face inwards."""
        corners = (vertices - vertices.mean(axis=0))[self.faces].astype(np.float64)
        return float(np.linalg.det(corners).sum() / 6)

    def _encode(self, vertices: np.ndarray, rotation: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """The fields of `Tokens` for one batch."""
        translation: np.ndarray = vertices.mean(axis=1, dtype=np.float64)
        centred = (vertices - translation[:, None].astype(vertices.dtype)).astype(np.float32, copy=False)
        turn = self._find_rotation(centred) if rotation is None else rotation.astype(np.float32)
        canonical = rotate(turn.transpose(0, 2, 1), centred)
        indices = self._run("encoder", "vertices", canonical)
        offset = self.decode(indices) - canonical
        distance: np.ndarray = 1000 * np.sqrt(np.einsum("bvc,bvc->bv", offset, offset)).mean(axis=1)
        return indices, turn, translation, distance

    def _find_rotation(self, centred: np.ndarray) -> np.ndarray:
        rotation = fit_rotation(self._template[None], centred, self._root_weight)
        for _ in range(_ROUNDS):
            indices = self._run("encoder", "vertices", rotate(rotation.transpose(0, 2, 1), centred))
            rotation = fit_rotation(self.decode(indices), centred, self._root_weight)
        return rotation

    def _run(self, graph: str, name: str, batch: np.ndarray) -> np.ndarray:
        starts = range(0, len(batch), _BATCH)
        return np.concatenate([self._graphs[graph].run(None, {name: batch[i : i + _BATCH]})[0] for i in starts])


def default_tokenizer() -> MeshTokenizer:
    """The tokenizer that ships with the package; the shipped image model predicts its tokens."""
    return MeshTokenizer.load(Path(__file__).parents[1] / "bundles" / "tokenizer")
