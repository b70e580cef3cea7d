"""Photos of people with annotations, from any data set, into shards that `vqhps.data.sample` reads."""

import contextlib
import io
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from vqhps.body.smpl import Gender
from vqhps.crop import crop_image
from vqhps.data.sample import STORED_SCALE, STORED_SIZE, quiet_opencv, shard_labels, write_shard
from vqhps.errors import VqhpsError

log = logging.getLogger(__name__)

NO_CAMERA = np.diag([np.inf, np.inf, 1.0])
"""Intrinsics of a photo whose camera is not known: infinitely far away, so that a crop anywhere looks the same way."""

GENDERS: dict[str, Gender] = {
    "m": "male", "f": "female", "n": "neutral", "": "neutral", "male": "male", "female": "female", "neutral": "neutral",
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """One person of a photo, as annotated; SMPL, where there is a mesh.

    Attributes:
        photo: the file.
        box: xyxy px; need not lie inside of the photo.
        keypoints2d: COCO-17, px.
        keypoints_weight: confidence in [0, 1]; 0 where not annotated.
        pose: axis-angle of the 24 bones, radians; the first one is the root's in the camera. None without a mesh.
        shape: betas.
        gender: of the body.
        translation: of the root joint in the camera, metres; NaN where it is not known.
        intrinsics: of the photo, or `NO_CAMERA`.
    """

    photo: Path
    box: Float[np.ndarray, "4"]
    keypoints2d: Float[np.ndarray, "17 2"]
    keypoints_weight: Float[np.ndarray, "17"]
    pose: Float[np.ndarray, "72"] | None
    shape: Float[np.ndarray, "10"]
    gender: Gender
    translation: Float[np.ndarray, "3"]
    intrinsics: Float[np.ndarray, "3 3"]


@dataclass(frozen=True)
class PeopleSummary:
    """What became of a data set: people written, and what was left out with reasons."""

    people: int
    skipped: tuple[str, ...]
    index: Path


def read_each(
    files: Sequence[Path], read: Callable[[Path], list[Person]], skip_bad: bool, skipped: list[str]
) -> list[Person]:
    """The people of annotation files, one after the other, with a progress bar.

    Args:
        files: in the order that the samples will have.
        read: gives the people of one.
        skip_bad: leave out files that cannot be read instead of stopping there.
        skipped: what was left out is added here.

    Raises:
        VqhpsError: a file cannot be read, or nobody is left.
    """
    people: list[Person] = []
    for path in tqdm(files, "annotations", unit="file", mininterval=2):
        try:
            people += _checked(path, read)
        except VqhpsError as error:
            if not skip_bad:
                raise VqhpsError(f"{error}; --skip-bad leaves such files out") from None
            skipped.append(str(error))
    if not people:
        raise VqhpsError(f"nobody is left of {len(files)} files; first: {skipped[0] if skipped else 'no people'}")
    return people


def _checked(path: Path, read: Callable[[Path], list[Person]]) -> list[Person]:
    try:
        people = read(path)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise VqhpsError(f"{path} is not annotated as expected ({reason}): download it again") from error
    _require_finite(path, people)
    return people


def _require_finite(path: Path, people: list[Person]) -> None:
    """Check what was read.

    Raises:
        VqhpsError: some people have annotations that are no numbers.
    """
    bad = [p for p in people if not np.isfinite(np.concatenate([x.ravel() for x in _numbers(p)])).all()]
    if bad:
        count = f"{len(bad)} of {len(people)} people"
        raise VqhpsError(f"{path}: annotations of {count} are not finite, the first on {bad[0].photo.name}")


def _numbers(person: Person) -> list[np.ndarray]:
    pose = [] if person.pose is None else [person.pose]
    return [person.box, person.keypoints2d, person.keypoints_weight, person.shape, *pose]


def write_people(
    name: str, people: Sequence[Person], out: Path, workers: int, shard_size: int, skip_bad: bool, skipped: list[str]
) -> PeopleSummary:
    """Write `{name}-{number}.tar`, `shard_size` people each, and `index-{name}.json`, which lists what was left out;
    shards that exist are kept.

    Stored is a square around the box, `STORED_SCALE` x its long side, of at most `STORED_SIZE` px.

    Args:
        name: of data set and split, joined by a hyphen.
        people: in the order of the samples.
        out: folder of the shards.
        workers: processes.
        shard_size: people a shard.
        skip_bad: leave out people whose photo cannot be read instead of stopping there.
        skipped: what was left out before.

    Raises:
        VqhpsError: a photo is missing or damaged, or the folder cannot be written to.
    """
    if min(workers, shard_size) < 1:
        raise VqhpsError(f"workers {workers}, shard_size {shard_size}: each must be 1 or more")
    out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(people), shard_size)
    jobs = [(out / f"{name}-{n:06d}.tar", people[i : i + shard_size], i) for n, i in enumerate(starts)]
    todo = [job for job in jobs if not job[0].exists()]
    write = partial(_write, skip_bad=skip_bad)
    workers = min(workers, len(todo))
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterable[list[str]]] = map  # in this process, if one is enough
        if workers > 1:
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        for left_out in tqdm(run(write, todo), name, len(todo), unit="shard", disable=not todo):
            skipped += left_out
    index, count = out / f"index-{name}.json", sum(len(shard_labels(path)["key"]) for path, _, _ in jobs)
    content = {"dataset": name, "people": count, "shards": [p.name for p, _, _ in jobs], "skipped": skipped}
    index.with_suffix(".partial").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    index.with_suffix(".partial").replace(index)
    return PeopleSummary(count, tuple(skipped), index)


