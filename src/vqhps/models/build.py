"""How somebody is built, from what the backbone sees where the key points lie: tall or short, heavy or slim, of which
sex. Key points say next to nothing of it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Between these COCO-17 key points lies flesh: upper arms, forearms, thighs, shins, and the trunk's sides and middles.
_LINKS = (
    (5, 7), (6, 8), (7, 9), (8, 10), (11, 13), (12, 14), (13, 15), (14, 16),
    (5, 6), (11, 12), (5, 11), (6, 12), (5, 12), (6, 11),
)  # fmt: skip
_POINTS = 17 + len(_LINKS)
_RIDGE = 3000.0  # of channels whose variance is one; chosen on 500 people that were held back
_PART = 4096  # rows at a time


class Build(nn.Module):
    """Shape parameters of a body less those of the average one, linear in a feature map at each key point and halfway
    between those of a limb or of the trunk.

    Args:
        channels: of the map.
        size: number of shape parameters.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * _POINTS, size).requires_grad_(False)  # has its own `fit`
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, samples: Float[Tensor, "B P C"]) -> Float[Tensor, "B S"]:
        """Shape parameters from `samples` of the map; in float32."""
        with torch.autocast(samples.device.type, enabled=False):
            return self.linear(samples.float().flatten(1))

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "N P C"], shape: Float[Tensor, "N S"]) -> None:
        """Ridge regression, in closed form.

        Args:
            samples: of the map, of many crops; may be in half precision.
            shape: shape parameters of the people there.
        """
        parts = list(zip(samples.flatten(1).split(_PART), (shape - shape.mean(0)).split(_PART), strict=True))
        size, count = self.linear.weight.shape[1], len(samples)
        mean = torch.stack([x.float().sum(0) for x, _ in parts]).sum(0) / count
        square, product = (
            torch.zeros(size, n, dtype=torch.float64, device=shape.device) for n in (size, shape.shape[1])
        )
        for x, y in parts:
            centred = x.float() - mean
            square += (centred.T @ centred).double()
            product += (centred.T @ y).double()
        ridge = (_RIDGE / count) * square.diagonal() + 1e-3  # no channel is trusted for being loud
        weight = torch.linalg.solve(square + ridge.diag(), product).T.float()
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(-weight @ mean)


def samples(trunk: Float[Tensor, "B C h w"], keypoints: Float[Tensor, "B 17 K"]) -> Float[Tensor, "B P C"]:
    """A feature map at key points and between them, bilinear, 0 outside; a product of matrices, as graphs like it.

    Args:
        trunk: the map, over the crop.
        keypoints: x and y in crop coordinates, and what else there is.
    """
    first, second = (list(side) for side in zip(*_LINKS, strict=True))
    place = keypoints[..., :2]
    place = torch.cat([place, (place[:, first] + place[:, second]) / 2], 1)
    height, width = trunk.shape[2:]
    share = _tent(place[..., 1], height)[..., None] * _tent(place[..., 0], width)[..., None, :]
    return share.flatten(2) @ trunk.flatten(2).transpose(1, 2)


def _tent(place: Float[Tensor, "B P"], cells: int) -> Float[Tensor, "B P N"]:
    """Weights of a row of cells for linear interpolation at places in crop coordinates."""
    cell = torch.arange(cells, device=place.device)
    return (1 - (((place + 1) * (cells / 2) - 0.5)[..., None] - cell).abs()).clamp(min=0)
