"""The first guess of a body: where each token lies among its codes, from a vector of the image and key points; and
scores of codes by their distance from such a place."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vqhps.body.joints import COCO17, COCO17_FLIP
from vqhps.tokenizer.networks import Residual

MEAN_ROTATION_6D = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # an upright person who faces the camera
_SURE = 0.1  # a key point so far off, in crop coordinates, is to be trusted by a third
MEAN_CAMERA = (0.94, 0.0, 0.0)  # 1.7 m fill the crop but for its margin, 2 / (1.25 * 1.7)


class FirstGuess(nn.Module):
    """Where each token lies among its codes, rotation and camera, from one vector and the key points.

    Args:
        channels: of the vector; 0 for none.
        keypoints: whether there are key points.
        codes: of each token.
        dropout: on the vector.
        build: number of shape parameters that are shown to it; 0 for none.
    """

    codes: Float[Tensor, "T K D"]
    middle: Float[Tensor, "T D"]
    deviation: Float[Tensor, "T D"]

    def __init__(
        self, channels: int, keypoints: bool, codes: Float[Tensor, "T K D"], dropout: float, build: int = 0
    ) -> None:
        super().__init__()
        self.register_buffer("codes", codes.clone())
        self.register_buffer("middle", codes.mean(1))
        self.register_buffer("deviation", codes.std(1))
        if channels:
            self.vector_in = nn.Sequential(nn.LayerNorm(channels), nn.Dropout(dropout), nn.Linear(channels, 1024))
            nn.init.zeros_(self.vector_in[-1].weight)  # type: ignore[arg-type]  # key points first, see `lift`
        if keypoints:
            self.keypoint_in = nn.Linear(4 * len(COCO17), 1024)
        if build:
            self.build_in = nn.Linear(build, self.middle.numel(), bias=False)
            nn.init.zeros_(self.build_in.weight)
        self.layers = nn.Sequential(Residual(1024), Residual(1024), nn.LayerNorm(1024))
        self.latents = nn.Linear(1024, self.middle.numel())
        self.sharpness = nn.Parameter(torch.zeros_like(self.middle))
        self.rotation, self.camera = nn.Linear(1024, 6), nn.Linear(1024, 3)
        for layer, bias in ((self.rotation, MEAN_ROTATION_6D), (self.camera, MEAN_CAMERA), (self.latents, (0.0,))):
            nn.init.normal_(layer.weight, std=0.002)
            layer.bias.data = torch.tensor(bias).expand(layer.out_features).clone()

    def forward(
        self,
        vector: Float[Tensor, "B C"] | None,
        keypoints: Float[Tensor, "B 17 4"] | None,
        build: Float[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B 6"], Float[Tensor, "B 3"]]:
        """Logits of the codes by their distance from the guess, 6D rotation and camera; in float32.

        Args:
            vector, keypoints: see above.
            build: shape parameters less those of the average body, which is what it takes for granted without.
        """
        parts = [] if vector is None else [self.vector_in(vector)]
        if keypoints is not None:
            place, sure, depth = keypoints.split((2, 1, 1), 2)
            parts.append(self.keypoint_in(torch.cat([place * sure, sure, depth * sure], 2).flatten(1)))
        x = self.layers(sum(parts))
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            place = self.latents(x)
            if build is not None:
                place = place + self.build_in(build)
            place = place.view(-1, *self.middle.shape)
            logits = by_distance(place, self.codes - self.middle[:, None], self.deviation, self.sharpness)
            return logits, self.rotation(x), self.camera(x)

    @torch.no_grad()
    def fit_build(self, indices: Int[Tensor, "N T"], shape: Float[Tensor, "N S"]) -> None:
        """What shape parameters do to the tokens of bodies in all kinds of poses, by least squares.

        Args:
            indices: tokens of some bodies.
            shape: their shape parameters.
        """
        latents = self.codes[torch.arange(len(self.codes), device=indices.device), indices]
        place = ((latents - self.middle) / (3 * self.deviation)).flatten(1)
        place, shape = place - place.mean(0), shape - shape.mean(0)
        self.build_in.weight.copy_(torch.linalg.lstsq(shape, place).solution.T)


class DistanceScores(nn.Module):
    """Scores of the codes of each token by their distance from a place among them, which is read from the token.

    In place of a weight vector a code: where the tokens have a codebook each, that is as many vectors as there are
    codes in all, and one linear layer for all tokens has to find room for them. Here the codes are where they are.

    Args:
        dim: of the tokens.
        codes: of each token.
    """

    codes: Float[Tensor, "T K D"]
    deviation: Float[Tensor, "T D"]

    def __init__(self, dim: int, codes: Float[Tensor, "T K D"]) -> None:
        super().__init__()
        self.register_buffer("codes", codes - codes.mean(1, keepdim=True))
        self.register_buffer("deviation", codes.std(1))
        self.place = nn.Linear(dim, codes.shape[2])
        nn.init.normal_(self.place.weight, std=0.002)
        nn.init.zeros_(self.place.bias)
        self.sharpness = nn.Parameter(torch.full_like(self.deviation, -2.0))

    def forward(self, tokens: Float[Tensor, "B T dim"]) -> Float[Tensor, "B T K"]:
        """Logits; in float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            return by_distance(self.place(tokens.float()), self.codes, self.deviation, self.sharpness)


