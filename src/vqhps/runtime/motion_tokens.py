"""Meshes of a video to tokens and back: `vqhps video --tokens`, and `vqhps tokenize` of a `.vqt` file."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.geometry import crop_camera, crop_from_box, rotate
from vqhps.runtime.animate import Predictions
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.export_mesh import SCHEMA, whole_file
from vqhps.runtime.motion import empty_rows
from vqhps.runtime.npz_stream import video_values, write_columns
from vqhps.runtime.predictor import to_pixels
from vqhps.runtime.smooth import Table
from vqhps.runtime.tokenizer import MeshTokenizer, default_tokenizer
from vqhps.runtime.vqt import ENDING, Header, Rows, Vqt, read_vqt, row_keys, write_vqt

if TYPE_CHECKING:
    from vqhps.runtime.motion_files import Advance, Motion

logger = logging.getLogger(__name__)

_CHUNK = 64  # rows decoded at a time
_PARABOLA = np.array([-3, 12, 17, 12, -3], np.float32) / 35  # its middle (Savitzky and Golay, 1964)


def write_tokens(path: Path, header: Header, parts: Iterable[Rows], tokenizer: MeshTokenizer) -> np.ndarray:
    """Write meshes as tokens.

    Args:
        path: `.vqt`.
        header: of the video.
        parts: rows with canonical `vertices`, some at a time; as many in all as the header says.
        tokenizer: that of the header.

    Returns:
        (N,) mm, how far the meshes of the tokens are from those given, on average over vertices.

    Raises:
        VqhpsError: a mesh is no body, or the folder cannot be written to.
    """
    distances = [np.zeros(0)]

    def coded() -> Iterator[Rows]:
        for rows in parts:
            if len(rows["frame"]):
                still = np.broadcast_to(np.eye(3, dtype=np.float32), (len(rows["frame"]), 3, 3))
                tokens = tokenizer.encode(rows["vertices"].astype(np.float32), still)
                distances.append(tokens.distance_mm)
                mean = rotate(rows["rotation"], tokens.translation[:, None])[:, 0]  # decoded meshes have none
                yield rows | {"indices": tokens.indices, "translation": rows["translation"] + mean}

    write_vqt(path, header, coded())
    return np.concatenate(distances)


def tables(tokens: Vqt, tokenizer: MeshTokenizer) -> Iterator[Table]:
    """The columns of `columns`, whole frames, some at a time."""
    frame = tokens.rows["frame"]
    cuts = np.unique([0, *np.searchsorted(frame, frame[_CHUNK::_CHUNK]), len(frame)])
    for start, stop in itertools.pairwise(cuts.tolist()):
        first, last = int(frame[start]), int(frame[stop - 1])
        times = np.arange(first, last + 1) / tokens.header.fps
        yield Table(first, times, _complete(tokens, tokenizer, start, stop))


def columns(tokens: Vqt, tokenizer: MeshTokenizer) -> Rows:
    """What is known of the rows, as columns without rows: those of `docs/video.md` with `vertices`.

    There are no joints where the tokenizer's body has none.
    """
    columns = empty_rows(tokens.header.tokens, tokenizer.info.vertices)
    return {name: c for name, c in columns.items() if tokenizer.has_joints or not name.startswith("joints")}


def _complete(tokens: Vqt, tokenizer: MeshTokenizer, start: int, stop: int) -> Rows:
    header, rows = tokens.header, {name: column[start:stop] for name, column in tokens.rows.items()}
    vertices = _vertices(tokens, tokenizer, start, stop)
    center, size = crop_from_box(rows["box"].astype(np.float64), header.crop_scale)
    size = np.maximum(size, 1.0)
    principal = np.tile(np.array(header.size) / 2, (len(size), 1))
    camera = crop_camera(rows["translation"], center, size, np.full(len(size), header.focal), principal)
    rows |= {"camera": camera, "crop_center": center, "crop_size": size, "vertices": vertices}
    joints = rotate(rows["rotation"], tokenizer.joints(vertices)) + rows["translation"][:, None]
    rows |= {"joints": joints, "joints2d": to_pixels(joints.astype(np.float64), header.focal, header.size)}
    return {name: rows[name].astype(column.dtype) for name, column in columns(tokens, tokenizer).items()}


def _vertices(tokens: Vqt, tokenizer: MeshTokenizer, start: int, stop: int) -> np.ndarray:
    """Meshes of some rows; of smoothed ones, steadied over the frames before and after.

    Meshes that move little by little become tokens that jump. Where the frames around are there, a parabola through
    five of them takes the jumps out, and leaves smooth motion as it is.
    """
    indices = tokens.rows["indices"]
    if tokens.header.smoothing == "none":
        return tokenizer.decode(indices[start:stop])
    keys = row_keys(tokens.rows)
    reach = (len(_PARABOLA) // 2) << 16
    low, high = np.searchsorted(keys, [keys[start] - reach, keys[stop - 1] + reach + 1])
    decoded = tokenizer.decode(indices[low:high])
    steps = (np.arange(len(_PARABOLA)) - len(_PARABOLA) // 2) << 16
    around = keys[start:stop, None] + steps
    where = np.minimum(np.searchsorted(keys[low:high], around), high - low - 1)
    steady = (keys[low:high][where] == around).all(1)
    vertices = decoded[start - low : stop - low]
    vertices[steady] = sum(w * decoded[rows] for w, rows in zip(_PARABOLA, where[steady].T, strict=True))
    return vertices


def matching_tokenizer(bundle: Bundle) -> MeshTokenizer:
    """The shipped tokenizer.

    Raises:
        VqhpsError: the bundle predicts other bodies.
    """
    tokenizer = default_tokenizer()
    if not np.array_equal(tokenizer.faces, bundle.faces):
        raise VqhpsError(
            f"the model {bundle.info.name} predicts the body {bundle.info.body}, the shipped tokenizer knows "
            f"{tokenizer.info.body} only: leave out --tokens, or use --vertices and `vqhps tokenize --bundle`"
        )
    return tokenizer


def write_motion_tokens(motion: Motion, told: Advance) -> list[Path]:
    """Write `<stem>.vqt`, where the options want it."""
    if not motion.options.tokens:
        return []
    tokenizer, path = matching_tokenizer(motion.bundle), motion.npz.with_suffix(ENDING)
    with np.load(motion.npz, allow_pickle=False) as archive:
        count = len(archive["frame"])
    video = Path(motion.source.name).name, motion.size, motion.source.fps, motion.focal, motion.frames, count
    header = _header(tokenizer, video, motion.options.smoothing, motion.bundle.info.crop_scale)

    def parts() -> Iterator[Rows]:
        for table in motion.tables(True):
            yield table.rows
            told(table.stop, "tokens")

    distance = write_tokens(path, header, parts(), tokenizer)
    if count:
        logger.info("%s: %.1f mm from the meshes, at worst %.1f", path, distance.mean(), distance.max())
    return [path]


def _header(
    tokenizer: MeshTokenizer,
    video: tuple[str, tuple[int, int], float, float, int, int],
    smoothing: str,
    crop_scale: float,
) -> Header:
    info = tokenizer.info
    made_by = info.name, tokenizer.fingerprint, info.tokens, info.codes
    return Header(SCHEMA, *video, smoothing, crop_scale, *made_by)


def convert(tokenizer: MeshTokenizer, source: Path, target: Path) -> tuple[str, str | None]:
    """Write the NPZ of `vqhps video --vertices` as tokens, or tokens as such an NPZ; the endings say which.

    Returns:
        What became of it, and what is missing, if anything.

    Raises:
        VqhpsError: other endings, a damaged file, other bodies, or a folder that cannot be written to.
    """
    endings = source.suffix.lower(), target.suffix.lower()
    if endings == (".npz", ENDING):
        distance = pack(source, target, tokenizer)
        said = f"{len(distance)} meshes, {distance.mean():.1f} mm from their tokens, at worst {distance.max():.1f}"
        return said, None
    if endings != (ENDING, ".npz"):
        raise VqhpsError(f"{target}: the .npz of a video becomes {ENDING}, and {ENDING} becomes .npz")
    tokens = unpack(source, target, tokenizer)
    return f"{len(tokens.rows['frame'])} meshes", tokens.note


def pack(source: Path, target: Path, tokenizer: MeshTokenizer) -> np.ndarray:
    """Write what `vqhps video --vertices` wrote as tokens; returns as `write_tokens`.

    Raises:
        VqhpsError: the source is no such file, or its meshes are no bodies of the tokenizer.
    """
    predictions = Predictions.open(source)
    rows, values = _read_rows(source, len(predictions.frame))
    sides = (rows["box"][:, 2:] - rows["box"][:, :2]).max(1)
    crop_scale = round(float(np.median(rows.pop("crop_size") / np.maximum(sides, 1e-6))), 4)
    video = source.stem, predictions.view.size, values[1], predictions.view.focal, int(values[0]), len(sides)
    header = _header(tokenizer, video, str(values[2]), crop_scale)
    parts = (
        {name: column[part] for name, column in rows.items()} | {"vertices": vertices}
        for part, vertices in predictions.meshes()
    )
    with whole_file(target) as temporary:
        try:
            distance = write_tokens(temporary, header, parts, tokenizer)
        except VqhpsError as error:
            raise VqhpsError(f"{source}: {error}") from error
        if np.median(distance) > tokenizer.info.far_mm:
            raise VqhpsError(
                f"{source}: its meshes are {np.median(distance):.0f} mm from the nearest bodies the tokens can say: no "
                f"{tokenizer.info.body} bodies in metres with their vertices in order"
            )
    return distance


def _read_rows(path: Path, count: int) -> tuple[Rows, tuple[float, float, str]]:
    """Columns of the NPZ of a video, but for its meshes; its number of frames, frames a second, and smoothing."""
    columns = {name: c.shape[1:] for name, c in empty_rows(1, None).items()}
    names = ("frame", "time", "person", "box", "score", "rotation", "translation", "crop_size")
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows = {name: archive[name] for name in names}
            values = float(archive["frames"]), float(archive["fps"]), str(archive["smoothing"])
    except (KeyError, TypeError, ValueError) as error:
        raise VqhpsError(f"{path}: give what `vqhps video --vertices` wrote ({error})") from error
    for name, column in rows.items():
        if column.shape != (count, *columns[name]) or column.dtype.kind not in "iuf" or not np.isfinite(column).all():
            raise VqhpsError(f"{path}: {name} must be {(count, *columns[name])} numbers that are finite")
    return rows, values


def unpack(source: Path, target: Path, tokenizer: MeshTokenizer) -> Vqt:
    """Write a file of tokens as the NPZ that `vqhps video --vertices` writes.

    Raises:
        VqhpsError: as `read_vqt`, or the folder cannot be written to.
    """
    tokens = read_vqt(source, tokenizer)
    header = tokens.header
    singles = video_values(header.focal, header.size, header.frames, header.fps, header.smoothing)
    scratch = target.with_name(f".{target.stem}.columns")
    write_columns(target, scratch, tables(tokens, tokenizer), columns(tokens, tokenizer), singles)
    return tokens
