"""Data sets of photos in their published formats, made up: SMPL bodies of noise before cameras that are known."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from published_files import smpl_arrays
from vqhps.body.smpl import SMPLBody
from vqhps.data.bedlam_format import _COCO17 as SPIN_TO_COCO
from vqhps.data.threedpw import _COCO17 as OPENPOSE_TO_COCO

FRAMES = 5
SIDE = (640, 480)  # of the photos
INTRINSICS = np.array([[900.0, 0, 320], [0, 900.0, 240], [0, 0, 1]])


def smpl_file(folder: Path) -> None:
    """Bodies of three genders with SMPL's number of vertices, so that there are key points of the face."""
    for seed, gender in enumerate(("NEUTRAL", "FEMALE", "MALE")):
        np.savez(folder / f"SMPL_{gender}.npz", **smpl_arrays(6890, seed))
    np.save(folder / "J_regressor_h36m.npy", np.random.default_rng(0).dirichlet(np.ones(6890), 17))


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, SIDE, interpolation=cv2.INTER_CUBIC))


def posed(folder: Path, gender: str, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """Vertices (T, 6890, 3) in the axes of the file, before the translation: turned about the root joint."""
    body = SMPLBody(folder / f"SMPL_{gender.upper()}.npz")
    local = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
    shape = torch.from_numpy(betas).float().expand(len(pose), -1)
    arrays = smpl_arrays(6890, ("neutral", "female", "male").index(gender))
    rest = arrays["v_template"] + arrays["shapedirs"] @ betas
    return body.forward(torch.from_numpy(local).float(), shape).numpy() + arrays["J_regressor"][0] @ rest


def motion(seed: int) -> dict[str, np.ndarray]:
    """A person before a camera that moves through the world."""
    rng = np.random.default_rng(seed)
    cameras = np.tile(np.eye(4), (FRAMES, 1, 1))
    cameras[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, 0.5, (FRAMES, 3))).as_matrix()
    cameras[:, :3, 3] = rng.normal(0, 1, (FRAMES, 3))
    seen = np.array([0.2, -0.1, 5.0]) + rng.normal(0, 0.2, (FRAMES, 3))  # in the camera
    turn = cameras[:, :3, :3].transpose(0, 2, 1)
    world = (turn @ (seen - cameras[:, :3, 3])[..., None])[..., 0]
    return {
        "pose": rng.normal(0, 0.3, (FRAMES, 72)), "betas": rng.normal(0, 1, 10), "trans": world, "cameras": cameras,
    }  # fmt: skip


