"""Torch model -> ONNX bundle, checked against torch before anything is written."""

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vqhps.config import to_dict
from vqhps.data.sample import CROP_SCALE
from vqhps.errors import VqhpsError
from vqhps.export_int8 import quantize_convolutions
from vqhps.runtime.bundle import FORMAT, OUTPUTS, Bundle, BundleInfo, BundleOutput
from vqhps.runtime.photo import check_crops

logger = logging.getLogger(__name__)

_OPSET = 18
_TOLERANCE = 1e-4  # of vertices, m, absolute and relative
_EQUAL = 0.9  # share of tokens: two codes may be equally near
_LIMIT_MM = 1.0  # mean deviation of vertices that weights of less precision may cause
_MIN_HALF = 1024  # smaller tensors (biases, norms) stay in single precision
_MIN_EIGHT = 1_000_000  # larger matrices are stored in eight bits
_TOGETHER = 32  # numbers of a row that share a scale there
_MAX_KEPT = 500_000  # and so do buffers below this size: the template, the upsampler, the codebook
_BATCHES = (1, 3)  # sizes tried, to be sure that the batch is free


Weights = Literal["half", "small", "single", "int8"]


@dataclass(frozen=True)
class ExportConfig:
    """What a bundle says of itself.

    Attributes:
        name: of the model.
        version: of the model.
        licence: of the weights.
        training_data: one line on what the weights were trained on.
        input_size: side of the crop, px.
        crop_scale: side of the crop over the long side of the box.
        body: name of the body model.
        weights: how they are stored. `half`: large ones in half precision, computed in single; `small`: so too, but
            matrices of a million numbers and more in eight bits, as what is shipped; `int8`: convolutions
            run in eight bits, which is faster.
    """

    name: str = "vqhps"
    version: str = "0.1.0"
    licence: str = "Apache-2.0"
    training_data: str = "unknown"
    input_size: int = 224
    crop_scale: float = CROP_SCALE
    body: str = "anny-full"
    weights: Weights = "half"


@dataclass(frozen=True)
class ExportReport:
    """What the checks found.

    Attributes:
        single_mm: largest deviation of a vertex from torch, weights in single precision.
        written_mean_mm: mean deviation of a vertex from torch, as written.
        written_max_mm: largest such deviation.
        equal_tokens: share of tokens that are the same as written, in [0, 1].
        bytes: size of `model.onnx`.
        crops: number of crops compared.
    """

    single_mm: float
    written_mean_mm: float
    written_max_mm: float
    equal_tokens: float
    bytes: int
    crops: int


class BundleGraph(nn.Module):
    """A model as a bundle wants it: RGB in 0..255 to a tuple in the order of `runtime.bundle.OUTPUTS`.

    Args:
        model: in eval mode, with `predict` and `backbone`.
    """

    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.backbone.mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(model.backbone.std).view(3, 1, 1) * 255)

    def forward(self, image: Float[Tensor, "N 3 S S"]) -> tuple[Tensor, ...]:
        """See `runtime.bundle.BundleOutput`."""
        output = self.model.predict((image - self.mean) / self.std)
        return tuple(getattr(output, name) for name in OUTPUTS)


def export_bundle(model: Any, out: Path, config: ExportConfig, photos: Sequence[Path] = ()) -> ExportReport:
    """Write a bundle; `out` is replaced in one step, at the end.

    Args:
        model: a `VQHPS` that is given images only.
        out: folder of the bundle.
        config: what the bundle says of itself.
        photos: to cut crops for the checks from; made-up pictures by default. `int8` needs some, like those to come:
            it measures its ranges on them.

    Raises:
        VqhpsError: the model cannot be exported, or the graph differs from it.
    """
    if not model.looks or ("keypoints" in model.config.sources and not model.backbone.finds_keypoints):
        raise VqhpsError(f"a bundle's one input is an image; this model is given {', '.join(model.config.sources)}")
    if config.weights == "int8" and not photos:
        raise VqhpsError("eight-bit convolutions need photos of people to measure their ranges on: give some")
    graph = BundleGraph(model.cpu().eval()).eval()
    crops = check_crops(photos, config.input_size)
    with staged_folder(out, "bundle.json") as staging:
        _write_metadata(staging, model, config)
        single = staging / "model.onnx"
        example = torch.zeros(2, 3, config.input_size, config.input_size)
        trace(graph, {"image": example}, OUTPUTS, single)
        with torch.no_grad():
            images = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
            expected = BundleOutput(*(x.numpy() for x in graph(images)))
        single_mm = check_equal(Bundle.load(staging), crops, expected)
        if config.weights == "int8":
            quantize_convolutions(single, crops)
        if config.weights != "single":
            keep = [b.numpy() for b in model.buffers() if b.numel() < _MAX_KEPT]
            halve_weights(single, keep, config.weights == "small")
        report = _written_report(Bundle.load(staging), crops, expected, single_mm, single.stat().st_size)
        if report.written_mean_mm > _LIMIT_MM:
            where = "on the people of the photos" if photos else "on made-up pictures (--photos: on people)"
            raise VqhpsError(
                f"weights of this precision move the mesh by {report.written_mean_mm:.2f} mm {where}: not written"
            )
    logger.info("wrote %s: %s", out, asdict(report))
    return report


