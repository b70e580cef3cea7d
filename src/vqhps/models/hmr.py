"""HMR: body parameters by regression with error feedback (Kanazawa et al., CVPR 2018), 6D rotations as in SPIN."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vqhps.geometry import project
from vqhps.models.losses import keypoint_error, weighted
from vqhps.models.output import Output
from vqhps.models.regression import ParameterConfig, ParameterMethod


@dataclass(frozen=True)
class HMRConfig(ParameterConfig):
    """Settings of `HMR`; see `ParameterConfig`."""


class HMR(ParameterMethod):
    """Reads the backbone's vector alone: it does not know where in the photo a crop is. No adversary, which needs
    motion capture beside the images."""

    def read(self, vector: Float[Tensor, "B C"], place: Float[Tensor, "B 3"] | None) -> Output:
        """See `ParameterMethod.read`."""
        return self.regress(vector)

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """See `Method.loss`."""
        reprojection = keypoint_error(project(output.joints, output.camera), batch)
        return weighted({**self.parameter_terms(output, batch), "reprojection": reprojection}, self.config.loss)
