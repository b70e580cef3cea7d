"""People who move as the shipped rig says, and the files of predictions they would come from."""

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from vqhps.runtime.body_motion import PersonMotion
from vqhps.runtime.export_motion import View
from vqhps.runtime.rig import Rig, default_rig

VIEW = View(900.0, (640, 360))


def random_turns(rig: Rig, frames: int, rng: np.random.Generator, sigma: float = 0.25) -> np.ndarray:
    """Turns (F, K, 3, 3) of the bones that move, that change smoothly; the root faces the camera."""
    ends = rng.normal(0, sigma, (2, len(rig.names), 3)) * rig.moves[:, None]
    share = np.linspace(0, 1, frames)[:, None, None]
    vectors = (1 - share) * ends[0] + share * ends[1]
    turns = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(frames, -1, 3, 3)
    turns[:, 0] = np.diag([1.0, -1.0, -1.0]) @ turns[:, 0]
    return turns.astype(np.float32)


def person(number: int, frames: np.ndarray, seed: int) -> PersonMotion:
    """Somebody of their own shape 4 m in front of the camera, seen in these frames, 25 a second."""
    rig, rng = default_rig(), np.random.default_rng(seed)
    rest = rig.rest(rng.normal(0, 1, len(rig.joint_basis)))
    start = np.array([rng.uniform(-0.8, 0.8), 0.1, 4.0])
    path = start + np.arange(len(frames))[:, None] * [0.03, 0.0, 0.02]
    turns = random_turns(rig, len(frames), rng)
    return PersonMotion(number, frames, frames / 25, turns, path.astype(np.float32), rest, np.zeros(len(frames)))


def two_people() -> list[PersonMotion]:
    """One who is always there, and one who comes late, is away for a while, and leaves early."""
    return [person(0, np.arange(10, 22), 1), person(4, np.array([12, 13, 14, 17, 18, 19]), 2)]


def write_predictions(path: Path, people: list[PersonMotion]) -> list[np.ndarray]:
    """What `vqhps video --vertices` would write of them; the meshes (F, V, 3) of each in camera axes."""
    rig, rows, meshes = default_rig(), [], []
    for one in people:
        meshes.append(one.vertices(rig))
        turn = one.rotations[:, 0]
        mean = meshes[-1].mean(1)
        canonical = (meshes[-1] - mean[:, None]) @ turn
        rows += [
            (frame, one.person, time, *values)
            for frame, time, *values in zip(one.frames, one.times, turn, mean, canonical, strict=True)
        ]
    frame, number, time, turn, mean, vertices = zip(*sorted(rows, key=lambda row: row[:2]), strict=True)
    np.savez(
        path,
        frame=np.array(frame, np.int32),
        person=np.array(number, np.int32),
        time=np.array(time),
        rotation=np.stack(turn).astype(np.float32),
        translation=np.stack(mean).astype(np.float32),
        vertices=np.stack(vertices).astype(np.float16),
        focal=np.float64(VIEW.focal),
        size=np.array(VIEW.size),
        fps=np.float64(25),
    )
    return meshes
