"""The two encoder-decoder pairs of a Mesh-VQ-VAE: local convolutions as published, or whole-body components."""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqhps.tokenizer.mesh_conv import MeshConv, MeshPool

if TYPE_CHECKING:
    from vqhps.tokenizer.mesh_vqvae import BodyMesh, MeshVQVAEConfig


class ConvNetwork(nn.Module):
    """Fully convolutional mesh autoencoder of VQ-HPS: each token speaks for one region of the body."""

    def __init__(self, config: "MeshVQVAEConfig", mesh: "BodyMesh") -> None:
        super().__init__()
        levels = len(config.sizes)
        widths = list(pairwise((3, *config.channels)))

        counts = [len(mesh.get_buffer(f"conv_{level}")) for level in range(levels + 1)]

        def conv(level: int, c_in: int, c_out: int) -> MeshConv:
            return MeshConv(mesh.get_buffer(f"conv_{level}"), counts[level], c_in, c_out, config.bases)

        down: list[nn.Module] = []
        up: list[nn.Module] = [conv(levels, config.code_dim, config.channels[-1])]
        for level, (c_in, c_out) in enumerate(widths):
            down += [conv(level, c_in, c_out), nn.ELU(), MeshPool(mesh.get_buffer(f"pool_{level}"), counts[level])]
        for level, (c_out, c_in) in reversed(list(enumerate(widths))):
            unpool = MeshPool(mesh.get_buffer(f"unpool_{level}"), counts[level + 1])
            up += [nn.ELU(), unpool, conv(level, c_in, c_out)]
        self.encoder = nn.Sequential(*down, conv(levels, config.channels[-1], config.code_dim), nn.ELU())
        self.decoder = nn.Sequential(*up)

    def encode(self, offsets: Float[Tensor, "B V 3"]) -> Float[Tensor, "B T D"]:
        """Latents of vertex offsets from the mean body, metres."""
        return self.encoder(offsets.transpose(0, 1)).transpose(0, 1)

    def decode(self, codes: Float[Tensor, "B T D"]) -> Float[Tensor, "B V 3"]:
        """Vertex offsets from the mean body, metres."""
        return self.decoder(codes.transpose(0, 1)).transpose(0, 1)


class Residual(nn.Module):
    """Pre-norm residual MLP block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        """Add the block's output to its input."""
        return x + self.layers(x)


def _mlp(c_in: int, width: int, blocks: int, c_out: int) -> nn.Sequential:
    last = nn.Linear(width, c_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(c_in, width), *[Residual(width) for _ in range(blocks)], nn.LayerNorm(width), last)


class ComponentNetwork(nn.Module):
    """Autoencoder in principal components: each token speaks for the whole body.

    The linear part is principal component analysis of the training bodies. Token t carries the components t, 2T-1-t,
    2T+t, ...: a strong one with weak ones, so that its codebook can give each the share of its bits that lowers the
    error; pairs in order of strength, 1-2, 3-4, would waste theirs on the weak pairs.
    Residual MLPs on both sides, zero at first, learn what is not linear; a `width` of 0 leaves them out.

    Latents are in metres: a unit of latent moves the vertices by one metre root mean square.
    """

    mean: Float[Tensor, "V 3"]
    scale: Float[Tensor, "V 1"]
    basis: Float[Tensor, "V3 R"]
    deviation: Float[Tensor, "R"]
    order: Tensor

    def __init__(self, config: "MeshVQVAEConfig", mesh: "BodyMesh") -> None:
        super().__init__()
        tokens, dim, rank = config.sizes[-1], config.code_dim, config.components
        count = len(mesh.get_buffer("template"))
        index = torch.arange(tokens * dim).view(dim, tokens)
        index[1::2] = index[1::2].flip(1)
        self.register_buffer("order", index.T.contiguous(), persistent=False)
        self.register_buffer("mean", torch.zeros(count, 3))
        self.register_buffer("scale", torch.full((count, 1), count**-0.5))
        self.register_buffer("basis", torch.eye(3 * count, rank))
        self.register_buffer("deviation", torch.ones(rank))
        learns = config.width > 0
        self.encoder = _mlp(rank, config.width, config.blocks, tokens * dim) if learns else None
        self.decoder = _mlp(tokens * dim, config.width, config.blocks, rank) if learns else None

    @torch.no_grad()
    def initialise(self, offsets: Float[Tensor, "N V 3"], weight: Float[Tensor, "V"]) -> None:
        """Take the principal components of training bodies; `weight` of the vertices sums to one."""
        self.mean.copy_(offsets.mean(0))
        self.scale.copy_(weight.sqrt()[:, None])
        flat = ((offsets - self.mean) * self.scale).flatten(1)
        _, strength, basis = torch.svd_lowrank(flat, self.basis.shape[1] + 32, niter=3)
        self.basis.copy_(basis[:, : self.basis.shape[1]])
        deviation = strength[: self.basis.shape[1]] / len(flat) ** 0.5
        self.deviation.copy_(deviation.clamp_min(1e-6))  # a micrometre: half precision would make less a zero

    def encode(self, offsets: Float[Tensor, "B V 3"]) -> Float[Tensor, "B T D"]:
        """Latents of vertex offsets from the template, metres."""
        strength = ((offsets - self.mean) * self.scale).flatten(1) @ self.basis
        latents = strength[:, self.order]
        if self.encoder is None:
            return latents
        learned = self.encoder(strength / self.deviation).unflatten(1, self.order.shape)
        return latents + learned * self.deviation[self.order]

    def decode(self, codes: Float[Tensor, "B T D"]) -> Float[Tensor, "B V 3"]:
        """Vertex offsets from the template, metres."""
        strength, basis = codes.flatten(1), self.basis[:, self.order.flatten()]
        if self.decoder is not None:
            learned = self.decoder((codes / self.deviation[self.order]).flatten(1)) * self.deviation
            strength, basis = learned.index_add(1, self.order.flatten(), strength), self.basis
        return (strength @ basis.T).unflatten(1, self.mean.shape) / self.scale + self.mean
