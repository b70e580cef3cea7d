"""Foreign pickles: what is data is read, what would run is refused by name."""

import codecs
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from published_files import smpl_arrays, write_smpl_pickle
from vqhps.errors import VqhpsError
from vqhps.pickles import KeptObject, read_pickle


class Runs:
    """Pickles as a call."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "poses": [np.arange(6.0).reshape(2, 3), np.zeros((0, 72))], "gender": "male", "flags": (True, None),
        "fps": np.float32(30), "names": np.array(["a", "b"], object), "order": np.asfortranarray(np.eye(3)),
        "raw": b"\xff",
    }  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(tmp_path / "a.pkl")
    assert list(found) == list(content) and found["flags"] == (True, None) and found["raw"] == b"\xff"
    np.testing.assert_array_equal(found["poses"][0], content["poses"][0])
    np.testing.assert_array_equal(found["order"], np.eye(3))
    assert found["fps"] == 30 and list(found["names"]) == ["a", "b"]


def test_python_2_pickle(tmp_path: Path) -> None:
    """As Python 2 wrote it: modules of old names, text as bytes in latin1, arrays with their data in a string."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\n"
        b"tR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntb"
    )
    old = b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nobject\nNtR(dS'x'\n" + array + b"sb"
    (tmp_path / "a.pkl").write_bytes(b"(dS'name'\nS'caf\\xe9'\nsS'v'\n" + old + b"s.")
    found = read_pickle(tmp_path / "a.pkl")
    assert found["name"] == "café"
    np.testing.assert_array_equal(found["v"], np.array([1, 2], np.float32))


def test_objects_of_chumpy_and_scipy_become_arrays(tmp_path: Path) -> None:
    arrays = smpl_arrays()
    write_smpl_pickle(tmp_path / "a.pkl", arrays)
    found = read_pickle(tmp_path / "a.pkl")
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert isinstance(found["J"], KeptObject) and found["bs_style"] == "lbs"
    rows = scipy.sparse.random(5, 7, 0.4, "csr", rng=np.random.default_rng(0))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([rows, scipy.sparse.csc_array(rows)]))
    for value in read_pickle(tmp_path / "b.pkl"):
        np.testing.assert_array_equal(value, rows.toarray())


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (os.system, ("touch {mark}",), f"{os.name}.system"),
        (eval, ("open({mark!r}, 'w')",), "builtins.eval"),
        (exec, ("open({mark!r}, 'w')",), "builtins.exec"),
        (getattr, ("x", "upper"), "builtins.getattr"),
        (codecs.encode, ("x", "rot13"), "_codecs.encode to rot13"),
        (np.load, ("{mark}",), "numpy.load"),
        (pickle.loads, (b"N.",), "pickle.loads"),
    ],
)  # fmt: skip
def test_what_would_run_is_refused_by_name(
    tmp_path: Path, call: object, arguments: tuple[object, ...], named: str
) -> None:
    mark = tmp_path / "ran"
    filled = tuple(a.format(mark=str(mark)) if isinstance(a, str) else a for a in arguments)
    for protocol in (0, 2, 4):
        path = tmp_path / "evil.pkl"
        path.write_bytes(pickle.dumps({"poses": [np.zeros(3), Runs(call, *filled)]}, protocol))
        with pytest.raises(VqhpsError, match=r"evil\.pkl is refused: it asks to load") as error:
            read_pickle(path)
        assert named in str(error.value).replace("__builtin__", "builtins") and "\n" not in str(error.value)
    assert not mark.exists()


def test_a_foreign_class_cannot_be_rebuilt_through_copyreg(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.")
    with pytest.raises(VqhpsError, match=r"copyreg\._reconstructor of"):
        read_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("keep", [0, 1, 40, 400])
def test_a_damaged_pickle_is_one_line(tmp_path: Path, keep: int) -> None:
    content = pickle.dumps({"poses": np.zeros((20, 72))})
    (tmp_path / "a.pkl").write_bytes(content[:keep])
    with pytest.raises(VqhpsError, match=r"a\.pkl is damaged or no pickle") as error:
        read_pickle(tmp_path / "a.pkl")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pkl")
