"""Kept features: what a training step reads is what the frozen network would make of the crop, with its labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tiny_shards import TinyBody, symmetric_tokenizer, write_shard
from vqhps.data import crops
from vqhps.data.augment import AugmentConfig
from vqhps.data.crops import shard_tokens
from vqhps.data.features import FeatureStore, feature_key, store_features
from vqhps.data.sample import Shards, find_shards

VIEWS, SIZE = 3, 64
AUGMENT = AugmentConfig(p_flip=0.5)
TRUNK = nn.AvgPool2d(16)


def trunk(images: Tensor) -> Tensor:
    return TRUNK(images.permute(0, 3, 1, 2).float() / 255)


@pytest.fixture()
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(crops, "named_body", lambda name: TinyBody())
    write_shard(tmp_path / "tiny-train-0-000000.tar", 5, seed=0)
    write_shard(tmp_path / "tiny-train-0-000001.tar", 3, seed=1)
    return find_shards(tmp_path, "train")


def stored(paths: list[Path]) -> FeatureStore:
    return store_features(paths, trunk, "key", SIZE, AUGMENT, VIEWS, workers=0)


def test_every_sample_has_its_views_and_tokens_follow_the_mirror(paths: list[Path]) -> None:
    store, shards = stored(paths), Shards(paths)
    assert np.bincount(store.sample).tolist() == [VIEWS] * 8
    tokens = shard_tokens(shards, symmetric_tokenizer())
    batch = store.batch(np.arange(len(store)), tokens)
    assert batch["trunk"].shape == (24, 3, 4, 4)
    upright = batch["rotation"].det()
    torch.testing.assert_close(upright, torch.ones(24), atol=1e-4, rtol=0)
    flips = 0
    for row, sample in enumerate(store.sample):
        sides = [np.array_equal(batch["indices"][row], tokens[sample, side]) for side in (0, 1)]
        assert any(sides)
        flips += sides[1] and not sides[0]
    assert 4 < flips < 20


def test_views_differ_and_can_be_drawn_again(paths: list[Path]) -> None:
    store = stored(paths[:1])
    batch = store.batch(np.arange(len(store)), np.zeros((5, 2, 6), np.int16))
    again = store_features(paths[:1], trunk, "other", SIZE, AUGMENT, VIEWS, workers=0)
    repeated = again.batch(np.arange(len(store)), np.zeros((5, 2, 6), np.int16))
    for name, value in batch.items():
        torch.testing.assert_close(repeated[name], value, rtol=0, atol=0, msg=name)
    views = [batch["trunk"][i] for i in range(0, 15, 5)]
    assert all((a - b).abs().max() > 0.01 for a, b in ((views[0], views[1]), (views[1], views[2])))


def test_what_is_done_is_kept_and_a_newer_shard_is_done_again(paths: list[Path]) -> None:
    stored(paths[:1])
    calls = []

    def counting(images: Tensor) -> Tensor:
        calls.append(len(images))
        return trunk(images)

    store_features(paths, counting, "key", SIZE, AUGMENT, VIEWS, workers=0)
    assert sum(calls) == 9  # the second shard only
    calls.clear()
    write_shard(paths[0], 2, seed=7)
    store = store_features(paths, counting, "key", SIZE, AUGMENT, VIEWS, workers=0)
    assert sum(calls) == 6 and len(store) == 15


def test_the_key_names_what_features_depend_on() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3)
    keys = {
        feature_key(network, 64, AUGMENT, 2), feature_key(network, 96, AUGMENT, 2),
        feature_key(network, 64, AugmentConfig(p_flip=0.1), 2), feature_key(network, 64, AUGMENT, 3),
        feature_key(nn.Conv2d(3, 4, 3), 64, AUGMENT, 2),
    }  # fmt: skip
    assert len(keys) == 5
    assert feature_key(network, 64, AUGMENT, 2) in keys
