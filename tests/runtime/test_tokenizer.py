"""Meshes as tokens without torch: round trips wherever a mesh stands, files, and clear refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shared import tiny_bodies, tiny_mesh
from tiny_fitted import fitted_tokenizer
from vqhps import cli
from vqhps.body.anny import anny_body
from vqhps.checkpoint import load_tokenizer
from vqhps.errors import VqhpsError
from vqhps.export_tokenizer import export_tokenizer
from vqhps.runtime.export_mesh import write_glb, write_obj
from vqhps.runtime.tokenizer import MeshTokenizer, default_tokenizer
from vqhps.runtime.tokens import read_tokens

FACES = tiny_mesh()[1]
BODIES = tiny_bodies(20, seed=3).numpy()
STILL = np.tile(np.eye(3), (20, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "capsule"
    export_tokenizer(fitted_tokenizer(), out, "none")
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    return MeshTokenizer.load(folder)


def run(capsys, *arguments: object) -> tuple[int, str, list[str]]:
    code = cli.main([str(a) for a in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err.splitlines()


def test_canonical_meshes_become_torchs_tokens_and_come_back(tokenizer):
    model = fitted_tokenizer()
    tokens = tokenizer.encode(BODIES, STILL)
    expected = model.encode(tiny_bodies(20, seed=3))
    np.testing.assert_array_equal(tokens.indices, expected)
    decoded = tokenizer.decode(tokens.indices)
    rebuilt = model.decode(expected).detach()
    np.testing.assert_allclose(decoded, rebuilt - rebuilt.mean(1, keepdim=True), atol=1e-5)
    np.testing.assert_allclose(tokens.distance_mm, 1000 * np.linalg.norm(decoded - BODIES, axis=-1).mean(1), rtol=1e-4)
    assert tokens.distance_mm.mean() < 30
    assert tokenizer.encode(BODIES[:1], STILL[:1]).indices.tolist() == tokens.indices[:1].tolist()


def test_where_and_how_a_mesh_stands_does_not_matter(tokenizer):
    turns = Rotation.random(20, rng=np.random.default_rng(0)).as_matrix()
    placed = BODIES @ turns.transpose(0, 2, 1) + np.random.default_rng(1).normal(0, 5, (20, 1, 3))
    still, moved = tokenizer.encode(BODIES), tokenizer.encode(placed)
    np.testing.assert_allclose(moved.distance_mm, still.distance_mm, rtol=0.05, atol=0.5)
    assert moved.distance_mm.mean() < 1.3 * tokenizer.encode(BODIES, STILL).distance_mm.mean()
    distance = 1000 * np.linalg.norm(tokenizer.restore(moved) - placed, axis=-1).mean(1)
    np.testing.assert_allclose(distance, moved.distance_mm, rtol=1e-3)
    known = tokenizer.encode(placed, turns)
    np.testing.assert_array_equal(known.indices, tokenizer.encode(BODIES, STILL).indices)


def test_a_cube_is_far_and_said_so(tokenizer, caplog):
    cube = np.random.default_rng(0).uniform(-1, 1, (1, len(BODIES[0]), 3))
    cube /= np.abs(cube).max(2, keepdims=True)
    tokens = tokenizer.encode(np.concatenate([BODIES[:1], cube]))
    assert tokens.distance_mm[1] > 300 > tokenizer.info.far_mm > tokens.distance_mm[0]
    assert [r.message for r in caplog.records] == [f"mesh 1 is {tokens.distance_mm[1]:.0f} mm from the nearest body "
                                                   "the tokens can say"]  # fmt: skip


def test_the_shipped_tokenizer_is_that_of_the_image_model(tmp_path, capsys):
    model = load_tokenizer(Path(__file__).parents[2] / "checkpoints" / "vqhps-blazepose").eval()
    indices = torch.randint(model.num_codes, (3, model.num_tokens), generator=torch.Generator().manual_seed(0))
    shipped = default_tokenizer()
    decoded = shipped.decode(indices.numpy())
    expected = model.upsample(model.decode(indices))
    np.testing.assert_allclose(decoded, expected - expected.mean(1, keepdim=True), atol=1e-4)
    write_obj(tmp_path / "a.obj", decoded[0], shipped.faces)
    code, _, _ = run(capsys, "tokenize", tmp_path / "a.obj", "-o", tmp_path / "a.json")
    assert code == 0 and np.mean(read_tokens(tmp_path / "a.json", shipped).indices == indices[0].numpy()) > 0.6


def test_joints_are_those_of_the_body(tokenizer, folder, tmp_path):
    regressor = fitted_tokenizer().mesh.get_buffer("regressor_coco17").numpy()
    assert tokenizer.has_joints
    np.testing.assert_allclose(tokenizer.joints(BODIES), regressor @ BODIES, atol=1e-6)
    shipped = default_tokenizer()
    body = shipped.decode(np.zeros((1, 54), int))
    np.testing.assert_allclose(shipped.joints(body), anny_body("full").joint_regressors["coco17"] @ body, atol=1e-5)
    copy = shutil.copytree(folder, tmp_path / "copy")
    with np.load(copy / "body.npz") as archive:
        content = dict(archive) | {"joint_regressor": np.zeros((0, 162), np.float32)}
    np.savez(copy / "body.npz", **content)
    without = MeshTokenizer.load(copy)
    assert not without.has_joints and without.joints(BODIES).shape == (20, 0, 3)
    np.savez(copy / "body.npz", **(content | {"joint_regressor": np.zeros((17, 100), np.float32)}))
    with pytest.raises(VqhpsError, match="is no body of 162 vertices"):
        MeshTokenizer.load(copy)


def test_a_mirrored_mesh_is_refused(tokenizer):
    twisted = BODIES[[np.abs(BODIES[:, :, 0]).mean(1).argmax()]]
    with pytest.raises(VqhpsError, match="mesh 1 is mirrored or inside out"):
        tokenizer.encode(np.concatenate([BODIES[:1], twisted * [-1, 1, 1]]), STILL[:2])


@pytest.mark.parametrize(
    ("vertices", "message"),
    [
        (np.zeros((1, 100, 3)), r"162 vertices, \(B, 162, 3\), got \(1, 100, 3\)"),
        (np.zeros((162, 3)), r"got \(162, 3\)"),
        (np.zeros((0, 162, 3)), r"got \(0, 162, 3\)"),
        (np.full((1, 162, 3), np.nan), "mesh 0 has vertices that are not finite"),
        (np.concatenate([BODIES[:1], BODIES[:1] * 1e30]), "mesh 1 has vertices that are not finite"),
        (np.full((1, 162, 3), "a"), "numbers in metres"),
    ],
)
def test_what_is_no_mesh_of_the_body_is_refused(tokenizer, vertices, message):
    with pytest.raises(VqhpsError, match=message):
        tokenizer.encode(vertices)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.full((1, 6), 16), "0 to 15, got 16"),
        (np.full((1, 6), -1), "0 to 15, got -1"),
        (np.zeros((1, 5), int), r"\(B, 6\)"),
        (np.zeros((1, 6)), "whole numbers"),
    ],
)
def test_what_is_no_token_is_refused(tokenizer, indices, message):
    with pytest.raises(VqhpsError, match=message):
        tokenizer.decode(indices)


@pytest.mark.parametrize("damage", ["tokenizer.json", "encoder.onnx", "decoder.onnx", "body.npz"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_damaged_tokenizer_is_one_clear_error(folder, tmp_path, damage, how):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (copy / damage).read_bytes()
    (copy / damage).unlink()
    if how == "cut":
        (copy / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(VqhpsError) as caught:
        MeshTokenizer.load(copy)
    assert damage in str(caught.value) and "\n" not in str(caught.value)


def write(path, vertices):
    """A mesh file in the axes of `vqhps predict`."""
    if path.suffix == ".obj":
        write_obj(path, vertices, FACES)
    elif path.suffix == ".glb":
        write_glb(path, vertices, FACES, np.ones(3))
    else:
        np.savez(path, vertices=vertices)
    return path


@pytest.mark.parametrize("ending", [".obj", ".glb", ".npz"])
def test_files_go_there_and_back(folder, tmp_path, capsys, ending):
    from vqhps.runtime.tokens import read_meshes

    placed = BODIES[0] + np.float32([0.5, -1.0, 4.0])
    source, middle, target = write(tmp_path / f"a{ending}", placed), tmp_path / "a.json", tmp_path / f"b{ending}"
    code, printed, errors = run(capsys, "tokenize", source, "-o", middle, "--bundle", folder)
    assert code == 0 and "mm between mesh and tokens" in printed and errors == []
    assert run(capsys, "tokenize", middle, "-o", target, "--bundle", folder)[0] == 0
    back = read_meshes(target)[0][0]
    distance = json.loads(middle.read_text())["meshes"][0]["distance_mm"]
    assert 1000 * np.linalg.norm(back - placed, axis=1).mean() == pytest.approx(distance, abs=0.1) and distance < 30
    assert {p.name for p in tmp_path.iterdir()} == {source.name, middle.name, target.name}


def test_obj_of_other_programs_keeps_its_order(folder, tmp_path, capsys):
    """Texture coordinates and a face at a time: no vertex is split, dropped or moved."""
    lines = ["mtllib none.mtl"] + [f"v {x} {-y} {-z}" for x, y, z in BODIES[0]]
    lines += [f"vt {i / 1000} 0.5" for i in range(3 * len(FACES))]
    corners = (FACES.ravel() + 1).tolist()
    lines += ["f " + " ".join(f"{corners[3 * i + k]}/{3 * i + k + 1}" for k in range(3)) for i in range(len(FACES))]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    code, _, _ = run(capsys, "tokenize", tmp_path / "a.obj", "-o", tmp_path / "a.json", "--bundle", folder)
    assert code == 0


def test_several_meshes_of_known_rotation(folder, tokenizer, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", vertices=BODIES[:3], rotation=STILL[:3])
    assert run(capsys, "tokenize", tmp_path / "a.npz", "-o", tmp_path / "a.json", "--bundle", folder)[0] == 0
    tokens = read_tokens(tmp_path / "a.json", tokenizer)
    np.testing.assert_array_equal(tokens.indices, tokenizer.encode(BODIES[:3], STILL[:3]).indices)
    code, _, errors = run(capsys, "tokenize", tmp_path / "a.json", "-o", tmp_path / "a.obj", "--bundle", folder)
    assert code == 2 and "3 meshes do not fit into one .obj" in errors[0]


def broken(kind, tmp_path):
    """A file that cannot become tokens."""
    path = tmp_path / f"a.{kind.split()[0]}"
    if kind == "npz of a cube":
        np.savez(path, vertices=np.random.default_rng(0).uniform(-1, 1, (162, 3)))
    elif kind == "npz of another body":
        np.savez(path, vertices=np.zeros((100, 3)))
    elif kind == "npz of NaN":
        np.savez(path, vertices=np.full((162, 3), np.nan))
    elif kind == "npz with pickle":
        np.savez(path, vertices=np.array([{}], dtype=object))
    elif kind == "npz with a bad rotation":
        np.savez(path, vertices=BODIES[:2], rotation=np.eye(3))
    elif kind == "ply":
        path.write_text("ply")
    elif kind != "glb missing":
        path.write_bytes(b"v 1 2\nglTF")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("npz of a cube", "mm from the nearest body"),
        ("npz of another body", "162 vertices"),
        ("npz of NaN", "not finite"),
        ("npz with pickle", "allow_pickle=False"),
        ("npz with a bad rotation", "rotations must be finite and (2, 3, 3), got (3, 3)"),
        ("npz damaged", "damaged"),
        ("obj damaged", "damaged or holds no mesh (no lines `v x y z`)"),
        ("glb damaged", "damaged"),
        ("glb missing", "cannot read"),
        ("ply", "known are .obj, .glb, .npz and .json"),
        ("json damaged", "is no tokens.json"),
    ],
)
def test_bad_files_are_one_line(folder, tmp_path, capsys, kind, message):
    source = broken(kind, tmp_path)
    target = tmp_path / ("b.obj" if source.suffix == ".json" else "b.json")
    code, _, errors = run(capsys, "tokenize", source, "-o", target, "--bundle", folder)
    assert code == 2 and len(errors) == 1 and message in errors[0] and str(source) in errors[0], errors
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema 9"),
        ({"tokenizer": {"name": "other", "fingerprint": "0"}}, "written with the tokenizer other 0"),
        ({"meshes": [{"indices": [99] * 6}]}, "no tokens.json"),
        ("indices", "0 to 15, got 99"),
        ("rotation", "rotation of 3 x 3"),
    ],
)
def test_bad_tokens_are_one_line(folder, tmp_path, capsys, change, message):
    path = tmp_path / "a.json"
    run(capsys, "tokenize", write(tmp_path / "a.npz", BODIES[0]), "-o", path, "--bundle", folder)
    content = json.loads(path.read_text())
    if change == "indices":
        content["meshes"][0]["indices"][2] = 99
    elif change == "rotation":
        content["meshes"][0]["rotation"] = [1, 2, 3]
    else:
        content |= change
    path.write_text(json.dumps(content))
    code, _, errors = run(capsys, "tokenize", path, "-o", tmp_path / "b.obj", "--bundle", folder)
    assert code == 2 and len(errors) == 1 and message in errors[0], errors


def test_endings_are_checked_before_work(folder, tmp_path, capsys):
    source = write(tmp_path / "a.npz", BODIES[0])
    code, _, errors = run(capsys, "tokenize", source, "-o", tmp_path / "b.obj", "--bundle", folder)
    assert code == 2 and "a.npz becomes .json" in errors[0]


def test_tokenizing_imports_no_torch(folder, tmp_path):
    source = write(tmp_path / "a.glb", BODIES[0])
    code = (
        "import sys; from vqhps.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'torch', 'anny', 'onnx', 'jaxtyping'} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "tokenize", str(source), "-o", str(tmp_path / "a.json")]
    done = subprocess.run([*command, "--bundle", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
