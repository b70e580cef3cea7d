"""Transformer parts of VQ-HPS: pre-norm layers with positions added to queries and keys only (DETR, ECCV 2020)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


def sine_positions(position: Float[Tensor, "*N 2"], dim: int) -> Float[Tensor, "*N dim"]:
    """Sine and cosine features of image positions, y half then x half, temperature 10,000.

    Args:
        position: `(x, y)`, 0 at the top-left corner of the crop, 1 at the bottom-right.
        dim: number of features, a multiple of four.
    """
    half = dim // 2
    exponent = torch.arange(half, device=position.device).div(2, rounding_mode="floor") * (2 / half)
    angle = position.flip(-1)[..., None] * (2 * math.pi) / 10_000**exponent
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-3)


def grid_positions(height: int, width: int, device: torch.device) -> Float[Tensor, "H*W 2"]:
    """Positions of the cells of a feature map, row by row: (index + 1) / size, as published."""
    y, x = (torch.arange(1, n + 1, device=device) / (n + 1e-6) for n in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


class Dropout(nn.Dropout):
    """As torch's, but on a CPU one random number serves eight values, as the drawing takes a quarter of a training step
    there; the share is rounded to a 256th."""

    def forward(self, x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """Zero some values and scale up the others, in training."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        cut = round(256 * self.p)
        drawn = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = drawn.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
        return x * kept.to(x.dtype).mul_(256 / (256 - cut))


class Attention(nn.Module):
    """Multi-head attention with separate projections."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        key: Float[Tensor, "B M D"],
        value: Float[Tensor, "B M D"],
        missing: Bool[Tensor, "B M"] | None = None,
        causal: bool = False,
        among: Bool[Tensor, "Q M"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Attend; keys that are `missing` are not looked at, or, where none can be, those that are not `among` a
        query's."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = among if missing is None else ~missing[:, None, None]
        if self.training and self.dropout.p:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            if causal:
                mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
            scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
            mixed = self.dropout(scores.softmax(-1)).to(v.dtype) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def feed_forward(dim: int, hidden: int, dropout: float, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(dim, hidden), activation(), Dropout(dropout), nn.Linear(hidden, dim))


class EncoderLayer(nn.Module):
    """Self-attention of condition tokens."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = feed_forward(dim, hidden, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B M D"],
        positions: Float[Tensor, "B M D"],
        missing: Bool[Tensor, "B M"] | None,
    ) -> Float[Tensor, "B M D"]:
        """Update tokens; positions go to queries and keys."""
        x = self.norm1(tokens)
        tokens = tokens + self.dropout(self.attention(x + positions, x + positions, x, missing))
        return tokens + self.dropout(self.feed_forward(self.norm2(tokens)))


class DecoderLayer(nn.Module):
    """Self-attention of mesh tokens, then attention to the memory."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = Attention(dim, heads, dropout)
        self.cross_attention = Attention(dim, heads, dropout)
        self.feed_forward = feed_forward(dim, hidden, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B M D"],
        positions: Float[Tensor, "B M D"],
        missing: Bool[Tensor, "B M"] | None,
        among: Bool[Tensor, "T T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Update mesh tokens from the memory, whose positions go to the keys; each looks at those `among` its own."""
        x = self.norm1(tokens)
        tokens = tokens + self.dropout(self.self_attention(x, x, x, among=among))
        attended = self.cross_attention(self.norm2(tokens), memory + positions, memory, missing)
        tokens = tokens + self.dropout(attended)
        return tokens + self.dropout(self.feed_forward(self.norm3(tokens)))


class CausalHead(nn.Module):
    """One block of causal self-attention, then a score a code for each mesh token; `alone`, a token attends to itself.

    The published code attends along the batch in place of the tokens: for one image at a time, that is `alone`.
    """

    def __init__(self, dim: int, heads: int, hidden: int, num_codes: int, dropout: float, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = feed_forward(dim, hidden, dropout, nn.GELU)
        self.dropout = Dropout(dropout)
        self.scores: nn.Module = nn.Linear(dim, num_codes, bias=False)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """Logits of the codes."""
        x = self.norm1(tokens)
        attended = self.attention.proj(self.attention.value(x)) if self.alone else self.attention(x, x, x, causal=True)
        tokens = tokens + self.dropout(attended)
        tokens = tokens + self.dropout(self.feed_forward(self.norm2(tokens)))
        scores: Tensor = self.scores(self.norm(tokens))
        return scores
