"""The published order of operations, to measure and test ours against; nothing else uses it.

As Zhou et al. (NeurIPS 2020) and VQ-HPS (ECCV 2024) do it: activations batch first, neighbours copied, a matrix
expanded for each vertex and neighbour, a product for each neighbour, then their sum.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqhps.tokenizer.mesh_conv import MeshConv, MeshPool
from vqhps.tokenizer.networks import ConvNetwork


class PublishedOrder(nn.Module):
    """A convolutional network computed in the published order.

    Args:
        network: whose parameters it uses.
    """

    def __init__(self, network: ConvNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, offsets: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        """Encode and decode, without quantization."""
        x = offsets
        for layer in (*self.network.encoder, *self.network.decoder):
            if isinstance(layer, MeshConv):
                x = published_conv(layer, x)
            elif isinstance(layer, MeshPool):
                x = published_pool(layer, x)
            else:
                x = layer(x)
        return x


def published_conv(layer: MeshConv, x: Float[Tensor, "B Vi Ci"]) -> Float[Tensor, "B V Co"]:
    """A convolution with the parameters of a layer."""
    bases, c_in, c_out = layer.bases.shape
    mask = (layer.neighbours < x.shape[1]).to(x.dtype)
    coefficients = layer.coefficients * mask[..., None]
    expanded = torch.einsum("pmw,wc->pmc", coefficients, layer.bases.transpose(1, 2).reshape(bases, -1))
    expanded = expanded.view(*layer.neighbours.shape, c_out, c_in)
    products = torch.einsum("pmoi,bpmi->bpmo", expanded, _padded_neighbours(x, layer.neighbours))
    return products.sum(2) + layer.bias


def published_pool(layer: MeshPool, x: Float[Tensor, "B Vi C"]) -> Float[Tensor, "B V C"]:
    """A pooling with the parameters of a layer."""
    return torch.einsum("pm,bpmc->bpc", layer.shares(), _padded_neighbours(x, layer.neighbours))


def _padded_neighbours(x: Float[Tensor, "B Vi C"], neighbours: Int[Tensor, "V M"]) -> Float[Tensor, "B V M C"]:
    return torch.cat([x, x.new_zeros(len(x), 1, x.shape[2])], 1)[:, neighbours]
