"""Vector quantization with an exponential-moving-average codebook (van den Oord et al., NeurIPS 2017)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class EMAQuantizer(nn.Module):
    """Nearest-code quantization; codes follow the latents they are used for, unused codes are born again.

    All state lives in buffers and changes in training mode only.

    Args:
        books: 1 for one codebook that all tokens share, or the number of tokens for one each.
        num_codes: K.
        code_dim: D.
        decay: of the moving averages.
        revive_below: a code used less often than this share of an even use is replaced by a random latent.
    """

    codebook: Float[Tensor, "G K D"]
    usage: Float[Tensor, "G K"]
    sums: Float[Tensor, "G K D"]

    def __init__(
        self, books: int, num_codes: int, code_dim: int, decay: float = 0.99, revive_below: float = 0.03
    ) -> None:
        super().__init__()
        self.decay = decay
        self.revive_below = revive_below
        codebook = torch.randn(books, num_codes, code_dim)
        self.register_buffer("codebook", codebook)
        self.register_buffer("usage", torch.ones(books, num_codes))
        self.register_buffer("sums", codebook.clone())

    def _grouped(self, latents: Float[Tensor, "B T D"]) -> Float[Tensor, "G N D"]:
        """Latents by the codebook they belong to."""
        return latents.transpose(0, 1).reshape(len(self.codebook), -1, latents.shape[-1])

    def nearest(self, latents: Float[Tensor, "B T D"]) -> Int[Tensor, "B T"]:
        """Index of the nearest code by Euclidean distance."""
        grouped = self._grouped(latents)
        norm = self.codebook.square().sum(2)[:, None]
        score = torch.baddbmm(norm, grouped, self.codebook.transpose(1, 2), alpha=-2)
        return score.argmin(2).view(latents.shape[1], latents.shape[0]).T

    def codes(self, indices: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The codes of tokens."""
        book = torch.arange(indices.shape[1], device=indices.device) % len(self.codebook)
        return self.codebook[book, indices]

    def expected_codes(self, probability: Float[Tensor, "B T K"]) -> Float[Tensor, "B T D"]:
        """Mean code of each token under a distribution over codes; differentiable."""
        return torch.matmul(probability.transpose(0, 1), self.codebook).transpose(0, 1)

    def forward(
        self, latents: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T D"], Int[Tensor, "B T"], Float[Tensor, ""]]:
        """Quantize.

        Returns:
            the codes with straight-through gradient, their indices, and the commitment loss (mean squared distance).
        """
        indices = self.nearest(latents.detach())
        quantized = self.codes(indices)
        commitment = (latents - quantized).square().mean()
        if self.training:
            self._follow(self._grouped(latents.detach()), indices)
        return latents + (quantized - latents).detach(), indices, commitment

    @torch.no_grad()
    def _follow(self, latents: Float[Tensor, "G N D"], indices: Int[Tensor, "B T"]) -> None:
        books, num_codes, code_dim = self.codebook.shape
        grouped = indices.T.reshape(books, -1)
        flat = (grouped + num_codes * torch.arange(books, device=indices.device)[:, None]).reshape(-1)
        samples = latents.reshape(-1, code_dim)
        count = torch.bincount(flat, minlength=books * num_codes).to(samples.dtype).view(books, num_codes)
        total = torch.zeros_like(self.sums).view(-1, code_dim).index_add_(0, flat, samples).view_as(self.sums)
        self.usage.lerp_(count, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        even = latents.shape[1] / num_codes
        dead = self.usage < self.revive_below * even
        if dead.any():
            born = latents[dead.nonzero()[:, 0], torch.randint(latents.shape[1], (int(dead.sum()),))]
            self.usage[dead] = even / 2
            self.sums[dead] = born * (even / 2)
        self.codebook.copy_(self.sums / self.usage[..., None].clamp_min(1e-6))

    @torch.no_grad()
    def initialise(self, latents: Float[Tensor, "N T D"], rounds: int = 10) -> None:
        """Place the codes by k-means on latents."""
        for book, samples in enumerate(self._grouped(latents)):
            codes = samples[torch.randperm(len(samples))[: self.codebook.shape[1]]].clone()
            for _ in range(rounds):
                nearest = torch.addmm(codes.square().sum(1), samples, codes.T, alpha=-2).argmin(1)
                count = torch.bincount(nearest, minlength=len(codes))
                total = torch.zeros_like(codes).index_add_(0, nearest, samples)
                reborn = samples[torch.randint(len(samples), (len(codes),))]
                codes = torch.where(count[:, None] > 0, total / count[:, None].clamp_min(1), reborn)
            self.codebook[book] = codes
            self.usage[book] = count.clamp_min(1) / len(samples) * len(codes)
        self.sums.copy_(self.codebook * self.usage[..., None])


def perplexity(indices: Int[Tensor, "B T"], num_codes: int) -> float:
    """How many codes a token uses: the exponential of the entropy of their frequencies, 1 to `num_codes`, averaged
    over tokens."""
    values = []
    for column in indices.T:
        share = torch.bincount(column, minlength=num_codes).double() / max(1, len(column))
        values.append(torch.exp(-(share * torch.log(share.clamp_min(1e-12))).sum()))
    return float(torch.stack(values).mean())
