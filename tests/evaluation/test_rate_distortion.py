"""The table of bits against error, on the real data with very small tokenizers, and its bound."""

import json

import numpy as np
import pytest
import torch

from vqhps.body.anny import anny_body
from vqhps.body.model import canonical
from vqhps.body.topology import random_pose
from vqhps.cli import main
from vqhps.data.mocap import PoseBank
from vqhps.evaluation import rate_distortion
from vqhps.evaluation.rate_distortion import gaussian_bound


def test_bound_of_equal_components_is_that_of_one():
    """Of n equal components, r bits each leave 4^-r of the variance: Shannon's bound of a normal source."""
    for bits, error in gaussian_bound(torch.full((8,), 0.01)):
        left = 8 * 0.01**2 * 4 ** (-bits / 8)
        assert error == pytest.approx(1000 * np.sqrt(8 / (3 * np.pi)) * np.sqrt(left), rel=1e-6)


def test_bound_falls_with_bits():
    curve = gaussian_bound(torch.logspace(-1, -4, 50))
    bits, error = np.array(curve).T
    assert (np.diff(bits) > 0).all() and (np.diff(error) < 0).all()


@pytest.fixture
def few_bodies(monkeypatch):
    """Random poses in place of motion capture."""
    rng = np.random.default_rng(0)

    def bank(*_: object) -> PoseBank:
        return PoseBank(random_pose(64, 31, rng).numpy(), np.tile(np.eye(3, dtype=np.float32), (64, 1, 1)), ("",) * 64)

    def test_bodies(*_: object) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
        pose = random_pose(32, 31, np.random.default_rng(1))
        shape = torch.from_numpy(anny_body("full").sample_shape(32, np.random.default_rng(2)))
        return *(canonical(anny_body(mesh).forward(pose, shape)) for mesh in ("coarse", "full")), ("",) * 32

    monkeypatch.setattr(rate_distortion, "load_poses", bank)
    monkeypatch.setattr(rate_distortion, "test_bodies", test_bodies)


def test_table_and_plot(tmp_path, capsys, few_bodies):
    """More levels lower the error; what is measured is kept and not measured again."""
    settings = ["--latents", "4", "--codes", "16", "--bodies", "512"]
    command = ["evaluate", "rate-distortion", "--root", "", "--out", str(tmp_path), *settings]
    assert main([*command, "--depths", "1"]) == 0
    table = tmp_path / "rate_distortion.csv"
    first = table.read_text()
    assert main([*command, "--depths", "1", "2"]) == 0
    assert table.read_text().startswith(first.strip())
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [p["bits"] for p in points] == [16, 32]
    assert points[1]["pve_mm"] < 0.8 * points[0]["pve_mm"]
    assert (tmp_path / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")


def test_a_strange_table_is_refused(tmp_path, capsys):
    (tmp_path / "rate_distortion.csv").write_text("a,b\n1,2\n")
    assert main(["evaluate", "rate-distortion", "--root", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "not a table of this command" in capsys.readouterr().err


def test_a_depth_without_a_length_is_refused(tmp_path, capsys):
    command = ["evaluate", "rate-distortion", "--root", str(tmp_path), "--out", str(tmp_path), "--depths", "3"]
    assert main(command) == 2
    assert "depth 3" in capsys.readouterr().err
