"""What the image models have in common: a backbone, a tokenizer for the mesh, and the same call for every method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vqhps.body.anny import AnnyBody
from vqhps.body.named import named_body, posed_bodies
from vqhps.body.smpl import SMPLBody
from vqhps.errors import VqhpsError
from vqhps.geometry import ray_rotation, rotate
from vqhps.models.backbones import Backbone, BackboneName, create_backbone
from vqhps.models.blazepose import Seen
from vqhps.models.output import Output


class Tokenizer(Protocol):
    """What an image model needs of a tokenizer."""

    num_tokens: int
    num_codes: int
    codebook: Float[Tensor, "G K D"]
    book_of_token: Int[Tensor, "T"]
    depth: int
    template: Float[Tensor, "Vc 3"]
    edges: Int[Tensor, "E 2"]

    def regressor(self, name: str) -> Float[Tensor, "J Vc"]: ...
    def encode(self, vertices: Float[Tensor, "B Vc 3"]) -> Int[Tensor, "B T"]: ...
    def decode(self, indices: Int[Tensor, "B T"]) -> Float[Tensor, "B Vc 3"]: ...
    def latents(self, vertices: Float[Tensor, "B Vc 3"]) -> Float[Tensor, "B L D"]: ...
    def decode_latents(self, quantized: Float[Tensor, "B L D"]) -> Float[Tensor, "B Vc 3"]: ...
    def decode_expected(self, probability: Float[Tensor, "B T K"]) -> Float[Tensor, "B Vc 3"]: ...
    def expected_latents(self, probability: Float[Tensor, "B T K"]) -> Float[Tensor, "B L D"]: ...
    def nearest(self, latents: Float[Tensor, "B L D"]) -> Int[Tensor, "B T"]: ...
    def upsample(self, coarse: Float[Tensor, "B Vc 3"]) -> Float[Tensor, "B V 3"]: ...


@dataclass(frozen=True)
class MethodConfig:
    """Settings of every method.

    Attributes:
        backbone: network for the image.
        freeze_norm: keep the statistics of the backbone's batch norms as they came: cheaper, and closer to real photos
            than those of rendered ones.
        frozen_stages: first parts of the backbone (stem, its norm, then blocks) that are not trained.
    """

    backbone: BackboneName = "tf_efficientnet_lite0"
    freeze_norm: bool = True
    frozen_stages: int = 0


class Method(nn.Module, ABC):
    """An image model: crops to bodies.

    Args:
        config: settings.
        tokenizer: a trained mesh tokenizer, frozen and in eval mode; it brings the mesh, its upsampler and regressors.

    Attributes:
        guess_only: leave out the transformer, where a method has a first guess before it.
        backbone: set by the method.
    """

    backbone: Any
    guess_only = False

    def __init__(self, config: Any, tokenizer: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer = tokenizer.requires_grad_(False).eval()  # type: ignore[assignment]

    def train(self, mode: bool = True) -> "Method":
        """As for any module, but the tokenizer stays in eval mode, and so do batch norms if they are frozen."""
        super().train(mode)
        self.tokenizer.eval()  # type: ignore[attr-defined]
        if self.config.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def to_bfloat16(self) -> "Method":
        """Run the backbones in bfloat16 from now on, all else in float32: for prediction, not for training.

        Returns:
            This model.

        Raises:
            VqhpsError: its backbone gains nothing by it.
        """
        for module in self.modules():
            if isinstance(module, Backbone):
                module.to_bfloat16()
        return self

    def normalise(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
        """RGB images as the backbone wants them."""
        mean, std = (images.new_tensor(x, dtype=torch.float32) * 255 for x in (self.backbone.mean, self.backbone.std))
        return ((images - mean) / std).permute(0, 3, 1, 2)

    @abstractmethod
    def readings(
        self,
        image: Float[Tensor, "B 3 H W"] | None = None,
        trunk: Float[Tensor, "B Ct h w"] | None = None,
        place: Float[Tensor, "B 3"] | None = None,
    ) -> dict[str, Output]:
        """Predictions on the coarse mesh in each way that the method has, by name; the name of the only one is empty.

        Args:
            image: normalised crops of any size.
            trunk: in place of `image`, what the first part of the backbone made of it.
            place: of the crops in their photos, see `vqhps.data.crops.crop_places`.
        """

    @torch.no_grad()
    def coarse(
        self,
        image: Float[Tensor, "B 3 H W"] | None = None,
        trunk: Float[Tensor, "B Ct h w"] | None = None,
        place: Float[Tensor, "B 3"] | None = None,
    ) -> Output:
        """The prediction on the coarse mesh; see `readings` for the arguments."""
        (output,) = self.readings(image, trunk, place).values()
        return output

    @abstractmethod
    def loss(self, output: Output, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Weighted losses of an output of `forward`; their sum is to be minimised.

        Args:
            output: on the coarse mesh.
            batch: `rotation` (B,3,3), `canonical_vertices` (B,Vc,3) m, `keypoints2d` (B,17,2) in crop coordinates,
                `keypoints_weight` (B,17), `has_mesh` (B,), 1 where a sample has a true mesh and 0 where it has
                keypoints only, `indices` (B,T), `pose` (B,K,4), `shape` (B,S), `body` (B,), `place` (B,3): each
                method takes of it what it learns from.
        """

    def true_mesh(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "B Vc 3"]:
        """The canonical coarse vertices that a batch's bodies have, metres."""
        return posed_bodies(batch["pose"], batch["shape"], batch["body"])

    def begin(self, pose: Float[Tensor, "N K 4"], shape: Float[Tensor, "N S"]) -> None:
        """Take from the labels of the training samples what is needed before the first step: here nothing."""