def project(vertices: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    placed = vertices @ cameras[:, :3, :3].transpose(0, 2, 1) + cameras[:, None, :3, 3]
    return placed[..., :2] / placed[..., 2:] * 900 + [320, 240]


def write_3dpw(root: Path, bodies: Path, split: str = "train", name: str = "walk_00", seed: int = 0) -> dict[str, Any]:
    """A sequence of a man and a woman, who is not tracked in two frames, as Python 2 pickled it."""
    people = [motion(seed), motion(seed + 50)]
    content: dict[str, Any] = {
        "sequence": name, "cam_intrinsics": INTRINSICS, "cam_poses": people[0]["cameras"],
        "img_frame_ids": np.arange(FRAMES), "genders": ["m", "f"], "poses": [], "betas": [], "trans": [],
        "poses2d": [], "campose_valid": [np.ones(FRAMES, bool), np.array([1, 0, 1, 1, 0], bool)],
        "jointPositions": [np.zeros((FRAMES, 72))] * 2,
    }  # fmt: skip
    turn = people[0]["cameras"][:, :3, :3].transpose(0, 2, 1)
    for number, person in enumerate(people):
        if number:  # before the camera of the first
            seen = person["cameras"][:, :3, :3] @ person["trans"][..., None]
            seen = seen[..., 0] + person["cameras"][:, :3, 3] - people[0]["cameras"][:, :3, 3]
            person["trans"] = (turn @ seen[..., None])[..., 0]
        vertices = posed(bodies, ("male", "female")[number], person["pose"], person["betas"])
        joints = SMPLBody(bodies / "SMPL_MALE.npz" if not number else bodies / "SMPL_FEMALE.npz").joint_regressors[
            "coco17"
        ]
        pixels = project(joints @ (vertices + person["trans"][:, None]), people[0]["cameras"])
        openpose = np.zeros((FRAMES, 3, 18))
        openpose[:, :2, list(OPENPOSE_TO_COCO)] = pixels.transpose(0, 2, 1)
        openpose[:, 2] = 0.75
        openpose[0, :, 4] = 0  # the right wrist was not found
        content["poses"].append(person["pose"])
        content["betas"].append(person["betas"])
        content["trans"].append(person["trans"])
        content["poses2d"].append(openpose)
    path = root / "sequenceFiles" / split / f"{name}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, 2))
    for t in range(FRAMES):
        photo(root / "imageFiles" / name / f"image_{t:05d}.jpg", t)
    return content


def write_emdb(root: Path, bodies: Path, name: str, emdb1: bool, emdb2: bool, seed: int = 0) -> None:
    person = motion(seed)
    vertices = posed(bodies, "female", person["pose"], person["betas"]) + person["trans"][:, None]
    regressor = SMPLBody(bodies / "SMPL_FEMALE.npz").joint_regressors["smpl24"]
    pixels = project(vertices, person["cameras"])
    boxes = np.concatenate([pixels.min(1), pixels.max(1)], 1)
    boxes[1] = 0  # flagged invalid
    content = {
        "gender": "female", "name": name, "emdb1": emdb1, "emdb2": emdb2, "n_frames": FRAMES,
        "good_frames_mask": np.array([1, 1, 1, 0, 1], bool),
        "camera": {"intrinsics": INTRINSICS, "extrinsics": person["cameras"], "width": 640, "height": 480},
        "smpl": {
            "poses_root": person["pose"][:, :3], "poses_body": person["pose"][:, 3:], "trans": person["trans"],
            "betas": person["betas"],
        },
        "kp2d": project(regressor @ vertices, person["cameras"]),
        "bboxes": {"bboxes": boxes, "invalid_idxs": np.array([1])},
    }  # fmt: skip
    folder = root / "P0" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"P0_{name}_data.pkl").write_bytes(pickle.dumps(content))
    for t in range(FRAMES):
        photo(folder / "images" / f"{t:05d}.jpg", t)


def write_bedlam_format(path: Path, bodies: Path, names: list[str], camera: bool = False, **changes: Any) -> None:
    """Weak-perspective fits as for COCO, or with a camera as for BEDLAM."""
    rng, count = np.random.default_rng(3), len(names)
    pose, betas = rng.normal(0, 0.3, (count, 72)), rng.normal(0, 1, (count, 10))
    regressor = SMPLBody(bodies / "SMPL_NEUTRAL.npz").joint_regressors["coco17"]
    trans = np.array([0.1, 0.2, 6.0]) + rng.normal(0, 0.1, (count, 3))
    points = []
    for row in range(count):
        vertices = posed(bodies, "neutral", pose[row : row + 1], betas[row])[0]
        if camera:
            placed = regressor @ (vertices + trans[row])
            points.append(placed[:, :2] / placed[:, 2:] * 900 + [320, 240])
        else:
            points.append(130 * (regressor @ vertices)[:, :2] + [300, 220])
    keypoints = np.zeros((count, 24, 3))
    keypoints[:, list(SPIN_TO_COCO)] = np.concatenate([points, np.ones((count, 17, 1))], 2)
    keypoints[0, 6] = 0  # the right wrist is not annotated
    content: dict[str, Any] = {
        "imgname": np.array(names), "center": np.mean(points, 1), "scale": np.full(count, 1.8), "pose_cam": pose,
        "shape": betas, "gtkps": keypoints,
    }  # fmt: skip
    if camera:
        moved = np.tile(np.eye(4), (count, 1, 1))
        moved[:, :3, 3] = rng.normal(0, 1, (count, 3))
        content |= {
            "cam_int": np.tile(INTRINSICS, (count, 1, 1)), "trans_cam": trans - moved[:, :3, 3], "cam_ext": moved,
            "gender": ["neutral"] * count,
        }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in (content | changes).items() if v is not None})
    for seed, name in enumerate(names):
        photo(path.parent / "images" / name, seed)
