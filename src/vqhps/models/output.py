"""What every image model gives back."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Output:
    """Prediction for a batch of crops; the same for every method.

    Attributes:
        vertices: metres, camera axes, centred on the mean of the coarse mesh: `rotation @ canonical`. On that
            mesh while training, on the full one from `predict`.
        joints: COCO-17, same frame.
        rotation: canonical -> camera.
        camera: weak perspective of the crop, `(s, tx, ty)`.
        logits: scores of the codes; `None` for methods without tokens.
        indices: the codes of the mesh, or those nearest to the expected ones that it is decoded from;
            `None` for methods without tokens.
        keypoints: COCO-17 as the backbone itself sees them: crop coordinates, logit of the confidence, depth behind the
            middle of the hips in metres; `None` if it does not.
    """

    vertices: Float[Tensor, "B V 3"]
    joints: Float[Tensor, "B J 3"]
    rotation: Float[Tensor, "B 3 3"]
    camera: Float[Tensor, "B 3"]
    logits: Float[Tensor, "B T K"] | None = None
    indices: Int[Tensor, "B T"] | None = None
    keypoints: Float[Tensor, "B 17 4"] | None = None
