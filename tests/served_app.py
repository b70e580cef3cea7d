"""The web app in a process of its own, and what its visitors do."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page

_SERVER = "import sys; from vqhps.cli import main; sys.exit(main(['app', '--port', sys.argv[1]]))"
PATIENCE = 120  # s


@dataclass(frozen=True)
class Served:
    """The app in a process of its own; `folder` is where it keeps temporary files."""

    url: str
    folder: Path
    process: subprocess.Popen

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size]

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1000


@contextlib.contextmanager
def serve(folders: pytest.TempPathFactory) -> Iterator[Served]:
    """Run the app with its temporary files in a folder of their own, which must be empty when it ends."""
    folder = folders.mktemp("tmp")
    environment = {**os.environ, "TMPDIR": str(folder), "MPLCONFIGDIR": str(folders.mktemp("mpl"))}
    command = [sys.executable, "-c", _SERVER, str(_free_port())]
    lines: list[str] = []
    up = threading.Event()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watcher = threading.Thread(target=_watch, args=(process, lines, up))
        watcher.start()
        try:
            assert up.wait(PATIENCE) and lines[-1].startswith("vqhps app: "), lines
            yield Served(lines[-1].split()[2], folder, process)
        finally:
            process.terminate()
            watcher.join(PATIENCE)
    assert process.returncode == 0
    assert list(folder.iterdir()) == [], "the app left files when it ended"
    assert not any("Traceback" in line for line in lines), lines


def _watch(process: subprocess.Popen, lines: list[str], up: threading.Event) -> None:
    """Collect what the app says; `up` once it serves or ends."""
    for line in process.stderr:
        lines.append(line)
        if line.startswith("vqhps app: "):
            up.set()
    up.set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def give(page: Page, url: str, file: Path) -> None:
    """Drop a file on the page."""
    if page.url != url:
        page.goto(url)
    clear = page.locator("#given").get_by_label("Clear")
    if clear.count():
        clear.first.click()
    page.locator("#given input[type=file]").set_input_files(file)


def gone(served: Served) -> list[Path]:
    """Files that are still there after some patience."""
    end = time.monotonic() + 30
    while served.files() and time.monotonic() < end:
        time.sleep(0.1)
    return served.files()
