"""Rotation and camera of an image model without a first guess."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqhps.models.first_guess import MEAN_CAMERA, MEAN_ROTATION_6D


class PoseHead(nn.Module):
    """Rotation and camera from pooled features and initial joints.

    Args:
        channels: of the pooled features.
        dropout: after each hidden layer.
        activation: `relu`, or `none` as published.
    """

    initial_joints: Float[Tensor, "17 3"]

    def __init__(self, channels: int, dropout: float, activation: str) -> None:
        super().__init__()
        # Constant input of the published network (the T-pose); only its weights need it.
        self.register_buffer("initial_joints", torch.zeros(17, 3))
        self.fc1, self.fc2 = nn.Linear(channels + 51, 1024), nn.Linear(1024, 1024)
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.rotation, self.camera = nn.Linear(1024, 6), nn.Linear(1024, 3)
        for layer, bias in ((self.rotation, MEAN_ROTATION_6D), (self.camera, MEAN_CAMERA)):
            nn.init.normal_(layer.weight, std=0.002)
            layer.bias.data = torch.tensor(bias)

    def forward(self, pooled: Float[Tensor, "B C"]) -> tuple[Float[Tensor, "B 6"], Float[Tensor, "B 3"]]:
        """6D rotation and `(s, tx, ty)`."""
        joints = self.initial_joints.flatten().to(pooled.dtype).expand(pooled.shape[0], -1)
        x = self.dropout(self.activation(self.fc1(torch.cat([pooled, joints], 1))))
        x = self.dropout(self.activation(self.fc2(x)))
        return self.rotation(x), self.camera(x)