@contextlib.contextmanager
def staged_folder(out: Path, mark: str) -> Iterator[Path]:
    """Give an empty folder beside `out` to write to, which replaces `out` at the end if all went well.

    Args:
        out: the folder.
        mark: file that an existing `out` must hold to be replaced.

    Raises:
        VqhpsError: `out` exists and is something else.
    """
    if out.exists() and not (out / mark).is_file():
        raise VqhpsError(f"{out} exists and is no bundle: name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield staging
        if out.exists():
            shutil.rmtree(out)
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def trace(graph: nn.Module, example: dict[str, Tensor], outputs: Sequence[str], path: Path) -> None:
    """Write a module of one input as one ONNX file with a free batch size.

    Args:
        graph: in eval mode.
        example: its input by name.
        outputs: names for what it returns.
        path: of the file.

    Raises:
        VqhpsError: torch cannot trace the model.
    """
    name = next(iter(example))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about its own insides
            torch.onnx.export(
                graph,
                tuple(example.values()),
                path,
                input_names=[name],
                output_names=list(outputs),
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes={name: {0: torch.export.Dim("N", min=1, max=4096)}},
            )
    except Exception as error:  # the exporter has no common error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise VqhpsError(f"torch cannot export this model to ONNX: {reason}") from error


def halve_weights(path: Path, keep: Sequence[np.ndarray], small: bool = False) -> None:
    """Store large single-precision tensors in half precision.

    Each is followed by the way back to single precision, which runtimes fold while loading.

    Args:
        path: ONNX file, changed in place.
        keep: values to leave, whatever the exporter calls them and however it transposes them: a template in half
            precision would be off by up to a quarter of a millimetre.
        small: store the largest matrices in eight bits, with a scale for every 32 numbers of a row.
    """
    model = onnx.load(path)
    kept = {np.sort(values, axis=None).tobytes() for values in keep if values.dtype == np.float32}
    back: list[onnx.NodeProto] = []
    scales: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _MIN_HALF:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if np.sort(values, axis=None).tobytes() in kept:
            continue
        name, half = tensor.name, values.clip(-65504, 65504).astype(np.float16)
        if small and values.ndim == 2 and values.size >= _MIN_EIGHT:
            stored, *rest = _in_eight_bits(name, values)
            tensor.CopyFrom(stored)
            scales.extend(rest)
            for part, way in (("eight", "steps"), ("half_scale", "scale")):
                names = [f"{name}_{part}"], [f"{name}_{way}"]
                back.append(onnx.helper.make_node("Cast", *names, to=onnx.TensorProto.FLOAT))
            back.append(onnx.helper.make_node("Mul", [f"{name}_steps", f"{name}_scale"], [f"{name}_parts"]))
            back.append(onnx.helper.make_node("Reshape", [f"{name}_parts", f"{name}_shape"], [name]))
        elif np.allclose(half, values, rtol=1e-3, atol=1e-4):
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            back.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    model.graph.initializer.extend(scales)
    _shorten_indices(model.graph)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*back, *nodes])
    strip_traces(model)
    onnx.save(model, path)


