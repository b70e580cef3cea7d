"""The command line as a user meets it: what it writes, what it prints, and how it fails.

Runs on the bundle that ships with the package; on a tiny hand-made one (see `tiny_bundle`) where there is none.
"""

import builtins
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
import vqhps
from vqhps import cli

DEFAULT = Path(vqhps.__file__).parent / "bundles" / "default"
BOX = ["--box", "60", "20", "130", "150"]
ENDINGS = ("_overlay.png", "_side.png", "_0.glb", "_0.obj", ".npz", ".json")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Arguments that choose the bundle."""
    if DEFAULT.is_dir():
        return []
    return ["--bundle", str(tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))]


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (180, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


def lines_of(capsys) -> tuple[list[str], list[str]]:
    output = capsys.readouterr()
    return output.out.splitlines(), output.err.splitlines()


def test_predict_writes_what_it_says(photo, bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["predict", str(photo), "-o", str(out), *BOX, *bundle]) == 0
    printed, errors = lines_of(capsys)
    assert len(printed) == 1 and errors == []
    assert printed[0].startswith(f"{photo}: 1 person ->")
    assert [str(out / f"a{ending}") for ending in ENDINGS] == printed[0].split(" -> ")[1].split()
    assert sorted(p.name for p in out.iterdir()) == sorted(f"a{ending}" for ending in ENDINGS)
    assert json.loads((out / "a.json").read_text())["people"][0]["box"] == [60, 20, 130, 150]
    with Image.open(out / "a_overlay.png") as overlay:
        assert overlay.size == (200, 180)


def test_outputs_can_be_left_out(photo, bundle, tmp_path):
    off = ["--no-overlay", "--no-side", "--no-glb", "--no-obj", "--no-npz"]
    assert cli.main(["predict", str(photo), "-o", str(tmp_path / "out"), *BOX, *bundle, *off]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.json"]


def test_boxes_file_and_focal(photo, bundle, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.jpg": [[60, 20, 130, 150], [10, 10, 50, 100]], "b.jpg": []}))
    (tmp_path / "b.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "c.jpg").write_bytes(photo.read_bytes())
    photos = [str(photo), str(tmp_path / "b.jpg"), str(tmp_path / "c.jpg")]
    options = ["--boxes", str(boxes), "--focal", "321", *bundle]
    assert cli.main(["predict", *photos, "-o", str(tmp_path / "out"), *options]) == 2
    printed, errors = lines_of(capsys)
    assert len(printed) == 1 and "2 people" in printed[0] and "a_1.glb" in printed[0]
    assert len(errors) == 2 and "no person found" in errors[0] and "no entry 'c.jpg'" in errors[1]
    assert json.loads((tmp_path / "out" / "a.json").read_text())["focal"] == 321


def test_bad_photos_do_not_stop_the_good_one(photo, bundle, tmp_path, capsys):
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("hello\n")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jpg").write_bytes(photo.read_bytes())
    names = ["missing.jpg", "cut.jpg", "text.jpg", "dot.png", "folder.jpg", "a.jpg", "deep/a.jpg"]
    photos = [str(tmp_path / name) for name in names]
    assert cli.main(["predict", *photos, "-o", str(tmp_path / "out"), *BOX, *bundle]) == 2
    printed, errors = lines_of(capsys)
    assert len(printed) == 1 and "a.jpg: 1 person" in printed[0]
    bad = [name for name in names if name != "a.jpg"]
    assert len(errors) == len(bad)
    for name, line in zip(bad, errors, strict=True):
        assert line.startswith("vqhps: ") and str(tmp_path / name) in line
    assert (tmp_path / "out" / "a.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one photo"),
        (["{photo}", "--bundle", "nowhere"], "no bundle at nowhere"),
        (["{photo}", "--boxes", "nowhere.json"], "nowhere.json"),
        (["{photo}", "--box", "9", "9", "5", "5"], "box"),
        (["{photo}", "--box", "900", "9", "990", "50"], "lies outside the photo"),
        (["{photo}", "--focal", "-3", *BOX], "focal length"),
    ],
)
def test_bad_arguments_are_one_line(photo, bundle, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [a.format(photo=photo) for a in arguments]
    chosen = [] if "--bundle" in given else bundle
    assert cli.main(["predict", *given, *chosen]) == 2
    _, errors = lines_of(capsys)
    assert len(errors) == 1 and errors[0].startswith("vqhps: ") and message in errors[0]


def test_folder_that_cannot_be_written(photo, bundle, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["predict", str(photo), "-o", str(tmp_path / "file"), *BOX, *bundle]) == 2
    _, errors = lines_of(capsys)
    assert len(errors) == 1 and "cannot write" in errors[0]


def test_interrupt_is_one_line(photo, bundle, capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vqhps.runtime.files.read_photo", interrupt)
    assert cli.main(["predict", str(photo), *BOX, *bundle]) == 130
    _, errors = lines_of(capsys)
    assert len(errors) == 1 and "interrupted" in errors[0]


def test_missing_extra_names_the_mend(tmp_path, capsys, monkeypatch):
    """Without the training extra, a command that needs it says what to install."""
    real = builtins.__import__

    def no_torch(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *rest)  # type: ignore[arg-type]

    for module in [m for m in sys.modules if m.startswith(("vqhps.export", "vqhps.checkpoint"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", no_torch)
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    _, errors = lines_of(capsys)
    assert errors == ['vqhps: this command needs torch: pip install "vqhps[train]"']


def test_unknown_recipe_names_the_shipped_ones(capsys):
    assert cli.main(["train", "tokenizer", "--recipe", "nothing"]) == 2
    _, errors = lines_of(capsys)
    assert len(errors) == 1 and "shipped are" in errors[0]


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vqhps {vqhps.__version__}\n"


def test_bench(photo, bundle, tmp_path, capsys, monkeypatch):
    from moving_people import encode
    from vqhps.runtime import bench, detect
    from vqhps.runtime.predictor import Predictor

    found = detect.BoxDetector([[60.0, 20.0, 130.0, 150.0], [5.0, 20.0, 55.0, 150.0]])
    monkeypatch.setattr(bench, "Predictor", lambda chosen, _=None: Predictor(chosen, found))
    monkeypatch.setattr(bench, "PersonDetector", lambda threads: found)
    clip = encode(tmp_path / "clip.mp4", [np.full((180, 200, 3), 90, np.uint8)] * 9)
    assert cli.main(["bench", "predict", str(photo), "--videos", str(clip), "--runs", "2", *bundle]) == 0
    timings = json.loads(capsys.readouterr().out)
    assert timings["people"] == 2 and timings["person_ms"] == pytest.approx(timings["predict_ms"] / 2, abs=0.01)
    video = timings["clip.mp4"]
    assert (video["frames"], video["people"]) == (9, 2) and video["decoded_a_second"] > video["frames_a_second"] > 0
    assert cli.main(["bench", "predict", str(photo), "--runs", "0", *bundle]) == 2


def test_predicting_imports_no_torch(photo, bundle, tmp_path):
    """In a process of its own, the whole command with all outputs."""
    code = (
        "import sys; from vqhps.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'timm', 'anny', 'onnx', 'jaxtyping'} & set(sys.modules); "
        "print('imported', sorted(heavy)); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "predict", str(photo), "-o", str(tmp_path / "out"), *BOX, *bundle]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": ""}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []" and done.stderr == ""


def test_nobody_reads_any_more() -> None:
    """As with `| head`: no complaint."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from vqhps.cli import main; sys.exit(main())"
    result = subprocess.run([sys.executable, "-c", code, "--version"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_another_broken_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: object) -> object:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "worker")

    monkeypatch.setattr(cli, "_parse", broken)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "vqhps: Broken pipe: worker\n"
