"""From a video to its files: what they hold, going on after an interruption, and what a user sees when it fails."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh

import tiny_bundle
from moving_people import HEIGHT, WIDTH, Capture, PaintDetector, encode, painted, walk
from vqhps import cli
from vqhps.errors import VqhpsError
from vqhps.geometry import default_focal
from vqhps.runtime.motion import track_people
from vqhps.runtime.motion_files import CHUNK, VideoOptions, chunk_files, predict_video, read_chunk
from vqhps.runtime.predictor import Predictor, to_pixels
from vqhps.runtime.threads import prefetch
from vqhps.runtime.video import Frame, open_source

EVERY = 3
QUIET = VideoOptions(overlay=False, every=EVERY)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A red person walks for 70 frames; a blue one comes after 30 and is hidden from 45 to 54."""
    images = []
    for i, frame in enumerate(walk(70)):
        if 30 <= i < 45 or i >= 55:
            frame.image[20:100, 120:150] = painted({1: (0, 0, 30, 80)})[:80, :30]
        images.append(frame.image)
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", images, codec="libx264")


def run(bundle, clip, out, options=QUIET, interrupt=0):
    detector = PaintDetector(interrupt)
    result = predict_video(Predictor(bundle, detector), open_source(str(clip)), out, options)
    return result, detector


@pytest.fixture(scope="module")
def finished(bundle, clip, tmp_path_factory):
    """A whole run with everything on, without smoothing: its folder and result."""
    out = tmp_path_factory.mktemp("finished")
    result, _ = run(bundle, clip, out, VideoOptions(vertices=True, smoothing="none", every=EVERY))
    return out, result


@pytest.fixture(scope="module")
def arrays(finished):
    with np.load(finished[0] / "clip.npz") as content:
        return dict(content)


def test_arrays_as_promised(finished, arrays):
    out, result = finished
    assert (result.frames, result.people) == (70, 2)
    assert sorted(p.name for p in out.iterdir()) == ["clip.json", "clip.npz", "clip_overlay.mp4"]
    count = len(arrays["frame"])
    shapes = {
        "frame": ("int32", ()), "time": ("float64", ()), "person": ("int32", ()), "box": ("float32", (4,)),
        "score": ("float32", ()), "indices": ("uint16", (6,)), "rotation": ("float32", (3, 3)),
        "translation": ("float32", (3,)), "camera": ("float32", (3,)), "crop_center": ("float32", (2,)),
        "crop_size": ("float32", ()), "joints": ("float32", (17, 3)), "joints2d": ("float32", (17, 2)),
        "vertices": ("float16", (162, 3)),
    }  # fmt: skip
    for name, (kind, shape) in shapes.items():
        assert arrays[name].shape == (count, *shape) and arrays[name].dtype == kind, name
    assert sorted(set(arrays) - set(shapes)) == ["focal", "fps", "frames", "schema", "size", "smoothing"]


def test_rows_are_the_people_of_the_frames(arrays):
    frame, person = arrays["frame"], arrays["person"]
    assert np.array_equal(np.lexsort([person, frame]), np.arange(len(frame)))
    assert np.array_equal(frame[person == 0], np.arange(70))  # red, throughout
    blue = frame[person == 1]
    assert 30 <= blue[0] <= 33 and blue[-1] == 69 and not np.isin(range(48, 55), blue).any()
    assert np.isin(range(33, 44), blue).all() and 44 not in blue and np.isin(range(57, 70), blue).all()
    assert np.allclose(arrays["time"], frame / 25, atol=2e-3)
    expected = np.array([(10 + i, 30 - 5 * np.sin(i / 4), 40 + i, 110) for i in range(70)])
    assert np.abs(arrays["box"][person == 0] - expected).max() < 4
    assert (arrays["frames"], arrays["size"].tolist(), str(arrays["smoothing"])) == (70, [WIDTH, HEIGHT], "none")
    assert arrays["focal"] == pytest.approx(default_focal(WIDTH, HEIGHT)) and arrays["fps"] == pytest.approx(
        25, rel=0.05
    )


