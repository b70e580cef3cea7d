"""VQ-HPS with one of its choices undone, for ablations; see `vqhps study scarce`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqhps.errors import VqhpsError
from vqhps.geometry import fit_rotation, rotate
from vqhps.models.method import Method
from vqhps.models.output import Output
from vqhps.models.vqhps import VQHPS, Decode, Encoded, VQHPSConfig


class LatentVQHPS(VQHPS):
    """Regresses the latents of the mesh before quantization and decodes them as they are: no codes, no classes.

    Its `Output.logits` are the latents, centred and scaled as the codes of their token are. The loss `tokens` is their
    mean squared error.

    Args:
        config, tokenizer, backbone_weights: see `VQHPS`.

    Raises:
        VqhpsError: the settings or the tokenizer need codes.
    """

    middle: Float[Tensor, "T D"]
    spread: Float[Tensor, "T D"]

    def __init__(self, config: VQHPSConfig, tokenizer: nn.Module, backbone_weights: Path | None = None) -> None:
        super().__init__(config, tokenizer, backbone_weights)
        codes = self.tokenizer.codebook[self.tokenizer.book_of_token]
        if config.first_guess or self.tokenizer.depth > 1:
            raise VqhpsError("latents need a tokenizer of one level, and no first_guess, which is one among codes")
        self.register_buffer("middle", codes.mean(1))
        self.register_buffer("spread", codes.std(1))
        self.token_head.scores = nn.Linear(config.dim, codes.shape[2])

    def true_mesh(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "B Vc 3"]:
        """The body itself: nothing is quantized."""
        return Method.true_mesh(self, batch)

    def readings(
        self, image: Tensor | None = None, trunk: Tensor | None = None, place: Tensor | None = None
    ) -> dict[str, Output]:
        """See `Method.readings`."""
        with torch.no_grad():
            return {"": self.output(self.encode(image, None, trunk), self.config.decode, full=False)}

    def _indices(self, logits: Float[Tensor, "B T D"], how: Decode) -> None:
        """There are none."""

    def decode_mesh(self, logits: Float[Tensor, "B T D"], how: Decode) -> Float[Tensor, "B Vc 3"]:
        """Coarse canonical vertices of latents; there is one way."""
        return self.tokenizer.decode_latents(self.middle + self.spread * logits)

    def token_loss(self, logits: Float[Tensor, "B T D"], batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
        """Mean squared error of the latents of each sample, in units of their spread."""
        true = (self.tokenizer.latents(batch["canonical_vertices"]) - self.middle) / self.spread
        return (logits - true).square().mean((1, 2))


class OrientedVQHPS(VQHPS):
    """Predicts the codes of the mesh in camera axes: its tokens say how the body is turned, too.

    It wants a tokenizer of turned bodies (`vqhps train tokenizer --recipe tokenizer-oriented`). The rotation head is
    not trained; `Output.rotation` is the one that fits the mesh best.
    """

    def true_mesh(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "B Vc 3"]:
        """The body itself: the tokens of a batch are of canonical meshes."""
        return Method.true_mesh(self, batch)

    def output(self, encoded: Encoded, decode: Decode, full: bool) -> Output:
        """See `VQHPS.output`."""
        logits, camera = encoded.logits.float(), encoded.camera.float()
        with torch.autocast(logits.device.type, enabled=False):
            coarse = self.decode_mesh(logits, decode)
            vertices = self.tokenizer.upsample(coarse) if full else coarse
            with torch.no_grad():
                rotation = fit_rotation(self.tokenizer.template.expand_as(coarse), coarse)
            joints = self.tokenizer.regressor("coco17") @ coarse
            return Output(vertices, joints, rotation, camera, logits, self._indices(logits, decode))

    def token_loss(self, logits: Float[Tensor, "B T K"], batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
        """See `VQHPS.token_loss`; the codes are those of the turned mesh."""
        turned = rotate(batch["rotation"], batch["canonical_vertices"])
        return super().token_loss(logits, {"indices": self.tokenizer.encode(turned)})
