"""BlazePose's landmark network in torch, as a backbone that has seen many real people (Bazarevsky et al., 2020).

The layers of `pose_landmark_full.tflite` that lead to its landmarks; those that only serve its mask and heatmaps are
left out. Weights are read from the file that `vqhps.runtime.download` fetches (Apache-2.0).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vqhps.errors import VqhpsError

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


class BlazePose(nn.Module):
    """Images to a feature map at stride 32 and a vector from which BlazePose reads its landmarks linearly."""

    channels, pooled_channels = 288, 4 * 288

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

    def forward(self, image: Float[Tensor, "B 3 256 256"]) -> tuple[Float[Tensor, "B 288 8 8"], Float[Tensor, "B P"]]:
        """Feature map and vector of RGB images in [0, 1]."""
        return self.from_trunk(self.trunk(image))

    def from_trunk(self, x: Float[Tensor, "B 88 16 16"]) -> tuple[Float[Tensor, "B 288 8 8"], Float[Tensor, "B P"]]:
        """The same from the output of `trunk`, which may be computed once and kept."""
        features = self.tail(x)
        return features, self.head(features).flatten(1)

    def keypoints(self, vector: Float[Tensor, "B P"]) -> Float[Tensor, "B 17 4"]:
        """COCO-17 in crop coordinates, the logit of their confidence, and their depth behind the middle of the hips (in
        metres once trained so), from the vector that `forward` gives."""
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
        own = self.state_dict()
        if [w.shape for w in weights] != [w.shape for w in own.values()]:
            raise VqhpsError(f"{path} is not BlazePose's full landmark network: it has other layers")
        self.load_state_dict(dict(zip(own, weights, strict=True)))


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
