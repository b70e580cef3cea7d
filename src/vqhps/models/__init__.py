"""Image models. `MODELS` maps the name of a method to its config class and its model class."""

from torch import nn

from vqhps.models.vqhps import VQHPS, VQHPSConfig

MODELS: dict[str, tuple[type, type[nn.Module]]] = {"vqhps": (VQHPSConfig, VQHPS)}
