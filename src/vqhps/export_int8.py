"""The convolutions of an exported graph in eight bits, with ranges measured on crops."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Float, UInt8
from numpy import ndarray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from vqhps.errors import VqhpsError

_BETWEEN = ("Clip", "LeakyRelu", "MaxPool", "Relu")  # sums of branches stay exact


class _Crops(CalibrationDataReader):
    """Crops one by one, as the graph takes them."""

    def __init__(self, crops: UInt8[ndarray, "N S S 3"]) -> None:
        self.rest: Iterator[ndarray] = iter(crops)

    def get_next(self) -> dict[str, ndarray] | None:  # type: ignore[override]
        crop = next(self.rest, None)
        return None if crop is None else _input(crop)


def _input(crop: UInt8[ndarray, "S S 3"]) -> dict[str, ndarray]:
    return {"image": crop.transpose(2, 0, 1)[None].astype(np.float32)}


def quantize_convolutions(path: Path, crops: UInt8[ndarray, "N S S 3"]) -> int:
    """Run the convolutions of a graph, and what lies between two of them, in eight bits; all else stays.

    Weights have a scale for each output channel and seven bits, so that sums do not overflow on processors without
    instructions for eight-bit products. Rounding them shifts the mean of what a convolution gives; its bias takes that
    back (Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019).

    Args:
        path: ONNX file whose input is `image`, changed in place.
        crops: RGB, to measure ranges on; a few dozen like those to come.

    Returns:
        The number of convolutions.

    Raises:
        VqhpsError: there is none.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        folded = Path(folder) / "folded.onnx"
        _fold(path, folded)
        single = onnx.load(folded)
        nodes = convolutional_part(single.graph)
        if not nodes:
            raise VqhpsError("the graph has no convolutions to run in eight bits")
        add_pre_process_metadata(single)  # or it asks for what `_fold` has done
        onnx.save(single, folded)
        quantize_static(
            folded,
            path,
            _Crops(crops),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )
        _correct_biases(single, path, crops)
        return sum(node.op_type == "Conv" for node in single.graph.node)


def _fold(path: Path, folded: Path) -> None:
    """Write the graph with batch norms folded into convolutions and constants computed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _correct_biases(single: onnx.ModelProto, path: Path, crops: UInt8[ndarray, "N S S 3"]) -> None:
    """Move the biases of the convolutions of `path` so that their outputs have the means, over the crops, of those of
    `single`, from which it was made; borders aside."""
    nodes = {node.name: node for node in single.graph.node if node.op_type == "Conv" and len(node.input) > 2}
    means = _input_means(single, [node.input[0] for node in nodes.values()], crops)
    exact = {i.name: i for i in single.graph.initializer}
    rounded = onnx.load(path)
    makers = {name: node for node in rounded.graph.node for name in node.output}
    stored = {i.name: i for i in rounded.graph.initializer}
    for node in rounded.graph.node:
        if node.op_type != "Conv" or node.name not in nodes:
            continue
        # each comes out of a DequantizeLinear of integers, a scale and a zero point, which is 0
        (weight, weight_scale), (bias, bias_scale) = (
            (stored[makers[name].input[0]], numpy_helper.to_array(stored[makers[name].input[1]]))
            for name in node.input[1:3]
        )
        scale = weight_scale.reshape(-1, 1, 1, 1)
        apart = numpy_helper.to_array(weight) * scale - numpy_helper.to_array(exact[nodes[node.name].input[1]])
        mean = means[nodes[node.name].input[0]].reshape(_groups(node), 1, -1)
        shift = (apart.sum((2, 3)).reshape(len(mean), -1, mean.shape[2]) * mean).sum(2).reshape(-1)
        moved = np.round(numpy_helper.to_array(bias) - shift / bias_scale).astype(np.int32)
        bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    onnx.save(rounded, path)


def _groups(convolution: onnx.NodeProto) -> int:
    return next((a.i for a in convolution.attribute if a.name == "group"), 1)


def _input_means(
    model: onnx.ModelProto, names: list[str], crops: UInt8[ndarray, "N S S 3"]
) -> dict[str, Float[ndarray, "C"]]:
    """Of each value of these names, (1, C, H, W), the mean of each channel over the crops and their places."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = sorted(set(names))
    given = {output.name for output in model.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums = [np.float64(0)] * len(names)
    for crop in crops:
        sums = [s + value.mean((0, 2, 3)) for s, value in zip(sums, session.run(names, _input(crop)), strict=True)]
    return {name: total / len(crops) for name, total in zip(names, sums, strict=True)}


def convolutional_part(graph: onnx.GraphProto) -> list[str]:
    """Names of the convolutions, and of what only passes values on from one to the next.

    Args:
        graph: nodes in order of execution; nodes without a name get one.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    after: set[str] = set()  # names of nodes with a convolution before them
    for node in graph.node:
        given = [makers[name] for name in node.input if name in makers]
        if node.op_type == "Conv" or (node.op_type in _BETWEEN and any(n.name in after for n in given)):
            after.add(node.name)
    before: set[str] = set()  # and behind them
    for node in reversed(graph.node):
        if node.op_type == "Conv" or node.name in before:
            before |= {makers[name].name for name in node.input if name in makers}
    return [node.name for node in graph.node if node.op_type == "Conv" or node.name in after & before]
