"""Regression of body parameters with error feedback, which HMR and CLIFF share (Kanazawa et al., CVPR 2018)."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqhps.body.model import canonical
from vqhps.body.named import BODY_NAMES
from vqhps.geometry import matrix_from_6d, matrix_from_quaternion, matrix_to_6d
from vqhps.models.blazepose import Seen
from vqhps.models.first_guess import MEAN_CAMERA, MEAN_ROTATION_6D
from vqhps.models.losses import mesh_terms, over_known
from vqhps.models.method import BodyMethod, MethodConfig
from vqhps.models.output import Output


@dataclass(frozen=True)
class ParameterLossConfig:
    """Weights of the losses.

    Attributes:
        pose: mean squared error of the bones' rotation matrices.
        shape: mean squared error of the shape, of bodies in the model's own shape space.
        rotation: mean squared error of the rotation matrix.
        joints: L1 of joints in camera axes, metres.
        vertices: L1 of canonical vertices, metres; 0 as published.
        reprojection: L1 of the visible joints in crop coordinates.
    """

    pose: float = 1.0
    shape: float = 0.1
    rotation: float = 1.0
    joints: float = 5.0
    vertices: float = 0.0
    reprojection: float = 5.0


@dataclass(frozen=True)
class ParameterConfig(MethodConfig):
    """Settings of a method that regresses body parameters.

    Attributes:
        body: whose parameters, by name (`vqhps.body.named`).
        hidden: width of the two layers of the regressor.
        iterations: of error feedback.
        dropout: after each of these layers.
        loss: weights.
    """

    body: str = "anny"
    hidden: int = 1024
    iterations: int = 3
    dropout: float = 0.5
    loss: ParameterLossConfig = ParameterLossConfig()


@dataclass
class ParameterOutput(Output):
    """An output with the parameters it is made of.

    Attributes:
        pose: of the bones, local; the root's is the identity.
        shape: of the body.
    """

    pose: Float[Tensor, "B K 3 3"] | None = None
    shape: Float[Tensor, "B S"] | None = None


class ErrorFeedback(nn.Module):
    """Corrects an estimate some times from features and the estimate so far.

    Args:
        channels: of the features.
        mean: where it starts.
        config: see `ParameterConfig`.
    """

    mean: Float[Tensor, "P"]

    def __init__(self, channels: int, mean: Float[Tensor, "P"], config: ParameterConfig) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.iterations = config.iterations
        layers: list[nn.Module] = []
        for width in (channels + len(mean), config.hidden):
            layers += [nn.Linear(width, config.hidden), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*layers)  # nothing between them, as published
        self.change = nn.Linear(config.hidden, len(mean))
        nn.init.xavier_uniform_(self.change.weight, gain=0.01)

    def forward(self, features: Float[Tensor, "B C"]) -> Float[Tensor, "B P"]:
        """The last estimate."""
        estimate = self.mean.expand(len(features), -1)
        for _ in range(self.iterations):
            estimate = estimate + self.change(self.layers(torch.cat([features, estimate], 1)))
        return estimate


class ParameterMethod(BodyMethod):
    """Regresses rotation, local rotations of the bones in 6D, shape and camera; the body model makes the mesh.

    Args:
        config, tokenizer, backbone_weights: see `BodyMethod`.
        more: numbers beside the backbone's vector that the regressor reads.
    """

    config: ParameterConfig

    def __init__(
        self, config: ParameterConfig, tokenizer: nn.Module, backbone_weights: Path | None = None, more: int = 0
    ) -> None:
        super().__init__(config, tokenizer, backbone_weights)
        self.sizes = (6, 6 * (len(self.body.bone_names) - 1), len(self.body.shape_names), 3)
        identity = torch.tensor((1.0, 0, 0, 0, 1, 0)).repeat(self.sizes[1] // 6)
        shape = torch.full((self.sizes[2],), 0.5 if config.body == "anny" else 0.0)
        mean = torch.cat([torch.tensor(MEAN_ROTATION_6D), identity, shape, torch.tensor(MEAN_CAMERA)])
        self.regressor = ErrorFeedback(self.backbone.pooled_channels + more, mean, config)

    def begin(self, pose: Float[Tensor, "N K 4"], shape: Float[Tensor, "N S"]) -> None:
        """Start from the mean pose and shape of the training samples."""
        _, bones, body, _ = self.regressor.mean.split(self.sizes)  # views
        bones.copy_(matrix_to_6d(matrix_from_quaternion(pose[:, 1:])).mean(0).flatten())
        body.copy_(shape.mean(0))

    def head(self, seen: Seen, place: Float[Tensor, "B 3"] | None) -> Output:
        """See `BodyMethod.head`; all in float32, which a training in mixed precision does not pass on."""
        with torch.autocast(seen.vector.device.type, enabled=False):
            return self.read(seen.vector.float(), None if place is None else place.float())

    @abstractmethod
    def read(self, vector: Float[Tensor, "B C"], place: Float[Tensor, "B 3"] | None) -> Output:
        """The prediction from the backbone's vector."""

    def regress(self, features: Float[Tensor, "B C"]) -> ParameterOutput:
        """Features to parameters and mesh, the rotation as the regressor says it."""
        rotation_6d, bones_6d, shape, camera = self.regressor(features).split(self.sizes, 1)
        rotation = matrix_from_6d(rotation_6d)
        bones = matrix_from_6d(bones_6d.unflatten(1, (-1, 6)))
        pose = torch.cat([torch.eye(3, device=bones.device).expand(len(bones), 1, 3, 3), bones], 1)
        vertices = canonical(self.body.forward(pose.cpu(), shape.cpu())).to(pose.device)
        return ParameterOutput(**vars(self.output(vertices, rotation, camera)), pose=pose, shape=shape)

    def parameter_terms(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Losses of the parameters and the mesh, before their weights."""
        known = batch["has_mesh"]
        same = known * (batch["body"] == BODY_NAMES.index(self.config.body))
        true = matrix_from_quaternion(batch["pose"])
        terms = {
            "pose": (output.pose - true)[:, 1:].square().mean((1, 2, 3)),
            **mesh_terms(output, batch, self.tokenizer.regressor("coco17")),
        }
        shape = {"shape": (output.shape - batch["shape"]).square().mean(1)}
        return {**over_known(terms, known), **over_known(shape, same)}
