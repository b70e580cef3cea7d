"""Export of tokenizers: both networks, the checks bite, nothing half-done is left.

Tracing takes seconds, so most tests put graphs in place that were traced once.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from shared import tiny_bodies, tiny_tokenizer
from tiny_fitted import fitted_tokenizer
from vqhps import checkpoint, cli, export_tokenizer
from vqhps.errors import VqhpsError
from vqhps.runtime.tokenizer import TOKENIZER_FILES, MeshTokenizer


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The fitted tokenizer, whose weights half precision would harm."""
    folder = tmp_path_factory.mktemp("traced") / "fitted"
    return folder, export_tokenizer.export_tokenizer(fitted_tokenizer(), folder, "none")


@pytest.fixture
def instead_of_tracing(traced, monkeypatch):
    monkeypatch.setattr(export_tokenizer, "trace", lambda *a: shutil.copy(traced[0] / a[-1].name, a[-1]))


def halves(folder: Path) -> bool:
    weights = onnx.load(folder / "decoder.onnx").graph.initializer
    return any(w.data_type == onnx.TensorProto.FLOAT16 for w in weights)


def test_published_network_exports(tmp_path):
    model = tiny_tokenizer("conv", shared_codebook=True)
    report = export_tokenizer.export_tokenizer(model, tmp_path / "t", "none")
    assert report.single_mm < 0.1 and report.equal_tokens > 0.98 and report.meshes_per_second > 0
    assert {p.name for p in (tmp_path / "t").iterdir()} == set(TOKENIZER_FILES)
    bodies = tiny_bodies(3)
    found = MeshTokenizer.load(tmp_path / "t").encode(bodies.numpy(), np.tile(np.eye(3), (3, 1, 1))).indices
    np.testing.assert_array_equal(found, model.encode(bodies))


def test_command_takes_the_tokenizer_out_of_an_image_model(instead_of_tracing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda _: SimpleNamespace(tokenizer=fitted_tokenizer()))
    arguments = ["export", str(tmp_path), "--tokenizer", "--out", str(tmp_path / "t"), "--training-data", "capsules"]
    assert cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    size = sum((tmp_path / "t" / f"{name}.onnx").stat().st_size for name in ("encoder", "decoder"))
    assert report["bytes"] == size and report["turned_meshes_per_second"] > 0
    info = MeshTokenizer.load(tmp_path / "t").info
    assert (info.name, info.body, info.notes, info.vertices) == ("t", "registered", "capsules", 162)


def test_half_precision_only_where_it_does_not_matter(traced, instead_of_tracing, tmp_path, monkeypatch):
    assert not traced[1].half and not halves(traced[0]) and traced[1].written_mm < 1e-3
    monkeypatch.setattr(export_tokenizer, "_HALF_LIMIT_MM", 5.0)
    report = export_tokenizer.export_tokenizer(fitted_tokenizer(), tmp_path / "t", "none")
    assert report.half and halves(tmp_path / "t") and 0.05 < report.written_mm < 5


@pytest.mark.parametrize(("name", "message"), [("mean", "decoder differs"), ("codebook", "chooses other tokens")])
def test_graphs_that_differ_are_not_written(instead_of_tracing, tmp_path, monkeypatch, name, message):
    """The graphs are those of a tokenizer with another mean body, or other codes under the decoder's eyes."""
    model = fitted_tokenizer()
    if name == "mean":
        model.network.mean[0] += 0.01
    else:
        monkeypatch.setattr(export_tokenizer, "_deviation_mm", lambda *_: 0.0)
        model.codebook.copy_(model.codebook.flip(1))
    with pytest.raises(VqhpsError, match=message):
        export_tokenizer.export_tokenizer(model, tmp_path / "t", "none")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_something_else_is_kept(instead_of_tracing, tmp_path):
    (tmp_path / "paper.txt").write_text("")
    with pytest.raises(VqhpsError, match="is no bundle"):
        export_tokenizer.export_tokenizer(fitted_tokenizer(), tmp_path, "none")
    assert (tmp_path / "paper.txt").exists()
