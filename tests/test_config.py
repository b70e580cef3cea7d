"""Recipes: every key and type is checked, and an error names the place."""

from dataclasses import dataclass
from typing import Literal

import pytest

from vqhps.config import from_dict, load_yaml, to_dict
from vqhps.errors import VqhpsError


@dataclass(frozen=True)
class Inner:
    """A nested config."""

    rate: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    """A config of every type."""

    name: str
    steps: int = 3
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, str] = (0.5, "x")
    maybe: float | None = None
    inner: Inner = Inner()


FULL = {
    "name": "n", "steps": 5, "flag": True, "sizes": [4, 5, 6], "pair": [1, "y"], "maybe": 2.5,
    "inner": {"rate": 1, "kind": "b"},
}  # fmt: skip


def test_all_types_are_read():
    expected = Outer("n", 5, True, (4, 5, 6), (1.0, "y"), 2.5, Inner(1.0, "b"))
    assert from_dict(Outer, FULL) == expected
    assert isinstance(from_dict(Outer, FULL).inner.rate, float)


def test_round_trip():
    config = from_dict(Outer, FULL)
    assert from_dict(Outer, to_dict(config)) == config
    assert from_dict(Outer, {"name": "x", "maybe": None}).maybe is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 1}, "unknown key 'stepz'"),
        ({"inner": {"rat": 1}}, r"config\.inner: unknown key 'rat'"),
        ({"steps": 1.5}, r"config\.steps: expected int, got 1\.5"),
        ({"steps": True}, r"config\.steps: expected int"),
        ({"flag": 1}, r"config\.flag: expected bool"),
        ({"name": 3}, r"config\.name: expected str"),
        ({"sizes": [1, "2"]}, r"config\.sizes\[1\]: expected int"),
        ({"sizes": 4}, r"config\.sizes"),
        ({"pair": [1]}, r"config\.pair: expected 2 values, got 1"),
        ({"inner": {"kind": "c"}}, "'c' is not one of 'a', 'b'"),
        ({"inner": 3}, r"config\.inner: expected a mapping"),
        ({"inner": {"rate": "1e-4"}}, "YAML reads 1e-4 as text"),
    ],
)
def test_errors_name_the_place(change, message):
    with pytest.raises(VqhpsError, match=message):
        from_dict(Outer, {**FULL, **change})


def test_missing_key():
    with pytest.raises(VqhpsError, match="missing key 'name'"):
        from_dict(Outer, {})


def test_yaml(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: n\ninner:\n  rate: 1.0e-4\n")
    assert load_yaml(Outer, path) == Outer("n", inner=Inner(1e-4))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "expected a mapping"), ("", "mapping")]
)
def test_bad_yaml_is_one_line(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(VqhpsError, match=message) as error:
        load_yaml(Outer, path)
    assert "\n" not in str(error.value)
    with pytest.raises(VqhpsError, match="cannot read the recipe"):
        load_yaml(Outer, tmp_path / "none.yaml")
