"""What the evaluation of a tokenizer says of parts, surfaces and everyday motion."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared import DATA, needs_data
from vqhps.body.anny import anny_body
from vqhps.body.model import canonical
from vqhps.body.topology import random_pose
from vqhps.evaluation import tokenizer


class MovesTheHands(nn.Module):
    """Rebuilds exactly but for hands and, in the first body, everything, which it moves up and down by turns."""

    num_codes = 4

    def __init__(self, full: torch.Tensor) -> None:
        super().__init__()
        self.full, self.mesh = full, nn.Module()
        self.mesh.register_buffer("template", torch.zeros(1229, 3))
        self.mesh.register_buffer("faces", torch.from_numpy(anny_body("full").faces))
        wave = torch.where(torch.arange(full.shape[1]) % 2 == 0, 0.01, -0.01)
        hands = torch.from_numpy(anny_body("full").parts["hands"])
        self.shift = torch.zeros(full.shape)
        self.shift[:, hands, 1] = wave[hands]
        self.shift[0, :, 1] = wave

    def encode(self, coarse: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(coarse))[:, None]

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        return indices

    def upsample(self, indices: torch.Tensor) -> torch.Tensor:
        return (self.full + self.shift)[indices[:, 0]]


def test_parts_and_everyday_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    pose = random_pose(4, 31, np.random.default_rng(1))
    shape = torch.from_numpy(anny_body("full").sample_shape(4, np.random.default_rng(2)))
    coarse, full = (canonical(anny_body(mesh).forward(pose, shape)) for mesh in ("coarse", "full"))
    names = ("cmu/06_01", "cmu/06_12", "cmu/06_12", "cmu/06_12")
    held = ("bodies", None, coarse, full, names)
    monkeypatch.setattr(tokenizer, "_held_out", lambda *_: held)
    monkeypatch.setattr(tokenizer, "unused_codes", lambda *_: 0)
    monkeypatch.setattr("vqhps.checkpoint.load_tokenizer", lambda _: MovesTheHands(full))
    monkeypatch.setattr(MovesTheHands, "codebook", torch.zeros(1, 4, 2), raising=False)
    found = tokenizer.evaluate_tokenizer(Path("c"), Path("mocap"))
    assert found["PVE_mm hands"] == pytest.approx(10, abs=0.1)
    for part in ("legs", "head", "torso"):
        assert found[f"PVE_mm {part}"] == pytest.approx(2.5, abs=0.1)
    assert found["PVE_mm walking"] == pytest.approx(10, abs=0.1)
    assert found["PVE_mm"] > found["PVE_mm by surface"] > 2.5  # hands have many vertices on little surface


@needs_data
def test_an_unseen_motion_set_is_all_of_it_and_not_trained_on():
    data, stream, coarse, full, clips = tokenizer._held_out(DATA, "makehuman")
    assert data.startswith("motion set makehuman") and len(coarse) == len(full) == len(clips) == 15
    assert all(clip.startswith("makehuman/") for clip in clips)
    assert {clip.split("/")[0] for clip in stream.bank.clip} == {"cmu", "dance", "deepmimic"}
