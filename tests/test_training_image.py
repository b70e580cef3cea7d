"""The training loop of the image models: it runs, keeps what it says, and resumes exactly."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tiny_shards import TinyBody, symmetric_tokenizer, write_shard
from vqhps import training_image, training_keypoints
from vqhps.checkpoint import CheckpointCard, load_checkpoint, save_checkpoint
from vqhps.data import crops
from vqhps.data.crops import crop_keypoints, shard_tokens
from vqhps.data.sample import Shards, find_shards
from vqhps.errors import VqhpsError
from vqhps.models.hmr import HMRConfig
from vqhps.models.vqhps import VQHPS, VQHPSConfig
from vqhps.training_config import ImageTrainingConfig
from vqhps.training_image import train_image_model
from vqhps.training_keypoints import keypoint_rows, train_keypoints

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight training images, a tokenizer, and no ImageNet weights."""
    monkeypatch.setattr(crops, "named_body", lambda name: TinyBody())
    monkeypatch.setattr(training_image, "imagenet_weights", lambda name: None)
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "tiny-train-0-000000.tar", 8)
    save_checkpoint(tmp_path / "tokenizer", symmetric_tokenizer(), CheckpointCard("mesh_vqvae", "tiny"))
    return tmp_path


def recipe(folder: Path, out: str, **changes: object) -> ImageTrainingConfig:
    settings: dict[str, object] = {
        "shards": str(folder / "shards"), "tokenizer": str(folder / "tokenizer"), "out": str(folder / out),
        "model": VQHPSConfig(dim=32, heads=4, hidden=64, dropout=0.2), "steps": 6, "batch_size": 2, "image_size": 32,
        "final_image_size": 64, "final_share": 0.34, "warmup": 2, "validate_every": 3, "validation": 2,
        "save_minutes": 0.0, "workers": 0, **changes,
    }  # fmt: skip
    return ImageTrainingConfig(**settings)  # type: ignore[arg-type]


def test_trains_and_keeps_a_checkpoint_that_rebuilds_itself(folder: Path) -> None:
    out = train_image_model(recipe(folder, "run"))
    model = load_checkpoint(out, "vqhps")
    assert model.predict(torch.zeros(1, 3, 64, 64)).vertices.shape == (1, 162, 3)  # type: ignore[operator]
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert rows[-1]["pve_argmax_mm"] > 0


