"""Image models. `MODELS` maps the name of a method to its config class and its model class: a new one is one line."""

from typing import Any

from vqhps.models.cliff import CLIFF, CLIFFConfig
from vqhps.models.fastmetro import FastMETRO, FastMETROConfig
from vqhps.models.hmr import HMR, HMRConfig
from vqhps.models.variants import LatentVQHPS, OrientedVQHPS
from vqhps.models.vqhps import VQHPS, VQHPSConfig

MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "vqhps": (VQHPSConfig, VQHPS),
    "hmr": (HMRConfig, HMR),
    "cliff": (CLIFFConfig, CLIFF),
    "fastmetro": (FastMETROConfig, FastMETRO),
    "vqhps_latents": (VQHPSConfig, LatentVQHPS),
    "vqhps_oriented": (VQHPSConfig, OrientedVQHPS),
}
