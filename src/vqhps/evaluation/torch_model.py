"""A torch model as the evaluators take it, without a bundle."""

import hashlib

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vqhps.evaluation.run import Bodies, Model
from vqhps.models.method import Method, upsampled


class TrunkMemory:
    """What a backbone's frozen trunk makes of crops, by the crop: models that share it need not run it again."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Tensor] = {}

    def __call__(self, model: Method, crops: UInt8[np.ndarray, "N S S 3"]) -> Float[Tensor, "N C h w"]:
        """Features of crops; `model` computes those that are new."""
        keys = [hashlib.sha256(crop.tobytes()).digest() for crop in crops]
        for key, crop in zip(keys, crops, strict=True):
            if key not in self._kept:
                image = model.normalise(torch.from_numpy(crop[None]))
                self._kept[key] = model.backbone.trunk(image)[
                    0
                ].half()  # as `data/features.py` keeps those it trains on
        return torch.stack([self._kept[key] for key in keys]).float()


def torch_model(model: Method, memory: TrunkMemory | None = None) -> Model:
    """A model in eval mode, on the CPU.

    Args:
        model: any of `vqhps.models.MODELS` that is given images.
        memory: of models whose frozen trunks are the same.
    """

    @torch.no_grad()
    def run(crops: UInt8[np.ndarray, "N S S 3"], places: Float[np.ndarray, "N 3"]) -> Bodies:
        place = torch.from_numpy(np.asarray(places, np.float32))
        if memory is None:
            output = model.coarse(model.normalise(torch.from_numpy(crops)), None, place)
        else:
            output = model.coarse(None, memory(model, crops), place)
        full = upsampled(model, output)
        return Bodies(full.vertices.numpy(), full.joints.numpy(), full.camera.numpy())

    return run
