"""A real shard of simple pictures: the default body in random poses, painted triangle by triangle."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from vqhps.body.anny import anny_body
from vqhps.body.topology import random_pose

SIDE = 256
FOCAL = 9000.0  # px: a long lens, so that a body is flat


def write_shard(folder: Path, split: str, count: int, seed: int = 0) -> Path:
    """Write `tiny-{split}-000000.tar` in the format of `vqhps prepare synthetic`."""
    path = folder / f"tiny-{split}-000000.tar"
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            image, labels = _person(rng)
            encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            table = io.BytesIO()
            np.savez(table, **labels)
            for name, data in ((f"{index:06d}.jpg", encoded), (f"{index:06d}.npz", table.getvalue())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def _person(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    body = anny_body("coarse")
    pose = random_pose(1, len(body.bone_names), rng, 0.2)
    shape = body.sample_shape(1, rng)
    upright = Rotation.from_euler("y", rng.uniform(-1, 1)).as_matrix()
    rotation = np.diag([1.0, -1.0, -1.0]) @ upright
    translation = np.array([rng.uniform(-1, 1), rng.uniform(-0.5, 0.5), 40.0])
    vertices = body.forward(pose, torch.from_numpy(shape))[0].numpy() @ rotation.T + translation
    joints = body.joint_regressors["coco17"] @ vertices
    frame = np.array([1280, 960])
    intrinsics = np.array([[FOCAL, 0, 640], [0, FOCAL, 480], [0, 0, 1]])

    def to_pixels(points: np.ndarray) -> np.ndarray:
        return points[:, :2] / points[:, 2:] * FOCAL + [640, 480]

    pixels = to_pixels(vertices)
    box = np.concatenate([pixels.min(0), pixels.max(0)])
    side = 1.5 * (box[2:] - box[:2]).max()
    crop = np.array([*(box[:2] + box[2:]) / 2, side])

    def stored(points: np.ndarray) -> np.ndarray:
        return (points - crop[:2] + side / 2) * SIDE / side

    labels = {
        "pose": Rotation.from_matrix(pose[0].numpy()).as_quat()[:, [3, 0, 1, 2]].astype(np.float16),
        "shape": shape[0],
        "rotation": rotation.astype(np.float32),
        "translation": translation.astype(np.float32),
        "intrinsics": intrinsics.astype(np.float32),
        "frame_size": frame.astype(np.int32),
        "box": box.astype(np.float32),
        "crop": crop.astype(np.float32),
        "size": np.int32(SIDE),
        "keypoints2d": stored(to_pixels(joints)).astype(np.float32),
        "keypoints_visible": np.full(17, 2, np.uint8),
        "joints3d": joints.astype(np.float32),
    }
    return _paint(stored(pixels), vertices[:, 2], body.faces, labels["keypoints2d"][0]), labels


def _paint(points: np.ndarray, depth: np.ndarray, faces: np.ndarray, nose: np.ndarray) -> np.ndarray:
    image = np.full((SIDE, SIDE, 3), (40, 90, 40), np.uint8)
    order = depth[faces].mean(1).argsort()[::-1]
    for face in faces[order]:
        shade = int(np.clip(200 - 300 * (depth[face].mean() - depth.min()), 60, 220))
        cv2.fillConvexPoly(
            image, np.round(points[face] * 16).astype(np.int32), (shade // 2, shade // 2, shade), shift=4
        )
    cv2.circle(image, tuple(int(v) for v in nose), 8, (230, 40, 40), -1)
    return image
