"""Videos as tokens and back: `vqhps video --tokens`, `vqhps tokenize` of videos, and what they hold."""

import json

import numpy as np
import pytest

import tiny_bundle
from moving_people import PaintDetector, encode, painted, walk
from rigged_people import two_people, write_predictions
from tiny_fitted import fitted_tokenizer
from vqhps import cli
from vqhps.evaluation.motion_tokens import evaluate_motion_tokens
from vqhps.evaluation.video import read_people
from vqhps.export_tokenizer import export_tokenizer
from vqhps.geometry import full_translation
from vqhps.runtime import motion_tokens
from vqhps.runtime.animate import Predictions
from vqhps.runtime.motion_files import VideoOptions, predict_video
from vqhps.runtime.predictor import Predictor
from vqhps.runtime.tokenizer import MeshTokenizer, default_tokenizer
from vqhps.runtime.video import open_source
from vqhps.runtime.vqt import read_vqt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "capsule"
    export_tokenizer(fitted_tokenizer(), out, "none")
    info = json.loads((out / "tokenizer.json").read_text())
    (out / "tokenizer.json").write_text(json.dumps(info | {"far_mm": 900.0}))  # the bundle's capsules swell more
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def out(folder, bundle, tmp_path_factory):
    """A red person walks for 20 frames, a blue one comes half way: NPZ with meshes, and tokens."""
    images = [frame.image for frame in walk(20)]
    for image in images[9:]:
        image[20:100, 120:150] = painted({1: (0, 0, 30, 80)})[:80, :30]
    out = tmp_path_factory.mktemp("out")
    source = open_source(str(encode(out / "clip.mp4", images, codec="libx264")))
    options = VideoOptions(vertices=True, overlay=False, tokens=True, every=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion_tokens, "default_tokenizer", lambda: MeshTokenizer.load(folder))
        result = predict_video(Predictor(bundle, PaintDetector()), source, out, options)
    assert [path.name for path in result.files] == ["clip.npz", "clip.json", "clip.vqt"] and result.people == 2
    return out


