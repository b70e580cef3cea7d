"""Files of people as tokens, some 100 bytes a person and frame: `.vqt`; layout in `docs/output-schema.md`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.config import from_dict
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_quaternion, quaternion_from_matrix
from vqhps.runtime.export_mesh import SCHEMA, whole_file
from vqhps.runtime.tokenizer import MeshTokenizer

ENDING = ".vqt"

_MAGIC = b"vqhps.vqt\n"
_MOST = 1 << 31  # of anything in a header
_PEOPLE = 1 << 16
_BOX_STEPS = 1 << 14  # a frame's long side
_TURN_STEPS = (1 << 15) - 1  # from -sqrt(1/2) to sqrt(1/2), where all components of a quaternion but the largest lie

Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Header:
    """What a file says of its video.

    Attributes:
        schema: version of the layout.
        video: file name.
        size: width and height of the frames, px.
        fps: frame rate that the video states.
        focal: px.
        frames: of the video.
        rows: persons and frames.
        smoothing: of the meshes before they became tokens.
        crop_scale: side of the crops over the long side of the boxes.
        tokenizer: name of the one that made the tokens.
        fingerprint: of its weights.
        tokens: a mesh.
        codes: a token.
    """

    schema: int
    video: str
    size: tuple[int, int]
    fps: float
    focal: float
    frames: int
    rows: int
    smoothing: str
    crop_scale: float
    tokenizer: str
    fingerprint: str
    tokens: int
    codes: int

    def row_type(self) -> np.dtype:
        """How a row is stored, without gaps."""
        return np.dtype([
            ("frame", "<u4"), ("person", "<u2"), ("delay", "<f4"), ("box", "<i2", 4), ("score", "u1"),
            ("rotation", "<u2", 3), ("translation", "<f4", 3), ("indices", "u1", -(-self.tokens * self._bits // 8)),
        ])  # fmt: skip

    @property
    def _bits(self) -> int:
        """Of a token."""
        return max(1, (self.codes - 1).bit_length())

    def pack(self, rows: Rows) -> bytes:
        """Rows of a video, columns as in `docs/video.md`, as they are stored.

        Raises:
            VqhpsError: there are too many people.
        """
        if (rows["person"] >= _PEOPLE).any():
            raise VqhpsError(f"{self.video}: {ENDING} files hold up to {_PEOPLE} people: leave out --tokens")
        packed = np.zeros(len(rows["frame"]), self.row_type())
        packed["frame"], packed["person"] = rows["frame"], rows["person"]
        packed["delay"] = rows["time"] - rows["frame"] / self.fps
        limits = np.iinfo(np.int16)
        packed["box"] = np.clip(np.round(rows["box"] * (_BOX_STEPS / max(self.size))), limits.min, limits.max)
        packed["score"] = np.round(255 * np.clip(rows["score"], 0, 1))
        packed["rotation"] = pack_rotation(rows["rotation"])
        packed["translation"] = rows["translation"]
        shifts = np.arange(self._bits)[::-1]
        bits = (rows["indices"][..., None] >> shifts & 1).astype(np.uint8)
        packed["indices"] = np.packbits(bits.reshape(len(packed), self.tokens * len(shifts)), axis=1)
        return packed.tobytes()

    def unpack(self, content: bytes) -> Rows:
        """The columns of `docs/video.md` that are stored; whole rows only."""
        packed = np.frombuffer(content, self.row_type())
        count = self.tokens * self._bits
        bits = np.unpackbits(packed["indices"], axis=1, count=count).reshape(len(packed), self.tokens, self._bits)
        return {
            "frame": packed["frame"].astype(np.int32),
            "time": packed["frame"] / self.fps + packed["delay"],
            "person": packed["person"].astype(np.int32),
            "box": (packed["box"] * (max(self.size) / _BOX_STEPS)).astype(np.float32),
            "score": (packed["score"] / 255).astype(np.float32),
            "indices": (bits @ (1 << np.arange(self._bits)[::-1])).astype(np.uint16),
            "rotation": unpack_rotation(packed["rotation"]).astype(np.float32),
            "translation": packed["translation"].copy(),
        }


def pack_rotation(rotation: np.ndarray) -> np.ndarray:
    """Rotations (N, 3, 3) as (N, 3) uint16, to some 0.005 degrees: all but the largest component of a quaternion.

    Each in 15 bits, in the order w, x, y, z; the highest bits of the first two say which one is left out.
    """
    quaternion = quaternion_from_matrix(rotation.astype(np.float64))
    largest = np.abs(quaternion).argmax(1)
    quaternion *= np.sign(np.take_along_axis(quaternion, largest[:, None], 1))
    others = quaternion[np.arange(4) != largest[:, None]].reshape(-1, 3)
    steps = np.round((others * np.sqrt(0.5) + 0.5) * _TURN_STEPS).clip(0, _TURN_STEPS).astype(np.uint16)
    steps[:, 0] |= (largest >> 1 << 15).astype(np.uint16)
    steps[:, 1] |= ((largest & 1) << 15).astype(np.uint16)
    return steps


def unpack_rotation(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_rotation`, (N, 3, 3) float64."""
    largest = (packed[:, 0] >> 15) * 2 + (packed[:, 1] >> 15)
    others = ((packed & _TURN_STEPS) / _TURN_STEPS - 0.5) / np.sqrt(0.5)
    quaternion = np.zeros((len(packed), 4))
    quaternion[np.arange(4) != largest[:, None]] = others.ravel()
    missing = np.sqrt(np.maximum(1 - (others**2).sum(1), 0))
    np.put_along_axis(quaternion, largest[:, None].astype(np.int64), missing[:, None], 1)
    return matrix_from_quaternion(quaternion)


