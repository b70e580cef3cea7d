"""Convolution and pooling on a fixed mesh topology (Zhou et al., "Fully Convolutional Mesh Autoencoder", NeurIPS 2020).

Activations are laid out vertex first, (V, B, C), so that gathering neighbours copies whole rows.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class MeshConv(nn.Module):
    """Spatially varying convolution: `y_p = sum_n (sum_w b[p,n,w] A_w) x_n + bias`.

    A layer owns W shared basis matrices `A_w` and, for each output vertex and neighbour, W coefficients. The published
    order expands a matrix for each neighbour; here neighbours and matrices are applied one after the other, on
    whichever side has fewer channels.

    Args:
        neighbours: (V, M) indices into the input vertices.
        in_channels: of the input.
        out_channels: of the output.
        bases: W.
    """

    neighbours: Int[Tensor, "V M"]

    def __init__(self, neighbours: Int[Tensor, "V M"], in_channels: int, out_channels: int, bases: int = 9) -> None:
        super().__init__()
        self.register_buffer("neighbours", neighbours, persistent=False)
        count, size = neighbours.shape
        self.bases = nn.Parameter(torch.randn(bases, in_channels, out_channels) / math.sqrt(in_channels))
        self.coefficients = nn.Parameter(torch.randn(count, size, bases) / math.sqrt(size * bases))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Float[Tensor, "Vi B Ci"]) -> Float[Tensor, "V B Co"]:
        """Convolve a batch."""
        bases, c_in, c_out = self.bases.shape
        count, size = self.neighbours.shape
        batch = x.shape[1]
        if c_out >= c_in:
            near = x.reshape(x.shape[0], -1)[self.neighbours]
            mixed = torch.bmm(self.coefficients.transpose(1, 2), near).view(count, bases, batch, c_in)
            mixed = mixed.transpose(1, 2).reshape(count * batch, bases * c_in)
            return torch.addmm(self.bias, mixed, self.bases.view(bases * c_in, c_out)).view(count, batch, c_out)
        projected = x.reshape(-1, c_in) @ self.bases.transpose(0, 1).reshape(c_in, bases * c_out)
        projected = projected.view(-1, batch, bases, c_out).transpose(1, 2).reshape(-1, bases * batch * c_out)
        near = projected[self.neighbours].view(count, size * bases, batch * c_out)
        return torch.bmm(self.coefficients.view(count, 1, -1), near).view(count, batch, c_out) + self.bias


class MeshPool(nn.Module):
    """Pooling or unpooling: each output vertex is a mean of input vertices with learned positive weights.

    Args:
        neighbours: (V, M) indices into the input vertices.
    """

    neighbours: Int[Tensor, "V M"]

    def __init__(self, neighbours: Int[Tensor, "V M"]) -> None:
        super().__init__()
        self.register_buffer("neighbours", neighbours, persistent=False)
        falloff = torch.arange(neighbours.shape[1]) + 1.0
        self.weights = nn.Parameter((1 / falloff).repeat(len(neighbours), 1))

    def forward(self, x: Float[Tensor, "Vi B C"]) -> Float[Tensor, "V B C"]:
        """Pool a batch."""
        weights = self.weights.abs()
        weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
        near = x.reshape(x.shape[0], -1)[self.neighbours]
        return torch.bmm(weights[:, None], near).view(-1, *x.shape[1:])
