"""Linear blend skinning, differentiable and in whole batches: the way from a body at rest to a posed one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def skin(
    rest: Float[Tensor, "B V 3"],
    heads: Float[Tensor, "B K 3"],
    pose: Float[Tensor, "B K 3 3"],
    parents: Sequence[int],
    weights: Float[Tensor, "V K"],
) -> Float[Tensor, "B V 3"]:
    """Turn every bone about its head and let the vertices follow.

    Args:
        rest: vertices at rest, metres, body axes.
        heads: of the bones at rest, likewise.
        pose: local rotation of each bone relative to its parent, in body axes of the rest pose.
        parents: of each bone; a parent comes before its bones, the root has none (-1).
        weights: how much each vertex follows each bone; rows sum to one.

    Returns:
        Metres, body axes.
    """
    rotations, places = [pose[:, 0]], [heads[:, 0]]
    for bone, parent in enumerate(parents[1:], 1):
        offset = (heads[:, bone] - heads[:, parent])[..., None]
        places.append(places[parent] + (rotations[parent] @ offset)[..., 0])
        rotations.append(rotations[parent] @ pose[:, bone])
    rotation, place = torch.stack(rotations, 1), torch.stack(places, 1)
    shift = place - (rotation @ heads[..., None])[..., 0]
    transform = torch.cat([rotation, shift[..., None]], 3).flatten(2).transpose(1, 2)
    blended = (transform @ weights.T).unflatten(1, (3, 4))  # vertices last: products of whole rows
    posed = (blended[:, :, :3] * rest.transpose(1, 2)[:, None]).sum(2) + blended[:, :, 3]
    return posed.transpose(1, 2).contiguous()
