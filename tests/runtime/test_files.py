"""Photos in, files out: the next photo is predicted while files are written, in order; nothing is left half-done."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
from vqhps.errors import VqhpsError
from vqhps.runtime import files, threads
from vqhps.runtime.files import Outputs, Result, predict_photos
from vqhps.runtime.predictor import Predictor

BOX = np.array([[60.0, 20.0, 130.0, 150.0]])
PATIENCE = 20  # s; never waited for where the test passes


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "abcdef"]
    for path in paths:
        Image.fromarray(np.full((180, 200, 3), 90, np.uint8)).save(path)
    return paths


def run(predictor: Predictor, photos: list[Path], out: Path) -> Iterator[Result]:
    return predict_photos(predictor, photos, out, Outputs(), BOX)


def test_the_next_photo_is_predicted_while_files_are_written(
    predictor: Predictor, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the first wait until the second is read, and yet its result comes first."""
    second, read, write = threading.Event(), files.read_photo, files.write_outputs

    def reading(path: Path) -> object:
        if path == photos[1]:
            second.set()
        return read(path)

    def writing(predictor: Predictor, path: Path, *rest: object) -> list[Path]:
        if path == photos[0]:
            assert second.wait(PATIENCE)
        return write(predictor, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "read_photo", reading)
    monkeypatch.setattr(files, "write_outputs", writing)
    results = list(run(predictor, photos, tmp_path / "out"))
    assert [r.photo for r in results] == photos and all(r.error is None for r in results)
    assert all(file.exists() for r in results for file in r.files)


def test_few_photos_are_held_in_memory(
    predictor: Predictor, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, opened = files.read_photo, []
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(files, "read_photo", lambda path: opened.append(path) or read(path))  # type: ignore[func-returns-value]
    for done, _ in enumerate(run(predictor, photos, tmp_path / "out")):
        assert len(opened) <= done + 3  # two that are written, and one more
    assert opened == photos


def test_a_photo_that_fails_does_not_stop_the_others(
    predictor: Predictor, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos[1].write_bytes(b"no photo")
    write = files.write_outputs

    def writing(predictor: Predictor, path: Path, *rest: object) -> list[Path]:
        if path == photos[3]:
            raise VqhpsError("disk full")
        return write(predictor, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "write_outputs", writing)
    results = list(run(predictor, photos, tmp_path / "out"))
    assert [r.photo for r in results] == photos
    assert [str(r.error or "") for r in results][2:] == ["", "disk full", "", ""]
    assert "b.png is not an image" in str(results[1].error) and not results[1].files


def test_interrupted_it_leaves_whole_files(
    predictor: Predictor, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being written when somebody presses Ctrl-C is written to its end."""
    read, write, expected = files.read_photo, files.write_outputs, tmp_path / "expected"
    list(run(predictor, photos, expected))
    begun = threading.Event()

    def reading(path: Path) -> object:
        if path == photos[1]:
            assert begun.wait(PATIENCE)
            raise KeyboardInterrupt
        return read(path)

    def writing(*given: object) -> list[Path]:
        begun.set()
        time.sleep(0.5)
        return write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "read_photo", reading)
    monkeypatch.setattr(files, "write_outputs", writing)
    with pytest.raises(KeyboardInterrupt):
        list(run(predictor, photos, tmp_path / "out"))
    written = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in written] == sorted(p.name for p in expected.iterdir() if p.name[0] == "a")
    assert all(p.read_bytes() == (expected / p.name).read_bytes() for p in written)
