"""COCO, MPII, Human3.6M, MPI-INF-3DHP and BEDLAM as the BEDLAM release annotates them (Black et al., CVPR 2023).

Licences: the annotations are free for research after registering at bedlam.is.tue.mpg.de; each data set has terms of
its own (cocodataset.org, human-pose.mpi-inf.mpg.de, vision.imar.ro/human3.6m, vcai.mpi-inf.mpg.de/3dhp-dataset). None
may be passed on.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vqhps.body.smpl import smpl_body
from vqhps.data.people import GENDERS, NO_CAMERA, PeopleSummary, Person, read_each, write_people
from vqhps.errors import VqhpsError
from vqhps.pickles import read_npz

DataSet = Literal["coco", "mpii", "h36m", "mpi-inf-3dhp", "bedlam"]

_FILES: dict[DataSet, str] = {
    "coco": "coco.npz", "mpii": "mpii.npz", "h36m": "h36m_train.npz", "mpi-inf-3dhp": "mpi_inf_3dhp_train.npz",
    "bedlam": "**/*.npz",
}  # fmt: skip
_COCO17 = (19, 20, 21, 22, 23, 9, 8, 10, 7, 11, 6, 3, 2, 4, 1, 5, 0)  # in the 24 joints of SPIN
_MARGIN = 1.2  # of the published squares around the boxes
_H36M_TRAIN = (1, 5, 6, 7, 8)
_NAMES = (
    "imgname", "center", "scale", "pose_cam", "pose", "shape", "betas", "part", "gtkps", "gender", "cam_int",
    "trans_cam", "cam_ext",
)  # fmt: skip


def prepare_bedlam_format(
    dataset: DataSet, root: Path, out: Path, body_models: Path | None = None,
    workers: int = 2, shard_size: int = 500, skip_bad: bool = False,
) -> PeopleSummary:  # fmt: skip
    """Write `{dataset}-train` shards.

    The published square (`center`, 200 px x `scale`) is the box with a margin of 1.2, which is taken off. Without
    `cam_int` and `trans_cam` the camera is infinitely far away (`NO_CAMERA`). Of Human3.6M, subjects 1, 5, 6, 7 and 8.

    Args:
        dataset: which.
        root: holds the `.npz` and what its `imgname` point to, there or in `images/`.
        out, workers, shard_size, skip_bad: see `write_people`.
        body_models: folder of body files, searched first; SMPL is needed where `trans_cam` is given.

    Raises:
        VqhpsError: something is missing or damaged.
    """
    files = sorted(root.glob(_FILES[dataset]))
    if not files:
        raise VqhpsError(f"{root} has no {_FILES[dataset]}: download the annotations from bedlam.is.tue.mpg.de into it")
    skipped: list[str] = []
    people = read_each(files, lambda path: _annotations(path, root, dataset, body_models), skip_bad, skipped)
    return write_people(f"{dataset}-train", people, out, workers, shard_size, skip_bad, skipped)


def _annotations(path: Path, root: Path, dataset: DataSet, body_models: Path | None) -> list[Person]:
    table = read_npz(path, _NAMES)
    photos, people = root / "images" if (root / "images").is_dir() else root, []
    names = table["imgname"].astype(str)
    rows = range(len(names))
    if dataset == "h36m":
        rows = [i for i in rows if _subject(names[i]) in _H36M_TRAIN]  # type: ignore[assignment]
    for i in rows:
        people.append(_person(photos / names[i], {name: value[i] for name, value in table.items()}, body_models))
    return people


def _person(photo: Path, row: Mapping[str, Any], body_models: Path | None) -> Person:
    pose = row.get("pose_cam", row.get("pose"))
    shape = row.get("shape", row.get("betas"))
    if pose is not None and pose.shape != (72,):
        raise ValueError(f"a pose of {pose.size} numbers; 72 of SMPL are needed")
    side = 200 * float(row["scale"]) / _MARGIN
    center = np.asarray(row["center"], float)
    keypoints = np.zeros((17, 3))
    given = row.get("part", row.get("gtkps"))
    if given is not None:
        keypoints = np.asarray(given, float)[list(_COCO17), :3]
    betas = np.zeros(10) if shape is None else np.asarray(shape, float)[:10]
    gender = GENDERS[str(row.get("gender", "neutral"))]
    translation, intrinsics = np.full(3, np.nan), NO_CAMERA
    if "cam_int" in row and "trans_cam" in row:
        root = smpl_body(gender, body_models).root_in_file(torch.from_numpy(betas)[None].float())[0].numpy()
        moved = row["cam_ext"][:3, 3] if "cam_ext" in row else 0  # BEDLAM's bodies are turned already, not moved
        translation, intrinsics = row["trans_cam"] + moved + root, np.asarray(row["cam_int"], float)
    return Person(
        photo=photo,
        box=np.concatenate([center - side / 2, center + side / 2]),
        keypoints2d=keypoints[:, :2],
        keypoints_weight=keypoints[:, 2],
        pose=None if pose is None else np.asarray(pose, float),
        shape=betas,
        gender=gender,
        translation=translation,
        intrinsics=intrinsics,
    )


def _subject(name: str) -> int | None:
    found = re.search(r"(?:^|/)S(\d+)", name)
    return int(found[1]) if found else None
