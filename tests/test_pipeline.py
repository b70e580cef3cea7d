"""The whole way on tiny real parts: motion, tokenizer, image model, stop, resume, evaluate, export, predict.

Real body, real backbone (random weights at 64 px), real ONNX Runtime, real files; only small.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from painted_people import write_shard
from vqhps import training_guess, training_image
from vqhps.checkpoint import load_checkpoint
from vqhps.cli import main
from vqhps.data.lifting import FoundErrors
from vqhps.data.mocap import _CMU_REST, load_poses
from vqhps.data.sample import Shards
from vqhps.errors import VqhpsError
from vqhps.evaluation.run import bundle_model, evaluate_people
from vqhps.export import ExportConfig, export_bundle
from vqhps.models.vqhps import VQHPS, VQHPSConfig, VQHPSLossConfig
from vqhps.runtime.bundle import Bundle
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE, MeshVQVAEConfig
from vqhps.training import TokenizerTrainingConfig, train_tokenizer
from vqhps.training_config import ImageTrainingConfig
from vqhps.training_image import train_image_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:UserWarning", "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"
)

PARENTS = {"LeftLeg": "LeftUpLeg", "LeftFoot": "LeftLeg", "RightLeg": "RightUpLeg", "RightFoot": "RightLeg"}


def write_mocap(folder: Path) -> None:
    """Two clips of noise, one of a training subject and one of a held-out one, in the format of the CMU file."""
    names = ["Hips", *_CMU_REST]
    chain = {
        **PARENTS, "LeftToeBase": "LeftFoot", "RightToeBase": "RightFoot", "Spine": "LowerBack", "Spine1": "Spine",
        "Neck": "Spine1", "Neck1": "Neck", "Head": "Neck1", "LeftArm": "Spine1", "RightArm": "Spine1",
        "LeftForeArm": "LeftArm", "LeftHand": "LeftForeArm", "RightForeArm": "RightArm", "RightHand": "RightForeArm",
    }  # fmt: skip
    parents = [-1, *(names.index(chain.get(n, "Hips")) for n in names[1:])]
    vectors = np.random.default_rng(0).normal(0, 0.3, (80, len(names), 3))
    quaternions = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_quat()[:, [3, 0, 1, 2]].reshape(80, len(names), 4)
    (folder / "mocap").mkdir(parents=True)
    np.savez(
        folder / "mocap" / "cmu_mb_30fps.npz",
        quat_wxyz=quaternions.astype(np.float16),
        joints=np.array(names),
        parents=np.array(parents),
        clip_name=np.array(["01_01", "13_01"]),
        clip_start=np.array([0, 60]),
        clip_len=np.array([60, 20]),
    )


def tokenizer_config(data: Path, out: Path) -> TokenizerTrainingConfig:
    model = MeshVQVAEConfig(sizes=(12,), num_codes=16, components=32, width=16, blocks=1)
    return TokenizerTrainingConfig(
        str(data),
        str(out),
        model,
        steps=6,
        batch_size=16,
        warmup=2,
        sources=("cmu",),
        evaluate_every=3,
        save_minutes=0.0,
    )


def image_config(shards: Path, tokenizer: Path, out: Path) -> ImageTrainingConfig:
    model = VQHPSConfig(dim=32, heads=2, hidden=32, dropout=0.1)
    return ImageTrainingConfig(
        str(shards), str(tokenizer), str(out), model=model, steps=4, batch_size=4, image_size=64, final_image_size=96,
        final_share=0.5, warmup=1, validate_every=4, validation=2, save_minutes=0.0, workers=0,
    )  # fmt: skip


def stop_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    """Ctrl-C at the given call of a method."""
    original, calls = getattr(owner, name), [0]

    def counted(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_checkpoint(p / "checkpoint").state_dict() for p in (a, b))
    return set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    write_mocap(folder)
    (folder / "shards").mkdir()
    write_shard(folder / "shards", "train", 8)
    write_shard(folder / "shards", "test", 3, seed=1)
    return folder


@pytest.fixture(scope="module")
def tokenizer(work):
    return train_tokenizer(tokenizer_config(work, work / "tokenizer"))


@pytest.fixture(scope="module")
def trained(work, tokenizer):
    train_image_model(image_config(work / "shards", tokenizer, work / "image"))
    return work / "image"


@pytest.fixture(scope="module")
def bundle(work, trained):
    export_bundle(load_checkpoint(trained / "checkpoint"), work / "bundle", ExportConfig(input_size=64))
    return work / "bundle"


def test_tokenizer_resumes_exactly(work, tokenizer, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, MeshVQVAE, "forward", 4)
        train_tokenizer(tokenizer_config(work, work / "again"))
    train_tokenizer(tokenizer_config(work, work / "again"))
    assert same_weights(work / "tokenizer", work / "again")
    rows = [json.loads(line) for line in (work / "again" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]


def test_the_way_of_the_shipped_recipe(work, tokenizer, monkeypatch):
    """Key points, lifting of motion capture, what the backbone sees, the transformer; a backbone of random weights."""
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    monkeypatch.setattr(training_guess, "load_poses", functools.partial(load_poses, sources=("cmu",)))
    model = VQHPSConfig(
        backbone="blazepose", frozen_stages=3, sources=("image", "keypoints"), hints=0.2, first_guess=True, build=6,
        dim=32, heads=2, hidden=32, loss=VQHPSLossConfig(edges=40.0),
    )  # fmt: skip
    config = dataclasses.replace(
        image_config(work / "shards", tokenizer, work / "shipped"), model=model, image_size=256, final_image_size=256,
        keypoint_steps=1, keypoint_batch=2, cut_copies=2, motion=str(work), lifting_steps=2, lifting_batch=4,
        kept_views=1, guess_steps=2, steps=2, batch_size=2, validate_every=2,
    )  # fmt: skip
    seen = []
    original = FoundErrors.__call__
    monkeypatch.setattr(FoundErrors, "__call__", lambda self, true: seen.append(len(true)) or original(self, true))
    after = load_checkpoint(train_image_model(config), "vqhps")
    assert seen == [4, 4]  # each step of the guess's second training saw other bodies with found errors
    assert after.token_head.scores.weight.abs().max() > 0
    assert after.build.linear.weight.abs().max() > 0 and after.guess.build_in.weight.abs().max() > 0
    with pytest.raises(VqhpsError, match="build is 10, the people have 6 shape parameters"):
        out = str(work / "other")
        train_image_model(dataclasses.replace(config, model=dataclasses.replace(model, build=10), out=out))
    assert json.loads((work / "shipped" / "log.jsonl").read_text())["pve_argmax_mm"] > 0


def test_training_moves_the_weights(trained, work, tokenizer):
    before = VQHPS(VQHPSConfig(dim=32, heads=2, hidden=32), load_checkpoint(tokenizer))
    after = load_checkpoint(trained / "checkpoint", "vqhps")
    assert not torch.equal(before.mesh_queries, after.mesh_queries)
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 4 and log[-1]["pve_argmax_mm"] > 0


def test_bundle_evaluates(work, bundle):
    loaded = Bundle.load(bundle)
    shards = Shards([work / "shards" / "tiny-test-000000.tar"])
    summary = evaluate_people(bundle_model(loaded), loaded.info.input_size, shards, work / "results")
    rows = (work / "results" / "results.csv").read_text().splitlines()
    assert len(rows) == 4
    written = json.loads((work / "results" / "results.json").read_text())
    assert written["samples"] == 3 and written["standard PVE"] == pytest.approx(summary["standard PVE"])
    column = rows[0].split(",").index("standard PVE")
    values = [float(row.split(",")[column]) for row in rows[1:]]
    assert np.mean(values) == pytest.approx(summary["standard PVE"], rel=1e-3)


def test_bundle_predicts_through_the_command_line(work, bundle, capsys):
    photo = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    cv2.imwrite(str(work / "photo.png"), photo)
    arguments = ["predict", str(work / "photo.png"), "-o", str(work / "out"), "--bundle", str(bundle)]
    assert main([*arguments, "--box", "40", "10", "110", "115"]) == 0
    assert "photo_0.glb" in capsys.readouterr().out
    written = {p.name for p in (work / "out").iterdir()}
    assert written == {
        "photo_overlay.png", "photo_side.png", "photo_0.glb", "photo_0.obj", "photo.npz", "photo.json",
    }  # fmt: skip
    with np.load(work / "out" / "photo.npz") as table:
        assert table["vertices"].shape == (1, 13718, 3) and np.isfinite(table["vertices"]).all()


def test_speed_of_a_model_and_its_bundles(work, trained, bundle, capsys):
    checkpoint, eight = str(trained / "checkpoint"), str(work / "eight")
    arguments = ["export", checkpoint, "--out", eight, "--input-size", "64", "--weights", "int8"]
    assert main(arguments) == 2
    assert "need photos of people" in capsys.readouterr().err
    assert main([*arguments, "--photos", str(work / "shards")]) == 2
    assert f"no photos (.jpeg, .jpg, .png, .webp) in {work / 'shards'}" in capsys.readouterr().err
    (work / "photos").mkdir()
    cv2.imwrite(str(work / "photos" / "a.png"), np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    assert main([*arguments, "--photos", str(work / "photos")]) == 2  # hardly trained: its tokens hang by a thread
    assert re.search(
        r"weights of this precision move the mesh by \d+\.\d\d mm on the people of the photos", capsys.readouterr().err
    )
    assert not Path(eight).exists()
    assert main(["bench", "model", checkpoint, "--bundles", str(bundle), "--runs", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["gflop"] > 0 and report["peak_gflops"] > 0 and "torch-bfloat16" not in report
    row = report["bundle"]
    assert row["mean_mm"] < 1 and row["speedup"] == pytest.approx(report["torch"]["ms"] / row["ms"], rel=0.02)
    assert row["peak_share"] == pytest.approx(report["gflop"] / report["peak_gflops"] * 1000 / row["ms"], rel=0.1)
    assert main(["bench", "model", str(work / "tokenizer" / "checkpoint")]) == 2
    assert "holds no image model" in capsys.readouterr().err


def test_run_with_other_settings_is_refused(work, tokenizer):
    import dataclasses

    from vqhps.errors import VqhpsError

    config = tokenizer_config(work, work / "tokenizer")
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, width=32))
    with pytest.raises(VqhpsError, match="other model settings"):
        train_tokenizer(changed)
