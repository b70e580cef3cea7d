"""What stands behind the web page, without a browser: jobs in line, limits, folders of visitors."""

import contextlib
import importlib.util
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import trimesh

import tiny_bundle
from moving_people import PaintDetector, corners, encode, painted
from moving_people import astronaut as astronaut_photo
from vqhps import cli
from vqhps.app.clip import Clip
from vqhps.app.jobs import Job, Line, Stopped
from vqhps.app.limits import Limits
from vqhps.app.sessions import Sessions
from vqhps.app.work import Result, Worker
from vqhps.errors import VqhpsError
from vqhps.runtime.detect import BoxDetector
from vqhps.runtime.video import VideoFile

_PATIENCE = 120  # s


def wait(job: Job) -> Result:
    """The result of a job."""
    end = time.monotonic() + _PATIENCE
    while not job.over():
        assert time.monotonic() < end
        time.sleep(0.01)
    return job.result()


def work(worker: Worker, path: Path, focal: float | None, out: Path) -> Result:
    """What a worker makes of a file, to its very end."""
    ended = threading.Event()
    try:
        return wait(worker.start("me", path, focal, out, lambda good: ended.set()))
    finally:
        assert ended.wait(_PATIENCE)
        worker.line.close()


@pytest.fixture(scope="module")
def astronaut(tmp_path_factory) -> Path:
    return astronaut_photo(tmp_path_factory.mktemp("photos") / "astronaut.jpg")


@contextlib.contextmanager
def held_up(waiting: int) -> Iterator[tuple[Line, threading.Event]]:
    """A line, and an event that its jobs may wait for."""
    line, go = Line(waiting), threading.Event()
    try:
        yield line, go
    finally:
        go.set()
        line.close()


def test_one_job_at_a_time_and_each_its_turn():
    at_work: list[str] = []
    most: list[int] = []
    with held_up(8) as (line, go):

        def slow(job: Job) -> str:
            at_work.append(job.owner)
            most.append(len(at_work))
            assert go.wait(_PATIENCE)
            at_work.remove(job.owner)
            return job.owner

        jobs = [line.add(owner, 60, slow, lambda good: None) for owner in "abc"]
        assert [line.ahead(job) for job in jobs] == [0, 1, 2]
        line.stop("b")
        assert jobs[1].over() and line.ahead(jobs[2]) == 1, "who leaves the line lets the others come nearer"
        go.set()
        assert [wait(job) for job in (jobs[0], jobs[2])] == ["a", "c"], "nobody stops the work of others"
        assert max(most) == 1
        with pytest.raises(Stopped):
            jobs[1].result()


def test_a_line_is_not_endless_and_a_visitor_has_one_place():
    with held_up(1) as (line, go):
        line.add("a", 60, lambda job: go.wait(_PATIENCE), lambda good: None)
        first = line.add("b", 60, lambda job: 1, lambda good: None)
        second = line.add("b", 60, lambda job: 2, lambda good: None)
        assert first.over() and line.has("b"), "the second file takes the place of the first"
        with pytest.raises(VqhpsError, match="too many files wait here"):
            line.add("c", 60, lambda job: 3, lambda good: None)
        go.set()
        assert wait(second) == 2


def test_nothing_works_after_the_end(tmp_path):
    line, ends = Line(8), []

    def endless(job: Job) -> None:
        while True:
            job.at("waiting", 1, 2)
            time.sleep(0.01)

    job = line.add("a", 60, endless, ends.append)
    waiting = line.add("b", 60, endless, ends.append)
    while not job.doing[0]:
        time.sleep(0.01)
    line.close()
    assert ends == [False, False] and job.over() and waiting.over()


def test_a_job_ends_after_its_time(astronaut, tmp_path):
    going = threading.Event()
    worker = Worker(limits=Limits(photo_seconds=0.3), detector=lambda image: going.wait(_PATIENCE) and [])
    good = []
    job = worker.start("me", astronaut, None, tmp_path / "out", good.append)
    with pytest.raises(VqhpsError, match=r"longer than 0\.3 seconds"):
        wait(job)
    assert good == [], "it is still at work"
    going.set()
    worker.line.close()
    assert good == [False] and not (tmp_path / "out").exists()


