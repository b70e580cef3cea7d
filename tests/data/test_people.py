"""Data sets of photos in their published formats, made up here, into shards: whose meshes lie on the 2D joints."""

import io
import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader, Subset

from published_people import smpl_file, write_3dpw, write_bedlam_format, write_emdb
from vqhps.body.named import named_body
from vqhps.cli import main
from vqhps.data.augment import AugmentConfig
from vqhps.data.bodies import mirrored
from vqhps.data.crops import CropDataset, crop_rotations, shard_tokens
from vqhps.data.sample import Shards, find_shards, quiet_opencv
from vqhps.errors import VqhpsError
from vqhps.evaluation.run import Bodies, evaluate_people
from vqhps.geometry import matrix_from_quaternion


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bodies")
    smpl_file(folder)
    return folder


def prepare(name: str, root: Path, out: Path, bodies: Path, *more: str) -> int:
    paths = ["--root", str(root), "--out", str(out), "--body-models", str(bodies)]
    return main(["prepare", name, *paths, "--workers", "1", *more])


def misses(shards: Shards, bodies: Path) -> np.ndarray:
    """How far, in stored px, joints of the posed mesh lie from the stored key points; 0 where there are none.

    Without a camera, scale and shift are fitted.
    """
    labels, apart = shards.labels, []
    for row in range(len(shards)):
        sample = shards[row]
        body = named_body(sample.body, bodies)
        pose = torch.from_numpy(matrix_from_quaternion(sample.pose))[None]
        vertices = body.forward(pose, torch.from_numpy(sample.shape)[None])[0].numpy() @ sample.rotation.T
        joints = body.joint_regressors["coco17"] @ vertices
        if np.isfinite(labels["translation"][row]).all():
            placed = joints + labels["translation"][row]
            pixels = placed[:, :2] / placed[:, 2:] * 900 + [320, 240]
            cx, cy, side = labels["crop"][row]
            pixels = (pixels - [cx, cy] + side / 2) * labels["stored"][row] / side
        else:
            seen = sample.keypoints_weight > 0
            flat, target = joints[seen, :2], sample.keypoints2d[seen]
            a, b = flat - flat.mean(0), target - target.mean(0)
            pixels = (joints[:, :2] - flat.mean(0)) * ((a * b).sum() / (a * a).sum()) + target.mean(0)
        apart.append(np.linalg.norm(pixels - sample.keypoints2d, axis=1) * (sample.keypoints_weight > 0))
    return np.array(apart)


