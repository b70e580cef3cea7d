"""The published connection matrices: read as they are, refused where they do not fit together."""

import numpy as np
import pytest
import torch

from shared import DATA, TINY, tiny_bodies, tiny_mesh
from vqhps.body.connections import read_connections
from vqhps.body.topology import build_hierarchy
from vqhps.errors import VqhpsError
from vqhps.tokenizer.build import registered_tokenizer
from vqhps.tokenizer.mesh_vqvae import MeshVQVAEConfig

SMPL = DATA.parent / "reference" / "smpl_connections"
CONFIG = MeshVQVAEConfig(**{**TINY, "network": "conv", "shared_codebook": True})  # type: ignore[arg-type]


def table(neighbours: np.ndarray, inputs: int, padding: int = 0) -> np.ndarray:
    """Rows of [count, (id, distance) x M]."""
    rows = np.full((len(neighbours), 1 + 2 * (neighbours.shape[1] + padding)), -1, np.int32)
    rows[:, 1::2] = inputs
    rows[:, 0] = neighbours.shape[1]
    rows[:, 1 : 1 + 2 * neighbours.shape[1] : 2] = neighbours
    rows[:, 2 : 2 + 2 * neighbours.shape[1] : 2] = 1
    return rows


@pytest.fixture
def folder(tmp_path):
    """The capsule's hierarchy as such files; the decoder's convolutions in another order."""
    levels = build_hierarchy(*tiny_mesh(), TINY["sizes"])  # type: ignore[arg-type]
    for i, level in enumerate(levels):
        size = len(level.conv)
        np.save(tmp_path / f"_pool{2 * i}.npy", table(level.conv, size))
        np.save(tmp_path / f"_unpool{2 * i}.npy", table(np.sort(level.conv, 1), size))
        if level.pool is not None:
            np.save(tmp_path / f"_pool{2 * i + 1}.npy", table(level.pool, size))
            np.save(tmp_path / f"_unpool{2 * i + 1}.npy", table(level.unpool, len(level.pool)))
    return tmp_path


def test_levels_come_back(folder):
    found, expected = read_connections(folder), build_hierarchy(*tiny_mesh(), TINY["sizes"])  # type: ignore[arg-type]
    for a, b in zip(found, expected, strict=True):
        for name in ("conv", "pool", "unpool"):
            x, y = getattr(a, name), getattr(b, name)
            assert x is None is y or np.array_equal(x, y)


def test_a_tokenizer_runs_on_them(folder):
    torch.manual_seed(0)
    read = registered_tokenizer(CONFIG, *tiny_mesh(), read_connections(folder)).eval()
    torch.manual_seed(0)
    computed = registered_tokenizer(CONFIG, *tiny_mesh()).eval()
    bodies = tiny_bodies(3)
    assert torch.equal(read(bodies)[0], computed(bodies)[0])


def test_padding_is_the_number_of_inputs(folder):
    neighbours = read_connections(folder)[0].unpool
    assert neighbours is not None
    np.save(folder / "_unpool1.npy", table(neighbours, 40, padding=2))
    padded = read_connections(folder)[0].unpool
    np.testing.assert_array_equal(padded, np.pad(neighbours, ((0, 0), (0, 2)), constant_values=40))


def test_other_sizes_than_the_settings_are_refused(folder):
    config = MeshVQVAEConfig(**{**TINY, "sizes": (40, 6), "network": "conv"})  # type: ignore[arg-type]
    with pytest.raises(VqhpsError, match="is 162 -> 40 -> 16 -> 6; meshes and settings need 162 -> 40 -> 6"):
        registered_tokenizer(config, *tiny_mesh(), read_connections(folder))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("one missing", "cannot read .*_unpool1.npy"),
        ("pool missing", "holds 6 files"),
        ("cut", "_pool2.npy is damaged"),
        ("pickle", "_pool2.npy is damaged"),
        ("float", "whole numbers"),
        ("id", "_pool1.npy: neighbours must be below 162"),
        ("padding", "_unpool1.npy: neighbours must be below 40, the padding 40"),
        ("count", "_pool1.npy: a row must count 1 to"),
        ("rows", "_unpool1.npy has 161 rows"),
        ("others", "_unpool0.npy has other neighbours"),
    ],
)
def test_damage_is_one_clear_error(folder, damage, message):
    names = {"one missing": "_unpool1", "pool missing": "_pool6", "cut": "_pool2", "pickle": "_pool2",
             "float": "_pool3", "padding": "_unpool1", "rows": "_unpool1", "others": "_unpool0"}  # fmt: skip
    path = folder / f"{names.get(damage, '_pool1')}.npy"
    content = np.load(path)
    if "missing" in damage:
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "pickle":
        np.save(path, np.array([{}], dtype=object))
    elif damage == "float":
        np.save(path, content.astype(float))
    elif damage == "rows":
        np.save(path, content[:-1])
    else:
        value = {"id": 162, "padding": 7, "count": 99, "others": (content[5, 1] + 100) % 162}[damage]
        if damage == "padding":
            content[:, 0] -= 1  # the last neighbour, number 7 among them, is none any more
        content[5, 0 if damage == "count" else -2 if damage == "padding" else 1] = value
        np.save(path, content)
    with pytest.raises(VqhpsError, match=message) as caught:
        read_connections(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SMPL.exists(), reason=f"no published matrices at {SMPL}")
def test_published_matrices():
    levels = read_connections(SMPL)
    assert [len(level.conv) for level in levels] == [6890, 1925, 400, 54]
    assert [level.conv.shape[1] for level in levels] == [10, 21, 26, 19]
    assert [level.pool.shape[1] for level in levels[:-1] if level.pool is not None] == [32, 56, 66]
    assert [level.unpool.shape[1] for level in levels[:-1] if level.unpool is not None] == [11, 14, 11]