def interrupt(config: ImageTrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run and stop it at its first validation."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_image, "_report", stop)
        with pytest.raises(KeyboardInterrupt):
            train_image_model(config)


def same(parts: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    """Both hold the same weights, to the bit."""
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0, msg=name)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_file(train_image_model(recipe(folder, "whole")) / "model.safetensors")
    interrupt(recipe(folder, "parts"), monkeypatch)
    parts = load_file(train_image_model(recipe(folder, "parts")) / "model.safetensors")
    same(parts, whole)


def test_shards_that_come_later_do_not_change_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_file(train_image_model(recipe(folder, "whole")) / "model.safetensors")
    interrupt(recipe(folder, "parts"), monkeypatch)
    write_shard(folder / "shards" / "tiny-train-0-000001.tar", 4, seed=1)
    parts = load_file(train_image_model(recipe(folder, "parts")) / "model.safetensors")
    same(parts, whole)


def kept_recipe(folder: Path, out: str, **changes: object) -> ImageTrainingConfig:
    model = VQHPSConfig(
        backbone="blazepose", frozen_stages=1, sources=("image", "keypoints"), hints=0.5, first_guess=True, dim=32,
        heads=4, hidden=64, dropout=0.2,
    )  # fmt: skip
    settings: dict[str, object] = {
        "model": model, "kept_views": 2, "lifting_steps": 2, "lifting_batch": 4, "transformer_from": 0.5,
        "guess_steps": 2, "image_size": 256, "final_image_size": 256, **changes,
    }  # fmt: skip
    return recipe(folder, out, **settings)


def test_kept_features_resume_exactly_and_are_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BlazePose with random weights: its file is not needed to see the way the training goes."""
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    whole = load_file(train_image_model(kept_recipe(folder, "whole")) / "model.safetensors")
    kept = sorted((folder / "shards").glob("*.features-*.npy"))
    assert len(kept) == 1 and np.load(kept[0]).shape == (16, 16, 16, 88)
    interrupt(kept_recipe(folder, "parts"), monkeypatch)
    written = kept[0].stat().st_mtime_ns
    parts = load_file(train_image_model(kept_recipe(folder, "parts")) / "model.safetensors")
    assert kept[0].stat().st_mtime_ns == written
    same(parts, whole)
    start = load_file(train_image_model(kept_recipe(folder, "short", steps=1)) / "model.safetensors")
    moved = {n for n, v in whole.items() if not torch.equal(v, start[n])}
    assert any(n.startswith("backbone.body.tail") for n in moved)
    assert not any(n.startswith("backbone.body.trunk") for n in moved)


def test_a_new_head_on_a_trained_backbone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    taken = train_image_model(kept_recipe(folder, "old head", steps=1))
    frozen = dataclasses.replace(kept_recipe(folder, "x").model, frozen_stages=3, dim=16, sources=("keypoints",))
    changes: dict[str, object] = {"backbone_from": str(taken), "seed": 5}
    new = load_file(train_image_model(kept_recipe(folder, "new head", model=frozen, **changes)) / "model.safetensors")
    old = load_file(taken / "model.safetensors")
    stays = [n for n in new if n.startswith(("backbone.body.trunk", "backbone.body.tail"))]
    assert stays and all(torch.equal(new[n], old[n]) for n in stays)
    assert "image_in.weight" not in new and new["keypoint_names"].shape == (17, 16)
    other = recipe(folder, "other", backbone_from=str(taken))
    with pytest.raises(VqhpsError, match="has no backbone tf_efficientnet_lite0"):
        train_image_model(other)


def test_the_transformer_joins_when_it_should(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    for share in (0.5, 1.0):
        state = load_file(
            train_image_model(kept_recipe(folder, f"{share}", transformer_from=share)) / "model.safetensors"
        )
        assert bool(state["token_head.scores.weight"].any()) == (share < 1)
    with pytest.raises(VqhpsError, match="transformer_from needs first_guess"):
        train_image_model(recipe(folder, "no", transformer_from=0.5))


def test_kept_features_need_a_frozen_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    with pytest.raises(VqhpsError, match="set frozen_stages to 1"):
        train_image_model(
            recipe(folder, "a", kept_views=1, model=VQHPSConfig(backbone="blazepose", dim=32, heads=4, hidden=64),
                   image_size=256, final_image_size=256)
        )  # fmt: skip
    with pytest.raises(VqhpsError, match="keypoint_steps needs a backbone that finds key points"):
        train_image_model(recipe(folder, "a", keypoint_steps=1))
    with pytest.raises(VqhpsError, match="keypoint_mesh needs keypoint_steps"):
        train_image_model(kept_recipe(folder, "a", keypoint_steps=1, keypoint_mesh=0.3))
    with pytest.raises(VqhpsError, match="keypoint_mesh needs keypoint_steps, first_guess"):
        hmr = {"method": "hmr", "model": HMRConfig(backbone="blazepose", frozen_stages=1), "start_from": "other"}
        train_image_model(recipe(folder, "a", keypoint_steps=1, keypoint_mesh=0.3, **hmr))
    with pytest.raises(VqhpsError, match="no folder nowhere/mocap"):
        train_image_model(recipe(folder, "a", motion="nowhere"))
    with pytest.raises(VqhpsError, match="lifting_steps needs"):
        train_image_model(recipe(folder, "a", lifting_steps=1))
    with pytest.raises(VqhpsError, match="cannot be kept: only those of blazepose"):
        train_image_model(recipe(folder, "b", kept_views=1, model=VQHPSConfig(frozen_stages=1, dim=32, heads=4)))


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bfloat16_only_where_the_processor_has_it(
    has: bool, precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    assert training_image._precision("bf16-mixed") == precision
    assert training_image._precision("32-true") == "32-true"
    assert ("no bfloat16 products" in caplog.text) != has


@pytest.mark.parametrize("average", [0.9, 0.9995])
def test_averaging_leaves_meshes_and_codes_alone(folder: Path, average: float) -> None:
    model = load_checkpoint(train_image_model(recipe(folder, "run", average=average)))
    tokenizer = load_checkpoint(folder / "tokenizer")
    for name, value in tokenizer.state_dict().items():
        torch.testing.assert_close(model.tokenizer.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_folder_with_another_model_is_not_overwritten(folder: Path) -> None:
    train_image_model(recipe(folder, "run", steps=1))
    with pytest.raises(VqhpsError, match="other model settings"):
        train_image_model(recipe(folder, "run", model=VQHPSConfig(dim=64, heads=4, hidden=64)))


def build(
    folder: Path, out: str, monkeypatch: pytest.MonkeyPatch, mesh: float
) -> tuple[VQHPS, Shards, np.ndarray, ImageTrainingConfig]:
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    config = kept_recipe(folder, out, keypoint_steps=3, keypoint_batch=2, keypoint_mesh=mesh, average=0.5)
    torch.manual_seed(0)
    model = training_image._build(config)
    shards = Shards(find_shards(folder / "shards", "train"))
    return model, shards, shard_tokens(shards, model.tokenizer), config  # type: ignore[arg-type]


@pytest.mark.parametrize("mesh", [0.0, 0.3])
def test_key_point_training_goes_on_exactly(folder: Path, monkeypatch: pytest.MonkeyPatch, mesh: float) -> None:
    model, *rest = build(folder, "whole", monkeypatch, mesh)
    start = {n: v.clone() for n, v in model.backbone.body.state_dict().items()}
    guess = {n: v.clone() for n, v in model.guess.state_dict().items()}
    train_keypoints(model, *rest)
    whole = model.backbone.body.state_dict()
    moved = {
        name.split(".")[0] + "." + name.split(".")[1] for name in whole if not torch.equal(whole[name], start[name])
    }
    assert not {f"trunk.{i}" for i in range(7)} & moved
    assert {"trunk.7", "trunk.12", "tail.0", "head.0", "landmarks.weight"} <= moved
    assert not any(p.requires_grad for p in model.backbone.trunk.parameters())  # as the recipe wants it afterwards
    trained = {n for n, v in model.guess.state_dict().items() if not torch.equal(v, guess[n])}
    assert ({"latents.weight", "rotation.bias", "keypoint_in.weight", "vector_in.2.weight"} <= trained) == (mesh > 0)

    parts, *rest = build(folder, "parts", monkeypatch, mesh)

    def stop(step: int, *_: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return rate(step, *_)

    rate = training_keypoints.rate_share
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_keypoints, "rate_share", stop)
        train_keypoints(parts, *rest)
    parts, *rest = build(folder, "parts", monkeypatch, mesh)
    train_keypoints(parts, *rest)
    same(parts.backbone.body.state_dict(), whole)
    same(parts.guess.state_dict(), model.guess.state_dict())


def test_the_whole_training_begins_with_key_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    train_image_model(kept_recipe(folder, "run", keypoint_steps=1, keypoint_batch=2, steps=1))
    assert (folder / "run" / "keypoints" / "state.pt").exists()
    assert (folder / "run" / "checkpoint" / "model.safetensors").exists()


def test_people_cut_by_the_frame_come_more_often(tmp_path: Path) -> None:
    shards = Shards([write_shard(tmp_path / "tiny-train-0-000000.tar", 12)])
    shards.labels["keypoints2d"][[2, 5], 3] += 500
    cut = (np.abs(crop_keypoints(shards, np.arange(12))).max(2) >= 1).any(1)
    rows = keypoint_rows(shards, 10, 3)
    np.testing.assert_array_equal(np.bincount(rows, minlength=12), np.where(cut, 3, 1) * (np.arange(12) < 10))
    assert cut[[2, 5]].all() and not cut.all()
