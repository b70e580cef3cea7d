"""Pickles and `.npz` that others published, read without executing anything of theirs.

Body files and annotations of the field are pickles of numpy arrays, some inside objects of libraries that nobody needs
to install any more (chumpy, scipy.sparse). Of what a pickle names, only numpy's reconstruction of arrays runs; objects
of those two libraries are kept as data; everything else is refused by its name.
"""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vqhps.errors import VqhpsError

_NUMPY = {  # what numpy itself names, under the modules of all its versions
    "numpy.core.multiarray._reconstruct": np.zeros(0).__reduce__()[0],
    "numpy.core.multiarray.scalar": np.float64(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}
_BUILTIN: dict[str, Any] = {
    "set": set,
    "frozenset": frozenset,
    "complex": complex,
    "bytes": bytes,
    "bytearray": bytearray,
    "long": int,
}


class KeptObject:
    """An object of a foreign class, as data: its attributes, and the arguments it was made with as `arguments`."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({str(name): value for name, value in part.items()})


class _Refused(Exception):
    """Carries the name of what a pickle tried to load."""


def read_pickle(path: Path) -> Any:
    """The content of a pickle of any protocol, Python 2's included, with numpy arrays in place of known objects.

    chumpy's `Ch` and `Select` and scipy's sparse matrices become dense arrays; other objects of these libraries stay
    `KeptObject`.

    Raises:
        VqhpsError: the file is damaged, or names something that would have to be executed.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _plain(_Reader(file, encoding="latin1").load())
        except OSError:
            raise
        except _Refused as refused:
            raise VqhpsError(
                f"{path} is refused: it asks to load {refused}, which could run code; nothing was run"
            ) from None
        except Exception as error:  # whatever a damaged pickle trips over
            raise VqhpsError(f"{path} is damaged or no pickle ({type(error).__name__}: {error})") from error


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Those of the named arrays that an `.npz` holds. Others are not looked at: published files keep pickled
    dictionaries beside their arrays.

    Raises:
        VqhpsError: the file is damaged, or one of the arrays would have to be unpickled.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as table:
                return {name: table[name] for name in names if name in table.files}
        except Exception as error:  # numpy and zipfile raise several kinds for damaged files
            raise VqhpsError(f"{path} is damaged or no .npz of plain arrays ({error})") from error


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _NUMPY.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if known is not None:
            return known
        if module in ("copy_reg", "copyreg") and name == "_reconstructor":
            return _empty
        if module in ("__builtin__", "builtins"):
            if name == "object":
                return KeptObject
            if name in _BUILTIN:
                return _BUILTIN[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module.partition(".")[0] == "chumpy" or module.startswith("scipy.sparse"):
            return type(name, (KeptObject,), {})
        raise _Refused(f"{module}.{name}")


def _empty(kind: Any, base: Any, state: Any) -> KeptObject:
    """`copyreg._reconstructor` for kept objects alone."""
    if not (isinstance(kind, type) and issubclass(kind, KeptObject)):
        raise _Refused(f"copyreg._reconstructor of {kind!r}")
    return kind()


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as pickles of bytes by Python 3 for Python 2 use it."""
    if encoding != "latin1" or not isinstance(text, str):
        raise _Refused(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def _plain(value: Any) -> Any:
    """Containers with arrays in place of the kept objects that are arrays."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_plain(item) for item in value])
    return _array(value) if isinstance(value, KeptObject) else value


def _array(kept: KeptObject) -> Any:
    """The array that a kept object stands for; itself if it is none that is known."""
    has = kept.__dict__
    if "x" in has:  # chumpy.ch.Ch
        return np.asarray(_plain(has["x"]))
    if "a" in has and "idxs" in has:  # chumpy.reordering.Select
        chosen = np.asarray(_plain(has["a"])).ravel()[np.asarray(has["idxs"])]
        return chosen.reshape(has["preferred_shape"]) if "preferred_shape" in has else chosen
    if {"data", "indices", "indptr"} <= has.keys():  # scipy.sparse, by rows or by columns
        return _dense(has, by_columns=type(kept).__name__.startswith("csc"))
    return kept


def _dense(has: dict[str, Any], by_columns: bool) -> Shaped[np.ndarray, "R C"]:
    shape = tuple(int(n) for n in has.get("_shape", has.get("shape")))  # type: ignore[union-attr]
    dense = np.zeros(shape[::-1] if by_columns else shape, has["data"].dtype)
    rows = np.repeat(np.arange(len(dense)), np.diff(has["indptr"]))
    np.add.at(dense, (rows, has["indices"]), has["data"])
    return dense.T if by_columns else dense
