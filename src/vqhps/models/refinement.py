"""Moves a predicted body onto the key points that were seen, no farther from the prediction than that is unsure.

A few Gauss-Newton steps on latents, rotation and camera at once. The prior is the prediction: of the latents, with the
variance of the codes under the predicted distribution. All is made of products of matrices, so that a graph can hold
it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_vector, project, rotate
from vqhps.models.method import Tokenizer

# Chosen on 500 rendered training people that were held back.
_STEPS = 2
_POINT = 0.05  # deviation of a key point of full confidence, crop coordinates
_FAR = 0.1  # key points that far from the body count half: they may be of somebody else
_LATENTS = 0.3  # share of the variance of the codes
_TURN = (0.04, 0.07, 0.04)  # deviation of the rotation, radians about the camera's axes
_CAMERA = (0.12, 0.016, 0.022)  # of the camera
_INVERSE_STEPS = 16


class Fit(NamedTuple):
    """A body: latents of its mesh, canonical -> camera rotation, and the crop's camera."""

    latents: Float[Tensor, "B T D"]
    rotation: Float[Tensor, "B 3 3"]
    camera: Float[Tensor, "B 3"]


class Refinement(nn.Module):
    """Latents, rotation and camera near a prediction whose joints come to the key points.

    Args:
        tokenizer: whose decoder is linear.

    Raises:
        VqhpsError: it is not.
    """

    codes: Float[Tensor, "T K D"]
    joints: Float[Tensor, "17 3"]
    basis: Float[Tensor, "N 17 3"]

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.read(tokenizer)

    @torch.no_grad()
    def read(self, tokenizer: Tokenizer) -> None:
        """Take the codes of a tokenizer, and what its decoder makes of them; again, once its weights are loaded."""
        codes = tokenizer.codebook[tokenizer.book_of_token]
        count, size = tokenizer.num_tokens, codes.shape[2]
        unit = torch.eye(count * size, device=codes.device).unflatten(1, (count, size))
        if tokenizer.depth > 1:
            raise VqhpsError("refine needs a tokenizer of one level")
        base, moved, back = (tokenizer.decode_latents(unit * way) for way in (0, 1, -1))
        if (moved + back - 2 * base).abs().max() > 1e-4:
            raise VqhpsError("refine needs a tokenizer whose decoder is linear: one with `width: 0`")
        regressor = tokenizer.regressor("coco17")
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("joints", regressor @ base[0], persistent=False)
        self.register_buffer("basis", regressor @ (moved - base), persistent=False)

    def forward(
        self,
        probability: Float[Tensor, "B T K"],
        rotation: Float[Tensor, "B 3 3"],
        camera: Float[Tensor, "B 3"],
        keypoints: Float[Tensor, "B 17 4"],
    ) -> Fit:
        """Refine the mean of a distribution over codes.

        Args:
            probability: of the codes of each token.
            rotation, camera: as predicted.
            keypoints: in crop coordinates, with confidence in [0, 1]; depths are not looked at, the prediction has
                made the best of them.
        """
        mean = (probability.transpose(0, 1) @ self.codes).transpose(0, 1)
        apart = (self.codes - mean[:, :, None]).square()
        variance = (probability[..., None] * apart).sum(2).flatten(1)
        wide = variance.new_tensor((*_TURN, *_CAMERA)).square().expand(variance.shape[0], -1)
        prior = torch.cat([_LATENTS * variance, wide], 1)
        fit, moved = Fit(mean, rotation, camera), torch.zeros_like(prior)
        for _ in range(_STEPS):
            missed, slope = self._missed(fit, keypoints[..., :2])
            weight = keypoints[..., 2] / _POINT**2 / (1 + missed.square().sum(2) / _FAR**2)
            root = weight.sqrt().repeat_interleave(2, 1)
            slope = slope.flatten(1, 2) * root[..., None]
            wanted = missed.flatten(1) * root + (slope @ moved[..., None])[..., 0]  # as seen from the start
            spread = slope * prior[:, None]
            solved = _inverse(spread @ slope.mT) @ wanted[..., None]
            step = (spread.mT @ solved)[..., 0] - moved
            moved, fit = moved + step, _moved(fit, step)
        return fit

    def _missed(
        self, fit: Fit, places: Float[Tensor, "B 17 2"]
    ) -> tuple[Float[Tensor, "B 17 2"], Float[Tensor, "B 17 2 N"]]:
        """How far the body's joints are from the key points, and how they move with all that may change."""
        canonical = self.joints + (fit.latents.flatten(1) @ self.basis.flatten(1)).unflatten(1, (17, 3))
        joints = rotate(fit.rotation, canonical)
        x, y, z = joints.unbind(-1)
        zero, scale = torch.zeros_like(x), fit.camera[:, None, :1]
        shape = fit.rotation[:, None, :2] @ self.basis.permute(1, 2, 0)  # (B, 17, 2, T * D)
        turn = torch.stack([torch.stack([zero, z, -y], 2), torch.stack([-z, zero, x], 2)], 2)
        size = (joints[..., :2] + fit.camera[:, None, 1:])[..., None]
        shift = torch.eye(2, device=x.device).expand(*x.shape, 2, 2) * scale[..., None]
        slope = torch.cat([shape * scale[..., None], turn * scale[..., None], size, shift], 3)
        return places - project(joints, fit.camera), slope


def _moved(fit: Fit, step: Float[Tensor, "B N"]) -> Fit:
    count = fit.latents[0].numel()
    latents, turn, camera = step.split((count, 3, 3), 1)
    return Fit(fit.latents + latents.view_as(fit.latents), matrix_from_vector(turn) @ fit.rotation, fit.camera + camera)


def _inverse(matrix: Float[Tensor, "B M M"]) -> Float[Tensor, "B M M"]:
    """Inverse of one plus a symmetric matrix without negative eigenvalues, by Newton's iteration: graphs have no
    solver."""
    one = torch.eye(matrix.shape[1], device=matrix.device)
    matrix = one + matrix
    inverse = one / matrix.abs().sum(2).amax(1)[:, None, None]
    for _ in range(_INVERSE_STEPS):
        inverse = inverse @ (2 * one - matrix @ inverse)
    return inverse
