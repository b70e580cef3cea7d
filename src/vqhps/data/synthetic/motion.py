"""Whole motion-capture sequences on a body: put on the ground, played forth and back, and joined without a jump.

World axes: y up, metres; the ground is y = 0. Times in seconds.
"""

import bisect
import dataclasses
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d, minimum_filter1d
from scipy.spatial.transform import Rotation

from vqhps.body.anny import anny_body
from vqhps.data.mocap import Split, cmu_roots, joint_positions, load_clips
from vqhps.geometry import matrix_from_quaternion

RATE = 30.0  # frames a second of the motion capture
JOIN = 1.0  # seconds from the end of a sequence to the start of the next
_EASE = 0.4  # seconds before and after a turn of direction in which the motion slows down
_SMOOTH = 0.7  # frames: the recorded rotations are rounded to 16 bits, which shows as trembling
_TAPS = np.arange(-3, 5)
_FEET = ("LeftFoot", "RightFoot", "LeftToeBase", "RightToeBase")
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Motion:
    """A sequence at 30 frames a second.

    Attributes:
        name: of the clip.
        turns: (T,K,4) bone rotations, unit quaternions wxyz without changes of sign; the root's leads from body axes
            to the world.
        root: (T,3) of the root joint in the world.
    """

    name: str
    turns: Float[np.ndarray, "T K 4"]
    root: Float[np.ndarray, "T 3"]

    @property
    def seconds(self) -> float:
        """From the first to the last frame."""
        return (len(self.root) - 1) / RATE

    def part(self, first: int, last: int) -> "Motion":
        """Frames from `first` up to `last`, which is left out."""
        return dataclasses.replace(self, turns=self.turns[first:last], root=self.root[first:last])

    def turned(self, angle: float) -> "Motion":
        """The same, turned about the vertical through the origin, in radians."""
        turn = Rotation.from_euler("y", angle)
        facing = (turn * Rotation.from_quat(self.turns[:, 0], scalar_first=True)).as_quat(scalar_first=True)
        turns = np.concatenate([_continuous(facing[:, None]), self.turns[:, 1:]], 1)
        return dataclasses.replace(self, turns=turns, root=turn.apply(self.root))

    def moved(self, offset: Float[np.ndarray, "3"]) -> "Motion":
        """The same elsewhere."""
        return dataclasses.replace(self, root=self.root + offset)

    def at(self, time: float) -> tuple[Float[np.ndarray, "K 4"], Float[np.ndarray, "3"]]:
        """Rotations and place of the root at a time, between the frames and a little smoothed."""
        frame = float(np.clip(time * RATE, 0, len(self.root) - 1))
        taps = int(frame) + _TAPS
        weights = np.exp(-0.5 * ((taps - frame) / _SMOOTH) ** 2)
        weights /= weights.sum()
        taps = taps.clip(0, len(self.root) - 1)
        turns = np.einsum("t,tkc->kc", weights, self.turns[taps])
        return turns / np.linalg.norm(turns, axis=1, keepdims=True), weights @ self.root[taps]


def load_motions(data_root: Path, split: Split) -> list[Motion]:
    """The CMU sequences of a split, at least a second long.

    Raises:
        VqhpsError: the motion files are not there.
    """
    roots = cmu_roots(data_root)
    motions = []
    for clip in load_clips(data_root, split, ("cmu",)):
        if len(clip.pose) > RATE:
            local = np.concatenate([clip.rotation[:, None], clip.pose[:, 1:]], 1)
            turns = (
                Rotation.from_matrix(local.reshape(-1, 3, 3)).as_quat(scalar_first=True).reshape(*local.shape[:2], 4)
            )
            motions.append(Motion(clip.name, _continuous(turns), roots[clip.name]))
    return motions


def _continuous(turns: Float[np.ndarray, "T K 4"]) -> Float[np.ndarray, "T K 4"]:
    """The same rotations with signs such that neighbours in time are near each other."""
    steps = np.sign((turns[1:] * turns[:-1]).sum(-1))
    signs = np.cumprod(np.concatenate([np.ones_like(turns[:1, :, 0]), np.where(steps == 0, 1, steps)]), axis=0)
    return turns * signs[..., None]