def by_distance(
    place: Float[Tensor, "B T D"],
    codes: Float[Tensor, "T K D"],
    deviation: Float[Tensor, "T D"],
    sharpness: Float[Tensor, "T D"],
) -> Float[Tensor, "B T K"]:
    """Logits of codes: minus their weighted squared distance from a place, up to what all codes of a token share.

    Args:
        place: from the codes' middle, in three times their deviation.
        codes: from their middle.
        deviation: of the codes.
        sharpness: logarithm of the weight of a distance, from that of half the deviation.
    """
    weight = 4 * sharpness.exp() / deviation.square()
    near = ((weight * 3 * deviation * place).transpose(0, 1) @ codes.transpose(1, 2)).transpose(0, 1)
    return 2 * near - (weight[:, None] * codes.square()).sum(2)


def joint_depth(joints: Float[Tensor, "B 17 3"]) -> Float[Tensor, "B 17"]:
    """Depth of COCO-17 joints in camera axes behind the middle of the hips, metres."""
    return joints[..., 2] - joints[:, 11:13, 2].mean(1, keepdim=True)


def disturbed(keypoints: Float[Tensor, "B 17 4"]) -> Float[Tensor, "B 17 4"]:
    """True key points as a detector may give them: a few per cent of the crop off, some missing, none from outside."""
    place = keypoints[..., :2] + 0.03 * torch.randn_like(keypoints[..., :2])
    depth = keypoints[..., 3:] + 0.05 * torch.randn_like(keypoints[..., 3:])
    sure = (keypoints[..., 2] > 0) & (place.abs().amax(-1) < 1) & (torch.rand_like(place[..., 0]) > 0.03)
    return torch.cat([place, torch.ones_like(depth), depth], 2) * sure[..., None]


def with_confidence(found: Float[Tensor, "B 17 4"]) -> Float[Tensor, "B 17 4"]:
    """Found key points with a confidence in [0, 1] in place of its logit."""
    return torch.cat([found[..., :2], found[..., 2:3].sigmoid(), found[..., 3:]], 2)


def either_way(found: Float[Tensor, "B 17 4"], mirrored: Float[Tensor, "B 17 4"]) -> Float[Tensor, "B 17 4"]:
    """Key points found in crops (confidence as a logit) and in the mirrored crops, averaged by their confidence."""
    back = mirrored[:, list(COCO17_FLIP)] * mirrored.new_tensor((-1.0, 1.0, 1.0, 1.0))
    both = torch.stack([found, back])
    sure = both[..., 2:3].clamp(min=-10).sigmoid()  # not 0: two of no confidence at all count alike
    return (sure / sure.sum(0) * both).sum(0)


def keypoint_loss(
    found: Float[Tensor, "B 17 4"],
    true: Float[Tensor, "B 17 2"],
    weight: Float[Tensor, "B 17"],
    depth: Float[Tensor, "B 17"],
    depth_weight: Float[Tensor, "B"],
) -> Float[Tensor, ""]:
    """L1 of key points in crop coordinates and, at half the weight, of their depths; those outside at a quarter. Added,
    at a tenth, the cross-entropy of the confidence: 0 outside of the crop, and less than 1 the farther off one is."""
    inside = (true.abs().amax(-1) < 1).to(found.dtype)
    weights = weight * (0.25 + 0.75 * inside)
    deep = weights * depth_weight[:, None]
    apart = ((found[..., :2] - true).abs().mean(-1) * weights).sum() / weights.sum().clamp(min=1)
    behind = ((found[..., 3] - depth).abs() * deep).sum() / deep.sum().clamp(min=1)
    sure = inside * (-(found[..., :2].detach() - true).norm(dim=-1) / _SURE).exp()
    return apart + 0.5 * behind + 0.1 * functional.binary_cross_entropy_with_logits(found[..., 2], sure)
