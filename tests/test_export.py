"""Export on a real but tiny torch model: the checks bite, half precision stays close, nothing half-done is left."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tiny_bundle
from shared import tiny_tokenizer
from vqhps import export, export_int8
from vqhps.errors import VqhpsError
from vqhps.export import ExportConfig, export_bundle, halve_weights, trace
from vqhps.export_int8 import quantize_convolutions
from vqhps.geometry import matrix_from_6d, rotate
from vqhps.models.output import Output
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.photo import check_crops

CONFIG = ExportConfig(name="small", training_data="none", input_size=32)


class Small(nn.Module):
    """One convolution, one linear layer and the capsule's tokenizer, with the interface of `VQHPS`."""

    config, looks = SimpleNamespace(sources=("image",)), True
    shift = 0.0  # moved after tracing, torch and the graph differ

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 32, 8, stride=8), nn.ReLU())
        self.backbone.mean, self.backbone.std = (0.5,) * 3, (0.25,) * 3
        self.backbone.finds_keypoints = False
        tokens, codes = self.tokenizer.num_tokens, self.tokenizer.num_codes
        self.head = nn.Linear(32, tokens * codes + 9)

    def predict(self, image: Tensor) -> Output:
        tokens = self.tokenizer.num_tokens
        x = self.head(self.backbone(image).mean((2, 3)))
        logits = x[:, :-9].unflatten(1, (tokens, -1))
        coarse = self.tokenizer.decode(logits.argmax(-1)) + self.shift
        rotation = matrix_from_6d(x[:, -6:] + torch.tensor([1.0, 0, 0, 0, 1, 0]))
        return Output(
            vertices=rotate(rotation, self.tokenizer.upsample(coarse)),
            joints=rotate(rotation, self.tokenizer.regressor("coco17") @ coarse),
            rotation=rotation,
            camera=x[:, -9:-6],
            logits=logits,
            indices=logits.argmax(-1),
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    photos = []
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / f"{seed}.png")
        photos.append(folder / f"{seed}.png")
    report = export_bundle(Small().eval(), folder / "bundle", CONFIG, photos)
    return folder, report, photos


def test_bundle_says_what_torch_says(exported):
    folder, report, photos = exported
    bundle = Bundle.load(folder / "bundle")
    crops = check_crops(photos, 32)
    found = bundle.run(crops)
    with torch.no_grad():
        images = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        expected = Small().eval().predict(images)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.vertices, expected.vertices, atol=3e-3)  # half-precision weights
    np.testing.assert_allclose(found.camera, expected.camera, atol=3e-3)
    assert report.crops == 6 and report.single_mm < 0.1 and report.written_mean_mm < 1


def test_metadata(exported):
    folder, report, _ = exported
    info = Bundle.load(folder / "bundle").info
    assert (info.name, info.method, info.input_size, info.training_data) == ("small", "small", 32, "none")
    assert (info.tokens, info.codes) == (6, 16)
    assert info.mean == (127.5,) * 3 and info.std == (63.75,) * 3
    assert report.bytes == (folder / "bundle" / "model.onnx").stat().st_size


def test_nothing_else_is_left_behind(exported):
    folder, _, _ = exported
    assert sorted(p.name for p in folder.iterdir()) == ["0.png", "1.png", "bundle"]
    assert sorted(p.name for p in (folder / "bundle").iterdir()) == ["body.npz", "bundle.json", "model.onnx"]


def test_large_weights_are_stored_in_half_precision(exported):
    folder, _, _ = exported
    weights = {w.name: w for w in onnx.load(folder / "bundle" / "model.onnx").graph.initializer}
    halves = [w for w in weights.values() if w.data_type == onnx.TensorProto.FLOAT16]
    assert halves and all(w.name.endswith("_half") and np.prod(w.dims) >= 1024 for w in halves)


