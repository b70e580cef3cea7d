"""Folders of the people who have the page open: deleted when it is closed, or after a time; all when the app ends."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from vqhps.errors import VqhpsError


@dataclass
class _Session:
    results: dict[Path, float | None] = field(default_factory=dict)  # since when each is there, s
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
            mine.results[folder] = None
        folder.mkdir(parents=True)
        return folder

    def finish(self, session: str, folder: Path, good: bool) -> None:
        """Nothing is written any more: earlier results of the page go.

        Args:
            session: of the page.
            folder: that `begin` gave.
            good: whether it holds a result; else, and if the page was closed meanwhile, it goes too.
        """
        with self._lock:
            mine = self._open.get(session)
            if mine is None:
                _delete(folder)
            elif folder in mine.results:
                for other in list(mine.results)[: list(mine.results).index(folder) + (not good)]:
                    mine.results.pop(other)
                    _delete(other)
                if good:
                    mine.results[folder] = time.monotonic()

    def expire(self, seconds: float) -> None:
        """Delete results that have been there for longer than this."""
        with self._lock:
            for mine in self._open.values():
                for folder, since in list(mine.results.items()):
                    if since is not None and time.monotonic() - since > seconds:
                        mine.results.pop(folder)
                        _delete(folder)

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
