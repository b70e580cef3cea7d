"""3DPW (von Marcard et al., ECCV 2018): outdoor videos with SMPL bodies from inertial sensors.

Licence: free for research after agreeing to its terms at virtualhumans.mpi-inf.mpg.de/3DPW; it may not be passed on.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from vqhps.body.smpl import SMPLBody, smpl_body
from vqhps.data.people import GENDERS, PeopleSummary, Person, read_each, write_people
from vqhps.errors import VqhpsError
from vqhps.geometry import project_perspective
from vqhps.pickles import read_pickle

_COCO17 = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)  # in the 18 joints of OpenPose
_BATCH = 64


def prepare_3dpw(
    root: Path, out: Path, split: Literal["train", "validation", "test"], body_models: Path | None = None,
    workers: int = 2, shard_size: int = 500, skip_bad: bool = False,
) -> PeopleSummary:  # fmt: skip
    """Write `3dpw-{split}` shards: every person of every frame with a valid camera, of the official split.

    Boxes are those of the projected mesh. Key points are the data set's own (OpenPose, with its confidences).

    Args:
        root: holds `sequenceFiles/` and `imageFiles/`.
        out, workers, shard_size, skip_bad: see `write_people`.
        split: official.
        body_models: folder of body files, searched first; SMPL, female and male.

    Raises:
        VqhpsError: something is missing or damaged.
    """
    files = sorted((root / "sequenceFiles" / split).glob("*.pkl"))
    if not files or not (root / "imageFiles").is_dir():
        raise VqhpsError(
            f"{root} needs sequenceFiles/{split}/*.pkl and imageFiles/: unpack both archives of 3DPW there"
        )
    skipped: list[str] = []
    people = read_each(files, lambda path: _sequence(path, root, body_models), skip_bad, skipped)
    return write_people(f"3dpw-{split}", people, out, workers, shard_size, skip_bad, skipped)


def _sequence(path: Path, root: Path, body_models: Path | None) -> list[Person]:
    content = read_pickle(path)
    cameras, intrinsics = (np.asarray(content[n], float) for n in ("cam_poses", "cam_intrinsics"))
    persons = list(zip(*(content[n] for n in ("poses", "betas", "genders", "trans", "poses2d", "campose_valid")),
                       strict=True))  # fmt: skip
    people = []
    for pose, betas, letter, trans, poses2d, valid in persons:
        frames = np.flatnonzero(np.asarray(valid))
        gender = GENDERS[str(letter)]
        placed = place_smpl(
            smpl_body(gender, body_models), np.asarray(pose, float)[frames, :72], np.asarray(betas, float)[:10],
            np.asarray(trans, float)[frames], cameras[frames], intrinsics,
        )  # fmt: skip
        for t, (turned, place, box) in zip(frames, placed, strict=True):
            keypoints = np.asarray(poses2d[t], float)[:, _COCO17]
            photo = root / "imageFiles" / path.stem / f"image_{t:05d}.jpg"
            people.append(
                Person(photo, box, keypoints[:2].T, keypoints[2], turned, np.asarray(betas, float)[:10], gender,
                       place, intrinsics)
            )  # fmt: skip
    return people


def place_smpl(
    body: SMPLBody, pose: Any, betas: Any, trans: Any, cameras: Any, intrinsics: Any
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Published world parameters of one person in the axes of the camera of each frame.

    Args:
        body: of its gender.
        pose: (T, 72) axis-angle, radians.
        betas: (10,).
        trans: (T, 3) metres.
        cameras: (T, 4, 4) world -> camera.
        intrinsics: (3, 3).

    Returns:
        For each frame the pose with the root's rotation in the camera, the place of the root joint there, and the box
        (xyxy px) of the projected mesh.
    """
    shape = torch.from_numpy(np.asarray(betas, np.float32))[None]
    turn, move = cameras[:, :3, :3], cameras[:, :3, 3]
    root = Rotation.from_matrix(turn) * Rotation.from_rotvec(pose[:, :3]) if len(pose) else Rotation.identity(0)
    pose = np.concatenate([root.as_rotvec(), pose[:, 3:]], 1)
    place = (turn @ (trans + body.root_in_file(shape).numpy())[..., None])[..., 0] + move
    boxes = []
    for start in range(0, len(pose), _BATCH):
        part = slice(start, start + _BATCH)
        local = Rotation.from_rotvec(pose[part].reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
        vertices = body.forward(torch.from_numpy(local).float(), shape.expand(len(local), -1)).numpy()
        pixels = project_perspective(vertices + place[part, None], np.repeat(intrinsics[None], len(local), 0))
        boxes.append(np.concatenate([pixels.min(1), pixels.max(1)], 1))
    return list(zip(pose, place, np.concatenate(boxes) if boxes else np.zeros((0, 4)), strict=True))
