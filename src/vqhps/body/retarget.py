"""Motion of other skeletons on a body: BVH and mocap rotations -> body pose.

A source skeleton is known by the offsets of its rest pose (all rotations zero). Where source and body rest with
limbs in different directions (T-pose against A-pose), each limb bone gets a constant rest-pose correction that turns
the body's limb onto the source's; trunk, head and feet rest alike. Global bone rotations are then copied. Where a
source has more joints in a limb than the body (twist bones), the limb is last turned the shortest way to where the
source's limb points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vqhps.errors import VqhpsError

# Names that skeletons in circulation give to the bones of the CMU rig, compared without case, `.`, `_`, `:`.
_SIDED = {
    "UpLeg": ("upleg", "thigh", "upperleg01", "hip", "femur"),
    "Leg": ("leg", "shin", "lowerleg01", "knee", "tibia"),
    "Foot": ("foot", "ankle"),
    "ToeBase": ("toebase", "toe"),
    "Shoulder": ("collar", "clavicle", "shoulder"),
    "Arm": ("arm", "shldr", "upperarm01", "uparm", "shoulder", "humerus"),
    "ForeArm": ("forearm", "lowerarm01", "elbow", "radius"),
    "Hand": ("hand", "wrist"),
}
_MIDDLE = {
    "Hips": ("hips", "hip", "root", "pelvis"),
    "LowerBack": ("lowerback", "abdomen", "spine04"),
    "Spine": ("spine", "spine02"),
    "Spine1": ("spine3", "spine2", "spine1", "spine01", "chest2", "chest"),
    "Neck": ("lowerneck", "neck", "neck01"),
    "Neck1": ("neck1", "neck02"),
    "Head": ("head",),
}
_LIMBS = [("UpLeg", "Leg", "Foot"), ("Arm", "ForeArm", "Hand")]
_SPREAD = [("Hips", "LowerBack", "Spine", "Spine1"), ("Spine1", "Neck", "Neck1", "Head")]


@dataclass(frozen=True)
class Skeleton:
    """Joints of a source of motion; `offsets` (J, 3) lead from parent to joint in the rest pose, in any unit."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: Float[np.ndarray, "J 3"]

    def rest(self) -> Float[np.ndarray, "J 3"]:
        """Positions of the joints in the rest pose, relative to the root."""
        positions = np.zeros_like(self.offsets, dtype=np.float64)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                positions[joint] = positions[parent] + self.offsets[joint]
        return positions

    def global_rotations(self, local: Float[np.ndarray, "T J 3 3"]) -> Float[np.ndarray, "T J 3 3"]:
        """Rotations of the joints from the rest pose, in the world of the skeleton."""
        out = np.empty_like(local)
        for joint, parent in enumerate(self.parents):
            out[:, joint] = local[:, joint] if parent < 0 else out[:, parent] @ local[:, joint]
        return out

    def positions(self, local: Float[np.ndarray, "T J 3 3"]) -> Float[np.ndarray, "T J 3"]:
        """Positions of the joints relative to the root, in the world of the skeleton."""
        turns = self.global_rotations(local)
        out = np.zeros((*local.shape[:2], 3))
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                out[:, joint] = out[:, parent] + turns[:, parent] @ self.offsets[joint]
        return out


def match_joints(names: Sequence[str]) -> dict[str, int]:
    """Index of the source joint for each bone of the CMU rig that has one.

    Raises:
        VqhpsError: no hips, thighs, shins, upper arms or forearms could be recognised.
    """
    plain = [
        name.lower().replace("character1", "").replace(".", "").replace("_", "").replace(":", "") for name in names
    ]
    found: dict[str, int] = {}

    def first(bone: str, candidates: Sequence[str]) -> None:
        for candidate in candidates:
            if candidate in plain and plain.index(candidate) not in found.values():
                found[bone] = plain.index(candidate)
                return

    for bone, words in _MIDDLE.items():
        first(bone, words)
    for side, letter in (("Left", "l"), ("Right", "r")):
        spell = {b: [f"{side.lower()}{w}" for w in ws] + [f"{letter}{w}" for w in ws] for b, ws in _SIDED.items()}
        spell = {bone: [*words, *(w + letter for w in _SIDED[bone])] for bone, words in spell.items()}
        first(side + "Arm", [w for w in spell["Arm"] if "shoulder" not in w])
        first(side + "Shoulder", spell["Shoulder"])
        if side + "Arm" not in found:  # skeletons whose only shoulder is the upper arm
            found.pop(side + "Shoulder", None)
            first(side + "Shoulder", [w for w in spell["Shoulder"] if "shoulder" not in w])
            first(side + "Arm", spell["Arm"])
        for bone in ("UpLeg", "Leg", "Foot", "ToeBase", "ForeArm", "Hand"):
            first(side + bone, spell[bone])
    needed = ["Hips", *(s + b for s in ("Left", "Right") for b in ("UpLeg", "Leg", "Foot", "Arm", "ForeArm", "Hand"))]
    missing = [bone for bone in needed if bone not in found]
    if missing:
        raise VqhpsError(f"the skeleton has no joint for {', '.join(missing)}; its joints are {', '.join(names[:40])}")
    return found


