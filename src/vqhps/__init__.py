"""Human body meshes from photos, as discrete tokens. `Predictor().predict(image)` needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqhps.version import __version__

if TYPE_CHECKING:
    from vqhps.checkpoint import load_checkpoint
    from vqhps.runtime.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "__version__", "load_checkpoint"]

_HOMES = {
    "Prediction": "vqhps.runtime.predictor",
    "Predictor": "vqhps.runtime.predictor",
    "load_checkpoint": "vqhps.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import vqhps` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vqhps' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
