"""Files of the page's jobs."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from vqhps.errors import VqhpsError
from vqhps.runtime.export_mesh import whole_file

_PACKED = (".png", ".npz", ".mp4")  # pictures are packed already, coordinates hardly pack


def check_bytes(path: Path, limit: int) -> None:
    """Raise `VqhpsError` where an upload is gone or too large."""
    if not path.exists():
        raise VqhpsError(f"{path.name} is gone: files are kept for an hour, give it again")
    if path.stat().st_size > limit:
        raise VqhpsError(f"{path.name} is larger than {limit / 1e6:g} MB: scale it down")


def write_zip(path: Path, files: Sequence[Path]) -> Path:
    """Pack files, each once."""
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", compresslevel=1) as archive:
        for file in dict.fromkeys(files):
            kind = zipfile.ZIP_STORED if file.suffix in _PACKED else zipfile.ZIP_DEFLATED
            archive.write(file, file.name, kind)
    return path
