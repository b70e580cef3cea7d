"""The convolutions of an exported graph in eight bits, with ranges measured on crops."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
from jaxtyping import UInt8
from numpy import ndarray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from vqhps.errors import VqhpsError

_BETWEEN = ("Add", "Clip", "Concat", "LeakyRelu", "MaxPool", "Mul", "Relu", "Resize", "Sigmoid")


class _Crops(CalibrationDataReader):
    """Crops one by one, as the graph takes them."""

    def __init__(self, crops: UInt8[ndarray, "N S S 3"]) -> None:
        self.rest: Iterator[ndarray] = iter(crops)

    def get_next(self) -> dict[str, ndarray] | None:  # type: ignore[override]
        crop = next(self.rest, None)
        return None if crop is None else {"image": crop.transpose(2, 0, 1)[None].astype("float32")}


def quantize_convolutions(path: Path, crops: UInt8[ndarray, "N S S 3"]) -> int:
    """Run the convolutions of a graph, and what lies between two of them, in eight bits; all else stays.

    Weights have a scale for each output channel and seven bits, so that sums do not overflow on processors without
    instructions for eight-bit products.

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
        nodes = convolutional_part(onnx.load(folded).graph)
        if not nodes:
            raise VqhpsError("the graph has no convolutions to run in eight bits")
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
        return sum(node.op_type == "Conv" for node in onnx.load(folded).graph.node)


def _fold(path: Path, folded: Path) -> None:
    """Write the graph with batch norms folded into convolutions and constants computed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


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
