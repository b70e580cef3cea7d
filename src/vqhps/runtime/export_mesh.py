"""Writing predictions to files: GLB, OBJ, NPZ, JSON, PNG. Every file appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.bundle import BundleInfo
from vqhps.runtime.predictor import Prediction

SCHEMA = 1
"""Version of the JSON and NPZ layouts; see `docs/output-schema.md`."""

_PERSON = (
    "box", "score", "joints", "joints2d", "rotation", "translation", "camera", "crop_center", "crop_size", "indices",
)  # fmt: skip
_PNG_LEVEL = 2  # of 9: larger files, several times faster to write


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and rename it to `path` at the end if all went well.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise VqhpsError(f"cannot write {path} ({error.strerror or error}): choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and put it in the place of `path`, with all that is there, if all went well.

    Raises:
        VqhpsError: the folder cannot be written to, or `path` is a file.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise VqhpsError(f"cannot write {path} ({error.strerror or error}): choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_glb(path: Path, vertices: np.ndarray, faces: np.ndarray, color: np.ndarray) -> None:
    """Write one mesh as binary glTF 2.0.

    Args:
        path: `.glb`.
        vertices: (V, 3) m, camera axes; stored in glTF's, y up and z towards the viewer, still seen from the camera.
        faces: (F, 3).
        color: (3,) sRGB in [0, 1].
    """
    import pygltflib as gltf  # loads six times faster than trimesh, which can do this too

    points = y_up(vertices).astype(np.float32)
    arrays = (points, vertex_normals(points, faces), faces.astype(np.uint32))
    blob = b"".join(array.tobytes() for array in arrays)
    starts = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()
    targets = (gltf.ARRAY_BUFFER, gltf.ARRAY_BUFFER, gltf.ELEMENT_ARRAY_BUFFER)
    bounds = {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
    attributes = gltf.Attributes(POSITION=0, NORMAL=1)
    content = gltf.GLTF2(
        asset=gltf.Asset(generator="vqhps"),
        scene=0,
        scenes=[gltf.Scene(nodes=[0])],
        nodes=[gltf.Node(mesh=0)],
        meshes=[gltf.Mesh(primitives=[gltf.Primitive(attributes=attributes, indices=2, material=0)])],
        materials=[material(color)],
        accessors=[
            gltf.Accessor(bufferView=0, componentType=gltf.FLOAT, count=len(points), type=gltf.VEC3, **bounds),
            gltf.Accessor(bufferView=1, componentType=gltf.FLOAT, count=len(points), type=gltf.VEC3),
            gltf.Accessor(bufferView=2, componentType=gltf.UNSIGNED_INT, count=faces.size, type=gltf.SCALAR),
        ],
        bufferViews=[
            gltf.BufferView(buffer=0, byteOffset=start, byteLength=array.nbytes, target=target)
            for start, array, target in zip(starts[:-1], arrays, targets, strict=True)
        ],
        buffers=[gltf.Buffer(byteLength=len(blob))],
    )
    content.set_binary_blob(blob)
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join(content.save_to_bytes()))


def material(color: np.ndarray) -> Any:
    """A glTF material of a colour (3,), sRGB in [0, 1]."""
    import pygltflib as gltf

    paint = [*linear_light(color).tolist(), 1.0]
    shine = gltf.PbrMetallicRoughness(baseColorFactor=paint, metallicFactor=0.0, roughnessFactor=0.8)
    return gltf.Material(pbrMetallicRoughness=shine, alphaCutoff=None)


def linear_light(color: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] as linear light, which glTF wants."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3) float32 of a mesh, the mean over its triangles by their area."""
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # twice the area long
    weights = np.repeat(across, 3, 0)
    sums = [np.bincount(faces.ravel(), weights[:, axis], len(vertices)) for axis in range(3)]
    normals = np.stack(sums, 1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.maximum(length, 1e-12), (0.0, 0.0, 1.0)).astype(np.float32)


def write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write one mesh as Wavefront OBJ, in metres and in the axes of `write_glb`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(obj_content(vertices, faces))


def obj_content(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """A mesh (V, 3) m, camera axes, with triangles (F, 3), as Wavefront OBJ in the axes of `write_glb`."""
    head = "# metres; x right, y up, z towards the camera, which is at the origin\n"
    points = "v %.5f %.5f %.5f\n" * len(vertices) % tuple(y_up(vertices).ravel().tolist())
    triangles = "f %d %d %d\n" * len(faces) % tuple((faces + 1).ravel().tolist())
    return (head + points + triangles).encode("ascii")


def ply_content(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """The same as binary PLY."""
    head = (
        "ply\nformat binary_little_endian 1.0\n"
        "comment metres; x right, y up, z towards the camera, which is at the origin\n"
        f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    triangles = np.empty(len(faces), [("corners", "u1"), ("numbers", "<i4", 3)])
    triangles["corners"], triangles["numbers"] = 3, faces
    return head.encode("ascii") + y_up(vertices).astype("<f4").tobytes() + triangles.tobytes()


def write_npz(path: Path, people: Sequence[Prediction], faces: np.ndarray, image_size: tuple[int, int]) -> None:
    """Write all people of a photo as plain arrays, those of a person stacked over people; see `docs/output-schema.md`.

    Args:
        path: `.npz`.
        people: at least one prediction.
        faces: (F, 3) of their mesh.
        image_size: width and height of the photo, px.
    """
    names = (*_PERSON, "vertices")
    arrays: dict[str, Any] = {name: np.stack([getattr(p, name) for p in people]) for name in names}
    arrays |= {"faces": faces.astype(np.int32), "focal": np.float64(people[0].focal)}
    arrays |= {"image_size": np.array(image_size), "schema": np.int64(SCHEMA)}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def write_json(
    path: Path, people: Sequence[Prediction], info: BundleInfo, photo: str, image_size: tuple[int, int]
) -> None:
    """Write all people of a photo without their meshes; see `docs/output-schema.md`.

    Args:
        path: `.json`.
        people: at least one prediction.
        info: of the bundle that made them.
        photo: file name of the photo.
        image_size: width and height of the photo, px.
    """
    content = {
        "schema": SCHEMA,
        "photo": photo,
        "width": image_size[0],
        "height": image_size[1],
        "focal": round(people[0].focal, 3),
        "bundle": {"name": info.name, "version": info.version, "body": info.body, "joints": info.joints},
        "people": [{name: plain(getattr(person, name)) for name in _PERSON} for person in people],
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) uint8."""
    _, encoded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def y_up(points: np.ndarray) -> np.ndarray:
    """Camera axes (x right, y down, z forward) to glTF's (x right, y up, z backward): half a turn about x."""
    return points * np.array([1.0, -1.0, -1.0], points.dtype)


def plain(value: Any) -> Any:
    """Arrays and numbers as JSON takes them, fractions to five decimals."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, list):
        return [plain(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value
