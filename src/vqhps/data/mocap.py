"""Motion capture on the body: CMU, dance and martial arts, DeepMimic, MakeHuman poses; split by subject.

Licences: CMU terms (free, acknowledge mocap.cs.cmu.edu, NSF EIA-0196217), MIT, MIT, CC0. `MOCAP_TEST_SUBJECTS` are
CMU subjects that no training ever sees.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from vqhps.body.retarget import Skeleton, read_bvh, retarget
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_quaternion

log = logging.getLogger(__name__)

MOCAP_TEST_SUBJECTS = ("06", "13", "49", "55", "93", "135")
EVERYDAY_TEST_CLIPS = ("cmu/06_01", "cmu/49_01", "cmu/55_04")  # their walking; nobody of them stands about or sits
Split = Literal["train", "test"]
Source = Literal["cmu", "dance", "deepmimic", "makehuman"]
SOURCES: tuple[Source, ...] = ("cmu", "dance", "deepmimic", "makehuman")

# The rest pose of the CMU skeleton: a T-pose with the legs 20 degrees from the vertical, looking along z.
_CMU_REST = {
    "LeftUpLeg": (0.09, -0.09, 0.0), "LeftLeg": (0.14, -0.40, 0.0), "LeftFoot": (0.14, -0.39, 0.0),
    "LeftToeBase": (0.0, -0.04, 0.13), "RightUpLeg": (-0.09, -0.09, 0.0), "RightLeg": (-0.14, -0.40, 0.0),
    "RightFoot": (-0.14, -0.39, 0.0), "RightToeBase": (0.0, -0.04, 0.13), "LowerBack": (0.0, 0.05, 0.0),
    "Spine": (0.0, 0.12, 0.0), "Spine1": (0.0, 0.12, 0.0), "Neck": (0.0, 0.05, 0.0), "Neck1": (0.0, 0.08, 0.0),
    "Head": (0.0, 0.08, 0.0), "LeftArm": (0.17, 0.0, 0.0), "LeftForeArm": (0.28, 0.0, 0.0),
    "LeftHand": (0.18, 0.0, 0.0), "RightArm": (-0.17, 0.0, 0.0), "RightForeArm": (-0.28, 0.0, 0.0),
    "RightHand": (-0.18, 0.0, 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A piece of motion: `pose` (T, K, 3, 3) for the body, `rotation` (T, 3, 3) body axes -> world with y up."""

    name: str
    source: Source
    pose: Float[np.ndarray, "T K 3 3"]
    rotation: Float[np.ndarray, "T 3 3"]


@dataclass(frozen=True)
class PoseBank:
    """Poses that differ from each other; `clip` (N,) names where each comes from."""

    pose: Float[np.ndarray, "N K 3 3"]
    rotation: Float[np.ndarray, "N 3 3"]
    clip: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pose)


def load_clips(data_root: Path, split: Split, sources: tuple[Source, ...] = SOURCES) -> list[Clip]:
    """All clips of a split, retargeted to the default body.

    The test split is CMU's held-out subjects; the training split is everything else.

    Args:
        data_root: the folder that holds `mocap/`.
        split: `train` or `test`.
        sources: restrict to these.

    Raises:
        VqhpsError: the motion files are not there.
    """
    from vqhps.body.anny import anny_body

    body = anny_body("coarse")
    rig = (body.bone_names, body.bone_parents, body.rest_joints)
    wanted = [s for s in sources if s == "cmu" or split == "train"]
    clips = []
    for source in wanted:
        for name, skeleton, local in _READERS[source](Path(data_root) / "mocap"):
            held_out = source == "cmu" and name.split("_")[0] in MOCAP_TEST_SUBJECTS
            if held_out == (split == "test"):
                clips.append(Clip(f"{source}/{name}", source, *retarget(skeleton, local, *rig)))
    return clips


def load_poses(data_root: Path, split: Split, distance: float = 0.1, sources: tuple[Source, ...] = SOURCES) -> PoseBank:
    """Poses at least `distance` apart within their clip: much walking becomes little.

    Args:
        data_root: the folder that holds `mocap/`.
        split: `train` or `test`.
        distance: smallest step in root mean square joint position, metres, root turned away.
        sources: as in `load_clips`.
    """
    pose, rotation, names = [], [], []
    for clip in load_clips(data_root, split, sources):
        keep = _spaced(joint_positions(clip.pose), distance)
        pose.append(clip.pose[keep])
        rotation.append(clip.rotation[keep])
        names += [clip.name] * len(keep)
    bank = PoseBank(np.concatenate(pose), np.concatenate(rotation), tuple(names))
    log.info("%s: %d poses %.2f m apart", split, len(bank), distance)
    return bank


