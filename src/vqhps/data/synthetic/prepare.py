"""`vqhps prepare synthetic`: write WebDataset shards of rendered people.

A shard `synthetic-{split}-{seed}-{number}.tar` holds, for each sample, `{key}.jpg` (square sRGB image) and `{key}.npz`
with plain arrays (no pickle):

    pose               (31,4) float16   local bone rotations, unit quaternions wxyz, w >= 0; the root's is the identity
    shape              (6,)   float32   Anny phenotypes in the order of `AnnyBody.shape_names`
    rotation           (3,3)  float32   body axes -> camera axes (x right, y down, z forward)
    translation        (3,)   float32   metres: vertices in the camera = rotation @ body vertices + translation
    intrinsics         (3,3)  float32   of the full frame, px
    frame_size         (2,)   int32     width, height of the full frame, px
    box                (4,)   float32   the person's part in the frame, xyxy, full-frame px
    crop               (3,)   float32   centre x, centre y, side of the stored image in full-frame px:
                                        stored pixel = (x - cx + side / 2) * size / side
    size               ()     int32     side of the stored image, px
    keypoints2d        (17,2) float32   COCO-17 in stored pixels (also outside of the image or frame)
    keypoints_visible  (17,)  uint8     0 outside of the frame, 1 in it but hidden, 2 seen
    joints3d           (17,3) float32   COCO-17, metres, camera axes
    source, assets, panorama  str       where pose (most of it, to train on), clothes and background come from
"""

import hashlib
import io
import json
import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int

from vqhps.data.sample import STORED_SIZE, write_shard
from vqhps.data.synthetic.split import Split
from vqhps.errors import VqhpsError

logger = logging.getLogger(__name__)

ATTRIBUTION = (
    "MakeHuman assets (CC0), Poly Haven panoramas (CC0), Anny body (Apache-2.0 code, CC0 data). The data used in "
    "this project was obtained from mocap.cs.cmu.edu, created with funding from NSF EIA-0196217."
)
_worker: dict[str, Any] = {}


def prepare_synthetic(
    out_dir: Path,
    data_root: Path,
    split: Split = "train",
    count: int = 50_000,
    seed: int = 0,
    workers: int = 2,
    shard_size: int = 1000,
    size: int = STORED_SIZE,
) -> Path:
    """Render a data set into shards; shards that exist are kept, so that an interrupted run goes on.

    Args:
        out_dir: created if needed.
        data_root: folder with `clothes/`, `backgrounds/`, `mocap/`.
        split: `train` or `test`: disjoint people, clothes, skins, panoramas and motion-capture subjects.
        count: number of images.
        seed: sample `i` depends on `(seed, i)` only, whatever `workers` and `shard_size` are.
        workers: processes.
        shard_size: images a shard.
        size: side of the images, px.

    Returns:
        The path of `index-{split}-{seed}.json`, written last.

    Raises:
        VqhpsError: a setting is out of range, or data is missing.
    """
    check_settings(data_root, split, count, workers, shard_size)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    jobs = []
    for number, first in enumerate(range(0, count, shard_size)):
        path = out_dir / f"synthetic-{split}-{seed}-{number:06d}.tar"
        jobs.append((path, seed, first, min(shard_size, count - first), size))
    todo = [job for job in jobs if not job[0].exists()]
    if todo:
        _run(todo, Path(data_root), split, workers)
    return _write_index(out_dir, jobs, split, seed)


def check_settings(data_root: Path, split: str, count: int, workers: int, shard_size: int) -> None:
    """Fail early, in one line.

    Raises:
        VqhpsError: a setting is out of range, or data is missing.
    """
    if split not in ("train", "test"):
        raise VqhpsError(f"split is {split!r}; it must be 'train' or 'test'")
    if min(count, workers, shard_size) < 1:
        raise VqhpsError(f"count {count}, workers {workers}, shard_size {shard_size}: each must be 1 or more")
    missing = [n for n in ("clothes", "backgrounds", "mocap") if not (Path(data_root) / n).is_dir()]
    if missing:
        raise VqhpsError(f"no {', '.join(missing)} in data_root {data_root}; point it to the folder that holds them")


def _run(jobs: list[tuple[Path, int, int, int, int]], data_root: Path, split: Split, workers: int) -> None:
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    total = sum(job[3] for job in jobs)
    started = time.monotonic()
    workers = min(workers, len(jobs))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (data_root, split, done))
    try:
        pending = {pool.submit(_write_shard, *job) for job in jobs}
        with tqdm(total=total, unit="img", desc=f"synthetic {split}") as bar:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(done.value - bar.n)
                for future in finished:
                    future.result()
            bar.update(done.value - bar.n)
    finally:
        pool.shutdown(cancel_futures=True)
    logger.info("rendered %d images, %.1f a second", total, total / (time.monotonic() - started))


def _start_worker(data_root: Path, split: Split, done: "Synchronized[int]") -> None:
    import torch

    from vqhps.data.synthetic.scene import load_assets

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker.update(assets=load_assets(data_root, split), done=done)


def _write_shard(path: Path, seed: int, first: int, count: int, size: int) -> None:
    """Render samples `first` to `first + count` into a shard."""

    def samples() -> Iterator[tuple[str, bytes, bytes]]:
        for index in range(first, first + count):
            yield encode_sample(_worker["assets"], seed, index, size)
            with _worker["done"].get_lock():
                _worker["done"].value += 1

    write_shard(path, samples())


def encode_sample(assets: Any, seed: int, index: int, size: int) -> tuple[str, bytes, bytes]:
    """Key, JPEG and labels of one sample.

    Args:
        assets: `scene.Assets` of a split.
        seed: of the dataset.
        index: of the sample.
        size: side of the image, px.
    """
    from vqhps.data.synthetic.scene import render_sample

    sample = render_sample(assets, seed, index, size)
    key, table = f"{seed:04d}{index:08d}", io.BytesIO()
    np.savez(table, **sample.labels)
    return key, _jpeg(sample.image), table.getvalue()


def _jpeg(image: Int[np.ndarray, "S S 3"], quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _write_index(out_dir: Path, jobs: list[tuple[Path, int, int, int, int]], split: Split, seed: int) -> Path:
    """Name, size and hash of each shard, and what it takes to make them again."""
    import anny

    shards = [
        {"name": path.name, "count": count, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path, _, _, count, _ in jobs
    ]
    index = {
        "dataset": f"synthetic-{split}", "split": split, "seed": seed, "count": sum(job[3] for job in jobs),
        "size": jobs[0][4], "body": "anny-full", "anny": anny.__version__, "numpy": np.__version__,
        "attribution": ATTRIBUTION, "shards": shards,
    }  # fmt: skip
    path = out_dir / f"index-{split}-{seed}.json"
    path.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return path