def test_large_tables_of_row_numbers_are_stored_in_32_bits(tmp_path):
    """And the graph still runs: what it knew of their type is gone."""
    rows = np.random.default_rng(0).integers(0, 5, 2000)
    nodes = [
        onnx.helper.make_node("Reshape", ["rows", "shape"], ["flat"]),
        onnx.helper.make_node("Gather", ["x", "flat"], ["y"], axis=1),
    ]
    tensors = [onnx.numpy_helper.from_array(rows, "rows"), onnx.numpy_helper.from_array(np.array([2000]), "shape")]
    told = [onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.INT64, [2000])]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, c]) for n, c in (("x", 5), ("y", 2000))]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors, value_info=told)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx")
    halve_weights(tmp_path / "a.onnx", keep=[])
    assert {w.name: w.data_type for w in onnx.load(tmp_path / "a.onnx").graph.initializer} == {
        "rows": onnx.TensorProto.INT32, "shape": onnx.TensorProto.INT64,
    }  # fmt: skip
    x = np.arange(5, dtype=np.float32)[None]
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x[:, rows])


@pytest.mark.parametrize("grouped", [True, False])
def test_the_largest_matrices_are_stored_in_eight_bits(tmp_path, grouped):
    columns = 1024 if grouped else 1000
    matrix = np.random.default_rng(0).normal(size=(1000, columns)).astype(np.float32)
    matrix *= np.logspace(-3, 0, 1000)[:, None]
    matrix[0] = 0
    tensor = onnx.numpy_helper.from_array(matrix.astype(np.float32), "weight")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", columns), ("y", 1000))
    ]
    node = onnx.helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [tensor])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx")
    onnx.save(onnx.load(tmp_path / "a.onnx"), tmp_path / "half.onnx")
    halve_weights(tmp_path / "half.onnx", keep=[])
    assert (tmp_path / "half.onnx").stat().st_size > 2_000_000
    halve_weights(tmp_path / "a.onnx", keep=[], small=True)
    assert (tmp_path / "a.onnx").stat().st_size < 1_100_000
    x = np.random.default_rng(1).normal(size=(1, columns)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    true = x @ matrix.T
    wrong = np.abs(session.run(None, {"x": x})[0] - true) / np.maximum(np.linalg.norm(matrix, axis=1), 1e-9)
    # |x| is some 32: every row is right to a few per cent, the smallest too
    assert 0 < wrong.max() < (0.5 if grouped else 1)
    assert wrong[0, 0] == 0


def test_halving_keeps_what_it_is_told(tmp_path):
    model = tiny_bundle.graph_model()
    onnx.save(model, tmp_path / "a.onnx")
    halve_weights(tmp_path / "a.onnx", keep=[tiny_bundle.regressor().T.copy()])  # recognised though transposed
    weights = {w.name: w.data_type for w in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert weights["joints_of"] == onnx.TensorProto.FLOAT
    halve_weights(tmp_path / "a.onnx", keep=[])
    weights = {w.name: w.data_type for w in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert weights["joints_of_half"] == onnx.TensorProto.FLOAT16
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"), full_check=True)


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    model, real = Small().eval(), export.trace

    def trace_then_change(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        model.shift = 0.01

    monkeypatch.setattr(export, "trace", trace_then_change)
    with pytest.raises(VqhpsError, match="differs from torch in 'vertices'"):
        export_bundle(model, tmp_path / "bundle", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_fixed_batch_is_not_written(tmp_path):
    class Fixed(Small):
        """`len` of a tensor is a plain number to the exporter: the graph would take that many crops only."""

        def predict(self, image: Tensor) -> Output:
            return super().predict(image + torch.zeros(1, 1, 1, 1).expand(len(image), 3, 32, 32))

    with pytest.raises(VqhpsError, match="does not take 1 crops at once"):
        export_bundle(Fixed().eval(), tmp_path / "bundle", CONFIG)


def test_refusals(tmp_path):
    model = Small().eval()
    model.config = SimpleNamespace(sources=("image", "keypoints"))
    with pytest.raises(VqhpsError, match="given image, keypoints"):
        export_bundle(model, tmp_path / "bundle", CONFIG)
    (tmp_path / "papers").mkdir()
    with pytest.raises(VqhpsError, match="is no bundle"):
        export_bundle(Small().eval(), tmp_path / "papers", CONFIG)
    assert (tmp_path / "papers").is_dir()


def test_single_precision_on_request(tmp_path):
    config = dataclasses.replace(CONFIG, weights="single", body="capsule", crop_scale=1.2)
    report = export_bundle(Small().eval(), tmp_path / "bundle", config)
    assert report.written_max_mm <= report.single_mm < 0.01 and report.equal_tokens == 1
    weights = onnx.load(tmp_path / "bundle" / "model.onnx").graph.initializer
    assert onnx.TensorProto.FLOAT16 not in {w.data_type for w in weights}
    info = Bundle.load(tmp_path / "bundle").info
    assert (info.body, info.crop_scale) == ("capsule", 1.2)


def test_what_ships_is_small() -> None:
    from vqhps.runtime import bundle

    shipped = [p for p in (Path(bundle.__file__).parents[1] / "bundles").rglob("*") if p.is_file()]
    assert 0 < sum(p.stat().st_size for p in shipped) <= 40_000_000


def test_a_bundle_says_nothing_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    """The shipped graph: no path of a source file, no stack trace."""
    from vqhps.runtime import bundle

    content = (Path(bundle.__file__).parents[1] / "bundles" / "default" / "model.onnx").read_bytes()
    assert b"stack_trace" not in content
    assert b".py" not in content


def test_convolutions_in_eight_bits(tmp_path: Path, exported) -> None:
    """Those two that follow each other, and the activation between them; the rest of the graph stays as it is."""

    class Two(Small):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.backbone = nn.Sequential(
                nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 2, stride=2), nn.ReLU()
            )
            self.backbone.mean, self.backbone.std = (0.5,) * 3, (0.25,) * 3
            self.backbone.finds_keypoints = False

    _, _, photos = exported
    model, config = Two().eval(), dataclasses.replace(CONFIG, weights="int8")
    with pytest.raises(VqhpsError, match="need photos of people"):
        export_bundle(model, tmp_path / "bundle", config)
    report = export_bundle(model, tmp_path / "bundle", config, photos)
    assert 0 < report.written_mean_mm < 1
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    weights = {w.name: w for w in graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 4}
    assert sorted(tuple(w.dims) for w in weights.values()) == [(16, 3, 4, 4), (32, 16, 2, 2)]
    products = [n for n in graph.node if n.op_type in ("Gemm", "MatMul")]
    made = {name: n.op_type for n in graph.node for name in n.output}
    assert products and not any(made.get(name) == "DequantizeLinear" for n in products for name in n.input)


def test_eight_bits_keep_the_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded weights shift what a convolution gives, in groups or not; its bias takes that back."""

    class Layers(nn.Sequential):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)

    torch.manual_seed(0)
    layers = Layers(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 4, 1))
    for layer in layers[::2]:  # one large weight a channel leaves few steps for the others
        layer.weight.data[:, 0, 0, 0] = 4.0
    crops = np.random.default_rng(0).integers(0, 255, (6, 24, 24, 3), dtype=np.uint8)

    def means(path: Path) -> np.ndarray:
        session = onnxruntime.InferenceSession(str(path))
        images = crops.transpose(0, 3, 1, 2).astype(np.float32)
        return session.run(None, {"image": images})[0].mean((0, 2, 3))

    single, plain, corrected = (tmp_path / f"{name}.onnx" for name in ("single", "plain", "corrected"))
    trace(layers.eval(), {"image": torch.zeros(2, 3, 24, 24)}, ("out",), single)
    for path in (plain, corrected):
        shutil.copy(single, path)
    assert quantize_convolutions(corrected, crops) == 3
    monkeypatch.setattr(export_int8, "_correct_biases", lambda *_: None)
    quantize_convolutions(plain, crops)
    true = means(single)
    assert np.abs(means(corrected) - true).max() < 0.2 * np.abs(means(plain) - true).max()
