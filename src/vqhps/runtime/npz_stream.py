"""The NPZ of a video, whose columns may be longer than the memory."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.runtime.export_mesh import SCHEMA, whole_file
from vqhps.runtime.smooth import Table


def video_values(focal: float, size: tuple[int, int], frames: int, fps: float, smoothing: str) -> dict[str, Any]:
    """What the NPZ holds once; `docs/video.md` says what it means."""
    return {
        "focal": np.float64(focal), "size": np.array(size, np.int32), "frames": np.int64(frames),
        "fps": np.float64(fps), "smoothing": np.array(smoothing), "schema": np.int64(SCHEMA),
    }  # fmt: skip


def write_columns(
    path: Path, scratch: Path, tables: Iterable[Table], columns: Mapping[str, np.ndarray], singles: Mapping[str, Any]
) -> set[int]:
    """Write the rows of tables, one after the other, and single values, as an NPZ.

    Args:
        path: `.npz`.
        scratch: a folder for the columns while they grow; removed.
        tables: in order.
        columns: which ones, as columns without rows: they say of which type and shape.
        singles: what there is once.

    Returns:
        The people in the tables.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    people: set[int] = set()
    count = 0
    with whole_file(path) as temporary:
        scratch.mkdir(parents=True)
        try:
            for name in columns:
                (scratch / name).touch()
            for table in tables:
                count += len(table.rows["frame"])
                people |= set(table.rows["person"].tolist())
                for name in columns:
                    with (scratch / name).open("ab") as column:
                        table.rows[name].tofile(column)
            _write(temporary, scratch, count, columns, singles)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return people


def _write(
    path: Path, scratch: Path, count: int, columns: Mapping[str, np.ndarray], singles: Mapping[str, Any]
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, empty in columns.items():
            header = {"descr": empty.dtype.str, "fortran_order": False, "shape": (count, *empty.shape[1:])}
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                with (scratch / name).open("rb") as column:
                    shutil.copyfileobj(column, member, 1 << 16)
        for name, value in singles.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, np.asarray(value))