def _in_eight_bits(name: str, matrix: Float[np.ndarray, "R C"]) -> list[onnx.TensorProto]:
    """A matrix in steps from -127 to 127, their sizes, and its shape: the steps are stored in the groups that share a
    size."""
    columns = matrix.shape[1]
    groups = matrix.reshape(len(matrix), -1, _TOGETHER if columns % _TOGETHER == 0 else columns)
    size = (np.maximum(np.abs(groups).max(2, keepdims=True), 1e-4) / 127).astype(np.float16)  # less would become 0
    steps = np.round(groups / size.astype(np.float32)).clip(-127, 127).astype(np.int8)
    parts = {"eight": steps, "half_scale": size, "shape": np.array(matrix.shape)}
    return [onnx.numpy_helper.from_array(values, f"{name}_{part}") for part, values in parts.items()]


def _shorten_indices(graph: onnx.GraphProto) -> None:
    """Store the large tables that only choose rows as 32-bit numbers; what the exporter noted of types goes."""
    del graph.value_info[:]
    users: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            users.setdefault(name, set()).add((node.op_type, place))
    for tensor in graph.initializer:
        large = tensor.data_type == onnx.TensorProto.INT64 and np.prod(tensor.dims) >= _MIN_HALF
        if large and users.get(tensor.name) in ({("Gather", 1)}, {("Reshape", 0)}):  # both take 32 bits as well
            values = onnx.numpy_helper.to_array(tensor).astype(np.int32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def strip_traces(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes of this machine: source files and stack traces of every node."""
    places = (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.functions,
    )
    for place in (*places, *model.graph.input, *model.graph.output, *(n for f in model.functions for n in f.node)):
        del place.metadata_props[:]
        place.ClearField("doc_string")


def check_equal(bundle: Bundle, crops: UInt8[np.ndarray, "N S S 3"], expected: BundleOutput) -> float:
    """Compare a graph with torch.

    Returns:
        The largest deviation of a vertex, mm.

    Raises:
        VqhpsError: they differ, or the graph does not take other batch sizes.
    """
    worst = 0.0
    for batch in (*_BATCHES, len(crops)):
        try:
            found = bundle.run(crops[:batch])
        except Exception as error:  # onnxruntime's kinds have no common base
            raise VqhpsError(f"the ONNX graph does not take {batch} crops at once: not written") from error
        for name in OUTPUTS:
            a, b = getattr(found, name), getattr(expected, name)[:batch]
            close = a.shape == b.shape and (
                (a == b).mean() > _EQUAL if name == "indices" else np.allclose(a, b, _TOLERANCE, _TOLERANCE)
            )
            if name != "logits" and not close:
                raise VqhpsError(f"the ONNX graph differs from torch in '{name}' at batch size {batch}: not written")
        worst = max(worst, float(_distance_mm(found, expected.vertices[:batch]).max()))
    return worst


def _written_report(
    bundle: Bundle, crops: UInt8[np.ndarray, "N S S 3"], expected: BundleOutput, single_mm: float, size: int
) -> ExportReport:
    found = bundle.run(crops)
    distance = _distance_mm(found, expected.vertices)
    equal = float((found.indices == expected.indices).mean())
    return ExportReport(single_mm, float(distance.mean()), float(distance.max()), equal, size, len(crops))


def _distance_mm(found: BundleOutput, vertices: Float[np.ndarray, "N V 3"]) -> Float[np.ndarray, "N V"]:
    return np.linalg.norm(found.vertices - vertices, axis=-1) * 1000


def _write_metadata(folder: Path, model: Any, config: ExportConfig) -> None:
    import json

    info = BundleInfo(
        format=FORMAT,
        name=config.name,
        version=config.version,
        method=type(model).__name__.lower(),
        input_size=config.input_size,
        mean=tuple(float(x) * 255 for x in model.backbone.mean),  # type: ignore[arg-type]
        std=tuple(float(x) * 255 for x in model.backbone.std),  # type: ignore[arg-type]
        crop_scale=config.crop_scale,
        tokens=model.tokenizer.num_tokens,
        codes=model.tokenizer.num_codes,
        body=config.body,
        joints="coco17",
        licence=config.licence,
        training_data=config.training_data,
    )
    (folder / "bundle.json").write_text(json.dumps(to_dict(info), indent=1) + "\n", encoding="utf-8")
    faces = model.tokenizer.mesh.get_buffer("faces").cpu().numpy().astype(np.int32)
    with (folder / "body.npz").open("wb") as file:
        np.savez_compressed(file, faces=faces)