def arrays(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def command(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


def test_the_npz_comes_back(folder, out, tmp_path, capsys):
    back = tmp_path / "back.npz"
    code, printed, errors = command(capsys, "tokenize", out / "clip.vqt", "-o", back, "--bundle", folder)
    table, found = arrays(out / "clip.npz"), arrays(back)
    assert (code, errors) == (0, []) and printed == [f"{out / 'clip.vqt'} -> {back}: {len(table['frame'])} meshes"]
    assert found.keys() == table.keys() and all(found[n].dtype == c.dtype for n, c in table.items())
    assert all(found[name].shape == column.shape for name, column in table.items())
    for name in ("frame", "person", "frames", "focal", "fps", "size", "smoothing", "schema"):
        np.testing.assert_array_equal(found[name], table[name])
    np.testing.assert_allclose(found["time"], table["time"], atol=1e-6)
    assert max(np.abs(found[n] - table[n]).max() for n in ("box", "crop_center", "crop_size")) < 0.1
    np.testing.assert_allclose(found["translation"], table["translation"], atol=2e-3)
    tokenizer = MeshTokenizer.load(folder)
    still = np.broadcast_to(np.eye(3), (len(table["frame"]), 3, 3))
    tokens = tokenizer.encode(table["vertices"].astype(np.float32), still)
    np.testing.assert_array_equal(found["indices"], tokens.indices)
    assert read_people(back).tracks.frame.tolist() == table["frame"].tolist()
    assert Predictions.open(back).person.tolist() == table["person"].tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["back.npz"]


def test_columns_belong_together(folder, out, tmp_path, capsys):
    back = tmp_path / "back.npz"
    assert command(capsys, "tokenize", out / "clip.vqt", "-o", back, "--bundle", folder)[0] == 0
    found = arrays(back)
    placed = found["vertices"].astype(float) @ found["rotation"].transpose(0, 2, 1) + found["translation"][:, None]
    assert np.abs(tiny_bundle.regressor() @ placed - found["joints"]).max() < 2e-3
    focals, middle = np.full(len(placed), found["focal"]), np.tile(found["size"] / 2, (len(placed), 1))
    place = full_translation(found["camera"], found["crop_center"], found["crop_size"], focals, middle)
    np.testing.assert_allclose(place, found["translation"], atol=1e-4)


def test_an_npz_becomes_the_same_tokens(folder, out, tmp_path, capsys):
    code, printed, errors = command(
        capsys, "tokenize", out / "clip.npz", "-o", tmp_path / "clip.vqt", "--bundle", folder
    )
    assert (code, errors) == (0, []) and "mm from their tokens" in printed[0]
    tokenizer = MeshTokenizer.load(folder)
    first, second = (read_vqt(path / "clip.vqt", tokenizer) for path in (out, tmp_path))
    for name, column in first.rows.items():
        np.testing.assert_array_equal(second.rows[name], column)
    assert second.header.crop_scale == first.header.crop_scale and second.header.fps == first.header.fps


def test_a_cut_file_is_said_so(folder, out, tmp_path, capsys):
    (tmp_path / "cut.vqt").write_bytes((out / "clip.vqt").read_bytes()[:-100])
    code, printed, errors = command(
        capsys, "tokenize", tmp_path / "cut.vqt", "-o", tmp_path / "back.npz", "--bundle", folder
    )
    assert code == 0 and len(printed) == 1 and "cut off" in errors[0] and len(errors) == 1
    assert len(arrays(tmp_path / "back.npz")["frame"]) == len(arrays(out / "clip.npz")["frame"]) - 4


def test_nobody(folder, bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(motion_tokens, "default_tokenizer", lambda: MeshTokenizer.load(folder))
    source = open_source(str(encode(tmp_path / "empty.mp4", [painted({})] * 5)))
    predict_video(Predictor(bundle, PaintDetector()), source, tmp_path, VideoOptions(overlay=False, tokens=True))
    assert command(capsys, "tokenize", tmp_path / "empty.vqt", "-o", tmp_path / "b.npz", "--bundle", folder)[0] == 0
    assert arrays(tmp_path / "b.npz")["vertices"].shape == (0, 162, 3)


def test_steady_between_frames_and_plain_where_some_are_missing(tmp_path, monkeypatch):
    """People of the real body who move smoothly: person 0 in frames 10 to 21, person 4 in three at a time."""
    monkeypatch.setattr(motion_tokens, "_CHUNK", 5)
    tokenizer = default_tokenizer()
    table = complete(tmp_path / "a.npz")
    motion_tokens.pack(tmp_path / "a.npz", tmp_path / "a.vqt", tokenizer)
    motion_tokens.unpack(tmp_path / "a.vqt", tmp_path / "b.npz", tokenizer)
    found, plain = arrays(tmp_path / "b.npz"), tokenizer.decode(arrays(tmp_path / "b.npz")["indices"])
    body = found["vertices"].astype(float)
    mine = np.flatnonzero(found["person"] == 0)
    inner = mine[2:-2]
    np.testing.assert_allclose(np.delete(body, inner, 0), np.delete(plain, inner, 0), atol=1e-3)
    for i in range(2, len(mine) - 2):
        around = plain[mine[i - 2 : i + 3]].reshape(5, -1)
        parabola = np.polynomial.polynomial.polyfit(np.arange(-2, 3), around, 2)[0].reshape(-1, 3)
        np.testing.assert_allclose(body[mine[i]], parabola, atol=1e-3)
    true = table["vertices"].astype(float)
    away = [1000 * np.linalg.norm(x[inner] - true[inner], axis=-1).mean() for x in (body, plain)]
    assert away[0] < away[1] < 10
    third = [np.linalg.norm(np.diff(x[mine], 3, axis=0), axis=-1).mean() for x in (body, plain)]
    assert third[0] < 0.7 * third[1]


def complete(path, **changes):
    """A file of `vqhps video --vertices` of two people of the real body."""
    write_predictions(path, two_people())
    table = arrays(path)
    count = len(table["frame"])
    table |= {
        "box": np.tile([100, 50, 180, 300.0], (count, 1)), "score": np.ones(count), "crop_size": np.full(count, 312.5),
        "frames": np.int64(22), "smoothing": np.array("average"), "indices": np.zeros((count, 54), np.uint16),
    }  # fmt: skip
    table |= {name: value(table[name]) if callable(value) else value for name, value in changes.items()}
    np.savez(path, **{name: value for name, value in table.items() if value is not None})
    return table


def test_report_of_sizes_and_errors(tmp_path, capsys):
    """Of bodies whose origin is not the mean of their vertices."""
    complete(tmp_path / "a.npz", vertices=lambda vertices: vertices + np.float16(0.1))
    rows = {stored.way: stored for stored in evaluate_motion_tokens(tmp_path / "a.npz")}
    header = 330
    assert 98 < rows["tokens"].bytes_a_mesh < 98 + header / 18
    assert rows["npz"].error_mm == 0 and rows["half precision"].bytes_a_mesh == 13718 * 6
    assert rows["npz"].bytes_a_mesh == (tmp_path / "a.npz").stat().st_size / 18
    assert 0.2 < rows["millimetres, xz"].error_mm < 0.6 < rows["tokens"].error_mm < 10
    assert rows["tokens"].error_mm < rows["tokens by themselves"].error_mm < rows["predicted tokens"].error_mm
    assert rows["npz"].error_px == 0 and 0.1 < rows["tokens"].error_px / rows["tokens"].error_mm < 900 / 4000
    assert rows["tokens"].jitter_mm < rows["tokens by themselves"].jitter_mm
    assert cli.main(["evaluate", "tokens", str(tmp_path / "a.npz")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": None}, "vqhps video --vertices"),
        ({"smoothing": None}, "vqhps video --vertices"),
        ({"score": np.zeros(3)}, "score must be (18,)"),
        ({"vertices": np.zeros((18, 100, 3), np.float16)}, "13718 vertices"),
        ({"vertices": lambda vertices: 3 * vertices}, "no anny-full bodies"),
    ],
)
def test_bad_npz_is_one_line(tmp_path, capsys, changes, message):
    complete(tmp_path / "a.npz", **changes)
    code, printed, errors = command(capsys, "tokenize", tmp_path / "a.npz", "-o", tmp_path / "a.vqt")
    assert (code, printed) == (2, []) and message in errors[-1] and str(tmp_path / "a.npz") in errors[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_photos_and_other_endings_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "photo.npz", vertices=np.zeros((1, 9, 3)), focal=9.0, image_size=[4, 3], box=np.zeros((1, 4)))
    for source, target in (("photo.npz", "a.vqt"), ("a.vqt", "a.obj"), ("a.obj", "a.vqt"), ("missing.vqt", "a.npz")):
        code, _, errors = command(capsys, "tokenize", tmp_path / source, "-o", tmp_path / target)
        assert code == 2 and len(errors) == 1, (source, errors)


def test_a_model_of_another_body_is_refused_before_work(bundle, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vqhps.runtime.detect.PersonDetector", PaintDetector)
    code, _, errors = command(
        capsys, "video", out / "clip.mp4", "-o", tmp_path / "x", "--tokens", "--bundle", bundle, "--no-overlay"
    )
    assert code == 2 and len(errors) == 1 and "leave out --tokens" in errors[0] and not (tmp_path / "x").exists()
