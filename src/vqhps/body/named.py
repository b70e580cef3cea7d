"""Bodies by the names that shards and settings call them."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqhps.body.anny import AnnyBody, anny_body
from vqhps.body.model import canonical
from vqhps.body.smpl import SMPLBody, smpl_body
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_quaternion

BODY_NAMES = ("anny", "smpl-neutral", "smpl-female", "smpl-male")


def named_body(name: str, body_models: Path | None = None) -> AnnyBody | SMPLBody:
    """The body that shards call so: `anny` (its coarse mesh), or `smpl-` and a gender, from the user's files.

    Raises:
        VqhpsError: there is no such file, or no such body.
    """
    if name == "anny":
        return anny_body("coarse")
    gender = name.partition("-")[2]
    if name not in BODY_NAMES:
        raise VqhpsError(f"no body '{name}'; known are anny, smpl-neutral, smpl-female and smpl-male")
    return smpl_body(gender, body_models)  # type: ignore[arg-type]


@torch.no_grad()
def posed_bodies(
    pose: Float[Tensor, "B K 4"], shape: Float[Tensor, "B S"], body: Int[Tensor, "B"]
) -> Float[Tensor, "B V 3"]:
    """Canonical vertices of bodies of one topology, metres.

    Args:
        pose: local rotations, quaternions wxyz; the root's is the identity.
        shape: a row of each body's own shape space.
        body: which, by its place in `BODY_NAMES`.
    """
    turned, of_shape, which = matrix_from_quaternion(pose.cpu()), shape.cpu(), body.cpu()
    rows = [(which == number).nonzero()[:, 0] for number in which.unique()]
    parts = [named_body(BODY_NAMES[int(which[r[0]])]).forward(turned[r], of_shape[r]) for r in rows]
    order = torch.cat(rows).argsort()
    return canonical(torch.cat(parts)[order]).to(pose.device)
