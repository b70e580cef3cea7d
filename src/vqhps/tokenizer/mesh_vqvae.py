"""Mesh-VQ-VAE: a body mesh as a few discrete tokens (VQ-HPS, ECCV 2024, section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqhps.body.topology import Level
from vqhps.tokenizer.networks import ComponentNetwork, ConvNetwork
from vqhps.tokenizer.quantizer import EMAQuantizer


@dataclass(frozen=True)
class MeshVQVAEConfig:
    """Settings of a `MeshVQVAE`.

    Attributes:
        network: `conv`, the published local design; `components`, tokens that each speak for the whole body.
        sizes: vertices of each pooled mesh; the last is the number of latents L.
        num_codes: K, size of a codebook.
        code_dim: D, length of a code.
        shared_codebook: one codebook for all tokens, as published, or one for each.
        depth: levels of residual quantization: T = depth x L tokens.
        channels: conv: of the convolution before each pooling.
        bases: conv: shared matrices of a mesh convolution.
        neighbours: conv: of a vertex in a convolution.
        components: components: principal components of the decoded mesh.
        width: components: of the residual MLPs; 0 for none.
        blocks: components: residual blocks on each side.
        decay: of the codebook's moving averages.
    """

    network: Literal["conv", "components"] = "components"
    sizes: tuple[int, ...] = (400, 150, 54)
    num_codes: int = 512
    code_dim: int = 2
    shared_codebook: bool = False
    depth: int = 1
    channels: tuple[int, ...] = (32, 64, 128)
    bases: int = 9
    neighbours: int = 9
    components: int = 256
    width: int = 512
    blocks: int = 2
    decay: float = 0.99


class BodyMesh(nn.Module):
    """What a tokenizer knows of its body, all in buffers: meshes, hierarchy, upsampler, joint regressors.

    Args:
        tensors: `faces` (F, 3) of the full mesh; `template` (Vc, 3), the coarse one, canonical; `upsample_indices` and
            `upsample_weights` (V, N) from coarse to full; `weight` (Vc,), share of each coarse vertex in the error;
            `conv_l`, `pool_l`, `unpool_l` of each level; `regressor_NAME` (J, Vc).
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)

    @staticmethod
    def level_tensors(levels: Sequence[Level]) -> dict[str, Tensor]:
        """The hierarchy in the form the constructor takes."""
        parts = ("conv", "pool", "unpool")
        return {
            f"{part}_{i}": torch.as_tensor(getattr(level, part)).long()
            for i, level in enumerate(levels)
            for part in parts
            if getattr(level, part) is not None
        }


def blend(
    vertices: Float[Tensor, "B Vi 3"], indices: Int[Tensor, "V N"], weights: Float[Tensor, "V N"]
) -> Float[Tensor, "B V 3"]:
    """Each vertex as a weighted sum of N others; vertex first, so that whole rows are gathered."""
    rows = vertices.transpose(0, 1).flatten(1).index_select(0, indices.flatten()).unflatten(0, indices.shape)
    return torch.bmm(weights[:, None], rows).view(len(indices), -1, 3).transpose(0, 1)


class MeshVQVAE(nn.Module):
    """Tokenizer of canonical body meshes.

    Args:
        config: settings.
        mesh: the body.
    """

    def __init__(self, config: MeshVQVAEConfig, mesh: BodyMesh) -> None:
        super().__init__()
        self.config = config
        self.mesh = mesh
        self.network = (ConvNetwork if config.network == "conv" else ComponentNetwork)(config, mesh)
        books = 1 if config.shared_codebook else config.sizes[-1]
        self.quantizer = EMAQuantizer(books, config.num_codes, config.code_dim, config.decay, depth=config.depth)

    @property
    def num_tokens(self) -> int:
        """T, tokens of a mesh."""
        return self.config.depth * self.config.sizes[-1]

    @property
    def depth(self) -> int:
        """Levels of residual quantization."""
        return self.config.depth

    @property
    def template(self) -> Float[Tensor, "Vc 3"]:
        """The coarse body that latents of zero stand for, metres."""
        return self.mesh.get_buffer("template")

    @property
    def edges(self) -> Int[Tensor, "E 2"]:
        """Pairs of neighbours of the coarse mesh: those that belong to corners of one face of the full mesh, where a
        corner belongs to the coarse vertex that it takes most from."""
        indices, weights = (self.mesh.get_buffer(f"upsample_{name}") for name in ("indices", "weights"))
        corners = indices.gather(1, weights.argmax(1, keepdim=True))[:, 0][self.mesh.get_buffer("faces")]
        pairs = torch.cat([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]]).sort(1).values.unique(dim=0)
        return pairs[pairs[:, 0] < pairs[:, 1]]

    @property
    def num_codes(self) -> int:
        """K, size of a codebook."""
        return self.config.num_codes

    @property
    def codebook(self) -> Float[Tensor, "G K D"]:
        """The codes: of each level, one codebook for all tokens or one for each."""
        return self.quantizer.codebook

    @property
    def book_of_token(self) -> Int[Tensor, "T"]:
        """Which codebook each token reads."""
        return self.quantizer.book_of(self.num_tokens)

    def regressor(self, name: str) -> Float[Tensor, "J Vc"]:
        """A named joint regressor on the coarse mesh."""
        return self.mesh.get_buffer(f"regressor_{name}")

    def latents(self, vertices: Float[Tensor, "B Vc 3"]) -> Float[Tensor, "B L D"]:
        """Latents before quantization of canonical coarse vertices, metres."""
        return self.network.encode(vertices - self.template)

    def decode_latents(self, quantized: Float[Tensor, "B L D"]) -> Float[Tensor, "B Vc 3"]:
        """Canonical coarse vertices, metres, from codes or anything between them; differentiable."""
        return self.network.decode(quantized) + self.template

    def encode(self, vertices: Float[Tensor, "B Vc 3"]) -> Int[Tensor, "B T"]:
        """Tokens of canonical coarse vertices, metres."""
        return self.quantizer.nearest(self.latents(vertices))

    def decode(self, indices: Int[Tensor, "B T"]) -> Float[Tensor, "B Vc 3"]:
        """Canonical coarse vertices of tokens, metres."""
        return self.decode_latents(self.quantizer.codes(indices))

    def decode_expected(self, probability: Float[Tensor, "B T K"]) -> Float[Tensor, "B Vc 3"]:
        """Canonical coarse vertices of the mean code under a distribution over codes; differentiable."""
        return self.decode_latents(self.expected_latents(probability))

    def expected_latents(self, probability: Float[Tensor, "B T K"]) -> Float[Tensor, "B L D"]:
        """The mean code under a distribution over codes; differentiable."""
        return self.quantizer.expected_codes(probability)

    def nearest(self, latents: Float[Tensor, "B L D"]) -> Int[Tensor, "B T"]:
        """Tokens nearest to latents."""
        return self.quantizer.nearest(latents)

    def upsample(self, coarse: Float[Tensor, "B Vc 3"]) -> Float[Tensor, "B V 3"]:
        """Full mesh from the coarse one."""
        return blend(coarse, self.mesh.get_buffer("upsample_indices"), self.mesh.get_buffer("upsample_weights"))

    def forward(
        self, vertices: Float[Tensor, "B Vc 3"]
    ) -> tuple[Float[Tensor, "B Vc 3"], Int[Tensor, "B T"], Float[Tensor, ""]]:
        """Reconstruct: vertices, tokens and commitment loss."""
        quantized, indices, commitment = self.quantizer(self.latents(vertices))
        return self.decode_latents(quantized), indices, commitment
