"""Mesh files to `tokens.json` and back: what `vqhps tokenize` does. Schema in `docs/tokenizer.md`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.export_mesh import SCHEMA, plain, whole_file, write_glb, write_obj, y_up
from vqhps.runtime.render import person_color
from vqhps.runtime.tokenizer import MeshTokenizer, Tokens

_MESHES = (".obj", ".glb", ".npz")
_FIELDS = ("indices", "rotation", "translation", "distance_mm")  # of a mesh


def convert(tokenizer: MeshTokenizer, source: Path, target: Path) -> Tokens:
    """Write a mesh file as tokens, or tokens as a mesh file; the ending of `source` says which.

    Args:
        tokenizer: for both ways.
        source: `.obj`, `.glb`, `.npz`, or `.json`.
        target: `.json` for a mesh, one of the others for tokens.

    Returns:
        The tokens read or written.

    Raises:
        VqhpsError: an unknown ending, a damaged file, a mesh of another body, one too far from all bodies, tokens of
            another tokenizer, or a folder that cannot be written to.
    """
    wanted = _MESHES if source.suffix.lower() == ".json" else (".json",)
    if source.suffix.lower() not in (*_MESHES, ".json"):
        raise VqhpsError(f"{source}: unknown kind of file; known are {', '.join(_MESHES)} and .json")
    if target.suffix.lower() not in wanted:
        raise VqhpsError(f"{target}: {source.name} becomes {' or '.join(wanted)}")
    if source.suffix.lower() == ".json":
        tokens = read_tokens(source, tokenizer)
        _write_meshes(target, tokenizer.restore(tokens).astype(np.float32), tokenizer.faces)
        return tokens
    vertices, rotation = read_meshes(source)
    try:
        tokens = tokenizer.encode(vertices, rotation)
    except VqhpsError as error:
        raise VqhpsError(f"{source}: {error}") from error
    far = tokens.distance_mm.argmax()
    if tokens.distance_mm[far] > tokenizer.info.far_mm:
        raise VqhpsError(
            f"{source}: mesh {far} is {tokens.distance_mm[far]:.0f} mm from the nearest body the tokens can say: no "
            f"{tokenizer.info.body} body in metres with its vertices in order"
        )
    write_tokens(target, tokens, tokenizer)
    return tokens


def read_meshes(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the vertices of a mesh file in their order.

    Args:
        path: `.obj` or `.glb` of one mesh, y up as `vqhps predict` writes it, or `.npz` with `vertices` (P, V, 3) or
            (V, 3) in camera axes and, if known, `rotation` (P, 3, 3).

    Returns:
        vertices (P, V, 3) m in camera axes, and the rotations (P, 3, 3) canonical -> camera, if the file has them.

    Raises:
        VqhpsError: the file is missing, damaged, or holds no mesh.
    """
    reader = {".obj": _read_obj, ".glb": _read_glb, ".npz": _read_npz}[path.suffix.lower()]
    try:
        return reader(path.read_bytes())
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # each reader has its own kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VqhpsError(f"{path} is damaged or holds no mesh ({reason})") from error


def _read_obj(content: bytes) -> tuple[np.ndarray, None]:
    """The `v` lines: readers of whole meshes split or reorder vertices at texture seams."""
    rows = [line.split()[1:4] for line in content.decode("utf-8").splitlines() if line.startswith(("v ", "v\t"))]
    if not rows or any(len(row) != 3 for row in rows):
        raise ValueError("no lines `v x y z`")
    return y_up(np.array(rows, np.float64))[None], None


def _read_glb(content: bytes) -> tuple[np.ndarray, None]:
    import trimesh

    scene = trimesh.load_scene(io.BytesIO(content), file_type="glb", process=False)
    if len(scene.geometry) != 1:
        raise ValueError(f"{len(scene.geometry)} meshes instead of one")
    return y_up(np.asarray(scene.to_mesh().vertices, np.float64))[None], None


def _read_npz(content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        vertices = archive["vertices"]
        rotation = archive.get("rotation")
    if vertices.ndim == 2:
        vertices = vertices[None]
    return vertices, rotation


def _write_meshes(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    if path.suffix.lower() == ".npz":
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, vertices=vertices, faces=faces)
    elif len(vertices) != 1:
        raise VqhpsError(f"{path}: {len(vertices)} meshes do not fit into one {path.suffix}: write an .npz")
    elif path.suffix.lower() == ".glb":
        write_glb(path, vertices[0], faces, person_color(0))
    else:
        write_obj(path, vertices[0], faces)


def write_tokens(path: Path, tokens: Tokens, tokenizer: MeshTokenizer) -> None:
    """Write `tokens.json`."""
    info = tokenizer.info
    columns = [plain(getattr(tokens, name)) for name in _FIELDS]
    content = {
        "schema": SCHEMA,
        "tokenizer": {"name": info.name, "fingerprint": tokenizer.fingerprint, "body": info.body},
        "tokens": info.tokens,
        "codes": info.codes,
        "meshes": [dict(zip(_FIELDS, row, strict=True)) for row in zip(*columns, strict=True)],
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_tokens(path: Path, tokenizer: MeshTokenizer) -> Tokens:
    """Read `tokens.json`.

    Raises:
        VqhpsError: the file is missing or damaged, or its tokens are another tokenizer's.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        schema, made_by = content["schema"], content["tokenizer"]
        columns = [np.array([mesh[name] for mesh in content["meshes"]]) for name in _FIELDS]
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise VqhpsError(f"{path} is no tokens.json: {' '.join(str(error).split())}") from error
    if schema != SCHEMA:
        raise VqhpsError(f"{path} has schema {schema!r}, this version of vqhps reads {SCHEMA}")
    if made_by.get("fingerprint") != tokenizer.fingerprint:
        raise VqhpsError(
            f"{path} was written with the tokenizer {made_by.get('name')} {made_by.get('fingerprint')}, this one is "
            f"{tokenizer.info.name} {tokenizer.fingerprint}: name the right one with --bundle"
        )
    count = len(columns[0])
    shapes = [column.shape for column in columns[1:]]
    numbers = all(column.dtype.kind in "iuf" and np.isfinite(column).all() for column in columns[1:])
    if shapes != [(count, 3, 3), (count, 3), (count,)] or not numbers:
        raise VqhpsError(f"{path}: each mesh needs a rotation of 3 x 3, a translation of 3, and distance_mm")
    return Tokens(*columns)
