"""Vector quantization with an exponential-moving-average codebook (van den Oord et al., NeurIPS 2017)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_ROUNDS = 8  # of sharing out what rare codes leave: a half of a cell may be small again


class EMAQuantizer(nn.Module):
    """Nearest-code quantization; codes follow the latents they are used for, unused codes are born again.

    With a `depth` above one, each further level quantizes what the levels before it leave (residual quantization, Lee
    et al., CVPR 2022), with codebooks of its own: depth x T tokens, level by level.

    All state lives in buffers and changes in training mode only.

    Args:
        books: 1 for one codebook (a level) that all tokens share, or the number of latents for one each.
        num_codes: K.
        code_dim: D.
        decay: of the moving averages.
        revive_below: a code used less often than this share of an even use is replaced by a random latent.
        depth: levels.
    """

    codebook: Float[Tensor, "G K D"]
    usage: Float[Tensor, "G K"]
    sums: Float[Tensor, "G K D"]

    def __init__(
        self,
        books: int,
        num_codes: int,
        code_dim: int,
        decay: float = 0.99,
        revive_below: float = 0.03,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.books, self.depth = books, depth
        self.decay = decay
        self.revive_below = revive_below
        codebook = torch.randn(depth * books, num_codes, code_dim)
        self.register_buffer("codebook", codebook)
        self.register_buffer("usage", torch.ones(depth * books, num_codes))
        self.register_buffer("sums", codebook.clone())

    def book_of(self, tokens: int) -> Int[Tensor, "T"]:
        """Which codebook each of `tokens` tokens (all levels) reads."""
        token = torch.arange(tokens, device=self.codebook.device)
        latents = tokens // self.depth
        return token // latents * self.books + token % latents % self.books

    def nearest(self, latents: Float[Tensor, "B L D"]) -> Int[Tensor, "B T"]:
        """Index of the nearest code by Euclidean distance, level by level; T = depth x L."""
        indices = []
        for level in range(self.depth):
            indices.append(self._nearest(level, latents))
            if level + 1 < self.depth:
                latents = latents - self._codes(level, indices[-1])
        return torch.cat(indices, 1)

    def codes(self, indices: Int[Tensor, "B T"]) -> Float[Tensor, "B L D"]:
        """The codes of tokens, summed over the levels."""
        return self.codebook[self.book_of(indices.shape[1]), indices].unflatten(1, (self.depth, -1)).sum(1)

    def expected_codes(self, probability: Float[Tensor, "B T K"]) -> Float[Tensor, "B L D"]:
        """Mean code of each latent under distributions over codes; differentiable."""
        codes = self.codebook[self.book_of(probability.shape[1])]
        mean = torch.matmul(probability.transpose(0, 1), codes).transpose(0, 1)
        return mean.unflatten(1, (self.depth, -1)).sum(1)

    def forward(
        self, latents: Float[Tensor, "B L D"]
    ) -> tuple[Float[Tensor, "B L D"], Int[Tensor, "B T"], Float[Tensor, ""]]:
        """Quantize.

        Returns:
            the codes with straight-through gradient, their indices, and the commitment loss (mean squared distance).
        """
        indices = self.nearest(latents.detach())
        quantized = self.codes(indices)
        commitment = (latents - quantized).square().mean()
        if self.training:
            rest = latents.detach()
            for level, chosen in enumerate(indices.chunk(self.depth, 1)):
                left = rest - self._codes(level, chosen)
                self._follow(level, self._grouped(rest), chosen)
                rest = left
        return latents + (quantized - latents).detach(), indices, commitment

    def _grouped(self, latents: Float[Tensor, "B L D"]) -> Float[Tensor, "G N D"]:
        """Latents by the codebook they belong to."""
        return latents.transpose(0, 1).reshape(self.books, -1, latents.shape[-1])

    def _level(self, values: Float[Tensor, "DG *S"], level: int) -> Float[Tensor, "G *S"]:
        return values[level * self.books : (level + 1) * self.books]

    def _nearest(self, level: int, latents: Float[Tensor, "B L D"]) -> Int[Tensor, "B L"]:
        book = self._level(self.codebook, level)
        norm = book.square().sum(2)[:, None]
        score = torch.baddbmm(norm, self._grouped(latents), book.transpose(1, 2), alpha=-2)
        return score.argmin(2).view(latents.shape[1], latents.shape[0]).T

    def _codes(self, level: int, indices: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        book = torch.arange(indices.shape[1], device=indices.device) % self.books
        return self._level(self.codebook, level)[book, indices]

    @torch.no_grad()
    def _follow(self, level: int, latents: Float[Tensor, "G N D"], indices: Int[Tensor, "B L"]) -> None:
        codebook, usage, sums = (self._level(x, level) for x in (self.codebook, self.usage, self.sums))  # views
        books, num_codes, code_dim = codebook.shape
        grouped = indices.T.reshape(books, -1)
        flat = (grouped + num_codes * torch.arange(books, device=indices.device)[:, None]).reshape(-1)
        samples = latents.reshape(-1, code_dim)
        count = torch.bincount(flat, minlength=books * num_codes).to(samples.dtype).view(books, num_codes)
        total = torch.zeros_like(sums).view(-1, code_dim).index_add_(0, flat, samples).view_as(sums)
        usage.lerp_(count, 1 - self.decay)
        sums.lerp_(total, 1 - self.decay)
        even = latents.shape[1] / num_codes
        dead = usage < self.revive_below * even
        if dead.any():
            born = latents[dead.nonzero()[:, 0], torch.randint(latents.shape[1], (int(dead.sum()),))]
            usage[dead] = even / 2
            sums[dead] = born * (even / 2)
        codebook.copy_(sums / usage[..., None].clamp_min(1e-6))

    @torch.no_grad()
    def initialise(self, latents: Float[Tensor, "N L D"], rounds: int = 10) -> None:
        """Place the codes by k-means on latents, each level on what those before it leave."""
        for level in range(self.depth):
            for book, samples in enumerate(self._grouped(latents)):
                codes = samples[torch.randperm(len(samples))[: self.codebook.shape[1]]].clone()
                for _ in range(rounds):
                    norm = codes.square().sum(1)
                    parts = samples.split(512)  # that the scores stay in the cache; min is faster than argmin
                    nearest = torch.cat([torch.addmm(norm, x, codes.T, alpha=-2).min(1).indices for x in parts])
                    count = torch.bincount(nearest, minlength=len(codes))
                    total = torch.zeros_like(codes).index_add_(0, nearest, samples)
                    reborn = samples[torch.randint(len(samples), (len(codes),))]
                    codes = torch.where(count[:, None] > 0, total / count[:, None].clamp_min(1), reborn)
                self._level(self.codebook, level)[book] = codes
                self._level(self.usage, level)[book] = count.clamp_min(1) / len(samples) * len(codes)
            latents = latents - self._codes(level, self._nearest(level, latents))
        self.sums.copy_(self.codebook * self.usage[..., None])

    @torch.no_grad()
    def share_cells(self, latents: Float[Tensor, "N L D"], least: int = 16) -> int:
        """Give each code that fewer than `least` of the latents use half of those of the code that errs most.

        Returns: how often a code was moved.
        """
        moved = 0
        for level in range(self.depth):
            for book, samples in enumerate(self._grouped(latents)):
                for _ in range(_ROUNDS):
                    moved += (now := self._share_cells(level * self.books + book, samples, least))
                    if not now:
                        break
            latents = latents - self._codes(level, self._nearest(level, latents))
        return moved

    def _share_cells(self, book: int, samples: Float[Tensor, "N D"], least: int) -> int:
        codes, usage = self.codebook[book], self.usage[book]  # views
        distance, nearest = torch.cdist(samples, codes).min(1)
        count = torch.bincount(nearest, minlength=len(codes))
        error = torch.zeros_like(usage).index_add_(0, nearest, distance.square())
        error[count < 2 * least] = 0
        rare, moved = (count < least).nonzero()[:, 0], 0
        for code, cell in zip(rare, error.topk(len(rare)).indices, strict=True):
            if error[cell] <= 0:
                break
            own = samples[nearest == cell]
            offset = own - own.mean(0)
            side = offset @ torch.linalg.svd(offset, full_matrices=False).Vh[0] > 0
            if side.any():
                codes[cell], codes[code] = own[~side].mean(0), own[side].mean(0)
                usage[cell] = usage[code] = usage[cell] / 2
                moved += 1
        self.sums[book] = codes * usage[:, None]
        return moved


def perplexity(indices: Int[Tensor, "B T"], num_codes: int) -> float:
    """How many codes a token uses: the exponential of the entropy of their frequencies, 1 to `num_codes`, averaged
    over tokens."""
    values = []
    for column in indices.T:
        share = torch.bincount(column, minlength=num_codes).double() / max(1, len(column))
        values.append(torch.exp(-(share * torch.log(share.clamp_min(1e-12))).sum()))
    return float(torch.stack(values).mean())
