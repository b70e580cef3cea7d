"""A bundle: an exported model as a folder of `model.onnx`, `bundle.json` and `body.npz`. No torch, no pickle."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vqhps.config import from_dict
from vqhps.errors import VqhpsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = 1
"""Version of the folder's layout that this package reads and writes."""

OUTPUTS = ("indices", "logits", "vertices", "joints", "rotation", "camera")
"""Names of the graph's outputs; its one input is `image`."""

Info = TypeVar("Info")

_FILES = ("bundle.json", "model.onnx", "body.npz")
_BATCH = 8  # crops a run, to bound the memory of a crowd


@dataclass(frozen=True)
class Metric:
    """A measured number with what it takes to read it: which protocol, on which data."""

    name: str
    value: float
    unit: str
    protocol: str
    data: str


@dataclass(frozen=True)
class BundleInfo:
    """What `bundle.json` says.

    Attributes:
        format: version of the folder's layout.
        name: of the model.
        version: of the model.
        method: class of the model, a key of `vqhps.models.MODELS`.
        input_size: side S of the crop, px.
        mean: per channel, over 0..255; for the record, the graph normalises by itself.
        std: as `mean`.
        crop_scale: side of the crop over the long side of the box.
        tokens: number T of tokens.
        codes: number K of codes.
        body: name of the body model.
        joints: named set of the output `joints`.
        licence: of the weights.
        training_data: one line on what the weights were trained on.
        metrics: measured on this very bundle (`vqhps evaluate --record`).
    """

    format: int
    name: str
    version: str
    method: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_scale: float
    tokens: int
    codes: int
    body: str
    joints: str
    licence: str
    training_data: str
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class BundleOutput:
    """What the graph gives for N crops.

    Attributes:
        indices: (N, T) int64, the tokens nearest to the mesh.
        logits: (N, T, K).
        vertices: (N, V, 3) m, camera axes; the mean of the coarse mesh is the origin, that of the full one lies
            some cm from it.
        joints: (N, 17, 3) COCO-17, same frame.
        rotation: (N, 3, 3) canonical -> camera.
        camera: (N, 3) weak perspective of the crop, `(s, tx, ty)`.
    """

    indices: np.ndarray
    logits: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    rotation: np.ndarray
    camera: np.ndarray


class Bundle:
    """A loaded model. Build it with `Bundle.load` or `default_bundle`."""

    def __init__(self, info: BundleInfo, faces: np.ndarray, session: InferenceSession) -> None:
        """Hold the parts.

        Args:
            info: the metadata.
            faces: (F, 3) int32 of the body's mesh.
            session: of the graph.
        """
        self.info = info
        self.faces = faces
        self.vertices = int(faces.max()) + 1
        self._session = session

    @staticmethod
    def load(folder: Path | str, threads: int | None = None, spin: bool = False) -> Bundle:
        """Read a bundle.

        Args:
            folder: of its files.
            threads: of each run; at most four of the cores this process may use by default.
            spin: see `open_session`.

        Raises:
            VqhpsError: the folder or a file is missing, damaged, or of another format version.
        """
        folder = Path(folder)
        require_files(folder, _FILES)
        info = read_info(folder / "bundle.json", BundleInfo)
        faces = read_faces(folder / "body.npz")
        return Bundle(info, faces, open_session(folder / "model.onnx", ("image",), OUTPUTS, threads, spin))

    def run(self, crops: np.ndarray) -> BundleOutput:
        """Predict the bodies in crops.

        Args:
            crops: (N, S, S, 3) uint8 RGB.
        """
        size = self.info.input_size
        if crops.ndim != 4 or crops.shape[1:] != (size, size, 3) or len(crops) == 0:
            raise VqhpsError(f"this bundle reads crops of shape (N, {size}, {size}, 3), got {crops.shape}")
        images = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32)
        starts = range(0, len(images), _BATCH)
        parts = [self._session.run(OUTPUTS, {"image": images[i : i + _BATCH]}) for i in starts]
        return BundleOutput(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def default_bundle(threads: int | None = None) -> Bundle:
    """The model that ships with the package; `threads` as in `Bundle.load`.

    Raises:
        VqhpsError: this installation has none.
    """
    folder = Path(__file__).parents[1] / "bundles" / "default"
    if not folder.is_dir():
        raise VqhpsError(f"this installation ships no default bundle ({folder} is missing): give one with --bundle")
    return Bundle.load(folder, threads)


def require_files(folder: Path, names: Sequence[str]) -> None:
    """Check that a bundle is all there.

    Raises:
        VqhpsError: the folder or one of these files is missing.
    """
    if not folder.is_dir():
        raise VqhpsError(f"no bundle at {folder}: there is no such folder")
    for name in names:
        if not (folder / name).is_file():
            raise VqhpsError(f"the bundle {folder} has no {name}: export it again with `vqhps export`")


def read_info(path: Path, info_class: type[Info]) -> Info:
    """Read what a bundle says of itself.

    Raises:
        VqhpsError: it is not JSON, has another format version, or an unknown, missing or mistyped key.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VqhpsError(f"{path} cannot be read as JSON ({str(error).splitlines()[0]})") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise VqhpsError(
            f"{path} has bundle format {found!r}, this version of vqhps reads {FORMAT}: export the bundle again, "
            "or install the version of vqhps that wrote it"
        )
    return from_dict(info_class, values, str(path))


def read_faces(path: Path) -> np.ndarray:
    """Read the triangles (F, 3) int32 of `body.npz`.

    Raises:
        VqhpsError: it is no such file.
    """
    faces = read_arrays(path, ("faces",))[0]
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu" or len(faces) == 0 or faces.min() < 0:
        raise VqhpsError(f"{path}: `faces` must be (F, 3) vertex numbers, got {faces.dtype} {faces.shape}")
    return faces.astype(np.int32)


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read arrays of an `.npz` by name, without pickle.

    Raises:
        VqhpsError: it is no such file, or has no such array.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except Exception as error:  # numpy raises many kinds for damaged archives
        raise VqhpsError(f"{path} cannot be read ({error}): export the bundle again") from error


def open_session(
    path: Path, inputs: Sequence[str], outputs: Sequence[str], threads: int | None = None, spin: bool = False
) -> InferenceSession:
    """Load an ONNX graph for the CPU and check its inputs and outputs.

    Args:
        path: of the graph.
        inputs: names of all its inputs.
        outputs: names that must be among its outputs.
        threads: at most four of the cores this process may use by default.
        spin: let threads wait for each other without giving up their cores, during a run. Faster where each has a core
            to itself, much slower where others want it.

    Raises:
        VqhpsError: it is damaged, or not the graph of a bundle.
    """
    # Read when it is loaded: without this, it gives the machine a number, in ~/.cache, and reports its use.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(available_cores(), 4)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when a run ends
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds, which have no common base but Exception
        reason = str(error).splitlines()[0]
        raise VqhpsError(f"{path} cannot be loaded ({reason}): it is damaged, export the bundle again") from error
    found = [node.name for node in session.get_inputs()]
    missing = [name for name in outputs if name not in {node.name for node in session.get_outputs()}]
    if found != list(inputs) or missing:
        raise VqhpsError(f"{path} is not the graph of a bundle: inputs {found}, missing outputs {missing}")
    return session


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