def test_vertices_joints_and_pixels_belong_together(arrays):
    body = arrays["vertices"].astype(float)
    assert np.abs(body.mean(1)).max() < 1e-3
    camera = body @ arrays["rotation"].transpose(0, 2, 1) + arrays["translation"][:, None]
    assert np.abs(tiny_bundle.regressor() @ camera - arrays["joints"]).max() < 3e-3
    pixels = to_pixels(arrays["joints"].astype(float), float(arrays["focal"]), (WIDTH, HEIGHT))
    assert np.abs(pixels - arrays["joints2d"]).max() < 0.01


def test_one_photo_at_a_time_gives_the_same_bodies(arrays, bundle, clip):
    frame = list(open_source(str(clip)).frames())[30]
    row = int(np.flatnonzero((arrays["frame"] == 30) & (arrays["person"] == 0))[0])
    person = Predictor(bundle).predict(frame.image, [arrays["box"][row]])[0]
    for name in ("joints", "rotation", "translation", "camera", "crop_center"):
        assert np.allclose(getattr(person, name), arrays[name][row], atol=1e-3), name


def test_json_says_the_same(arrays, finished):
    content = json.loads((finished[0] / "clip.json").read_text(encoding="utf-8"))
    assert (content["video"], content["width"], content["height"]) == ("clip.mp4", WIDTH, HEIGHT)
    assert [f["frame"] for f in content["frames"]] == list(range(70))
    people = [(f["frame"], p["person"]) for f in content["frames"] for p in f["people"]]
    assert people == list(zip(arrays["frame"].tolist(), arrays["person"].tolist(), strict=True))
    joints = np.array([p["joints2d"] for f in content["frames"] for p in f["people"]])
    assert np.abs(joints - arrays["joints2d"]).max() < 1e-4


def test_overlay_draws_on_every_frame(finished, clip):
    drawn, plain = (list(open_source(str(p)).frames()) for p in (finished[0] / "clip_overlay.mp4", clip))
    assert np.allclose([f.time for f in drawn], [f.time for f in plain], atol=1e-3)
    for a, b in zip(drawn, plain, strict=True):
        changed = np.abs(a.image.astype(int) - b.image).max(-1) > 60
        assert 100 < changed.sum() < WIDTH * HEIGHT / 2


def test_side_by_side_and_sequences(bundle, clip, finished, arrays, tmp_path):
    options = VideoOptions(overlay=False, smoothing="none", every=EVERY, side_by_side=True, sequence="ply")
    result, _ = run(bundle, clip, tmp_path, options)
    assert [p.name for p in result.files] == ["clip.npz", "clip.json", "clip_side_by_side.mp4", "clip_ply"]
    pictures, overlay = (
        list(open_source(str(p)).frames())
        for p in (tmp_path / "clip_side_by_side.mp4", finished[0] / "clip_overlay.mp4")
    )
    assert np.allclose([f.time for f in pictures], [f.time for f in overlay], atol=1e-3) and len(pictures) == 70
    sides = []
    for a, b in zip(pictures, overlay, strict=True):
        assert a.image.shape == (HEIGHT, 2 * WIDTH, 3)
        assert np.abs(a.image[:, :WIDTH].astype(int) - b.image).mean() < 4  # encoded apart
        colored = np.ptp(a.image[:, WIDTH:].astype(int), axis=-1) > 40
        assert 20 < colored.sum() < WIDTH * HEIGHT / 3 and a.image[0, -1].min() > 200
        sides.append(colored)
    assert sides[40].sum() > 1.3 * sides[10].sum()  # the second person is there
    files = sorted(p.name for p in (tmp_path / "clip_ply").rglob("*.ply"))
    assert files == [f"person_{p}_{i:06d}.ply" for p in (0, 1) for i in range(70)]
    row = int(np.flatnonzero((arrays["frame"] == 40) & (arrays["person"] == 1))[0])
    placed = arrays["vertices"][row].astype(float) @ arrays["rotation"][row].T + arrays["translation"][row]
    mesh = trimesh.load(tmp_path / "clip_ply" / "person_1" / "person_1_000040.ply", process=False)
    assert np.abs(mesh.vertices - placed * [1, -1, -1]).max() < 1e-3


