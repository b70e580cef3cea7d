"""Convolution and pooling on a fixed mesh topology (Zhou et al., "Fully Convolutional Mesh Autoencoder", NeurIPS 2020).

Activations are laid out vertex first, (V, B, C), so that a vertex of all meshes of a batch is one row. In a table of
neighbours, the number of input vertices as an index means "no neighbour".
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqhps.tokenizer.mesh_edges import Blend, Convolve, MeshEdges


class MeshConv(nn.Module):
    """Spatially varying convolution: `y_p = sum_n (sum_w b[p,n,w] A_w) x_n + bias`.

    A layer owns W shared basis matrices `A_w` and, for each output vertex and neighbour, W coefficients. The published
    order expands a matrix for each neighbour; here neighbours and matrices are applied one after the other, neighbours
    on whichever side has fewer channels.

    Args:
        neighbours: (V, M) indices into the input vertices; `inputs` means none.
        inputs: Vi, number of input vertices.
        in_channels: of the input.
        out_channels: of the output.
        bases: W.

    Raises:
        VqhpsError: a neighbour is negative or beyond `inputs`.
    """

    neighbours: Int[Tensor, "V M"]

    def __init__(
        self, neighbours: Int[Tensor, "V M"], inputs: int, in_channels: int, out_channels: int, bases: int = 9
    ) -> None:
        super().__init__()
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.edges = MeshEdges(neighbours, inputs, gather_on_inputs=in_channels > out_channels)
        count, size = neighbours.shape
        self.bases = nn.Parameter(torch.randn(bases, in_channels, out_channels) / math.sqrt(in_channels))
        self.coefficients = nn.Parameter(torch.randn(count, size, bases) / math.sqrt(size * bases))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Float[Tensor, "Vi B Ci"]) -> Float[Tensor, "V B Co"]:
        """Convolve a batch."""
        if torch.compiler.is_compiling():
            near = padded_neighbours(x, self.neighbours)
            mixed = (self.coefficients.transpose(1, 2) @ near.flatten(2)).unflatten(2, near.shape[2:])
            return mixed.transpose(1, 2).flatten(2) @ self.bases.flatten(0, 1) + self.bias
        matrices = self.bases.transpose(1, 2) if self.edges.gather_on_inputs else self.bases
        return Convolve.apply(x, self.coefficients, matrices.contiguous(), self.edges) + self.bias


class MeshPool(nn.Module):
    """Pooling or unpooling: each output vertex is a mean of input vertices with learned positive weights.

    Args:
        neighbours: (V, M) indices into the input vertices; `inputs` means none.
        inputs: Vi, number of input vertices.

    Raises:
        VqhpsError: a neighbour is negative or beyond `inputs`.
    """

    neighbours: Int[Tensor, "V M"]

    def __init__(self, neighbours: Int[Tensor, "V M"], inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.edges = MeshEdges(neighbours, inputs)
        falloff = torch.arange(neighbours.shape[1]) + 1.0
        self.weights = nn.Parameter((1 / falloff).repeat(len(neighbours), 1))

    def shares(self) -> Float[Tensor, "V M"]:
        """Share of each neighbour, in [0, 1]; the shares of a vertex sum to one, and none have none."""
        weights = self.weights.abs() * (self.neighbours < self.inputs)
        return weights / (weights.sum(1, keepdim=True) + 1e-8)

    def forward(self, x: Float[Tensor, "Vi B C"]) -> Float[Tensor, "V B C"]:
        """Pool a batch."""
        if torch.compiler.is_compiling():
            near = padded_neighbours(x, self.neighbours)
            return (self.shares()[:, None] @ near.flatten(2)).unflatten(2, near.shape[2:])[:, 0]
        return Blend.apply(x.flatten(1), self.edges.weights(self.shares()[..., None])[0], self.edges).unflatten(
            1, x.shape[1:]
        )


def padded_neighbours(x: Float[Tensor, "Vi B C"], neighbours: Int[Tensor, "V M"]) -> Float[Tensor, "V M B C"]:
    """Copies of the neighbours, zero where there is none: what a graph compiler or an exporter is given to trace.

    It is given products of matrices, too: runtimes are slow at the sums of `einsum`, and at indices of several axes.
    """
    rows = torch.cat([x, torch.zeros_like(x[:1])]).index_select(0, neighbours.flatten())
    return rows.unflatten(0, neighbours.shape)
