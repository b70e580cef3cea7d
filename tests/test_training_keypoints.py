"""The backbone's own training: it learns, leaves its first layers alone, and resumes exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from test_training_image import folder, kept_recipe, same  # noqa: F401
from tiny_shards import write_shard
from vqhps import training_image, training_keypoints
from vqhps.data.crops import crop_keypoints, shard_tokens
from vqhps.data.sample import Shards, find_shards
from vqhps.models.vqhps import VQHPS
from vqhps.training_image import ImageTrainingConfig, train_image_model
from vqhps.training_keypoints import keypoint_rows, train_keypoints

pytestmark = pytest.mark.filterwarnings("ignore")


def build(
    folder: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[VQHPS, Shards, np.ndarray, ImageTrainingConfig]:
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    config = kept_recipe(folder, out, keypoint_steps=3, keypoint_batch=2, average=0.5)
    torch.manual_seed(0)
    model = training_image._build(config)
    shards = Shards(find_shards(folder / "shards", "train"))
    return model, shards, shard_tokens(shards, model.tokenizer), config  # type: ignore[arg-type]


def test_a_stopped_run_goes_on_exactly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    model, *rest = build(folder, "whole", monkeypatch)
    start = {n: v.clone() for n, v in model.backbone.body.state_dict().items()}
    train_keypoints(model, *rest)
    whole = model.backbone.body.state_dict()
    moved = {
        name.split(".")[0] + "." + name.split(".")[1] for name in whole if not torch.equal(whole[name], start[name])
    }
    assert not {f"trunk.{i}" for i in range(7)} & moved
    assert {"trunk.7", "trunk.12", "tail.0", "head.0", "landmarks.weight"} <= moved
    assert not any(p.requires_grad for p in model.backbone.trunk.parameters())  # as the recipe wants it afterwards

    parts, *rest = build(folder, "parts", monkeypatch)

    def stop(step: int, *_: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return rate(step, *_)

    rate = training_keypoints.rate_share
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_keypoints, "rate_share", stop)
        train_keypoints(parts, *rest)
    parts, *rest = build(folder, "parts", monkeypatch)
    train_keypoints(parts, *rest)
    same(parts.backbone.body.state_dict(), whole)


def test_the_whole_training_begins_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
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
