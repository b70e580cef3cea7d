"""The one schema of training and test data, and the reader of the shards that hold it.

A shard is a plain tar of `{key}.jpg` and `{key}.npz` (see `data/synthetic/prepare.py`; any dataset may be prepared in
this form). It is read by random access through an index of offsets and not as a stream: every epoch is a perfect
shuffle, any sample can be had again, and a run resumes at the exact position.
"""

import functools
import io
import os
import tarfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from vqhps.errors import VqhpsError

CROP_SCALE = 1.25  # side of the crop over the long side of the box, in training and at prediction
STORED_SCALE = 1.5  # the same of the stored square: room to augment
STORED_SIZE = 256  # its side in stored px


@dataclass(frozen=True)
class Sample:
    """One person.

    Attributes:
        image: RGB, a square around the person with some margin ("stored px" below).
        center: of the plain crop, stored px.
        size: side of the plain crop, `CROP_SCALE` x the long side of the box, stored px.
        keypoints2d: COCO-17, stored px.
        keypoints_weight: 0 where unknown.
        has_mesh: whether what follows is known.
        pose: local rotations, quaternions wxyz; the root's is the identity.
        shape: body shape.
        rotation: canonical -> camera.
        body: which body pose and shape are of: `anny`, or `smpl-` and a gender.
    """

    image: UInt8[np.ndarray, "S S 3"]
    center: Float[np.ndarray, "2"]
    size: float
    keypoints2d: Float[np.ndarray, "17 2"]
    keypoints_weight: Float[np.ndarray, "17"]
    has_mesh: bool
    pose: Float[np.ndarray, "K 4"]
    shape: Float[np.ndarray, "S"]
    rotation: Float[np.ndarray, "3 3"]
    body: str


class Shards:
    """Samples of a set of shards, by number.

    The labels of a shard are gathered once into `{shard}.labels.npz` beside it; images are read on demand.

    Args:
        paths: tar files, in the order that numbers the samples.

    Raises:
        VqhpsError: no shard, or one that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise VqhpsError("no shards given; make some with `vqhps prepare synthetic`")
        self.paths = [Path(p) for p in paths]
        tables = [shard_labels(path) for path in self.paths]
        for name in ("pose", "shape"):
            if len({t[name].shape[1:] for t in tables}) > 1:
                raise VqhpsError(f"these shards are of different bodies: {self.paths[0]} and others; use them apart")
        self.labels = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
        self.counts = [len(t["offset"]) for t in tables]
        self.shard = np.repeat(np.arange(len(tables)), self.counts)
        self.number = np.concatenate([np.arange(n) for n in self.counts])
        self._files = threading.local()

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, index: int) -> Sample:
        row = {name: values[index] for name, values in self.labels.items()}
        scale = row["stored"] / row["crop"][2]
        corner = row["crop"][:2] - row["crop"][2] / 2
        box = (row["box"].reshape(2, 2) - corner) * scale
        return Sample(
            image=self.image(index),
            center=box.mean(0),
            size=float(CROP_SCALE * (box[1] - box[0]).max()),
            keypoints2d=row["keypoints2d"],
            keypoints_weight=row["keypoints_weight"],
            has_mesh=bool(row["has_mesh"]),
            pose=row["pose"],
            shape=row["shape"],
            rotation=row["rotation"],
            body=str(row["body"]),
        )

    def image(self, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """Decode the stored image of a sample, RGB."""
        offset, length = self.labels["offset"][index], self.labels["length"][index]
        data = os.pread(self._descriptor(self.shard[index]), int(length), int(offset))
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise VqhpsError(
                f"{self.paths[self.shard[index]]} is damaged: sample {self.number[index]} is no JPEG; make it again"
            )
        return image

    def _descriptor(self, shard: int) -> int:
        opened: dict[int, int] = self._files.__dict__.setdefault(str(os.getpid()), {})
        if shard not in opened:
            opened[shard] = os.open(self.paths[shard], os.O_RDONLY)
        return opened[shard]


def find_shards(folder: Path, split: str) -> list[Path]:
    """The finished shards of a split in a folder, which may still be growing.

    Raises:
        VqhpsError: there is none.
    """
    paths = sorted(Path(folder).glob(f"*-{split}-*.tar"))
    if not paths:
        raise VqhpsError(f"no shards *-{split}-*.tar in {folder}; make some with `vqhps prepare synthetic`")
    return paths


_LABELS = (
    "pose",
    "shape",
    "rotation",
    "translation",
    "intrinsics",
    "frame_size",
    "box",
    "crop",
    "keypoints2d",
    "keypoints_visible",
)
# What shards of rendered people do not say: key points are known even where hidden or outside.
_RENDERED: dict[str, np.ndarray] = {
    "keypoints_weight": np.ones(17, np.float32),
    "has_mesh": np.array(True),
    "body": np.array("anny"),
}


def shard_labels(path: Path) -> dict[str, np.ndarray]:
    """Labels of all samples of a shard, stacked, with `key`, and `offset` and `length` of each JPEG in bytes.

    Raises:
        VqhpsError: the shard cannot be read.
    """
    side_file = path.with_suffix(".labels.npz")
    if side_file.exists() and side_file.stat().st_mtime >= path.stat().st_mtime:
        with np.load(side_file) as table:
            return _completed(dict(table))
    try:
        labels = _completed(_read_labels(path))
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise VqhpsError(f"cannot read the shard {path}: {error}; delete it and make it again") from error
    save_table(side_file, labels)
    return labels


def _completed(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    count = len(labels["offset"])
    return {**{name: np.stack([value] * count) for name, value in _RENDERED.items()}, **labels}


def _read_labels(path: Path) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*_LABELS, "stored", "key", "offset", "length")}
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        for name, member in members.items():
            if not name.endswith(".npz"):
                continue
            image = members[name[:-4] + ".jpg"]
            file = tar.extractfile(member)
            assert file is not None
            with np.load(io.BytesIO(file.read())) as table:
                for label in (*_LABELS, *(name for name in _RENDERED if name in table.files)):
                    rows.setdefault(label, []).append(table[label])
                rows["stored"].append(table["size"])
            for label, value in zip(
                ("key", "offset", "length"), (name[:-4], image.offset_data, image.size), strict=True
            ):
                rows[label].append(np.asarray(value))
    return {name: np.stack(values) for name, values in rows.items()}


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, bytes]]) -> None:
    """Write key, JPEG and .npz of each sample into a tar that gets its name when it is whole."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, image, labels in samples:
                for name, data in ((f"{key}.jpg", image), (f"{key}.npz", labels)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_table(path: Path, table: dict[str, np.ndarray]) -> None:
    """Write arrays to an .npz that gets its name when it is whole."""
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **table)
    part.replace(path)


@functools.cache
def quiet_opencv() -> None:
    """One thread an OpenCV call: the loader's processes share the cores already."""
    cv2.setNumThreads(1)