def test_3dpw(tmp_path: Path, bodies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = write_3dpw(tmp_path / "3dpw", bodies)
    write_3dpw(tmp_path / "3dpw", bodies, "test", "run_00", 9)
    assert prepare("3dpw", tmp_path / "3dpw", tmp_path / "out", bodies, "--shard-size", "6") == 0
    assert "index-3dpw-train.json: 8 people, 0 files or photos left out" in capsys.readouterr().out
    assert [p.name for p in find_shards(tmp_path / "out", "train")] == [f"3dpw-train-00000{i}.tar" for i in (0, 1)]
    shards = Shards(find_shards(tmp_path / "out", "train"))
    assert [shards[i].body for i in range(8)] == ["smpl-male"] * 5 + ["smpl-female"] * 3
    assert misses(shards, bodies).max() < 0.05
    sample = shards[0]
    assert sample.keypoints_weight.tolist() == [0.75] * 10 + [0] + [0.75] * 6 and sample.has_mesh
    np.testing.assert_allclose(sample.shape, content["betas"][0], rtol=1e-5)
    assert sample.image.std() > 0 and sample.image.shape == (256, 256, 3)
    assert prepare("3dpw", tmp_path / "3dpw", tmp_path / "out", bodies, "--split", "test") == 0
    assert len(Shards(find_shards(tmp_path / "out", "test"))) == 8


def test_emdb(tmp_path: Path, bodies: Path) -> None:
    root = tmp_path / "emdb"
    write_emdb(root, bodies, "00_one", True, True)
    for number in range(6):
        write_emdb(root, bodies, f"1{number}_two", False, True, number)
    write_emdb(root, bodies, "20_none", False, False)
    for split in ("test", "train", "validation"):
        assert prepare("emdb", root, tmp_path / split, bodies, "--split", split) == 0
    sizes = {s: len(Shards(find_shards(tmp_path / s, s))) for s in ("test", "train", "validation")}
    assert (
        sizes["test"] == 4 and sizes["train"] + sizes["validation"] == 24 and 0 < sizes["validation"] < sizes["train"]
    )
    shards = Shards(find_shards(tmp_path / "test", "test"))
    assert shards[0].keypoints_weight.tolist() == [0] * 5 + [1] * 12
    assert misses(shards, bodies).max() < 0.05
    assert (shards.labels["box"][1, 2:] > shards.labels["box"][1, :2] + 20).all()  # of the mesh: theirs is invalid


@pytest.mark.parametrize(
    ("name", "file", "photos", "camera"),
    [
        ("coco", "coco.npz", ["train2014/a.jpg", "train2014/b.jpg"], False),
        ("mpii", "mpii.npz", ["a.jpg", "b.jpg"], False),
        ("h36m", "h36m_train.npz", ["S1/a.jpg", "S9/b.jpg", "S8/c.jpg"], False),
        ("mpi-inf-3dhp", "mpi_inf_3dhp_train.npz", ["S1/Seq1/a.jpg", "S2/Seq1/b.jpg"], False),
        ("bedlam", "labels/scene.npz", ["a/b.png", "a/c.png"], True),
    ],
)
def test_sets_that_the_bedlam_release_annotates(
    tmp_path: Path, bodies: Path, name: str, file: str, photos: list[str], camera: bool
) -> None:
    root = tmp_path / name
    write_bedlam_format(root / file, bodies, photos, camera)
    if camera:
        (root / "labels" / "images").rename(root / "images")
    assert prepare(name, root, tmp_path / "out", bodies) == 0
    shards = Shards(find_shards(tmp_path / "out", "train"))
    assert len(shards) == 2  # of Human3.6M the one of subject 9 is for testing
    assert misses(shards, bodies).max() < 0.05
    assert shards[0].keypoints_weight.tolist() == [1] * 10 + [0] + [1] * 6
    side = shards.labels["box"][0, 2] - shards.labels["box"][0, 0]
    assert side == pytest.approx(360 / 1.2)
    turned = crop_rotations(shards)
    assert (turned == shards.labels["rotation"]).all() != camera  # without a camera a crop is seen straight ahead


def test_evaluation_on_people_of_two_bodies(tmp_path: Path, bodies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that knows the answer has no error; one that is 10 mm off in one vertex in ten has 1 mm of PVE."""
    write_3dpw(tmp_path / "3dpw", bodies)
    assert prepare("3dpw", tmp_path / "3dpw", tmp_path / "out", bodies, "--split", "train") == 0
    shards = Shards(find_shards(tmp_path / "out", "train"))
    turned = crop_rotations(shards)
    answer = []
    for row in range(8):
        sample = shards[row]
        pose = torch.from_numpy(matrix_from_quaternion(sample.pose))[None]
        body = named_body(sample.body, bodies)
        answer.append(body.forward(pose, torch.from_numpy(sample.shape)[None])[0].numpy() @ turned[row].T)

    def model(off: float, count: int = 6890) -> Any:
        def run(crops: np.ndarray, places: np.ndarray) -> Bodies:
            assert crops.shape == (8, 64, 64, 3) and np.isfinite(places).all()
            vertices = np.stack(answer)[:, :count]
            vertices[:, ::10] += np.array([0.6, 0.8, 0]) * off
            return Bodies(vertices, vertices[:, :17], np.tile([1.0, 0, 0], (8, 1)))

        return run

    summary = evaluate_people(model(0), 64, shards, tmp_path / "results", "3dpw-test", 1.2, bodies)
    errors = {n: v for n, v in summary.items() if n.split()[0] in ("authors", "standard", "smpl24")}
    assert len(errors) == 12 and max(errors.values()) < 1e-3
    assert len(summary["proportions"]) == 6 and np.allclose(list(summary["proportions"].values()), 1)
    assert json.loads((tmp_path / "results" / "results.json").read_text())["data"] == "3dpw-test"
    off = evaluate_people(model(0.01), 64, shards, None, "3dpw-test", 1.2, bodies)
    assert off["authors PVE"] == pytest.approx(0.9 * 1 + 0.1 * 9, rel=0.01)  # centred on the mean, which moves by 1 mm
    with pytest.raises(VqhpsError, match="meshes have 100 vertices, those of 3dpw-test 6890: name a bundle"):
        evaluate_people(model(0, 100), 64, shards, None, "3dpw-test", 1.2, bodies)
    (tmp_path / "out" / "3dpw-train-000000.tar").rename(tmp_path / "out" / "3dpw-test-000000.tar")
    arguments = ["evaluate", "3dpw-test", "--root", str(tmp_path / "out"), "--body-models", str(bodies)]
    assert main(arguments) == 2
    assert "meshes have 13718 vertices, those of 3dpw-test 6890" in capsys.readouterr().err


def test_people_without_a_mesh(tmp_path: Path, bodies: Path) -> None:
    write_bedlam_format(tmp_path / "coco" / "coco.npz", bodies, ["a.jpg"], pose_cam=None, shape=None)
    assert prepare("coco", tmp_path / "coco", tmp_path / "out", bodies) == 0
    sample = Shards(find_shards(tmp_path / "out", "train"))[0]
    assert not sample.has_mesh and sample.keypoints_weight.sum() == 16


def test_a_shard_of_nobody_is_not_written(tmp_path: Path, bodies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "coco", tmp_path / "out"
    write_bedlam_format(root / "coco.npz", bodies, ["a.jpg", "b.jpg"])
    (root / "images" / "b.jpg").unlink()
    assert prepare("coco", root, out, bodies, "--skip-bad", "--shard-size", "1") == 2
    assert "nobody is left for coco-train-000001.tar; first: the photo" in capsys.readouterr().err
    assert [p.name for p in sorted(out.glob("*.tar*"))] == ["coco-train-000000.tar"]


def bad(kind: str, root: Path) -> str:
    """Damage a prepared folder of COCO; what the message must say."""
    file = root / "coco.npz"
    with np.load(file) as table:
        content = dict(table)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
        return "coco.npz is damaged"
    if kind == "pickled":
        np.savez(file, **{**content, "scale": np.array([{}, {}])})
        return "coco.npz is damaged or no .npz of plain arrays"
    if kind == "key":
        np.savez(file, **{k: v for k, v in content.items() if k != "center"})
        return "coco.npz is not annotated as expected (KeyError: 'center')"
    if kind == "nan":
        np.savez(file, **{**content, "pose_cam": np.where(np.arange(2)[:, None] == 1, np.nan, content["pose_cam"])})
        return "coco.npz: annotations of 1 of 2 people are not finite, the first on b.jpg"
    if kind == "no photo":
        (root / "images" / "b.jpg").unlink()
        return f"the photo {root / 'images' / 'b.jpg'} is missing: download the images"
    (root / "images" / "b.jpg").write_bytes(b"no picture")
    return f"the photo {root / 'images' / 'b.jpg'} is damaged: download it again"


@pytest.mark.parametrize("kind", ["truncated", "pickled", "key", "nan", "no photo", "bad photo"])
def test_what_cannot_be_read_is_named(
    tmp_path: Path, bodies: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root = tmp_path / "coco"
    write_bedlam_format(root / "coco.npz", bodies, ["a.jpg", "b.jpg"])
    message = bad(kind, root)
    assert prepare("coco", root, tmp_path / "out", bodies) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "--skip-bad" in error
    assert not list((tmp_path / "out").glob("*.tar*")) and not list((tmp_path / "out").glob("*.part"))
    code = prepare("coco", root, tmp_path / "out", bodies, "--skip-bad")
    captured = capsys.readouterr()
    if "photo" in kind:
        assert code == 0 and f"left out: {message}" in captured.out and "1 people, 1 files" in captured.out
        assert len(Shards(find_shards(tmp_path / "out", "train"))) == 1
        assert message in json.loads((tmp_path / "out" / "index-coco-train.json").read_text())["skipped"][0]
    else:
        assert code == 2 and "nobody is left of 1 files; first: " in captured.err and message in captured.err


class _Harmful:
    def __reduce__(self) -> Any:
        return (eval, ("1",))


def test_sequences_that_cannot_be_read_are_left_out_and_listed(
    tmp_path: Path, bodies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "3dpw"
    content = write_3dpw(root, bodies)
    folder = root / "sequenceFiles" / "train"
    (folder / "a_harmful.pkl").write_bytes(pickle.dumps({**content, "genders": _Harmful()}, 2))
    (folder / "b_short.pkl").write_bytes(pickle.dumps(content, 2)[:-300])
    (folder / "c_key.pkl").write_bytes(pickle.dumps({k: v for k, v in content.items() if k != "betas"}, 2))
    (folder / "d_nan.pkl").write_bytes(pickle.dumps({**content, "betas": [np.full(10, np.nan)] * 2}, 2))
    assert prepare("3dpw", root, tmp_path / "out", bodies) == 2
    assert "a_harmful.pkl is refused: it asks to load" in capsys.readouterr().err
    assert prepare("3dpw", root, tmp_path / "out", bodies, "--skip-bad") == 0
    out = capsys.readouterr().out
    for reason in (
        "a_harmful.pkl is refused", "b_short.pkl is damaged",
        "c_key.pkl is not annotated as expected (KeyError: 'betas')",
        "d_nan.pkl: annotations of 8 of 8 people are not finite",
    ):  # fmt: skip
        assert f"left out: {folder}/{reason}" in out
    assert "8 people, 4 files or photos left out" in out


def test_what_is_missing_is_said_at_once(tmp_path: Path, bodies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, wanted in (
        ("3dpw", "sequenceFiles/train"), ("emdb", "P*/SEQUENCE/*_data.pkl"), ("coco", "coco.npz"), ("mpii", "mpii.npz"),
        ("h36m", "h36m_train.npz"), ("mpi-inf-3dhp", "mpi_inf_3dhp_train.npz"), ("bedlam", "**/*.npz"),
    ):  # fmt: skip
        assert prepare(name, tmp_path, tmp_path / "out", bodies) == 2
        assert wanted in capsys.readouterr().err
    write_3dpw(tmp_path / "3dpw", bodies)
    assert prepare("3dpw", tmp_path / "3dpw", tmp_path / "out", tmp_path / "nothing") == 2
    assert "register at https://smpl.is.tue.mpg.de" in capsys.readouterr().err


def test_a_stopped_run_keeps_its_shards(tmp_path: Path, bodies: Path) -> None:
    root, out = tmp_path / "3dpw", tmp_path / "out"
    write_3dpw(root, bodies)
    assert prepare("3dpw", root, out, bodies, "--shard-size", "4") == 0
    whole = [p.read_bytes() for p in find_shards(out, "train")]
    kept, lost = find_shards(out, "train")
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    paths = ["--root", str(root), "--out", str(tmp_path / "two"), "--body-models", str(bodies), "--shard-size", "4"]
    assert main(["prepare", "3dpw", *paths]) == 0  # two processes
    assert [p.read_bytes() for p in find_shards(tmp_path / "two", "train")] == whole
    assert prepare("3dpw", root, out, bodies, "--shard-size", "4") == 0
    assert [p.read_bytes() for p in find_shards(out, "train")] == whole and kept.stat().st_mtime_ns == stamp


class _FewTokens:
    """Stands in for a tokenizer of SMPL, which takes minutes to fit: says where some vertices are."""

    num_tokens = 3

    class mesh:
        @staticmethod
        def get_buffer(name: str) -> np.ndarray:
            return np.zeros((6890, 3))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"a": torch.zeros(1)}

    def encode(self, vertices: torch.Tensor) -> torch.Tensor:
        return (1000 * vertices[:, [5, 50, 500], 0]).round().long()


def test_tokens_of_people_as_they_are_and_mirrored(
    tmp_path: Path, bodies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQHPS_BODY_MODELS", str(bodies))
    write_3dpw(tmp_path / "3dpw", bodies)
    assert prepare("3dpw", tmp_path / "3dpw", tmp_path / "out", bodies) == 0
    shards = Shards(find_shards(tmp_path / "out", "train"))
    tokens = shard_tokens(shards, _FewTokens())  # type: ignore[arg-type]
    assert tokens.shape == (8, 2, 3)
    for row in (0, 7):
        sample = shards[row]
        body = named_body(sample.body)
        pose = matrix_from_quaternion(sample.pose)[None]
        other = mirrored(pose, body)
        left, right = (body.bone_names.index(f"{side}_elbow") for side in ("left", "right"))
        swapped = Rotation.from_matrix(pose[0, left]).as_rotvec() * [1, -1, -1]
        np.testing.assert_allclose(Rotation.from_matrix(other[0, right]).as_rotvec(), swapped, atol=1e-5)
        for version, turned in enumerate((pose, other)):
            vertices = body.forward(torch.from_numpy(turned).float(), torch.from_numpy(sample.shape)[None])
            centred = vertices - vertices.mean(1, keepdim=True)
            np.testing.assert_allclose(tokens[row, version], _FewTokens().encode(centred)[0], atol=1)


def test_bodies_of_two_kinds_are_not_mixed(tmp_path: Path, bodies: Path) -> None:
    from painted_people import write_shard

    write_bedlam_format(tmp_path / "coco" / "coco.npz", bodies, ["a.jpg"])
    assert prepare("coco", tmp_path / "coco", tmp_path / "out", bodies) == 0
    write_shard(tmp_path / "out", "train", 2)
    with pytest.raises(VqhpsError, match="of different bodies"):
        Shards(find_shards(tmp_path / "out", "train"))
    with pytest.raises(VqhpsError, match="no body 'smpl-child'"):
        named_body("smpl-child")


def test_old_side_files_of_rendered_people_still_read(tmp_path: Path) -> None:
    """Those that were written before shards said whose body they show."""
    from painted_people import write_shard

    path = write_shard(tmp_path, "train", 2)
    fresh = Shards([path])
    side_file = path.with_suffix(".labels.npz")
    with np.load(side_file) as table:
        old = {k: v for k, v in table.items() if k not in ("keypoints_weight", "has_mesh", "body")}
    buffer = io.BytesIO()
    np.savez(buffer, **old)
    side_file.write_bytes(buffer.getvalue())
    sample = Shards([path])[1]
    assert sample.body == fresh[1].body == "anny" and sample.has_mesh and sample.keypoints_weight.tolist() == [1] * 17


def test_crops_a_second(tmp_path: Path, bodies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Augmented crops from two workers, as in training. 200 a second are wanted of idle cores; here a tenth must do."""
    monkeypatch.setenv("VQHPS_BODY_MODELS", str(bodies))
    root = tmp_path / "coco"
    write_bedlam_format(root / "coco.npz", bodies, [f"{i}.jpg" for i in range(12)])
    assert prepare("coco", root, tmp_path / "out", bodies) == 0
    shards = Shards(find_shards(tmp_path / "out", "train"))
    crops = CropDataset(shards, np.arange(12), np.zeros((12, 2, 54), np.int16), 224, AugmentConfig(), 0, 400)
    quiet_opencv()  # its threads would not survive the fork of the loader's processes
    loader = DataLoader(Subset(crops, range(400)), 20, num_workers=2)
    batches, start = iter(loader), 0.0
    next(batches)
    start = time.perf_counter()
    count = sum(len(batch["image"]) for batch in batches)
    rate = count / (time.perf_counter() - start)
    print(f"{rate:.0f} crops a second")
    assert rate > 20