@pytest.mark.parametrize("smoothing", ["average", "one-euro"])
def test_a_stopped_run_ends_like_one_that_was_not(bundle, clip, tmp_path, smoothing):
    options = VideoOptions(overlay=False, vertices=True, smoothing=smoothing, every=EVERY)
    whole, whole_detector = run(bundle, clip, tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        run(bundle, clip, tmp_path / "stopped", options, interrupt=22)
    kept = chunk_files(tmp_path / "stopped" / "clip.chunks")
    assert len(kept) == 1 and read_chunk(kept[0])[0].stop == CHUNK * EVERY
    again, detector = run(bundle, clip, tmp_path / "stopped", options)
    assert detector.looks < whole_detector.looks / 2
    assert again.people == whole.people == 2
    for name in ("clip.npz", "clip.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == ["clip.json", "clip.npz"]


def test_other_settings_start_from_the_beginning(bundle, clip, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(bundle, clip, tmp_path, interrupt=22)
    _, detector = run(bundle, clip, tmp_path, VideoOptions(overlay=False, every=EVERY, focal=300.0))
    assert detector.looks >= 24
    with np.load(tmp_path / "clip.npz") as arrays:
        assert arrays["focal"] == 300 and len(np.unique(arrays["frame"])) == 70 and "vertices" not in arrays.files


def test_nobody_and_one_frame(bundle, tmp_path):
    empty = encode(tmp_path / "empty.mp4", [painted({})] * 5)
    result, _ = run(bundle, empty, tmp_path / "out")
    assert (result.frames, result.people) == (5, 0)
    with np.load(tmp_path / "out" / "empty.npz") as arrays:
        assert arrays["joints"].shape == (0, 17, 3) and arrays["frames"] == 5
    single = encode(tmp_path / "single.mp4", [walk(1)[0].image])
    assert run(bundle, single, tmp_path / "out")[0].people == 1
    with pytest.raises(VqhpsError, match="every 1 frame"):
        run(bundle, empty, tmp_path / "bad", VideoOptions(every=0))


@pytest.mark.parametrize(("fps", "looks"), [(1, 24), (12, 9), (24, 5), (25, 5), (60, 5)])
def test_detector_looks_four_times_a_second_or_more(bundle, fps, looks):
    """At every sixth frame, every third of 12 a second, or every one; and at the last."""
    detector = PaintDetector()
    images = [frame.image for frame in walk(24)]
    frames = list(track_people(Predictor(bundle, detector), images, smoothing="none", fps=fps))
    assert [list(f.people) for f in frames] == [[0]] * 24
    assert detector.looks == looks


def test_generator_of_the_library(bundle, clip, arrays):
    predictor = Predictor(bundle, PaintDetector())
    frames = list(track_people(predictor, open_source(str(clip)).frames(), EVERY, "none"))
    assert [f.index for f in frames] == list(range(70))
    people = [(f.index, person) for f in frames for person in f.people]
    assert people == list(zip(arrays["frame"].tolist(), arrays["person"].tolist(), strict=True))
    joints = np.stack([p.joints for f in frames for p in f.people.values()])
    assert np.allclose(joints, arrays["joints"], atol=1e-5)
    last = frames[-1].people[0]
    assert np.allclose(tiny_bundle.regressor() @ last.vertices, last.joints, atol=5e-3)
    images = (frame.image for frame in walk(20))
    assert [sorted(f.people) for f in predictor.track(images)] == [[0]] * 20


def test_reading_ahead_is_bounded_and_stops():
    made = []

    def count():
        for i in range(1000):
            made.append(i)
            yield i

    items = prefetch(count(), 3)
    assert [next(items) for _ in range(5)] == list(range(5))
    items.close()
    assert len(made) < 12
    with pytest.raises(ZeroDivisionError):
        list(prefetch((1 // n for n in (1, 0)), 3))


class Pacing:
    """Somebody who walks to and fro, as long as wanted; no frame is kept."""

    name, stem, fps, notes = "pacing", "pacing", 25.0, ()

    def __init__(self, count):
        self.total, self.identity = count, {"frames": count}

    def frames(self, start=0):
        for i in range(start, self.total):
            x = 25 + 20 * np.sin(i / 10)
            yield Frame(i, i / 25, painted({0: (x, 10, x + 20, 55)}, 80, 60))

    replay = frames


def test_memory_does_not_grow_with_the_video(bundle, tmp_path):
    """Of five times as many frames no more is held: neither pictures (14 kB each) nor rows (2 kB each)."""

    def peak(count):
        predictor = Predictor(bundle, PaintDetector())
        tracemalloc.start()
        try:
            result = predict_video(predictor, Pacing(count), tmp_path / str(count), VideoOptions(True, every=EVERY))
            assert (result.frames, result.people) == (count, 1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is loaded once
    assert peak(300) - peak(60) < 150_000


def command(monkeypatch, bundle, *arguments) -> int:
    monkeypatch.setattr("vqhps.runtime.detect.PersonDetector", PaintDetector)
    return cli.main(["video", *map(str, arguments), "--bundle", str(bundle)])


def test_command_line(bundle, clip, tmp_path, capsys, monkeypatch):
    content = clip.read_bytes()
    cut = encode(tmp_path / "cut.mkv", [f.image for f in walk(40)], codec="libx264")
    cut.write_bytes(cut.read_bytes()[: len(cut.read_bytes()) // 2])
    assert command(monkeypatch, bundle, cut, "-o", tmp_path / "out", "--no-overlay", "--smooth", "none") == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1 and f"{cut}: 1 person in" in output.out
    assert len(output.err.splitlines()) == 1 and output.err.startswith(f"vqhps: {cut}")
    (tmp_path / "text.mp4").write_text("hello\n")
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    for name in ("text.mp4", "half.mp4", "missing.mp4"):
        assert command(monkeypatch, bundle, tmp_path / name, "-o", tmp_path / "bad") == 2
        output = capsys.readouterr()
        assert output.out == "" and len(output.err.splitlines()) == 1 and str(tmp_path / name) in output.err
    assert not (tmp_path / "bad").exists()


def test_webcam_ends_with_an_interrupt_and_its_pictures_are_kept(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setattr("vqhps.runtime.detect.PersonDetector", lambda threads: PaintDetector(4))
    assert cli.main(["video", "0", "-o", str(tmp_path), "--bundle", str(bundle)]) == 0
    assert "webcam 0: 1 person in" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "webcam-0.json", "webcam-0.mp4", "webcam-0.npz", "webcam-0_overlay.mp4",
    ]  # fmt: skip


def test_a_real_interrupt_is_one_line_and_keeps_chunks(bundle, clip, tmp_path):
    code = """
import sys
import vqhps.runtime.detect as detect
from moving_people import PaintDetector
detect.PersonDetector = lambda threads: PaintDetector(22)
from vqhps.cli import main
sys.exit(main(sys.argv[1:]))
"""
    paths = [str(ROOT / "src"), str(ROOT / "tests")]
    arguments = ["video", str(clip), "-o", str(tmp_path), "--bundle", str(bundle), "--detect-every", str(EVERY)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 130 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "clip.chunks" in done.stderr
    table, about = read_chunk(chunk_files(tmp_path / "clip.chunks")[0], meshes=True)
    assert table.stop == 48 and len(table.rows["vertices"]) >= 48 and about["size"] == [WIDTH, HEIGHT]