def body_axes(skeleton: Skeleton, joints: dict[str, int]) -> Float[np.ndarray, "3 3"]:
    """Rotation from the skeleton's axes to body axes (x left, y up, z front), found from its rest pose."""
    rest = skeleton.rest()
    left = rest[joints["LeftUpLeg"]] - rest[joints["RightUpLeg"]]
    top = rest[joints.get("Head", joints.get("Neck", joints["LeftArm"]))]
    up = top - (rest[joints["LeftUpLeg"]] + rest[joints["RightUpLeg"]]) / 2
    up = np.eye(3)[np.abs(up).argmax()] * np.sign(up[np.abs(up).argmax()])
    left = left - up * (left @ up)
    left /= np.linalg.norm(left)
    return np.stack([left, up, np.cross(left, up)])


def retarget(
    skeleton: Skeleton,
    local: Float[np.ndarray, "T J 3 3"],
    bone_names: Sequence[str],
    bone_parents: Sequence[int],
    rest_joints: Float[np.ndarray, "K 3"],
) -> tuple[Float[np.ndarray, "T K 3 3"], Float[np.ndarray, "T 3 3"]]:
    """Carry rotations of a skeleton over to a body on the CMU rig.

    Args:
        skeleton: the source.
        local: rotations of its joints relative to their parents; the rest pose is the identity.
        bone_names: of the body.
        bone_parents: the parent of each bone.
        rest_joints: of the body at rest, metres, body axes.

    Returns:
        `pose` for `BodyModel.forward` with the identity at the root, and the global rotation (T, 3, 3) from body axes
        to a world with y up.
    """
    joints = match_joints(skeleton.names)
    axes = body_axes(skeleton, joints)
    source = axes @ skeleton.global_rotations(local) @ axes.T
    corrections = _rest_corrections(skeleton.rest() @ axes.T, joints, list(bone_names), rest_joints)
    world = {b: source[:, j] @ corrections.get(b, np.eye(3)) for b, j in joints.items()}
    _align_limbs(world, skeleton.positions(local) @ axes.T, joints, list(bone_names), rest_joints)
    _spread(world)
    pose = np.tile(np.eye(3, dtype=np.float32), (len(local), len(bone_names), 1, 1))
    turned = [world["Hips"]]
    for bone in range(1, len(bone_names)):
        parent = turned[bone_parents[bone]]
        own = world.get(bone_names[bone], parent)
        pose[:, bone] = parent.transpose(0, 2, 1) @ own
        turned.append(own)
    return pose, world["Hips"].astype(np.float32)


def _rest_corrections(
    source_rest: Float[np.ndarray, "J 3"],
    joints: dict[str, int],
    names: list[str],
    rest_joints: Float[np.ndarray, "K 3"],
) -> dict[str, Float[np.ndarray, "3 3"]]:
    corrections: dict[str, np.ndarray] = {}
    for side in ("Left", "Right"):
        for limb in _LIMBS:
            turn = np.eye(3)
            for bone, child in pairwise(side + part for part in limb):
                have = turn @ (rest_joints[names.index(child)] - rest_joints[names.index(bone)])
                turn = _shortest_turn(have, source_rest[joints[child]] - source_rest[joints[bone]]) @ turn
                corrections[bone] = turn
        corrections[side + "Hand"] = turn  # the arm is the last limb
    return corrections