class BodyMethod(Method):
    """A method that starts from a named body, on one backbone, and gives one prediction.

    Args:
        config: settings, with the name of a `body`.
        tokenizer: of the same mesh.
        backbone_weights: file of weights to start the backbone from; see `create_backbone`.

    Raises:
        VqhpsError: the tokenizer is of another mesh.
    """

    def __init__(self, config: Any, tokenizer: nn.Module, backbone_weights: Path | None = None) -> None:
        super().__init__(config, tokenizer)
        known = self.tokenizer.regressor("coco17").shape[1]
        if len(self.body.template) != known:
            raise VqhpsError(f"the tokenizer is of meshes of {known} vertices, {config.body} has others: set `body`")
        self.backbone = create_backbone(config.backbone, backbone_weights)
        self.backbone.freeze(config.frozen_stages)

    @property
    def body(self) -> AnnyBody | SMPLBody:
        """The body by its name: one for the process, and no part of the weights."""
        return named_body(self.config.body)

    @abstractmethod
    def head(self, seen: Seen, place: Float[Tensor, "B 3"] | None) -> Output:
        """The prediction on the coarse mesh from what the backbone sees; metres are to be computed in float32."""

    def forward(
        self,
        image: Float[Tensor, "B 3 H W"] | None = None,
        keypoints: Float[Tensor, "B J 4"] | None = None,
        trunk: Float[Tensor, "B Ct h w"] | None = None,
        place: Float[Tensor, "B 3"] | None = None,
    ) -> Output:
        """Output on the coarse mesh, for training; see `readings`. Key points are not looked at."""
        seen = self.backbone(image) if trunk is None else self.backbone.from_trunk(trunk)
        return self.head(seen, place)

    def readings(
        self, image: Tensor | None = None, trunk: Tensor | None = None, place: Tensor | None = None
    ) -> dict[str, Output]:
        """See `Method.readings`."""
        return {"": self(image, trunk=trunk, place=place)}

    @torch.no_grad()
    def predict(self, image: Float[Tensor, "B 3 H W"], place: Float[Tensor, "B 3"] | None = None) -> Output:
        """Output on the full mesh; see `readings` for the arguments."""
        return upsampled(self, self(image, place=place))

    def output(
        self, vertices: Float[Tensor, "B Vc 3"], rotation: Float[Tensor, "B 3 3"], camera: Float[Tensor, "B 3"]
    ) -> Output:
        """What `Output` wants, from canonical vertices."""
        joints = self.tokenizer.regressor("coco17") @ vertices
        return Output(rotate(rotation, vertices), rotate(rotation, joints), rotation, camera)


def upsampled(model: Method, output: Output) -> Output:
    """An output on the coarse mesh, on the full mesh."""
    return replace(output, vertices=model.tokenizer.upsample(output.vertices))


def known_place(place: Float[Tensor, "B 3"] | None) -> Float[Tensor, "B 3"]:
    """The places of crops, for methods that need them.

    Raises:
        VqhpsError: they are not known.
    """
    if place is None:
        raise VqhpsError("this method needs to know where in its photo a crop is; delete *.features-* of earlier runs")
    return place


def crop_axes(place: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """Axes of a camera that looks at the centre of the crop -> axes of the full-frame camera."""
    return ray_rotation(place[:, :2], torch.ones_like(place[:, 0]), torch.zeros_like(place[:, :2]))
