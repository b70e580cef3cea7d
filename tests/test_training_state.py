"""Relative steps: weights move by a share of their size, whatever it is."""

import torch
from torch import nn

from vqhps.training_state import RelativeAdamW


def test_steps_are_a_share_of_the_channel() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.sign(torch.randn(4, 6)) * torch.tensor([1e-2, 1.0, 2.0, 100.0])[:, None])
    before = layer.weight.clone()
    optimizer = RelativeAdamW(layer.parameters(), lr=1e-3, weight_decay=0.0)
    layer(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    share = ((layer.weight - before).abs() / before.abs()).mean(1)
    torch.testing.assert_close(share[1:], torch.full((3,), 1e-3), rtol=0.01, atol=0)
    assert share[0] > 0.01  # a channel near zero may grow: a tenth of the median counts


def test_parameters_without_a_gradient_stay() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = RelativeAdamW([used, unused], lr=0.1)
    used.sum().backward()
    optimizer.step()
    assert (used < 1).all() and (unused == 1).all()


def test_a_group_may_take_plain_steps() -> None:
    relative, plain = nn.Parameter(torch.full((3,), 100.0)), nn.Parameter(torch.full((3,), 100.0))
    optimizer = RelativeAdamW(
        [{"params": [relative]}, {"params": [plain], "relative": False}], lr=1e-3, weight_decay=0.0
    )
    (relative + plain).sum().backward()
    optimizer.step()
    torch.testing.assert_close(relative.detach(), torch.full((3,), 99.9))
    torch.testing.assert_close(plain.detach(), torch.full((3,), 99.999))