def _shortest_turn(source: Float[np.ndarray, "*T 3"], target: Float[np.ndarray, "*T 3"]) -> Float[np.ndarray, "*T 3 3"]:
    a = source / np.linalg.norm(source, axis=-1, keepdims=True)
    b = target / np.linalg.norm(target, axis=-1, keepdims=True)
    axis = np.cross(a, b)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, (a * b).sum(-1, keepdims=True))
    return Rotation.from_rotvec(axis / np.maximum(sine, 1e-9) * angle).as_matrix()


def _align_limbs(
    world: dict[str, Float[np.ndarray, "T 3 3"]],
    positions: Float[np.ndarray, "T J 3"],
    joints: dict[str, int],
    names: list[str],
    rest_joints: Float[np.ndarray, "K 3"],
) -> None:
    """Turn each limb bone the shortest way to the direction that the source's joints have."""
    for side in ("Left", "Right"):
        for limb in _LIMBS:
            for bone, child in pairwise(side + part for part in limb):
                have = world[bone] @ (rest_joints[names.index(child)] - rest_joints[names.index(bone)])
                world[bone] = (
                    _shortest_turn(have, positions[:, joints[child]] - positions[:, joints[bone]]) @ world[bone]
                )


def _spread(world: dict[str, Float[np.ndarray, "T 3 3"]]) -> None:
    """Share a turn between two known bones of the spine evenly among those between them."""
    for chain in _SPREAD:
        known = [i for i, bone in enumerate(chain) if bone in world]
        for low, high in pairwise(known):
            start, end = Rotation.from_matrix(world[chain[low]]), Rotation.from_matrix(world[chain[high]])
            step = (start.inv() * end).as_rotvec()
            for i in range(low + 1, high):
                part = Rotation.from_rotvec(step * (i - low) / (high - low))
                world[chain[i]] = (start * part).as_matrix()


def read_bvh(path: Path) -> tuple[Skeleton, Float[np.ndarray, "T J 3 3"], float]:
    """Read a BVH file.

    Returns:
        skeleton, local rotations, and frames a second.

    Raises:
        VqhpsError: the file is missing or is not BVH.
    """
    try:
        tokens = path.read_text(encoding="utf-8").split()
        return _parse_bvh(tokens)
    except OSError as error:
        raise VqhpsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise VqhpsError(f"{path} is not a BVH file this reader understands: {error}") from error


def _parse_bvh(tokens: list[str]) -> tuple[Skeleton, Float[np.ndarray, "T J 3 3"], float]:
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[tuple[int, str]] = []
    stack: list[int] = []
    i = tokens.index("HIERARCHY") + 1
    while tokens[i] != "MOTION":
        word = tokens[i]
        if word in ("ROOT", "JOINT"):
            parents.append(stack[-1] if stack else -1)
            names.append(tokens[i + 1])
            stack.append(len(names) - 1)
            i += 3  # word, name, {
        elif word == "End":
            i = tokens.index("}", i) + 1
        elif word == "OFFSET":
            offsets.append([float(x) for x in tokens[i + 1 : i + 4]])
            i += 4
        elif word == "CHANNELS":
            count = int(tokens[i + 1])
            channels += [(stack[-1], kind) for kind in tokens[i + 2 : i + 2 + count]]
            i += 2 + count
        elif word == "}":
            stack.pop()
            i += 1
        else:
            raise ValueError(f"unexpected '{word}'")
    frames, step = int(tokens[tokens.index("Frames:", i) + 1]), float(tokens[tokens.index("Time:", i) + 1])
    start = tokens.index("Time:", i) + 2
    motion = np.array(tokens[start : start + frames * len(channels)], np.float64).reshape(frames, len(channels))
    local = np.tile(np.eye(3), (frames, len(names), 1, 1))
    for column, (joint, kind) in enumerate(channels):
        if kind.endswith("rotation"):
            axis = np.eye(3)["XYZ".index(kind[0])]
            local[:, joint] = (
                local[:, joint] @ Rotation.from_rotvec(motion[:, column, None] * axis, degrees=True).as_matrix()
            )
    return Skeleton(tuple(names), tuple(parents), np.array(offsets)), local, 1 / step if step > 0 else 30.0