def test_many_people_are_cut_to_the_best(astronaut, tmp_path):
    boxes = np.array([[10.0 + 20 * i, 5, 300 + 20 * i, 512] for i in range(5)])
    result = work(Worker(limits=Limits(photo_people=2), detector=BoxDetector(boxes)), astronaut, 700.0, tmp_path)
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
    sessions.finish("one", second, True)
    assert not first.exists() and second.exists() and other.exists()
    sessions.close("one")
    assert not second.exists() and upload.exists(), "the other page still uses the upload"
    sessions.close("two")
    assert not other.exists() and not upload.exists()
    with pytest.raises(VqhpsError, match="closed"):
        sessions.begin("one", upload)


def test_results_do_not_outlive_their_time_or_failure(tmp_path):
    sessions = Sessions(tmp_path)
    good, bad, busy = (sessions.begin(page, tmp_path / "a.jpg") for page in ("one", "two", "three"))
    sessions.finish("one", good, True)
    sessions.finish("two", bad, False)
    assert good.exists() and not bad.exists()
    sessions.expire(60)
    assert good.exists()
    sessions.expire(-1)
    assert not good.exists() and busy.exists(), "what is at work is left alone"
    assert len(busy.name) >= 22, "nobody guesses 128 bits"


def test_a_page_closed_at_work_leaves_nothing(tmp_path):
    sessions = Sessions(tmp_path)
    folder = sessions.begin("one", tmp_path / "a.jpg")
    sessions.close("one")
    folder.mkdir(parents=True)  # the work went on
    sessions.finish("one", folder, True)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_length": 0.4}, "a.mp4 lasts more than 0.4 seconds: cut out a part"),
        ({"clip_frames": 11}, "a.mp4 has more than 11 frames: cut out a part"),
        ({"clip_pixels": 10_000}, "a.mp4 has frames of 160 x 120 px, more than 0.01 million pixels"),
        ({"clip_bytes": 100}, "a.mp4 is larger than 0.0001 MB"),
    ],
)
def test_clips_beyond_a_limit_are_refused_by_their_header(tmp_path, changed, message):
    with pytest.raises(VqhpsError, match=message):
        Clip(encode(tmp_path / "a.mp4", [corners()] * 12), Limits(**changed))


def test_a_list_of_other_files_is_no_clip(tmp_path):
    """FFmpeg would open what it names, on this machine or elsewhere."""
    inner = encode(tmp_path / "inner.mp4", [corners()] * 2)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {inner.name}\n")
    assert len(list(VideoFile(tmp_path / "list.mp4").frames())) == 2
    with pytest.raises(VqhpsError, match=r"list\.mp4"):
        Clip(tmp_path / "list.mp4", Limits())


def test_a_header_that_promises_less_does_not_help(tmp_path):
    path = encode(tmp_path / "a.mp4", [corners()] * 12)
    for changed in ({"clip_frames": 11}, {"clip_length": 0.4}):
        clip = Clip(path, Limits())
        clip._limits = Limits(**changed)
        with pytest.raises(VqhpsError, match="more than"):
            list(clip.frames())


def test_a_cut_clip_of_many_keeps_what_was_decoded(tmp_path):
    boxes = [{n: (5 + 52 * n, 20 + i, 45 + 52 * n, 110 + i) for n in range(3)} for i in range(16)]
    whole = encode(tmp_path / "whole.mkv", [painted(people) for people in boxes]).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 7 // 8])
    (tmp_path / "out").mkdir()
    worker = Worker(limits=Limits(clip_people=2), detector=PaintDetector())
    result = work(worker, tmp_path / "cut.mkv", 300.0, tmp_path / "out")
    assert 6 < result.frames < 16 and result.focal == 300 and result.focal_from == "as given"
    assert len(result.notes) == 1 and result.notes[0].startswith("cut.mkv ends after")
    assert [(p.person, p.frames) for p in result.people] == [(0, result.frames), (1, result.frames)]
    names = [file.name.removeprefix("cut") for file in result.files]
    assert names == [".zip", ".glb", "_overlay.mp4", ".html", "_motion.npz", "_motion.json", "_0.bvh", "_1.bvh"]
    scene = pygltflib.GLTF2().load(str(result.files[1]))
    assert len(scene.skins) == 2 and len(scene.animations) == 1
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {file.name for file in result.files} | {"cut.json", "cut_joints.csv"}, "meshes and chunks are gone"


def test_a_body_without_a_skeleton_takes_photos_only(tmp_path):
    worker = Worker(tiny_bundle.write_bundle(tmp_path / "tiny"), detector=PaintDetector())
    with pytest.raises(VqhpsError, match="takes photos only"):
        work(worker, encode(tmp_path / "a.mp4", [corners()] * 12), None, tmp_path / "out")


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
