"""BlazePose's landmark network in torch, as a backbone that has seen many real people (Bazarevsky et al., 2020).

The layers of `pose_landmark_full.tflite` that lead to its landmarks; those that only serve its mask and heatmaps are
left out. Weights are read from the file that `vqhps.runtime.download` fetches (Apache-2.0). On top, heat maps of our
own look again where the landmarks were found (`HeatMaps`).
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vqhps.errors import VqhpsError
from vqhps.models.transformer import EncoderLayer

NUM_LANDMARKS = 39  # 33 of the body, two that span the person, four unused
_COCO17 = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
BLAZEPOSE_INPUT = 256  # px
_STAGES = (  # channels in, expanded, channels out, kernel, stride
    (16, 64, 24, 3, 2), (24, 144, 24, 3, 1),
    (24, 144, 32, 5, 2), (32, 192, 32, 5, 1),
    (32, 192, 64, 3, 2), (64, 384, 64, 3, 1), (64, 384, 64, 3, 1), (64, 384, 88, 5, 1), (88, 528, 88, 5, 1),
    (88, 528, 88, 5, 1),
    (88, 528, 144, 5, 2), (144, 864, 144, 5, 1), (144, 864, 144, 5, 1), (144, 864, 144, 5, 1),
)  # fmt: skip
_TRUNK_STAGES = 10  # up to stride 16


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1, its backward pass made of forward ones.

    On a CPU the usual backward pass of 5 x 5 kernels takes much longer.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "B C H W"], weight: Float[Tensor, "C 1 k k"]) -> Float[Tensor, "B C H W"]:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "B C H W"]) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        padding, channels = weight.shape[-1] // 2, len(weight)
        of_x, of_weight = None, None
        if ctx.needs_input_grad[0]:
            of_x = functional.conv2d(gradient, weight.flip(2, 3), padding=padding, groups=channels)
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
            for image, kernel in zip(x.split(1), gradient.split(1), strict=True):  # the gradient as a large kernel
                of_weight += functional.conv2d(image, kernel.transpose(0, 1), padding=padding, groups=channels).view_as(
                    weight
                )
        return of_x, of_weight


class _DepthwiseConv(nn.Conv2d):
    """A depthwise convolution of stride 1 that trains fast on a CPU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, 1, kernel // 2, groups=channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        if not torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        return _Depthwise.apply(x, self.weight) + self.bias[:, None, None]  # type: ignore[index, no-any-return]


class _Conv(nn.Sequential):
    """Convolution, padded evenly, then ReLU6 or nothing."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> None:
        slow = groups == c_in and stride == 1 and kernel == 5
        super().__init__(
            _DepthwiseConv(c_in, kernel) if slow else nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups)
        )
        if relu:
            self.append(nn.ReLU6())


class _Inverted(nn.Module):
    """Inverted residual block (MobileNetV2)."""

    def __init__(self, c_in: int, expanded: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Conv(c_in, expanded, 1),
            _Conv(expanded, expanded, kernel, stride, expanded),
            _Conv(expanded, c_out, 1, relu=False),
        )
        self.residual = c_in == c_out and stride == 1

    def forward(self, x: Float[Tensor, "B Ci H W"]) -> Float[Tensor, "B Co h w"]:
        y = self.layers(x)
        return x + y if self.residual else y


class _Separable(nn.Module):
    """Depthwise-separable residual block; stride 2 halves the map, the residual by max pooling."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1 if stride == 1 else 0, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        y, shortcut = x, x
        if self.stride == 2:  # TensorFlow pads an even map at its right and lower edge only
            y, shortcut = functional.pad(x, (0, 1, 0, 1)), functional.max_pool2d(x, 2)
        return functional.relu6(shortcut + self.pointwise(functional.relu6(self.depthwise(y))))


class Seen(NamedTuple):
    """What a backbone makes of images.

    Attributes:
        features: map at stride 32.
        vector: of the whole image.
        keypoints: COCO-17 in crop coordinates, the logit of their confidence, and their depth behind the middle of the
            hips in metres; those of a backbone that finds some. So for the rest.
        first: the same before the second look.
        heat: logits of where each lies, on a grid of square cells over the crop.
        trunk: map at stride 16.
    """

    features: Float[Tensor, "B C h w"]
    vector: Float[Tensor, "B P"]
    keypoints: Float[Tensor, "B 17 4"] | None = None
    first: Float[Tensor, "B 17 4"] | None = None
    heat: Float[Tensor, "B 17 H W"] | None = None
    trunk: Float[Tensor, "B 88 16 16"] | None = None


