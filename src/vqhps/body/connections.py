"""The published connection matrices of Mesh-VQ-VAE (Zhou et al., NeurIPS 2020; VQ-HPS, ECCV 2024) as a hierarchy."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from vqhps.body.topology import Level
from vqhps.errors import VqhpsError


def read_connections(folder: Path) -> list[Level]:
    """Read `_pool0.npy` ... and `_unpool0.npy` ...: even numbers convolve a level, odd ones lead to the next and back.

    A row holds a count and then pairs of a neighbour and its distance in edges, padded with the number of input
    vertices; the neighbours keep that padding and their order. Both convolutions of a level have the same
    neighbours; the order is that of the encoder's, `_pool`.

    Args:
        folder: of the files; for SMPL, 7 each, 6890 -> 1925 -> 400 -> 54.

    Returns:
        finest level first.

    Raises:
        VqhpsError: a file is missing or damaged, or does not fit the others.
    """
    count = len(list(folder.glob("_pool*.npy")))
    if count < 3 or count % 2 == 0:
        raise VqhpsError(f"{folder} holds {count} files _pool*.npy; a hierarchy has an odd number of them, from 3 on")
    tables = [_read(folder / f"_pool{i}.npy") for i in range(count)]
    sizes = [len(table) for table in tables[::2]]
    levels = []
    for level, size in enumerate(sizes):
        conv = _neighbours(tables[2 * level], folder / f"_pool{2 * level}.npy", size, size)
        again = folder / f"_unpool{2 * level}.npy"
        if not np.array_equal(np.sort(_neighbours(_read(again), again, size, size), 1), np.sort(conv, 1)):
            raise VqhpsError(f"{again} has other neighbours than _pool{2 * level}.npy")
        if level + 1 == len(sizes):
            levels.append(Level(conv, None, None))
            break
        down, up = (folder / f"_{name}{2 * level + 1}.npy" for name in ("pool", "unpool"))
        pool = _neighbours(tables[2 * level + 1], down, sizes[level + 1], size)
        levels.append(Level(conv, pool, _neighbours(_read(up), up, size, sizes[level + 1])))
    return levels


def _read(path: Path) -> Int[np.ndarray, "V C"]:
    try:
        table = np.load(path, allow_pickle=False)
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # numpy raises several kinds for damaged files
        raise VqhpsError(f"{path} is damaged ({error})") from error
    if table.ndim != 2 or table.shape[1] % 2 == 0 or table.dtype.kind not in "iu":
        raise VqhpsError(f"{path}: rows must be whole numbers [count, (id, distance) ...], got {table.shape}")
    return table


def _neighbours(table: Int[np.ndarray, "V C"], path: Path, rows: int, inputs: int) -> Int[np.ndarray, "V M"]:
    """The neighbours of a table, checked; `inputs` where there is none."""
    neighbours = table[:, 1::2].astype(np.int64)
    real = np.arange(neighbours.shape[1]) < table[:, :1]
    if len(table) != rows:
        raise VqhpsError(f"{path} has {len(table)} rows, the level it leads to {rows} vertices")
    if table[:, 0].min() < 1 or table[:, 0].max() > neighbours.shape[1]:
        raise VqhpsError(f"{path}: a row must count 1 to {neighbours.shape[1]} neighbours")
    if (neighbours[real] < 0).any() or (neighbours[real] >= inputs).any() or (neighbours[~real] != inputs).any():
        raise VqhpsError(f"{path}: neighbours must be below {inputs}, the padding {inputs}")
    return neighbours
