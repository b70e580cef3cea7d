"""Frozen dataclasses <-> YAML recipe / JSON. An unknown key or a wrong type is an error that names it."""

import dataclasses
import json
import typing
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import yaml

from vqhps.errors import VqhpsError

T = TypeVar("T")


def from_dict(cls: type[T], values: Any, where: str = "config") -> T:
    """Build the dataclass `cls` from plain values, checking every key and type.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, `None`, tuples, literals or further dataclasses.
        values: what JSON or YAML gave.
        where: the name of this place, for error messages.

    Raises:
        VqhpsError: an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise VqhpsError(f"{where}: expected a mapping of settings, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    types_of = getattr(cls, "types_of", None)
    if types_of is not None:  # of fields whose type other values choose
        hints |= types_of(values)
    for key in values:
        if key not in fields:
            raise VqhpsError(f"{where}: unknown key '{key}'; known are {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise VqhpsError(f"{where}: missing key '{name}'")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value in args:
            return value
        raise VqhpsError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(inner) != len(value):
            raise VqhpsError(f"{where}: expected {len(inner)} values, got {len(value)}")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    hint = " (write 1.0e-4: YAML reads 1e-4 as text)" if kind is float and isinstance(value, str) else ""
    raise VqhpsError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}{hint}")


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values of a config, as JSON or YAML would hold them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def load_yaml(cls: type[T], path: Path) -> T:
    """Read a recipe.

    Raises:
        VqhpsError: the file is missing, is not YAML, or does not fit `cls`.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VqhpsError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VqhpsError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    return from_dict(cls, values, path.name)


def load_recipe(cls: type[T], name: str) -> T:
    """Read a recipe by its path, or by the name of a shipped one.

    Raises:
        VqhpsError: there is none, or as `load_yaml`.
    """
    path = Path(name)
    shipped = Path(__file__).parent / "recipes" / f"{name}.yaml"
    if not path.exists() and not shipped.exists():
        names = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
        raise VqhpsError(f"no recipe {name}; shipped are {names}")
    return load_yaml(cls, path if path.exists() else shipped)
