"""Anny (Apache-2.0 code, CC0 data), the body that ships with the package.

Source: Bregier et al., "Human Mesh Modeling for Anny Body", 2025; PyPI package `anny`.
"""

import functools
import logging
import warnings
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqhps.body.joints import anny_joint_regressors
from vqhps.body.skinning import skin
from vqhps.body.topology import bone_weights

Mesh = Literal["full", "coarse", "base"]

# Anny is x to the subject's left, y to the back, z up.
_PARTS = {  # by the bone that moves a vertex most; bones not named here are the torso's
    "head": ("Neck", "Neck1", "Head"),
    "arms": ("LeftArm", "RightArm", "LeftForeArm", "RightForeArm"),
    "hands": (
        "LeftHand", "RightHand", "LThumb", "RThumb", "LeftFingerBase", "RightFingerBase", "LeftHandFinger1",
        "RightHandFinger1",
    ),
    "legs": ("LeftUpLeg", "RightUpLeg", "LeftLeg", "RightLeg"),
    "feet": ("LeftFoot", "RightFoot", "LeftToeBase", "RightToeBase"),
}  # fmt: skip
_TO_BODY_AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


class AnnyBody:
    """Anny on the CMU-named rig of 31 bones, in float32, behind the `BodyModel` protocol.

    Build it with `anny_body`, which keeps one per mesh: the first build on a machine takes up to a minute, later ones
    some seconds (anny keeps its own disk cache).

    Args:
        mesh: `full`, the registered mesh of 13,718 vertices; `coarse`, the same bodies on 1,229 vertices; `base`,
            MakeHuman's mesh of 19,158 vertices with the helpers that garments are fitted to.
    """

    def __init__(self, mesh: Mesh = "full") -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import warp

            # Or its greeting goes to standard output: `log_level` from warp 1.19 on, `quiet` before.
            warp.config.quiet, warp.config.log_level = True, logging.WARNING  # type: ignore[attr-defined]
            import anny
            from anny.models.model_data import TopologyConfig

            base = TopologyConfig(base_mesh="makehuman", remove_unattached_vertices=False)
            topology = {"full": "anny", "coarse": "notoes_collapse10pc", "base": base}[mesh]
            self.model = anny.Anny(rig="cmu_mb", topology=topology, pose_parameterization="local-ref").float()
        self.name = f"anny-{mesh}"
        self.faces = self.model.get_triangular_faces().numpy().astype(np.int64)
        self.bone_names = tuple(self.model.bone_labels)
        self.bone_parents = tuple(int(p) for p in self.model.bone_parents)
        self.shape_names = tuple(self.model.phenotype_labels)
        rest = self.rest(torch.full((1, len(self.shape_names)), 0.5))
        self.template = rest[0][0].numpy()
        self.rest_joints = rest[1][0].numpy()

    @functools.cached_property
    def joint_regressors(self) -> dict[str, Float[np.ndarray, "J V"]]:
        """Named linear maps from vertices to joints: `coco17` and `h36m17`."""
        return anny_joint_regressors(self)

    @functools.cached_property
    def parts(self) -> dict[str, Bool[np.ndarray, "V"]]:
        """Which vertices belong to the head, the arms, the hands, the legs, the feet, and the torso."""
        model = self.model
        bone = model.vertex_bone_indices.gather(1, model.vertex_bone_weights.argmax(1, keepdim=True))[:, 0].numpy()
        masks = {part: np.isin(bone, [self.bone_names.index(n) for n in names]) for part, names in _PARTS.items()}
        return {**masks, "torso": ~np.any(list(masks.values()), axis=0)}

    def forward(self, pose: Float[Tensor, "B K 3 3"], shape: Float[Tensor, "B S"]) -> Float[Tensor, "B V 3"]:
        """See `BodyModel.forward`; differentiable. The same as anny's own, in fewer and larger products."""
        return skin(*self.rest(shape), pose, self.bone_parents, self._weights)

    def rest(self, shape: Float[Tensor, "B S"]) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B K 3"]]:
        """Vertices and bone heads in the rest pose, metres in body axes."""
        template, blends = self._blends
        both = template + (self._coefficients(shape) @ blends).unflatten(1, template.shape)
        vertices, heads = both.split((len(both[0]) - len(self.bone_names), len(self.bone_names)), 1)
        return vertices - heads[:, :1], heads - heads[:, :1]

    @functools.cached_property
    def _weights(self) -> Float[Tensor, "V K"]:
        return torch.from_numpy(bone_weights(self))

    @functools.cached_property
    def _blends(self) -> tuple[Float[Tensor, "V+K 3"], Float[Tensor, "N 3(V+K)"]]:
        """Vertices and bone heads of the template, and how far each blend shape moves them; body axes."""
        model = self.model
        template = torch.cat([model.template_vertices, model.template_bone_heads]) @ _TO_BODY_AXES.T
        blends = torch.cat([model.blendshapes, model.bone_heads_blendshapes], 1) @ _TO_BODY_AXES.T
        return template, blends.flatten(1)

    @functools.cached_property
    def _factors(self) -> Int[Tensor, "M F"]:
        """Of each of anny's blend shapes, the phenotype values whose product is its coefficient, filled up with the
        number of a value that is one."""
        mask = self.model.stacked_phenotype_blend_shapes_mask
        factors = torch.full((len(mask), int(mask.sum(1).max())), mask.shape[1])
        for row, values in zip(factors, mask, strict=True):
            used = values.nonzero()[:, 0]
            row[: len(used)] = used
        return factors

    def _coefficients(self, shape: Float[Tensor, "B S"]) -> Float[Tensor, "B N"]:
        """Strength of each blend shape; anny's own product over a mask has a slow backward pass."""
        from anny.models.phenotype import phenotype_blendshape_weights

        model = self.model
        single = torch.eye(model.stacked_phenotype_blend_shapes_mask.shape[1])  # each value alone
        rest = {"extrapolate": model.extrapolate_phenotypes}
        values = phenotype_blendshape_weights(shape, model.phenotype_labels, model.anchors, single, **rest)
        values = torch.cat([values, torch.ones_like(values[:, :1])], 1)
        first, *others = self._factors.T
        product = values.index_select(1, first)
        for factor in others:
            product = product * values.index_select(1, factor)
        projection = model.phenotype_blendshape_projection
        return product if projection is None else product @ projection

    @torch.no_grad()
    def rest_with_tails(
        self, shape: Float[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B K 3"], Float[Tensor, "B K 3"]]:
        """Vertices, heads and tails of the bones in the rest pose, metres in body axes from the root's head."""
        model = self.model
        none = torch.zeros(1, 0)
        rest = model.get_rest_model(model._get_phenotype_blendshape_coefficients(shape, none, none))
        root = rest["rest_bone_heads"][:, :1]
        vertices, heads, tails = (
            (rest[name] - root) @ _TO_BODY_AXES.T for name in ("rest_vertices", "rest_bone_heads", "rest_bone_tails")
        )
        return vertices, heads, tails

    def sample_shape(
        self, count: int, rng: np.random.Generator, children: bool = False
    ) -> Float[np.ndarray, "count S"]:
        """Phenotypes after Anny's own distribution, which is calibrated on WHO statistics.

        Args:
            count: number of bodies.
            rng: source of all randomness.
            children: draw ages from birth to 90 years instead of from 18 to 80.
        """
        from anny.shape_distribution import SimpleShapeDistribution

        low, high = (0.0, 90.0) if children else (18.0, 80.0)
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**31)))
            ages = torch.distributions.Uniform(torch.tensor(low), torch.tensor(high))
            sampled = SimpleShapeDistribution(self.model, morphological_age_distribution=ages).sample(count)[1]
        return np.stack([sampled[name].numpy() for name in self.shape_names], 1).astype(np.float32).clip(0, 1)


def to_anny_axes(points: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Points in body axes as Anny itself has them."""
    return points @ _TO_BODY_AXES


@functools.cache
def anny_body(mesh: Mesh = "full") -> AnnyBody:
    """The Anny body on a mesh, built once a process."""
    return AnnyBody(mesh)
