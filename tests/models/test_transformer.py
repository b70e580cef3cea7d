"""The transformer's own dropout: the right share, the right scale, and attention that is else the same."""

import pytest
import torch

from vqhps.models.transformer import Attention, Dropout


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(301, 333, requires_grad=True)
    dropout = Dropout(0.25)
    y = dropout(x)
    assert abs((y == 0).float().mean().item() - 0.25) < 5e-3
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    across = (y == 0).float()
    assert (across.mean(0) - 0.25).abs().max() < 0.15 and (across.mean(1) - 0.25).abs().max() < 0.15
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert not torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x) and torch.equal(Dropout(0.0)(x), x)


def test_dropout_is_fixed_by_the_seed() -> None:
    x = torch.randn(7, 5)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first)


@pytest.mark.parametrize("masked", ["none", "missing", "causal", "among"])
def test_attention_in_training_is_that_of_prediction_but_for_dropout(masked: str) -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4, 1e-6)  # rounds to no dropout, but takes the way of training
    x = torch.randn(2, 6, 16)
    masks = {
        "none": {}, "causal": {"causal": True}, "missing": {"missing": torch.rand(2, 6) < 0.3},
        "among": {"among": torch.eye(6, dtype=torch.bool) | (torch.rand(6, 6) < 0.5)},
    }[masked]  # fmt: skip
    torch.testing.assert_close(attention.train()(x, x, x, **masks), attention.eval()(x, x, x, **masks))
    strong = Attention(16, 4, 0.5)
    assert not torch.allclose(strong.train()(x, x, x, **masks), strong.eval()(x, x, x, **masks), atol=1e-3)
