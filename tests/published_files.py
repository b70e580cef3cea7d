"""Files in published formats, made here: body files with objects of chumpy and scipy inside, weights by the recipe of
the golden values."""

import json
import pickle
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

_PARENTS = (0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)  # of SMPL, from bone 1 to the wrists


def smpl_arrays(count: int = 240, seed: int = 0, bones: int = 24) -> dict[str, np.ndarray]:
    """What a file of a SMPL, SMPL-H (52 bones) or SMPL-X (55) body holds, made up: a person-sized cloud of vertices."""
    rng = np.random.default_rng(seed)
    parents = [2**32 - 1, *_PARENTS[:21], *(bone - 1 for bone in range(22, bones))]
    return {
        "v_template": rng.normal(0, (0.3, 0.5, 0.1), (count, 3)),
        "shapedirs": rng.normal(0, 0.02, (count, 3, 10)),
        "posedirs": rng.normal(0, 0.003, (count, 3, 9 * (bones - 1))),
        "J_regressor": rng.dirichlet(np.ones(count) / 20, bones),
        "weights": rng.dirichlet(np.ones(bones) / 10, count),
        "kintree_table": np.array([parents, range(bones)], np.uint32),
        "f": rng.integers(0, count, (2 * count, 3)).astype(np.uint32),
    }


class _Foreign:
    """Stand-ins for modules of chumpy, which no longer installs, while a file is written."""

    def __enter__(self) -> types.SimpleNamespace:
        self.modules = {name: types.ModuleType(name) for name in ("chumpy", "chumpy.ch", "chumpy.reordering")}
        kinds = {}
        for module, name in (("chumpy.ch", "Ch"), ("chumpy.reordering", "Select"), ("chumpy.ch", "MatVecMult")):
            kinds[name] = type(name, (), {"__module__": module})
            setattr(self.modules[module], name, kinds[name])
        sys.modules.update(self.modules)
        return types.SimpleNamespace(**kinds)

    def __exit__(self, *_: object) -> None:
        for name in self.modules:
            del sys.modules[name]


def write_smpl_pickle(path: Path, arrays: Mapping[str, np.ndarray], protocol: int = 2) -> None:
    """As published: chumpy's `Ch`, a `Select` of one, a sparse regressor, an object of no use, and strings."""
    with _Foreign() as chumpy:

        def wrapped(value: np.ndarray) -> Any:
            made = chumpy.Ch()
            made.__dict__.update(x=value, _dirty_vars=set(), _itr=None)
            return made

        select = chumpy.Select()
        flat = arrays["shapedirs"].ravel()
        select.__dict__.update(
            a=wrapped(np.concatenate([flat, [7.0]])),
            idxs=np.arange(flat.size),
            preferred_shape=arrays["shapedirs"].shape,
        )
        content = {
            **arrays,
            "v_template": wrapped(arrays["v_template"]),
            "posedirs": wrapped(arrays["posedirs"]),
            "shapedirs": select,
            "J_regressor": scipy.sparse.csc_matrix(arrays["J_regressor"]),
            "J": chumpy.MatVecMult(),
            "bs_style": "lbs",
        }
        path.write_bytes(pickle.dumps(content, protocol))


def golden_state(listing: Path) -> dict[str, torch.Tensor]:
    """Made-up weights for every name of a published state, by the recipe that the golden values were computed with."""
    shapes = json.loads(listing.read_text())
    storage: dict[str, torch.Tensor] = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        if name.endswith(("num_batches_tracked", ".mask")):
            storage[name] = torch.zeros(shape, dtype=torch.int64 if name.endswith("tracked") else torch.float32)
            continue
        z = np.random.RandomState(1000 + i).standard_normal(shape)
        storage[name] = torch.from_numpy(np.asarray(_golden(name, shape, z), np.float32))
    # Encoder and decoder of the tokenizer share their tensors, and the later name, the encoder's, wins.
    for name in [name for name in storage if name.startswith("decoder.model.")]:
        storage[name] = storage[name.replace("decoder.", "encoder.", 1)]
    return storage


def _golden(name: str, shape: list[int], z: np.ndarray) -> np.ndarray:
    last = name.rpartition(".")[2]
    if last == "running_var":
        return 1 + 0.1 * np.abs(z)
    if last == "running_mean":
        return 0.1 * z
    if len(shape) == 1:
        if last != "weight":
            return 0.02 * z
        return 0.5 + 0.05 * z if name.startswith("backbone") else 1 + 0.1 * z
    if name == "vq_vae._embedding.weight":
        return 0.05 * z
    if last.startswith("p_neighbors"):
        return 1 + 0.3 * z
    if last.startswith("w_weights"):
        return z / np.sqrt(shape[1] * 9)
    if last.startswith("weights"):
        return 10 * z / np.sqrt(shape[1])
    if len(shape) == 4:
        return z * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    return z / np.sqrt(shape[-1])
