"""`vqhps animate`: from a file of predictions to the files of motion."""

import json
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rigged_people import person, two_people, write_predictions
from vqhps import cli
from vqhps.runtime import animate
from vqhps.runtime.animate import Files, Predictions, fit_people, write_files
from vqhps.runtime.rig import Rest, default_rig

ENDINGS = [".glb", "_0.bvh", "_4.bvh", "_joints.csv", ".html", "_motion.npz", "_motion.json"]


def test_people_come_back(tmp_path, monkeypatch):
    """In chunks smaller than the clip: meshes, places, one shape a person."""
    monkeypatch.setattr(animate, "_CHUNK", 5)
    people, rig = two_people(), default_rig()
    meshes = write_predictions(tmp_path / "a.npz", people)
    told: list[int] = []
    found = fit_people(rig, Predictions.open(tmp_path / "a.npz"), told.append)
    assert sum(told) == 2 * 18 and max(told) == 5
    for one, expected, vertices in zip(found, people, meshes, strict=True):
        assert one.person == expected.person and one.frames.tolist() == expected.frames.tolist()
        assert one.error_mm.max() < 1.5
        assert 1000 * np.linalg.norm(one.vertices(rig) - vertices, axis=-1).mean() < 1.5
        np.testing.assert_allclose(one.joints(rig), expected.joints(rig), atol=0.015)


def test_memory_grows_by_parameters_only(tmp_path, monkeypatch):
    """A mesh has 82 kB, its parameters 1.1 kB, a few times over where parts are put together."""
    monkeypatch.setattr(animate, "_CHUNK", 8)
    rig = default_rig()

    def peak(count):
        write_predictions(tmp_path / "a.npz", [person(0, np.arange(count), 1)])
        predictions = Predictions.open(tmp_path / "a.npz")
        tracemalloc.start()
        try:
            people = fit_people(rig, predictions)
            write_files(tmp_path, "a", people, rig, predictions.view, Files(glb=False, viewer=False))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is loaded once
    assert peak(120) - peak(40) < 80 * 10_000


def test_command_writes_what_it_says(tmp_path, capsys):
    people = two_people()
    meshes = write_predictions(tmp_path / "a.npz", people)
    assert cli.main(["animate", str(tmp_path / "a.npz"), "-o", str(tmp_path / "out")]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("person 0: 12 frames, ") and "mm from the meshes" in second
    assert last.split(" -> ")[1].split() == [str(tmp_path / "out" / f"a{ending}") for ending in ENDINGS]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"a{ending}" for ending in ENDINGS)
    with np.load(tmp_path / "out" / "a_motion.npz", allow_pickle=False) as table:
        content = json.loads((tmp_path / "out" / "a_motion.json").read_text())
        assert table["rotations"].shape == (18, 31, 3, 3) and table["people"].tolist() == [0, 4]
        second_rows = table["person"] == 4
        rest = Rest(table["shape"][1], table["rest_vertices"][1], table["rest_joints"][1], np.zeros((0, 3)))
        posed = default_rig().pose(table["rotations"][second_rows], table["translation"][second_rows], rest)
        assert 1000 * np.linalg.norm(posed - meshes[1], axis=-1).mean() < 1.5
        np.testing.assert_allclose(content["people"][1]["translation"], table["translation"][second_rows], atol=1e-5)
        assert content["people"][1]["frame"] == table["frame"][second_rows].tolist()
        quaternion = np.array(content["people"][1]["rotations"])
        turns = Rotation.from_quat(quaternion.reshape(-1, 4)[:, [1, 2, 3, 0]]).as_matrix().reshape(6, 31, 3, 3)
        np.testing.assert_allclose(turns, table["rotations"][second_rows], atol=1e-4)
        assert list(content["people"][0]["phenotypes"]) == table["phenotype_names"].tolist()


def test_photo(tmp_path, capsys):
    """What `vqhps predict` writes: a clip of one frame."""
    one = person(0, np.zeros(1, int), 3)
    vertices = one.vertices(default_rig())
    np.savez(tmp_path / "a.npz", vertices=vertices, focal=900.0, image_size=[640, 360], box=np.zeros((1, 4)), schema=1)
    only = ["--no-bvh", "--no-csv", "--no-viewer", "--no-npz", "--no-json"]
    assert cli.main(["animate", str(tmp_path / "a.npz"), "-o", str(tmp_path), *only]) == 0
    assert capsys.readouterr().out.startswith("person 0: 1 frame, ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.glb", "a.npz"]


def change(path, **changes):
    with np.load(path) as archive:
        values = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vertices": None}, "has no vertices: give"),
        ({"vertices": np.zeros((3, 9, 3), np.float16)}, "as many rows"),
        ({"vertices": np.zeros((2, 9, 3), np.float16)}, "meshes of 13718 vertices"),
        ({"vertices": np.zeros((2, 9, 3), np.int32)}, "must be (N, V, 3) numbers"),
        ({"frame": np.array([3, 2])}, "sorted by frame"),
        ({"focal": np.float64(-1)}, "focal must be"),
        ({"translation": np.full((2, 3), np.nan)}, "not finite"),
    ],
)
def test_bad_files(tmp_path, capsys, changes, message):
    write_predictions(tmp_path / "a.npz", [person(0, np.arange(2), 3)])
    change(tmp_path / "a.npz", **changes)
    assert cli.main(["animate", str(tmp_path / "a.npz"), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_no_file_and_no_archive(tmp_path, capsys):
    (tmp_path / "b.npz").write_bytes(b"PK")
    for name in ("a.npz", "b.npz"):
        assert cli.main(["animate", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 2
        assert "cannot be read" in capsys.readouterr().err


def test_fit_of_predictions_is_scored(tmp_path, capsys):
    """By part and person, against meshes of which one part was pushed aside in some frames."""
    people = two_people()
    write_predictions(tmp_path / "a.npz", people)
    with np.load(tmp_path / "a.npz") as archive:
        vertices = archive["vertices"].astype(np.float32)
    thumb = default_rig().weights.argmax(1) == default_rig().names.index("LThumb")
    vertices[::2, thumb] += 0.05
    change(tmp_path / "a.npz", vertices=vertices.astype(np.float16))
    assert cli.main(["evaluate", "rig-fit", str(tmp_path / "a.npz")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["meshes"] == 18 and [p["meshes"] for p in report["people"].values()] == [12, 6]
    assert report["parts"]["hands"] > 2 > report["parts"]["legs"] and report["mean_mm"] < 4
    found = fit_people(default_rig(), Predictions.open(tmp_path / "a.npz"))
    assert report["mean_mm"] == pytest.approx(np.concatenate([one.error_mm for one in found]).mean(), abs=0.05)
    assert report["people"]["0"]["mean_mm"] == pytest.approx(found[0].error_mm.mean(), abs=0.05)
