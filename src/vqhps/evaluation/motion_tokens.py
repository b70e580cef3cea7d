"""A video's meshes as tokens: what is lost, and how much room other ways to store them take."""

import lzma
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vqhps.geometry import rotate
from vqhps.runtime.motion_tokens import pack, unpack
from vqhps.runtime.predictor import to_pixels
from vqhps.runtime.tokenizer import default_tokenizer
from vqhps.runtime.vqt import ENDING, read_vqt, row_keys

Vertices = Float[np.ndarray, "N V 3"]


@dataclass(frozen=True)
class Stored:
    """Meshes stored in some way.

    Attributes:
        way: how.
        bytes_a_mesh: size over the number of persons and frames.
        error_mm: mean vertex distance from the meshes, in the camera frame, over meshes.
        worst_mm: that of the worst mesh.
        error_px: mean distance of the projected vertices.
        jitter_mm: mean length of the third difference over time of the vertices, mm / frame^3, about the body's centre.
    """

    way: str
    bytes_a_mesh: float
    error_mm: float
    worst_mm: float
    error_px: float
    jitter_mm: float | None


@dataclass(frozen=True)
class _Motion:
    """Meshes in the camera frame, which are of one person in four consecutive frames, and the camera."""

    vertices: Vertices
    fours: Int[np.ndarray, "F 4"]
    focal: float
    size: tuple[int, int]

    @staticmethod
    def of(table: dict[str, np.ndarray]) -> "_Motion":
        """That of the NPZ of a video."""
        keys = row_keys(table)
        around = keys[:, None] + (np.arange(4) << 16)
        where = np.minimum(np.searchsorted(keys, around), len(keys) - 1)
        fours = where[(keys[where] == around).all(1)]
        vertices = _placed(table, table["vertices"].astype(np.float32))
        return _Motion(vertices, fours, float(table["focal"]), (int(table["size"][0]), int(table["size"][1])))

    def score(self, way: str, size: float, vertices: Vertices) -> Stored:
        """Of meshes that were stored in so many bytes."""
        distance = 1000 * np.linalg.norm(vertices - self.vertices, axis=-1).mean(1)
        pixels = [to_pixels(v, self.focal, self.size) for v in (vertices, self.vertices)]
        off = float(np.linalg.norm(pixels[0] - pixels[1], axis=-1).mean())
        jitter = None
        if len(self.fours):
            centred = vertices - vertices.mean(1, keepdims=True)
            third = sum(w * centred[rows] for w, rows in zip((-1, 3, -3, 1), self.fours.T, strict=True))
            jitter = float(1000 * np.linalg.norm(third, axis=-1).mean())
        return Stored(way, size / len(distance), float(distance.mean()), float(distance.max()), off, jitter)


def evaluate_motion_tokens(predictions: Path) -> list[Stored]:
    """Store the meshes of a video as tokens and by general means, and compare what comes back.

    `npz`: the file, with boxes, joints and all. `tokens`: a `.vqt` of it. `tokens by themselves`: the same, each frame
    decoded without those around it. `predicted tokens`: `indices` of the file, those nearest to each single
    frame, instead of those of the meshes. The rest stores meshes only, in 16 bits: as half-precision numbers (as in the
    NPZ), as whole millimetres, and as differences of these from the frame before; zlib level 9, xz preset 6. All meshes
    are in memory at a time.

    Args:
        predictions: what `vqhps video --vertices` wrote.

    Raises:
        VqhpsError: it is no such file, or of another body than the shipped tokenizer's.
    """
    tokenizer = default_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        packed, unpacked = Path(folder) / f"a{ENDING}", Path(folder) / "a.npz"
        pack(predictions, packed, tokenizer)
        unpack(packed, unpacked, tokenizer)
        tokens, size = read_vqt(packed, tokenizer), packed.stat().st_size
        by_itself = tokenizer.decode(tokens.rows["indices"])
        with np.load(unpacked, allow_pickle=False) as archive:
            decoded = {name: archive[name] for name in archive.files}
    with np.load(predictions, allow_pickle=False) as archive:
        table = {name: archive[name] for name in archive.files}
    motion = _Motion.of(table)
    return [
        motion.score("npz", predictions.stat().st_size, motion.vertices),
        motion.score("tokens", size, _placed(decoded, decoded["vertices"].astype(np.float32))),
        motion.score("tokens by themselves", size, _placed(decoded, by_itself)),
        motion.score("predicted tokens", size, _placed(decoded, tokenizer.decode(table["indices"]))),
        *_general(motion, table),
    ]


def _placed(rows: dict[str, np.ndarray], vertices: Vertices) -> Vertices:
    return rotate(rows["rotation"], vertices) + rows["translation"][:, None]


def _general(motion: _Motion, table: dict[str, np.ndarray]) -> list[Stored]:
    body = table["vertices"]
    whole = np.round(1000 * body.astype(np.float32)).astype(np.int16)
    in_mm = _placed(table, whole.astype(np.float32) / 1000)
    order = np.lexsort([table["frame"], table["person"]])
    steps = np.diff(whole[order], axis=0, prepend=np.zeros_like(whole[:1]))
    half = motion.score("half precision", body.nbytes, motion.vertices)
    mm = motion.score("millimetres", whole.nbytes, in_mm)
    stored = []
    for scored, name, numbers in (
        (half, half.way, body), (mm, mm.way, whole), (mm, "millimetres, differences", steps)
    ):  # fmt: skip
        content = numbers.tobytes()
        sizes = {"": len(content), ", zlib": len(zlib.compress(content, 9)), ", xz": len(lzma.compress(content))}
        stored += [replace(scored, way=name + how, bytes_a_mesh=size / len(body)) for how, size in sizes.items()]
    return stored