def on_the_ground(
    motion: Motion, shape: Float[np.ndarray, "S"], heads: Float[np.ndarray, "K 3"], sole: float
) -> Motion:
    """A sequence for a body of another size: its feet slide as little as one scale allows, and touch the ground.

    What lies lowest within about a second is put on the ground, so that jumps stay jumps.

    Args:
        motion: of the recorded person.
        shape: of the body.
        heads: of its bones in the rest pose.
        sole: how much its shoes add below the feet, metres.
    """
    pose, facing = _matrices(motion.turns)
    feet = [anny_body("coarse").bone_names.index(name) for name in _FEET]
    height = -float(heads[feet].min(0)[1])
    joints = np.einsum("tij,tkj->tki", facing, joint_positions(pose, heads)[:, feet])
    root = motion.root * _scale(motion.root, joints, height / float(np.median(motion.root[:, 1])))
    body, low = anny_body("coarse"), []
    for first in range(0, len(pose), _BATCH):
        part = slice(first, first + _BATCH)
        batch = torch.from_numpy(pose[part]).float()
        vertices = body.forward(batch, torch.from_numpy(shape).expand(len(batch), -1)).numpy()
        low.append(np.einsum("tj,tvj->tv", facing[part, 1], vertices).min(1))
    lowest = root[:, 1] + np.concatenate(low)
    root[:, 1] += sole - gaussian_filter1d(minimum_filter1d(lowest, 25), 6)
    return dataclasses.replace(motion, root=root)


def joint_speed(motion: Motion) -> float:
    """Mean speed of all joints in the world, over steps of a tenth of a second, m/s."""
    pose, facing = _matrices(motion.turns)
    joints = np.einsum("tij,tkj->tki", facing, joint_positions(pose)) + motion.root[:, None]
    step = round(RATE / 10)
    return float(np.linalg.norm(joints[step:] - joints[:-step], axis=-1).mean() * RATE / step)


def _scale(root: Float[np.ndarray, "T 3"], feet: Float[np.ndarray, "T F 3"], usual: float) -> float:
    """What the root's path is to be scaled with for the lowest foot to stay in place, and `usual` where nobody moves.

    Args:
        root: path of the recorded person.
        feet: of the body, relative to its root, world axes.
        usual: the ratio of the two people's legs.
    """
    lowest = feet[:-1, :, 1].argmin(1)
    rows = np.arange(len(lowest))
    steps, slides = np.diff(root[:, ::2], axis=0), feet[1:, :, ::2][rows, lowest] - feet[:-1, :, ::2][rows, lowest]
    weight = 0.02  # m^2 of path
    best = (weight * usual - (steps * slides).sum()) / (weight + (steps * steps).sum())
    return float(np.clip(best, 0.8 * usual, 1.25 * usual))


def _matrices(turns: Float[np.ndarray, "*T K 4"]) -> tuple[Float[np.ndarray, "*T K 3 3"], Float[np.ndarray, "*T 3 3"]]:
    """Pose for the body model, with the identity at the root, and the rotation from body axes to the world."""
    pose = matrix_from_quaternion(turns)
    facing = pose[..., 0, :, :].copy()
    pose[..., 0, :, :] = np.eye(3)
    return pose, facing


def fold(time: float, length: float) -> float:
    """Time within a sequence that is played forth and back for ever, slowing down where it turns.

    Args:
        time: since a turn at the beginning.
        length: of the sequence; a period lasts twice as long.
    """
    ease = min(_EASE, length / 2)
    since = time % (2 * length)
    for turn, sign in ((0.0, 1.0), (length, -1.0), (2 * length, 1.0)):
        apart = abs(since - turn)
        if apart < ease:
            return (0.0 if sign > 0 else length) + sign * (apart * apart + ease * ease) / (2 * ease)
    return length - abs(since - length)


class Track:
    """What one person does: sequences played forth and back, one after the other.

    All end where they begin, so that the next begins there: the first frames of all have to have the root at one place.

    Args:
        motions: in order; after the last the first comes again.
    """

    def __init__(self, motions: list[Motion]) -> None:
        self.motions = motions
        lengths = [2 * motion.seconds + JOIN for motion in motions]
        self._starts = np.concatenate([[0.0], np.cumsum(lengths)]).tolist()

    @property
    def seconds(self) -> float:
        """Until it repeats."""
        return self._starts[-1]

    def start(self, number: int) -> float:
        """When a sequence begins; numbers go on beyond the last."""
        rounds, rest = divmod(number, len(self.motions))
        return rounds * self.seconds + self._starts[rest]

    def at(self, time: float) -> tuple[Float[np.ndarray, "K 3 3"], Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
        """Pose, rotation from body axes to the world, and place of the root."""
        time = time % self.seconds
        number = min(bisect.bisect_right(self._starts, time) - 1, len(self.motions) - 1)
        motion, since = self.motions[number], time - self._starts[number]
        turns, root = motion.at(fold(min(since, 2 * motion.seconds), motion.seconds))
        if since > 2 * motion.seconds:
            share = (since - 2 * motion.seconds) / JOIN
            share = share * share * (3 - 2 * share)
            following = self.motions[(number + 1) % len(self.motions)]
            other, place = following.at(fold(0.0, following.seconds))
            other = other * np.where((turns * other).sum(1) < 0, -1, 1)[:, None]
            turns, root = turns + share * (other - turns), root + share * (place - root)
        pose, facing = _matrices(turns)
        return pose.astype(np.float32), facing, root
