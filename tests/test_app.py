"""The web page, through a real browser."""

import json
import os
import re
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pygltflib
import pytest
import trimesh
from PIL import Image

from browser import visit
from moving_people import astronaut as astronaut_photo
from moving_people import corners, encode
from served_app import PATIENCE, Served, give, gone, serve

VERTICES = 13718  # of the shipped body


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Served]:
    with serve(tmp_path_factory) as served:
        yield served


@pytest.fixture(scope="module")
def astronaut(tmp_path_factory) -> Path:
    return astronaut_photo(tmp_path_factory.mktemp("photos") / "astronaut.jpg")


def panned(path: Path, photo: Path, frames: int) -> Path:
    """A clip of a camera that swings over a photo."""
    image = np.asarray(Image.open(photo))
    shifts = [round(24 + 24 * np.sin(i / 6)) for i in range(frames)]
    return encode(path, [np.ascontiguousarray(image[:, x : x + 464]) for x in shifts], 25, "libx264")


def test_photo_in_glb_out(app, astronaut, tmp_path):
    with visit() as visited:
        page = visited.page
        give(visited.page, app.url, astronaut)
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
        end = time.monotonic() + PATIENCE
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


def test_clip_in_animation_out(app, astronaut, tmp_path):
    clip = panned(tmp_path / "clip.mp4", astronaut, 12)
    with visit() as visited:
        page = visited.page
        page.goto(app.url)
        page.evaluate("""() => {
            window.lines = [];
            const keep = () => window.lines.push(document.querySelector('#status')?.innerText);
            new MutationObserver(keep).observe(document.body, {subtree: true, childList: true, characterData: true});
        }""")
        give(page, app.url, clip)
        page.get_by_text("1 person in 12 frames, ").wait_for()
        lines = "\n".join(line for line in page.evaluate("window.lines") if line)
        assert re.search(r"^(Drawing|Finding bodies|Fitting the skeleton): \d+%", lines, re.M)
        assert page.locator("#stop").is_hidden() and page.locator("#overlay").is_hidden()
        page.wait_for_function("document.querySelector('#moving video').currentTime > 0")  # it plays
        assert page.locator("#moving video").evaluate("v => [v.videoWidth, v.videoHeight]") == [464, 512]
        page.locator("#moving iframe").scroll_into_view_if_needed()
        viewer = page.locator("#moving iframe").element_handle().content_frame()
        viewer.wait_for_function("people.length === 1 && DATA.frames === 12 && !state.dirty")
        names = ("clip.zip", "clip.glb", "clip_overlay.mp4")
        for at, name in enumerate(names):
            with page.expect_download() as started:
                page.locator("#files a[download]").nth(at).click()
            assert started.value.suggested_filename == name
            started.value.save_as(tmp_path / "got" / name)
        assert re.search(r"0\s+12\s+1\.\d m\s+\d+\.\d mm", page.inner_text("#people"))
        if folder := os.environ.get("VQHPS_SCREENSHOTS"):
            page.wait_for_timeout(3000)
            page.screenshot(path=f"{folder}/app-clip.png", full_page=True)
        address = page.locator("#moving video").evaluate("v => v.src")
        assert visited.errors == []
        assert {u for u in visited.requests if not u.startswith((app.url, "blob:", "data:", "about:"))} == set()
    scene = pygltflib.GLTF2().load(str(tmp_path / "got" / "clip.glb"))
    times = scene.accessors[scene.animations[0].samplers[0].input]
    assert len(scene.skins) == 1 and times.count == 12 and times.max == pytest.approx([11 / 25], abs=0.01)
    assert trimesh.load(tmp_path / "got" / "clip.glb", force="mesh").vertices.shape == (VERTICES, 3)
    with zipfile.ZipFile(tmp_path / "got" / "clip.zip") as archive:
        endings = ("_overlay.mp4", ".json", ".glb", "_0.bvh", "_joints.csv", ".html", "_motion.npz", "_motion.json")
        assert set(archive.namelist()) == {f"clip{e}" for e in endings} and archive.testzip() is None
    assert gone(app) == []
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address, timeout=PATIENCE)
    assert caught.value.code == 403
    caught.value.close()


def test_others_wait_and_work_can_be_stopped(app, astronaut, tmp_path):
    long = panned(tmp_path / "long.mp4", astronaut, 300)
    (tmp_path / "none.png").write_bytes(png(200, 200))
    with visit() as visited:
        first = visited.page
        second = first.context.browser.new_page()
        give(first, app.url, long)
        first.get_by_text("Finding bodies: ").wait_for()
        give(second, app.url, tmp_path / "none.png")
        second.get_by_text("Waiting: 1 file is before yours.").wait_for()
        first.locator("#stop").click()
        first.get_by_text("Stopped.").wait_for()
        second.locator("#status [role=alert]", has_text="none.png: no person found").wait_for()
        assert {path.name for path in app.files()} == {"long.mp4", "none.png"}, "what was begun is deleted"
        first.locator("#find").click()
        first.get_by_text("Finding bodies: ").wait_for()
        assert any("long.chunks" in str(path) or path.name == "long.mp4" for path in app.files())
        second.close()
    assert gone(app) == [], "a page that is closed at work leaves nothing"


def bad_files(folder: Path, good: Path) -> dict[Path, str]:
    """Files that must be refused, and a part of the message."""
    Image.new("L", (7100, 7100), 90).save(folder / "large.jpg")
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:9000])
    (folder / "text.png").write_text("hello\n")
    (folder / "<b>none.png").write_bytes(png(200, 200))
    (folder / "bomb.png").write_bytes(png(20_000, 20_000))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("hello\n" * 50)
    with av.open(str(folder / "sound.mp4"), "w") as sound:
        stream = sound.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        sound.mux(stream.encode(silence) + stream.encode(None))
    encode(folder / "hours.mp4", [corners()] * 2, times=[0, 7200])
    encode(folder / "huge.mp4", [corners(2560, 1440)] * 2)
    return {
        folder / "large.jpg": "large.jpg has 7100 x 7100 pixels, more than 40 million: scale it down",
        folder / "cut.jpg": "cut.jpg cannot be read as an image",
        folder / "text.png": "text.png is not an image",
        folder / "<b>none.png": "no person found",
        folder / "bomb.png": "bomb.png is too large",
        folder / "empty.mp4": "empty.mp4 is empty (0 bytes)",
        folder / "text.mp4": "text.mp4 is no video",
        folder / "sound.mp4": "sound.mp4 holds no pictures, only sound: give a video",
        folder / "hours.mp4": "hours.mp4 lasts more than 20 seconds: cut out a part",
        folder / "huge.mp4": "huge.mp4 has frames of 2560 x 1440 px, more than 2.1 million pixels",
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
            give(visited.page, app.url, path)
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
        ("gradio_api/file={folder}", None),
        ("gradio_api/file={folder}/results", None),
    ],
)
def test_nothing_else_is_served(app, address, body):
    root = next(app.folder.glob("vqhps-app-*"))
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(app.url + address.format(folder=root), data, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=PATIENCE):
        pass
    assert caught.value.code in (400, 404)
    assert caught.value.read() == b"refused\n"
    caught.value.close()