@dataclass(frozen=True)
class Vqt:
    """The content of a file.

    Attributes:
        header: what it says of the video.
        rows: the stored columns of all rows, sorted by frame, then person; see `docs/video.md`.
        note: what is missing of a file that was cut off; `None` of a whole one.
    """

    header: Header
    rows: Rows
    note: str | None


def row_keys(rows: Rows) -> np.ndarray:
    """A number a row, int64, that rises with frame, then person: frame * 65536 + person."""
    return rows["frame"].astype(np.int64) * _PEOPLE + rows["person"]


def write_vqt(path: Path, header: Header, parts: Iterable[Rows]) -> None:
    """Write a file of tokens.

    Args:
        path: `.vqt`.
        header: of the video.
        parts: rows in order, some at a time; as many in all as the header says.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    text = json.dumps(asdict(header)).encode()
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + struct.pack("<I", len(text)) + text)
        for rows in parts:
            file.write(header.pack(rows))


def read_vqt(path: Path, tokenizer: MeshTokenizer) -> Vqt:
    """Read a file of tokens; of one that is cut off, the whole frames that are there, and a note.

    Raises:
        VqhpsError: it is missing, no such file, damaged, or its tokens are another tokenizer's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror}") from error
    header, start = _read_header(path, content)
    if header.fingerprint != tokenizer.fingerprint:
        raise VqhpsError(
            f"{path} was written with the tokenizer {header.tokenizer} {header.fingerprint}, this one is "
            f"{tokenizer.info.name} {tokenizer.fingerprint}: name the right one with --bundle"
        )
    if (header.tokens, header.codes) != (tokenizer.info.tokens, tokenizer.info.codes):
        raise VqhpsError(f"{path} is damaged: it says {header.tokens} tokens of {header.codes} codes")
    size = header.row_type().itemsize
    count = (len(content) - start) // size
    if len(content) - start > header.rows * size:
        raise VqhpsError(f"{path} is damaged: it holds {len(content)} bytes, {start + header.rows * size} were written")
    rows, note = header.unpack(content[start : start + count * size]), None
    if len(content) - start < header.rows * size:
        count = int(np.searchsorted(rows["frame"], rows["frame"][-1])) if count else 0  # others may have been in it
        if count == 0:
            raise VqhpsError(f"{path} is cut off: not one frame is whole")
        note = f"{path} is cut off: {count} of {header.rows} persons and frames are there"
        rows = {name: column[:count] for name, column in rows.items()}
    _check_rows(path, header, rows)
    return Vqt(header, rows, note)


def _read_header(path: Path, content: bytes) -> tuple[Header, int]:
    """The header, and where the rows begin."""
    start = len(_MAGIC) + 4
    if not content.startswith(_MAGIC) or len(content) < start:
        raise VqhpsError(f"{path} is no {ENDING} file of `vqhps video --tokens`")
    length = struct.unpack("<I", content[len(_MAGIC) : start])[0]
    try:
        values: Any = json.loads(content[start : start + length])
    except (ValueError, RecursionError) as error:
        raise VqhpsError(f"{path} is damaged or cut off in its header") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise VqhpsError(f"{path} has schema {schema!r}, this version of vqhps reads {SCHEMA}")
    header = from_dict(Header, values, str(path))
    numbers = (*header.size, header.fps, header.focal, header.crop_scale, header.tokens, header.codes)
    if not all(0 < n < _MOST for n in numbers) or not (0 <= header.rows < _MOST and 0 <= header.frames < _MOST):
        raise VqhpsError(f"{path} is damaged: its header holds impossible numbers")
    return header, start + length


def _check_rows(path: Path, header: Header, rows: Rows) -> None:
    """Raises `VqhpsError` where the rows are no people of a video."""
    good = (
        (np.diff(row_keys(rows)) > 0).all()
        and (rows["frame"] < header.frames).all()
        and np.isfinite(rows["time"]).all()
    )
    place = rows["translation"]
    if not good or not np.isfinite(place).all() or (place[:, 2] <= 0).any() or (rows["indices"] >= header.codes).any():
        raise VqhpsError(f"{path} is damaged: its rows are no people of a video of {header.frames} frames")