def _write(job: tuple[Path, Sequence[Person], int], skip_bad: bool) -> list[str]:
    """Write one shard; returns what had to be left out."""
    quiet_opencv()
    path, people, first = job
    skipped: list[str] = []

    def samples() -> Iterator[tuple[str, bytes, bytes]]:
        last, image = None, None
        for number, person in enumerate(people, first):
            try:
                if person.photo != last:
                    last, image = person.photo, _read_photo(person.photo)
                assert image is not None
                yield f"{number:08d}", *_encode(person, image)
            except VqhpsError as error:
                if not skip_bad:
                    raise VqhpsError(f"{error}; --skip-bad leaves such people out") from None
                last = None
                skipped.append(str(error))
        if len(skipped) == len(people):
            raise VqhpsError(f"nobody is left for {path.name}; first: {skipped[0]}")

    write_shard(path, samples())
    return skipped


def _read_photo(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    if not path.is_file():
        raise VqhpsError(f"the photo {path} is missing: download the images of the data set into its folder")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise VqhpsError(f"the photo {path} is damaged: download it again")
    return image


def _encode(person: Person, image: UInt8[np.ndarray, "H W 3"]) -> tuple[bytes, bytes]:
    """JPEG and labels of one person, as `Shards` reads them."""
    center = (person.box[:2] + person.box[2:]) / 2
    side = STORED_SCALE * float((person.box[2:] - person.box[:2]).max())
    size = min(STORED_SIZE, max(16, round(side)))
    stored = (person.keypoints2d - center + side / 2) * size / side
    has = person.pose is not None
    turns = Rotation.from_rotvec(np.zeros((24, 3)) if person.pose is None else person.pose.reshape(24, 3))
    quaternions = turns.as_quat()[:, [3, 0, 1, 2]]
    quaternions[0] = (1, 0, 0, 0)
    inside = (stored >= 0).all(1) & (stored < size).all(1)
    labels = {
        "pose": quaternions.astype(np.float32),
        "shape": person.shape.astype(np.float32),
        "rotation": turns[0].as_matrix().astype(np.float32),
        "translation": person.translation.astype(np.float32),
        "intrinsics": person.intrinsics.astype(np.float32),
        "frame_size": np.array(image.shape[1::-1], np.int32),
        "box": person.box.astype(np.float32),
        "crop": np.array([*center, side], np.float32),
        "size": np.int32(size),
        "keypoints2d": stored.astype(np.float32),
        "keypoints_visible": (2 * (inside & (person.keypoints_weight > 0))).astype(np.uint8),
        "keypoints_weight": person.keypoints_weight.astype(np.float32),
        "has_mesh": np.bool_(has),
        "body": np.array(f"smpl-{person.gender}"),
    }
    table = io.BytesIO()
    np.savez(table, allow_pickle=False, **labels)
    crop = crop_image(image, center, side, size)
    return cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(), table.getvalue()
