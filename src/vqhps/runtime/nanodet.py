"""NanoDet-g, run by ONNX Runtime: boxes of people in an image.

A one-stage detector without anchors: every cell of three grids scores a person whose box reaches from the cell's centre
as far as four distributions say ("generalized focal loss"; RangiLyu, "NanoDet", 2020).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqhps.runtime.bundle import open_session

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

STRIDES = (8, 16, 32)
BINS = 11
"""Of each distribution: a side of the box lies 0 to 10 strides from the cell's centre."""

_MODEL = Path(__file__).parents[1] / "bundles" / "detector" / "model.onnx"


class NanoDet:
    """`model.onnx` of the detector's bundle. Not thread-safe."""

    def __init__(self, threads: int = 2, path: Path = _MODEL) -> None:
        """Load the model with so many threads; raises `VqhpsError` where it is missing or damaged."""
        self._session = open_session(path, ("image",), (), threads)

    def __call__(
        self, images: UInt8[np.ndarray, "N H W 3"], threshold: float
    ) -> list[tuple[Float[np.ndarray, "P 4"], Float[np.ndarray, "P"]]]:
        """Look at images once.

        Args:
            images: RGB, sides multiples of 32; people of 20 px and more are found.
            threshold: least score.

        Returns:
            Of each image, boxes, xyxy px, and scores in [0,1], before suppression.
        """
        grids = self._session.run(None, {"image": images.transpose(0, 3, 1, 2).astype(np.float32)})
        found = []
        for levels in zip(*grids, strict=True):
            parts = [decode(cells, stride, threshold) for cells, stride in zip(levels, STRIDES, strict=True)]
            boxes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
            found.append((boxes, scores))
        return found


def decode(
    cells: Float[np.ndarray, "45 h w"], stride: int, threshold: float
) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N"]]:
    """Boxes (xyxy) and scores of one grid: a channel of logits, then a distribution for left, top, right and bottom."""
    logits = cells[0]
    rows, columns = np.nonzero(logits >= np.log(threshold / (1 - threshold)))
    sides = cells[1:, rows, columns].reshape(4, BINS, -1).astype(float)
    weights = np.exp(sides - sides.max(1, keepdims=True))
    reach = np.einsum("b,sbn->sn", np.arange(BINS), weights) / weights.sum(1) * stride
    x, y = (columns + 0.5) * stride, (rows + 0.5) * stride
    boxes = np.stack([x - reach[0], y - reach[1], x + reach[2], y + reach[3]], 1)
    return boxes, 1 / (1 + np.exp(-logits[rows, columns].astype(float)))
