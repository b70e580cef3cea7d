"""Files: read back by other programs' readers, in the documented frames, whole or not at all."""

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

import tiny_bundle
from shared import tiny_mesh
from vqhps.errors import VqhpsError
from vqhps.runtime import export_mesh
from vqhps.runtime.predictor import Predictor

VERTICES, FACES = tiny_mesh()[0] + np.float32([0.5, 1.0, 3.0]), tiny_mesh()[1]
Y_UP = VERTICES * [1, -1, -1]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture(scope="module")
def people(predictor):
    return predictor.predict(np.full((100, 150, 3), 99, np.uint8), [[20, 10, 60, 90], [80, 20, 120, 95]])


def test_glb_is_y_up_metres_in_a_colour(tmp_path):
    path = tmp_path / "a.glb"
    export_mesh.write_glb(path, VERTICES, FACES, np.array([0.2, 0.4, 1.0]))
    assert path.read_bytes()[:4] == b"glTF"
    mesh = trimesh.load(path, force="mesh", process=False)
    np.testing.assert_allclose(mesh.vertices, Y_UP, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, FACES)
    np.testing.assert_array_equal(mesh.visual.material.baseColorFactor, [8, 34, 255, 255])  # in linear light
    np.testing.assert_allclose(
        mesh.vertex_normals, trimesh.Trimesh(Y_UP, FACES, process=False).vertex_normals, atol=0.1
    )
    assert mesh.is_watertight and mesh.volume > 0  # axes are turned, not mirrored


def test_normals_point_outwards_and_weigh_by_area():
    """Of a box, against a sum by hand; a vertex without triangles has some normal too."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    hull = trimesh.convex.convex_hull(corners)
    normals = export_mesh.vertex_normals(np.asarray(hull.vertices, np.float32), np.asarray(hull.faces))
    weighted = np.zeros((8, 3))
    for face, normal, area in zip(hull.faces, hull.face_normals, hull.area_faces, strict=True):
        weighted[face] += normal * area
    np.testing.assert_allclose(normals, weighted / np.linalg.norm(weighted, axis=1, keepdims=True), atol=1e-6)
    lone = export_mesh.vertex_normals(np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.array([[0, 1, 2]]))
    np.testing.assert_allclose(lone, [[3**-0.5] * 3] * 3 + [[0, 0, 1]], atol=1e-6)


def test_obj_is_the_same_mesh(tmp_path):
    path = tmp_path / "a.obj"
    export_mesh.write_obj(path, VERTICES, FACES)
    mesh = trimesh.load(path, force="mesh", process=False)
    np.testing.assert_allclose(mesh.vertices, Y_UP, atol=1e-5)
    np.testing.assert_array_equal(mesh.faces, FACES)


def test_npz_holds_everything_without_pickle(tmp_path, people, predictor):
    export_mesh.write_npz(tmp_path / "a.npz", people, predictor.bundle.faces, (150, 100))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as table:
        assert table["schema"] == export_mesh.SCHEMA
        assert table["vertices"].shape == (2, 162, 3) and table["vertices"].dtype == np.float32
        np.testing.assert_array_equal(table["image_size"], [150, 100])
        np.testing.assert_array_equal(table["faces"], FACES)
        for name in ("box", "joints", "joints2d", "rotation", "translation", "camera", "crop_center", "indices"):
            np.testing.assert_array_equal(table[name][1], getattr(people[1], name))
        projected = table["vertices"][0] / table["vertices"][0, :, 2:] * table["focal"] + [75, 50, 0]
        assert np.isfinite(projected).all()


def test_json_follows_the_schema(tmp_path, people, predictor):
    export_mesh.write_json(tmp_path / "a.json", people, predictor.bundle.info, "a.jpg", (150, 100))
    content = json.loads((tmp_path / "a.json").read_text())
    assert set(content) == {"schema", "photo", "width", "height", "focal", "bundle", "people"}
    assert content["bundle"] == {"name": "tiny", "version": "1.2.3", "body": "capsule", "joints": "coco17"}
    assert (content["schema"], content["photo"], content["width"], content["height"]) == (1, "a.jpg", 150, 100)
    shapes = {
        "box": (4,), "score": (), "joints": (17, 3), "joints2d": (17, 2), "rotation": (3, 3), "translation": (3,),
        "camera": (3,), "crop_center": (2,), "crop_size": (), "indices": (tiny_bundle.TOKENS,),
    }  # fmt: skip
    for person, prediction in zip(content["people"], people, strict=True):
        assert {name: np.shape(value) for name, value in person.items()} == shapes
        for name, value in person.items():
            np.testing.assert_allclose(value, getattr(prediction, name), atol=1e-5)
        assert all(isinstance(i, int) for i in person["indices"])


def test_png(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    export_mesh.write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)


def test_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with export_mesh.whole_file(path) as temporary:
        temporary.write_text("old")
        assert not path.exists() and temporary.suffix == ".txt"
    assert path.read_text() == "old"

    def fail() -> None:
        with export_mesh.whole_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        fail()
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VqhpsError, match="cannot write"):
        export_mesh.write_obj(tmp_path / "file" / "a.obj", VERTICES, FACES)
