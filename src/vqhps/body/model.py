"""The contract every parametric body fulfils."""

from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


class BodyModel(Protocol):
    """A mesh of fixed faces, driven by bone rotations and a shape vector.

    Body axes: metres, x to the subject's left, y up, z to the subject's front; the root joint is the origin.
    """

    name: str
    faces: Int[np.ndarray, "F 3"]
    template: Float[np.ndarray, "V 3"]
    bone_names: tuple[str, ...]
    bone_parents: tuple[int, ...]
    shape_names: tuple[str, ...]
    joint_regressors: dict[str, Float[np.ndarray, "J V"]]

    def forward(self, pose: Float[Tensor, "B K 3 3"], shape: Float[Tensor, "B S"]) -> Float[Tensor, "B V 3"]:
        """Vertices of posed bodies.

        Args:
            pose: local rotation of each bone relative to its parent, in body axes of the rest pose. `pose[:, 0]` turns
                the whole body; it is the identity in canonical bodies.
            shape: one row of `shape_names` a body.

        Returns:
            Metres, body axes.
        """
        ...

    def sample_shape(
        self, count: int, rng: np.random.Generator, children: bool = False
    ) -> Float[np.ndarray, "count S"]:
        """Shapes of a realistic population: adults, or all ages."""
        ...


def canonical(vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
    """Vertices of a body without global rotation, minus their mean: what the tokenizer reads."""
    return vertices - vertices.mean(1, keepdim=True)