class HeatMaps(nn.Module):
    """A second look at where key points lie: a heat map each at stride 8, multiplied by a normal density around where
    the first look found it, and its mean.

    Depth and confidence are corrected by maps at stride 16, weighted with the heat. Where the first look takes a point
    to lie outside of the crop, its word counts. Then all points look at each other, each with the features where it
    lies.
    """

    cells = 32  # a side

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.fine, self.wide = nn.Conv2d(88, channels, 1), nn.Conv2d(288, channels, 1)
        self.whole = nn.Linear(BlazePose.pooled_channels, channels)
        self.blocks = nn.Sequential(nn.GroupNorm(1, channels), *(_Mix(channels) for _ in range(3)))
        self.maps = nn.Conv2d(channels, 6 * len(_COCO17), 1)
        nn.init.normal_(self.maps.weight, std=0.01)
        nn.init.zeros_(self.maps.bias)  # type: ignore[arg-type]
        self.log_width = nn.Parameter(torch.full((len(_COCO17), 1), math.log(0.15)))  # crop coordinates
        self.trust = nn.Parameter(torch.tensor((1.0, 0.0)))
        self.point = nn.Linear(4, channels)
        self.names = nn.Parameter(0.02 * torch.randn(len(_COCO17), channels))
        self.together = nn.ModuleList(EncoderLayer(channels, 4, 2 * channels, 0.0) for _ in range(2))
        self.change = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 4))
        nn.init.zeros_(self.change[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.change[1].bias)  # type: ignore[arg-type]

    def forward(
        self,
        trunk: Float[Tensor, "B 88 16 16"],
        features: Float[Tensor, "B 288 8 8"],
        vector: Float[Tensor, "B P"],
        first: Float[Tensor, "B 17 4"],
    ) -> tuple[Float[Tensor, "B 17 4"], Float[Tensor, "B 17 32 32"]]:
        """Key points and the logits of their heat maps."""
        wide = functional.interpolate(self.wide(features), scale_factor=2.0, mode="bilinear")
        x = self.blocks(self.fine(trunk) + wide + self.whole(vector)[..., None, None])
        maps, corrections = self.maps(x).split((4 * len(_COCO17), 2 * len(_COCO17)), 1)
        grid = (torch.arange(self.cells, device=x.device) + 0.5) * (2 / self.cells) - 1
        width = self.log_width.exp()
        across = -0.5 * ((grid - first[..., :1]) / width).square()
        down = -0.5 * ((grid - first[..., 1:2]) / width).square()
        heat = functional.pixel_shuffle(maps, 2) + down[..., None] + across[..., None, :]
        share = heat.flatten(2).softmax(2).unflatten(2, (self.cells, self.cells))
        place = torch.stack([share.sum(2) @ grid, share.sum(3) @ grid], 2)
        coarse = 4 * functional.avg_pool2d(share, 2).flatten(2)
        rest = (corrections.flatten(2).unflatten(1, (2, -1)) * coarse[:, None]).sum(3).transpose(1, 2)
        trust = (self.trust[0] * first[..., 2:3] + self.trust[1]).sigmoid()
        second = torch.cat([first[..., :2] + trust * (place - first[..., :2]), first[..., 2:] + rest], 2)
        points = coarse @ x.flatten(2).transpose(1, 2) + self.point(second)
        for layer in self.together:
            points = layer(points, self.names.expand_as(points), None)
        return second + self.change(points), heat


class _Mix(nn.Module):
    """Residual block: a depthwise convolution, then a perceptron at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _DepthwiseConv(channels, 5), nn.Conv2d(channels, 2 * channels, 1), nn.ReLU6(),
            nn.Conv2d(2 * channels, channels, 1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x + self.layers(x)


class BlazePose(nn.Module):
    """Images to a feature map at stride 32, a vector from which BlazePose reads its landmarks linearly, and key
    points."""

    channels, pooled_channels, trunk_channels = 288, 4 * 288, 88

    def __init__(self) -> None:
        super().__init__()
        blocks = [_Inverted(*stage) for stage in _STAGES]
        stem = (_Conv(3, 24, 3, 2), _Conv(24, 24, 3, 1, 24), _Conv(24, 16, 1, relu=False))
        self.trunk = nn.Sequential(*stem, *blocks[:_TRUNK_STAGES])
        self.tail = nn.Sequential(
            *blocks[_TRUNK_STAGES:], _Conv(144, 864, 1), _Conv(864, 864, 3, 1, 864), _Conv(864, 864, 3, 1, 864),
            _Conv(864, 288, 1),
        )  # fmt: skip
        strides = (2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1)
        self.head = nn.Sequential(*(_Separable(288, stride) for stride in strides))
        self.landmarks = nn.Conv2d(288, 5 * NUM_LANDMARKS, 2)
        self.heat = HeatMaps()

    def forward(self, image: Float[Tensor, "B 3 256 256"]) -> Seen:
        """What it makes of RGB images in [0, 1]."""
        return self.from_trunk(self.trunk(image))

    def from_trunk(self, x: Float[Tensor, "B 88 16 16"]) -> Seen:
        """The same from the output of `trunk`, which may be computed once and kept."""
        features = self.tail(x)
        vector = self.head(features).flatten(1)
        first = self.first_look(vector)
        keypoints, heat = self.heat(x, features, vector, first.detach())
        return Seen(features, vector, keypoints, first, heat, x)

    def first_look(self, vector: Float[Tensor, "B P"]) -> Float[Tensor, "B 17 4"]:
        """COCO-17 as `Seen` has them, as BlazePose itself reads them from the vector (depths in metres once trained
        so)."""
        raw = self.landmarks(vector.unflatten(1, (288, 2, 2))).view(-1, NUM_LANDMARKS, 5)[:, _COCO17]
        place = raw[..., :3] * (2 / BLAZEPOSE_INPUT)
        return torch.cat([place[..., :2] - 1, raw[..., 3:4], place[..., 2:]], 2)

    def load_tflite(self, path: Path) -> None:
        """Take the weights of `pose_landmark_full.tflite`, strictly.

        Raises:
            VqhpsError: the file cannot be read or is another network.
        """
        try:
            weights = _tflite_weights(path.read_bytes())
        except OSError:
            raise
        except Exception as error:  # whatever a parser trips over in another file
            raise VqhpsError(f"{path} is not BlazePose's full landmark network: {error}") from error
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("heat.")}
        if [w.shape for w in weights] != [w.shape for w in own.values()]:
            raise VqhpsError(f"{path} is not BlazePose's full landmark network: it has other layers")
        self.load_state_dict({**self.state_dict(), **dict(zip(own, weights, strict=True))})


class BlazePoseFeatures(nn.Module):
    """BlazePose's map and vector without its key points; most of the network is in the trunk, so that the little that
    is left runs fast on what the trunk made of a crop."""

    channels, pooled_channels = BlazePose.channels, BlazePose.pooled_channels

    def __init__(self) -> None:
        super().__init__()
        network = BlazePose()
        self.trunk, self.head = nn.Sequential(*network.trunk, *network.tail), network.head

    def forward(self, image: Float[Tensor, "B 3 256 256"]) -> Seen:
        """What it makes of RGB images in [0, 1]."""
        return self.from_trunk(self.trunk(image))

    def from_trunk(self, x: Float[Tensor, "B 288 8 8"]) -> Seen:
        """The same from the output of `trunk`."""
        return Seen(x, self.head(x).flatten(1))

    def load_tflite(self, path: Path) -> None:
        """See `BlazePose.load_tflite`."""
        network = BlazePose()
        network.load_tflite(path)
        self.trunk.load_state_dict(nn.Sequential(*network.trunk, *network.tail).state_dict())
        self.head.load_state_dict(network.head.state_dict())


def _tflite_weights(content: bytes) -> list[Tensor]:
    """Weight and bias of each convolution that the landmarks depend on, in the order of the graph, as torch lays them
    out."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, ModelT

    model = ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    tensors, operators = graph.tensors, graph.operators
    codes = [model.operatorCodes[op.opcodeIndex].builtinCode for op in operators]
    wanted = {i for i in graph.outputs if tensors[i].name == b"Identity"}  # the landmarks
    source: dict[int, Any] = {}
    needed = []
    for op, code in zip(reversed(operators), reversed(codes), strict=True):
        if wanted & set(op.outputs):
            wanted |= set(op.inputs)
            needed.append((op, code))
        if code == BuiltinOperator.DEQUANTIZE:
            source[op.outputs[0]] = tensors[op.inputs[0]]
    weights = []
    for op, code in reversed(needed):
        if code not in (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D):
            continue
        for index in op.inputs[1:]:
            tensor = source[index]
            values = model.buffers[tensor.buffer].data.view(np.float16).reshape(tensor.shape).astype(np.float32)
            if values.ndim == 4:  # (out, h, w, in), and (1, h, w, channels) of a depthwise one
                order = (0, 3, 1, 2) if code == BuiltinOperator.CONV_2D else (3, 0, 1, 2)
                values = np.ascontiguousarray(values.transpose(order))
            weights.append(torch.from_numpy(values))
    return weights
