"""The web page, through a real browser, and what stands behind it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from browser import Visit, visit
from vqhps import cli
from vqhps.app.sessions import Sessions
from vqhps.app.work import Limits, Worker
from vqhps.errors import VqhpsError
from vqhps.runtime.detect import BoxDetector

VERTICES = 13718  # of the shipped body
_SERVER = "import sys; from vqhps.cli import main; sys.exit(main(['app', '--port', sys.argv[1]]))"
_PATIENCE = 120  # s


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


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tmp")
    environment = {**os.environ, "TMPDIR": str(folder), "MPLCONFIGDIR": str(tmp_path_factory.mktemp("mpl"))}
    command = [sys.executable, "-c", _SERVER, str(free_port())]
    lines: list[str] = []
    up = threading.Event()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watcher = threading.Thread(target=watch, args=(process, lines, up))
        watcher.start()
        try:
            assert up.wait(_PATIENCE) and lines[-1].startswith("vqhps app: "), lines
            yield Served(lines[-1].split()[2], folder, process)
        finally:
            process.terminate()
            watcher.join(_PATIENCE)
    assert process.returncode == 0
    assert list(folder.iterdir()) == [], "the app left files when it ended"
    assert not any("Traceback" in line for line in lines), lines


def watch(process: subprocess.Popen, lines: list[str], up: threading.Event) -> None:
    """Collect what the app says; `up` once it serves or ends."""
    for line in process.stderr:
        lines.append(line)
        if line.startswith("vqhps app: "):
            up.set()
    up.set()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def astronaut(tmp_path_factory) -> Path:
    from skimage.data import astronaut as load

    path = tmp_path_factory.mktemp("photos") / "astronaut.jpg"
    Image.fromarray(load()).save(path)
    return path


def give(visited: Visit, url: str, photo: Path) -> None:
    if visited.page.url != url:
        visited.page.goto(url)
    clear = visited.page.get_by_label("Clear")
    if clear.count():
        clear.first.click()
    visited.page.locator("#photo input[type=file]").set_input_files(photo)


def gone(served: Served) -> list[Path]:
    """Files that are still there after some patience."""
    end = time.monotonic() + 30
    while served.files() and time.monotonic() < end:
        time.sleep(0.1)
    return served.files()


def test_photo_in_glb_out(app, astronaut, tmp_path):
    with visit() as visited:
        page = visited.page
        give(visited, app.url, astronaut)
        page.get_by_text("1 person in").wait_for()
        page.locator("#overlay img").wait_for()
        assert page.locator("#overlay img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 512
        for name, at in (("astronaut.zip", 0), ("astronaut_0.glb", 1)):
            with page.expect_download() as started:
                page.locator("#files a[download]").nth(at).click()
            assert started.value.suggested_filename == name
            started.value.save_as(tmp_path / name)
        page.locator("#model canvas").wait_for()
        assert re.search(r"0\s+0\.\d\d\s+1\.\d m", page.inner_text("#people"))
        assert re.search(r"finding people\s+\d+ ms", page.inner_text("#people"))
        end = time.monotonic() + _PATIENCE
        while not any(url.endswith(".glb") for url in visited.requests):
            assert time.monotonic() < end, "the 3D view did not load the mesh"
            page.wait_for_timeout(100)
        if folder := os.environ.get("VQHPS_SCREENSHOTS"):
            page.wait_for_timeout(5000)
            page.screenshot(path=f"{folder}/app.png", full_page=True)
        assert app.files()
        assert visited.errors == []
        assert {u for u in visited.requests if not u.startswith((app.url, f"blob:{app.url}", "data:"))} == set()
    assert trimesh.load(tmp_path / "astronaut_0.glb", force="mesh").vertices.shape == (VERTICES, 3)
    with zipfile.ZipFile(tmp_path / "astronaut.zip") as archive:
        expected = {f"astronaut{e}" for e in ("_overlay.png", "_side.png", "_0.glb", "_0.obj", ".npz", ".json")}
        assert set(archive.namelist()) == expected and archive.testzip() is None
    assert gone(app) == []


def bad_files(folder: Path, good: Path) -> dict[Path, str]:
    """Files that must be refused, and a part of the message."""
    Image.new("L", (7100, 7100), 90).save(folder / "large.jpg")
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:9000])
    (folder / "text.png").write_text("hello\n")
    (folder / "<b>none.png").write_bytes(png(200, 200))
    (folder / "bomb.png").write_bytes(png(20_000, 20_000))
    return {
        folder / "large.jpg": "large.jpg has 7100 x 7100 pixels, more than 40 million: scale it down",
        folder / "cut.jpg": "cut.jpg cannot be read as an image",
        folder / "text.png": "text.png is not an image",
        folder / "<b>none.png": "no person found",
        folder / "bomb.png": "bomb.png is too large",
    }


def png(width: int, height: int) -> bytes:
    """A black picture of any size in few bytes."""
    packer = zlib.compressobj(6)
    row = bytes(width + 1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    chunks = ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


def test_bad_files_are_refused_politely(app, astronaut, tmp_path):
    files = bad_files(tmp_path, astronaut)
    with visit(390, 844) as visited:  # a phone
        for path, message in files.items():
            before = app.peak_mb()
            give(visited, app.url, path)
            line = visited.page.locator("#status [role=alert]", has_text=message)
            line.wait_for()
            assert "Traceback" not in line.inner_text() and str(app.folder) not in line.inner_text()
            assert line.inner_text().count("\n") == 0 and line.locator("b").count() == 0
            assert not visited.page.locator("#overlay").is_visible()
            if path.name == "bomb.png":
                assert app.peak_mb() - before < 100, "400 MB were unpacked"
        width = visited.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, "the page is wider than a phone"
    assert gone(app) == []


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("gradio_api/file=/etc/hostname", None),
        ("gradio_api/file=http://127.0.0.1:1/", None),
        ("gradio_api/file={folder}/../../etc/hostname", None),
        ("gradio_api/proxy=http://127.0.0.1:1/", None),
        ("gradio_api/runs", None),
        ("docs", None),
        ("gradio_api/queue/join", {"data": [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}]}),
        ("gradio_api/queue/join", {"data": [{"path": "http://127.0.0.1:1/a.png"}]}),
        ("gradio_api/queue/join", ["x" * 200_000]),
    ],
)
def test_nothing_else_is_served(app, address, body):
    root = next(app.folder.glob("vqhps-app-*"))
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(app.url + address.format(folder=root), data, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=_PATIENCE):
        pass
    assert caught.value.code in (400, 404)
    assert caught.value.read() == b"refused\n"
    caught.value.close()


def test_a_job_ends_after_its_time(astronaut, tmp_path):
    going = threading.Event()
    worker = Worker(limits=Limits(seconds=0.3), detector=lambda image: going.wait(_PATIENCE) and [])
    with pytest.raises(VqhpsError, match=r"longer than 0\.3 seconds"):
        worker.photo(astronaut, None, tmp_path / "out")
    going.set()
    worker.close()
    assert not (tmp_path / "out").exists()


def test_many_people_are_cut_to_the_best(astronaut, tmp_path):
    boxes = np.array([[10.0 + 20 * i, 5, 300 + 20 * i, 512] for i in range(5)])
    worker = Worker(limits=Limits(people=2), detector=BoxDetector(boxes))
    result = worker.photo(astronaut, 700.0, tmp_path)
    worker.close()
    assert len(result.people) == 2 and result.focal == 700 and result.focal_from == "as given"
    scene = trimesh.load(result.model)
    assert len(scene.geometry) == 2
    for number, file in enumerate(result.files[1:], 1):
        body = trimesh.load(file, force="mesh")
        assert np.allclose(scene.geometry[f"person {number}"].bounds, body.bounds, atol=1e-5)
    assert [file.name for file in result.files] == ["astronaut.zip", "astronaut_0.glb", "astronaut_1.glb"]


def test_sessions_delete_what_is_theirs(tmp_path):
    sessions = Sessions(tmp_path)
    upload = tmp_path / "hash" / "a.jpg"
    upload.parent.mkdir()
    upload.write_bytes(b"1")
    first = sessions.begin("one", upload)
    second = sessions.begin("one", upload)
    other = sessions.begin("two", upload)
    sessions.finish("one", second)
    assert not first.exists() and second.exists() and other.exists()
    sessions.close("one")
    assert not second.exists() and upload.exists(), "the other page still uses the upload"
    sessions.close("two")
    assert not other.exists() and not upload.exists()
    with pytest.raises(VqhpsError, match="closed"):
        sessions.begin("one", upload)


def test_a_page_closed_at_work_leaves_nothing(tmp_path):
    sessions = Sessions(tmp_path)
    folder = sessions.begin("one", tmp_path / "a.jpg")
    sessions.close("one")
    folder.mkdir(parents=True)  # the work went on
    sessions.finish("one", folder)
    assert not folder.exists()


def test_missing_gradio_names_the_mend(capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("vqhps.cli_app.find_spec", lambda name: None if name == "gradio" else real(name))
    assert cli.main(["app"]) == 2
    assert capsys.readouterr().err == 'vqhps: this command needs gradio: pip install "vqhps[app]"\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--port", "70000"], "from 1 to 65535"), (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1 port 7860")],
)
def test_bad_addresses_are_one_line(capsys, arguments, message):
    assert cli.main(["app", *arguments]) == 2
    assert message in capsys.readouterr().err
