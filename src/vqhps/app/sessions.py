"""Folders of the people who have the page open: each is deleted when its page is closed, all when the app ends."""

from __future__ import annotations

import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from vqhps.errors import VqhpsError


@dataclass
class _Session:
    results: list[Path] = field(default_factory=list)
    uploads: set[Path] = field(default_factory=set)


class Sessions:
    """What belongs to which open page. Thread-safe; folders have names that nobody can guess."""

    def __init__(self, root: Path) -> None:
        """Make the folders of results below `root`."""
        self._root = root
        self._open: dict[str, _Session] = {}
        self._closed: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, session: str, upload: Path) -> Path:
        """An empty folder for the result of a file that a page sent; raises `VqhpsError` if it is closed already."""
        with self._lock:
            if session in self._closed:
                raise VqhpsError("this page was closed: open it again")
            mine = self._open.setdefault(session, _Session())
            earlier, mine.uploads = mine.uploads - {upload}, {upload}
            self._delete_uploads(earlier)
            folder = self._root / "results" / secrets.token_urlsafe(16)
            mine.results.append(folder)
        folder.mkdir(parents=True)
        return folder

    def finish(self, session: str, folder: Path) -> None:
        """The result is written: earlier ones of the page go, and this one too if it was closed meanwhile."""
        with self._lock:
            mine = self._open.get(session)
            if mine is None:
                _delete(folder)
            elif folder in mine.results:
                for other in mine.results[: mine.results.index(folder)]:
                    _delete(other)
                mine.results = mine.results[mine.results.index(folder) :]

    def close(self, session: str) -> None:
        """Delete all that a page sent and got."""
        with self._lock:
            self._closed.add(session)
            mine = self._open.pop(session, _Session())
            for folder in mine.results:
                _delete(folder)
            self._delete_uploads(mine.uploads)

    def _delete_uploads(self, uploads: set[Path]) -> None:
        """Equal files of several pages are one file: it goes with the last of them."""
        for upload in uploads - {path for other in self._open.values() for path in other.uploads}:
            upload.unlink(missing_ok=True)
            if upload.parent != self._root and not any(upload.parent.iterdir()):
                upload.parent.rmdir()


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
