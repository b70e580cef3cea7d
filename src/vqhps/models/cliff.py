"""CLIFF: HMR that is told where in the photo the crop is, and is held to the full frame (Li et al., ECCV 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqhps.geometry import full_to_crop, full_translation, project_perspective, rotate
from vqhps.models.losses import keypoint_error, weighted
from vqhps.models.method import crop_axes, known_place
from vqhps.models.output import Output
from vqhps.models.regression import ParameterConfig, ParameterMethod

_LEAST = 0.1  # 1/m: a person a tenth as large as those that fill their crop


@dataclass(frozen=True)
class CLIFFConfig(ParameterConfig):
    """Settings of `CLIFF`; see `ParameterConfig`."""


class CLIFF(ParameterMethod):
    """Reads the place of the crop beside the backbone's vector, regresses the rotation in the axes of the full-frame
    camera, and reprojects with that camera."""

    def __init__(self, config: CLIFFConfig, tokenizer: nn.Module, backbone_weights: Path | None = None) -> None:
        super().__init__(config, tokenizer, backbone_weights, more=3)

    def read(self, vector: Float[Tensor, "B C"], place: Float[Tensor, "B 3"] | None) -> Output:
        """See `ParameterMethod.read`; turned back into the axes of the crop, as every method's output is."""
        place = known_place(place)
        output = self.regress(torch.cat([vector, place], 1))
        turn = crop_axes(place).mT
        output.camera = torch.cat([positive(output.camera[:, :1]), output.camera[:, 1:]], 1)
        output.rotation = turn @ output.rotation
        output.vertices, output.joints = rotate(turn, output.vertices), rotate(turn, output.joints)
        return output

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """See `Method.loss`."""
        keypoints = project_full_frame(output.joints, output.camera, known_place(batch.get("place")))
        losses = {**self.parameter_terms(output, batch), "reprojection": keypoint_error(keypoints, batch)}
        return weighted(losses, self.config.loss)


def positive(scale: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
    """A scale that keeps the body before the camera: below 0.1 a hyperbola, smooth, that never gets to zero."""
    return torch.where(scale > _LEAST, scale, _LEAST / (2 - scale.clamp(max=_LEAST) / _LEAST))


def project_full_frame(
    joints: Float[Tensor, "B J 3"], camera: Float[Tensor, "B 3"], place: Float[Tensor, "B 3"]
) -> Float[Tensor, "B J 2"]:
    """Joints in the axes of the crop through the camera of the whole photo, in crop coordinates, so that the error of
    a person counts alike at any size.

    Args:
        joints: metres, body-centred.
        camera: weak perspective of the crop.
        place: of the crop, see `vqhps.data.crops.crop_places`.
    """
    center, size = place[:, :2], place[:, 2]
    one, origin = torch.ones_like(size), torch.zeros_like(center)
    position = full_translation(camera, center, size, one, origin)
    placed = rotate(crop_axes(place), joints) + position[:, None]
    seen = torch.cat([placed[..., :2], placed[..., 2:].clamp(min=0.1)], -1)
    intrinsics = torch.eye(3, device=joints.device).expand(len(joints), 3, 3)
    return full_to_crop(project_perspective(seen, intrinsics), center, size)
