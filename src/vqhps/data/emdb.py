"""EMDB (Kaufmann et al., ICCV 2023): outdoor videos with SMPL bodies from electromagnetic sensors.

Licence: free for research after registering at eth-ait.github.io/emdb; it may not be passed on.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from vqhps.body.smpl import smpl_body
from vqhps.data.people import GENDERS, PeopleSummary, Person, read_each, write_people
from vqhps.data.threedpw import place_smpl
from vqhps.errors import VqhpsError
from vqhps.pickles import read_pickle

_COCO17 = {5: 16, 6: 17, 7: 18, 8: 19, 9: 20, 10: 21, 11: 1, 12: 2, 13: 4, 14: 5, 15: 7, 16: 8}  # in SMPL's 24 joints
_TRAINED = 0.8

Split = Literal["train", "validation", "test"]


def prepare_emdb(
    root: Path, out: Path, split: Split, body_models: Path | None = None,
    workers: int = 2, shard_size: int = 500, skip_bad: bool = False,
) -> PeopleSummary:  # fmt: skip
    """Write `emdb-{split}` shards of the good frames.

    `test` is EMDB 1. The other sequences flagged EMDB 2 are cut by a fixed seed, four fifths `train`, the rest
    `validation`; as published, they are cut by no seed, and some are of EMDB 1. Boxes are the data set's, those of the
    projected mesh where it flags them invalid. Key points are the projected joints of SMPL, without the face.

    Args:
        root: holds `P0/`, `P1/`, ...
        out, workers, shard_size, skip_bad: see `write_people`.
        split: see above.
        body_models: folder of body files, searched first; SMPL of each gender.

    Raises:
        VqhpsError: something is missing or damaged.
    """
    files = sorted(root.glob("P*/*/*_data.pkl"))
    if not files:
        raise VqhpsError(f"{root} needs P*/SEQUENCE/*_data.pkl: unpack EMDB there")
    skipped: list[str] = []
    order = np.random.default_rng(0).random(len(files))
    trained = {path: bool(number < _TRAINED) for path, number in zip(files, order, strict=True)}
    people = read_each(files, lambda path: _sequence(path, split, trained[path], body_models), skip_bad, skipped)
    return write_people(f"emdb-{split}", people, out, workers, shard_size, skip_bad, skipped)


def _sequence(path: Path, split: Split, trained: bool, body_models: Path | None) -> list[Person]:
    content = read_pickle(path)
    if bool(content["emdb1"]) != (split == "test"):
        return []
    if split != "test" and not (content["emdb2"] and trained == (split == "train")):
        return []
    camera, smpl, boxes = content["camera"], content["smpl"], np.asarray(content["bboxes"]["bboxes"], float)
    good = np.flatnonzero(np.asarray(content["good_frames_mask"]))
    invalid = set(np.asarray(content["bboxes"]["invalid_idxs"], int).tolist())
    gender = GENDERS[str(content["gender"])]
    pose = np.concatenate([np.asarray(smpl[n], float) for n in ("poses_root", "poses_body")], 1)
    betas, intrinsics = np.asarray(smpl["betas"], float)[:10], np.asarray(camera["intrinsics"], float)
    placed = place_smpl(
        smpl_body(gender, body_models), pose[good], betas, np.asarray(smpl["trans"], float)[good],
        np.asarray(camera["extrinsics"], float)[good], intrinsics,
    )  # fmt: skip
    joints, people = np.asarray(content["kp2d"], float), []
    for t, (turned, place, outline) in zip(good, placed, strict=True):
        keypoints, weight = np.zeros((17, 2)), np.zeros(17)
        keypoints[list(_COCO17)], weight[list(_COCO17)] = joints[t, list(_COCO17.values())], 1
        photo = path.parent / "images" / f"{t:05d}.jpg"
        box = outline if int(t) in invalid else boxes[t]
        people.append(Person(photo, box, keypoints, weight, turned, betas, gender, place, intrinsics))
    return people
