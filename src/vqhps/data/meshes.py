"""Registered meshes of a user: an `.npz` of `vertices` and `faces`, read from disk as needed."""

import struct
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqhps.body.model import canonical
from vqhps.errors import VqhpsError

_HELD_SHARE, _MAX_HELD = 0.05, 1000


@dataclass(frozen=True)
class MeshFile:
    """Meshes of one topology. The last twentieth (at most 1,000, at least one) is held out, so that whole clips at the
    end of the file stay unseen.

    Attributes:
        path: of the file.
        vertices: metres, without global rotation; where they stand does not matter.
        faces: vertex numbers.
    """

    path: Path
    vertices: Float[np.ndarray, "N V 3"]
    faces: Int[np.ndarray, "F 3"]

    @staticmethod
    def open(path: Path) -> "MeshFile":
        """Open a file. Vertices that `numpy.savez` wrote stay on disk; compressed ones are read into memory.

        Raises:
            VqhpsError: the file is missing or damaged, or holds something else.
        """
        try:
            vertices = _mapped(path, "vertices")
            with np.load(path, allow_pickle=False) as archive:
                faces = archive["faces"]
        except OSError as error:
            raise VqhpsError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # zipfile and numpy raise many kinds for damaged archives
            raise VqhpsError(f"{path} is damaged, or no .npz of `vertices` and `faces` ({error})") from error
        if vertices.ndim != 3 or vertices.shape[2] != 3 or len(vertices) < 2 or vertices.dtype.kind != "f":
            raise VqhpsError(f"{path}: `vertices` must be (N, V, 3) metres, got {vertices.dtype} {vertices.shape}")
        whole = faces.ndim == 2 and faces.shape[1] == 3 and faces.dtype.kind in "iu" and len(faces) > 0
        if not whole or faces.min() < 0 or faces.max() >= vertices.shape[1]:
            raise VqhpsError(f"{path}: `faces` must be (F, 3) vertex numbers below {vertices.shape[1]}")
        return MeshFile(path, vertices, faces.astype(np.int64))

    @property
    def training_count(self) -> int:
        """Meshes to train on."""
        return len(self.vertices) - max(1, min(_MAX_HELD, int(_HELD_SHARE * len(self.vertices))))

    def batch(self, count: int, seed: tuple[int, ...]) -> Float[Tensor, "B V 3"]:
        """Canonical vertices of random training meshes, reproducible by seed."""
        return self._read(np.random.default_rng(seed).integers(self.training_count, size=count))

    def held_out(self) -> Float[Tensor, "N V 3"]:
        """Canonical vertices of the held-out meshes."""
        return self._read(np.arange(self.training_count, len(self.vertices)))

    @cached_property
    def template(self) -> Float[np.ndarray, "V 3"]:
        """The most ordinary of some training meshes: the one nearest to their mean, canonical."""
        some = self._read(np.unique(np.linspace(0, self.training_count - 1, 256).astype(int)))
        return some[(some - some.mean(0)).square().sum((1, 2)).argmin()].numpy()

    def _read(self, rows: Int[np.ndarray, "B"]) -> Float[Tensor, "B V 3"]:
        """Canonical vertices of some meshes.

        Raises:
            VqhpsError: a mesh has vertices that are not finite.
        """
        vertices = torch.from_numpy(self.vertices[rows].astype(np.float32))
        finite = vertices.isfinite().flatten(1).all(1)
        if not finite.all():
            raise VqhpsError(f"{self.path}: mesh {rows[int(finite.int().argmin())]} has vertices that are not finite")
        return canonical(vertices)


def _mapped(path: Path, name: str) -> np.ndarray:
    """An array of an `.npz`, left on disk unless it is compressed; never unpickles."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(member)
            header = member.tell()
    if entry.compress_type != zipfile.ZIP_STORED or dtype.hasobject:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)  # of the local header: lengths of the name and of the extra field
        offset = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + header
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
