"""A bundle small enough for tests: a real ONNX graph, built by hand with `onnx.helper`, that is no trained model.

Its body is a capsule whose size follows the mean brightness of the crop (0.5 to 1.5 times), turned by a fixed rotation,
under a fixed camera. So what a prediction should be can be computed by hand.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shared import tiny_mesh
from vqhps.runtime.bundle import FORMAT, BundleInfo

SIZE, TOKENS, CODES = 32, 6, 16
CAMERA = np.array([[0.9, 0.05, -0.1]], np.float32)
ROTATION = np.diag([1.0, -1.0, -1.0]).astype(np.float32)[None]
TOKEN_IDS = np.arange(TOKENS)[None] * 2 + 1
INFO = BundleInfo(
    format=FORMAT, name="tiny", version="1.2.3", method="hand-made", input_size=SIZE, mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0), crop_scale=1.25, tokens=TOKENS, codes=CODES, body="capsule", joints="coco17",
    licence="Apache-2.0", training_data="none", metrics=(),
)  # fmt: skip


def regressor() -> np.ndarray:
    """(17, V) joints of the capsule."""
    count = len(tiny_mesh()[0])
    return np.random.default_rng(0).dirichlet(np.ones(count) / 20, 17).astype(np.float32)


def graph_model(input_name: str = "image") -> onnx.ModelProto:
    """The graph."""
    template = (tiny_mesh()[0] @ ROTATION[0].T)[None].astype(np.float32)
    logits = np.zeros((1, TOKENS, CODES), np.float32)
    logits[0, np.arange(TOKENS), TOKEN_IDS[0]] = 1
    constants = {
        "template": template, "joints_of": regressor(), "turn": ROTATION, "cam": CAMERA, "scores": logits,
        "zero": np.zeros(1, np.float32), "half": np.full(1, 0.5, np.float32), "white": np.full(1, 255, np.float32),
        "axes": np.array([1, 2, 3]), "last": np.array([1]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("ReduceMean", [input_name, "axes"], ["mean4"], keepdims=1),
        node("Squeeze", ["mean4", "last"], ["mean3"]),  # (N, 1, 1)
        node("Div", ["mean3", "white"], ["bright"]),
        node("Add", ["bright", "half"], ["scale"]),
        node("Mul", ["template", "scale"], ["vertices"]),
        node("MatMul", ["joints_of", "vertices"], ["joints"]),
        node("Mul", ["bright", "zero"], ["none3"]),
        node("Squeeze", ["none3", "last"], ["none2"]),
        node("Add", ["turn", "none3"], ["rotation"]),
        node("Add", ["cam", "none2"], ["camera"]),
        node("Add", ["scores", "none3"], ["logits"]),
        node("ArgMax", ["logits"], ["indices"], axis=-1, keepdims=0),
    ]
    vertices = template.shape[1]
    shapes = {
        "indices": (TOKENS,), "logits": (TOKENS, CODES), "vertices": (vertices, 3), "joints": (17, 3),
        "rotation": (3, 3), "camera": (3,),
    }  # fmt: skip
    outputs = [
        helper.make_tensor_value_info(
            name, TensorProto.INT64 if name == "indices" else TensorProto.FLOAT, ["N", *shape]
        )
        for name, shape in shapes.items()
    ]
    image = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_bundle(folder: Path) -> Path:
    """Write the bundle and return its folder."""
    folder.mkdir(parents=True)
    onnx.save(graph_model(), folder / "model.onnx")
    (folder / "bundle.json").write_text(json.dumps(asdict(INFO)), encoding="utf-8")
    with (folder / "body.npz").open("wb") as file:
        np.savez(file, faces=tiny_mesh()[1].astype(np.int32))
    return folder