def joint_positions(
    pose: Float[np.ndarray, "T K 3 3"], rest: Float[np.ndarray, "K 3"] | None = None
) -> Float[np.ndarray, "T K 3"]:
    """Joints in body axes, metres, the root at the origin.

    Args:
        pose: of the default body's bones.
        rest: joints in the rest pose; the default body's by default.
    """
    from vqhps.body.anny import anny_body

    body = anny_body("coarse")
    rest = body.rest_joints if rest is None else rest
    turned, position = [pose[:, 0]], [np.zeros((len(pose), 3), np.float32)]
    for bone in range(1, len(body.bone_names)):
        parent = body.bone_parents[bone]
        offset = rest[bone] - rest[parent]
        position.append(position[parent] + turned[parent] @ offset)
        turned.append(turned[parent] @ pose[:, bone])
    return np.stack(position, 1)


def _spaced(joints: Float[np.ndarray, "T K 3"], distance: float) -> list[int]:
    """Frames that are `distance` or more from every frame kept before them."""
    kept = [0]
    flat = joints.reshape(len(joints), -1)
    nearest = np.full(len(flat), np.inf)
    limit = distance * np.sqrt(joints.shape[1])
    for frame in range(1, len(flat)):
        nearest = np.minimum(nearest, np.linalg.norm(flat - flat[kept[-1]], axis=1)) if kept else nearest
        if nearest[frame] >= limit:
            kept.append(frame)
    return kept


def _open(path: Path) -> Path:
    if not path.exists():
        raise VqhpsError(f"no motion data at {path}; see docs/data.md for what to put there")
    return path


def _cmu(root: Path) -> Iterator[tuple[str, Skeleton, np.ndarray]]:
    with np.load(_open(root / "cmu_mb_30fps.npz"), allow_pickle=False) as data:
        names = tuple(str(n) for n in data["joints"])
        offsets = np.array([_CMU_REST.get(n, (0.0, 0.0, 0.0)) for n in names])
        skeleton = Skeleton(names, tuple(data["parents"].tolist()), offsets)
        quaternions = data["quat_wxyz"].astype(np.float64)
        for name, start, length in zip(data["clip_name"], data["clip_start"], data["clip_len"], strict=True):
            yield str(name), skeleton, matrix_from_quaternion(quaternions[start : start + length])


def cmu_roots(data_root: Path) -> dict[str, Float[np.ndarray, "T 3"]]:
    """Path of the hips of each CMU clip, by its name in `load_clips`: metres, world with y up.

    Raises:
        VqhpsError: the motion file is not there.
    """
    with np.load(_open(Path(data_root) / "mocap" / "cmu_mb_30fps.npz"), allow_pickle=False) as data:
        roots = data["root_pos_m"].astype(np.float64)
        clips = zip(data["clip_name"], data["clip_start"], data["clip_len"], strict=True)
        return {f"cmu/{name}": roots[start : start + length] for name, start, length in clips}


def _dance(root: Path) -> Iterator[tuple[str, Skeleton, np.ndarray]]:
    with np.load(_open(root / "dance_martial_30fps.npz"), allow_pickle=False) as data:
        names = tuple(str(n) for n in data["joints"])
        skeleton = Skeleton(names, tuple(data["parents"].tolist()), data["offsets"].astype(np.float64))
        quaternions = data["quat_wxyz"].astype(np.float64)
        for name, start, length in zip(data["clip_name"], data["clip_start"], data["clip_len"], strict=True):
            yield str(name), skeleton, matrix_from_quaternion(quaternions[start : start + length])


def _deepmimic(root: Path) -> Iterator[tuple[str, Skeleton, np.ndarray]]:
    from scipy.spatial.transform import Rotation

    folder = _open(root / "deepmimic")
    joints = json.loads((folder / "skeleton.json").read_text())["Skeleton"]["Joints"]
    names = tuple(j["Name"] for j in joints)
    offsets = np.array([[j["AttachX"], j["AttachY"], j["AttachZ"]] for j in joints])
    skeleton = Skeleton(names, tuple(j["Parent"] for j in joints), offsets)
    for path in sorted(folder.glob("humanoid3d_*.txt")):
        frames = np.array(json.loads(path.read_text())["Frames"], np.float64)
        local = np.tile(np.eye(3), (len(frames), len(joints), 1, 1))
        local[:, 0] = matrix_from_quaternion(frames[:, 4:8])
        column = 8
        for i, joint in enumerate(joints[1:], start=1):
            if joint["Type"] == "spherical":
                local[:, i] = matrix_from_quaternion(frames[:, column : column + 4])
                column += 4
            elif joint["Type"] == "revolute":
                local[:, i] = Rotation.from_rotvec(frames[:, column, None] * [0.0, 0.0, 1.0]).as_matrix()
                column += 1
        yield path.stem.removeprefix("humanoid3d_"), skeleton, local


def _makehuman(root: Path) -> Iterator[tuple[str, Skeleton, np.ndarray]]:
    for path in sorted(_open(root / "makehuman_poses").glob("*.bvh")):
        skeleton, local, _ = read_bvh(path)
        yield path.stem, skeleton, local


_READERS = {"cmu": _cmu, "dance": _dance, "deepmimic": _deepmimic, "makehuman": _makehuman}
