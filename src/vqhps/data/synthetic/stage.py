"""People who move before a fixed camera: who they are, where they go, and when their paths cross.

World axes: y up, metres; the origin lies on the ground below the camera, which looks along -z.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vqhps.body.anny import anny_body
from vqhps.data.synthetic.camera import Camera
from vqhps.data.synthetic.character import Character, Mesh, draw_outfit
from vqhps.data.synthetic.light import Panorama, load_panoramas
from vqhps.data.synthetic.motion import JOIN, RATE, Motion, Track, fold, joint_speed, load_motions, on_the_ground
from vqhps.data.synthetic.scene import split_shapes
from vqhps.data.synthetic.split import Split
from vqhps.data.synthetic.wardrobe import Wardrobe, load_wardrobe, rest_bodies
from vqhps.errors import VqhpsError

EYE_HEIGHT = 1.5  # metres: of the camera
_BODY = 1.72  # metres: a usual height, from which shares of the frame become distances
_NEAREST, _FARTHEST = 0.72, 0.38  # shares of the frame's height that a usual body takes
_LANES = (0.74, 0.57, 0.44)  # the same, of people who walk past each other
_LONGEST = 4.0  # seconds: of a sequence, before it is played back
_STRAIGHT, _WALK = 0.95, 3.0  # a walk covers so much of its path as the crow flies, and so many metres
_FASTEST = 1.6  # m/s: of a walk
_LIVELY = 0.5  # m/s: mean speed of the joints from which somebody moves and does not just stand
_HEADINGS = 24


_OPEN = frozenset({
    "autoshop_01", "blocky_photo_studio", "city", "dancing_hall", "dawn", "drachenfels_cellar", "hall",
    "kloppenheim_05", "leadenhall_market", "modern_buildings_2", "narrow_moonlit_road", "night", "noon_grass", "park",
    "st_peters_square_night", "sunrise", "sunset", "venice", "vestibule", "warehouse",
})  # fmt: skip
"""Panoramas with some metres of open ground all around, on which people can stand."""


@dataclasses.dataclass(frozen=True)
class Props:
    """What videos of one split are made of."""

    wardrobe: Wardrobe
    panoramas: list[Panorama]
    motions: list[Motion]
    shapes: Float[np.ndarray, "N S"]


@dataclasses.dataclass(frozen=True)
class Actor:
    """A person, dressed, and what it does; `since` is the time on its track at the start of the video, s."""

    character: Character
    shape: Float[np.ndarray, "S"]
    track: Track
    since: float = 0.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """A person at one time in camera axes: `mesh` = `rotation` @ body vertices + `translation`."""

    mesh: Mesh
    pose: Float[np.ndarray, "K 3 3"]
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]


def load_props(data_root: Path, split: Split) -> Props:
    """Read wardrobe, panoramas and whole sequences of motion of a split.

    Raises:
        VqhpsError: something is missing in `data_root`.
    """
    wardrobe = load_wardrobe(data_root, split)
    panoramas = [p for p in load_panoramas(data_root, split) if p.name in _OPEN]
    return Props(wardrobe, panoramas, load_motions(data_root, split), split_shapes(split))


def video_camera(size: tuple[int, int], rng: np.random.Generator) -> Camera:
    """A level camera at eye height, 40 to 60 degrees wide, that sees near people whole."""
    focal = size[0] / 2 / np.tan(np.radians(rng.uniform(42, 58)) / 2)
    intrinsics = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    near = _distance(_NEAREST, focal, size)
    pitch = np.arctan((EYE_HEIGHT - 0.52 * _BODY) / near)
    turn = Rotation.from_euler("x", pitch)
    return Camera(size, intrinsics, turn.as_matrix() @ np.diag([1.0, -1.0, -1.0]))


def _distance(share: float, focal: float, size: tuple[int, int]) -> float:
    """From the camera to a usual body that takes a share of the frame's height, metres."""
    return focal * _BODY / (share * size[1])


def draw_actors(
    props: Props, camera: Camera, count: int, seconds: float, meet: float, rng: np.random.Generator
) -> list[Actor]:
    """People for a video: one does several things, more walk past each other.

    Args:
        props: of a split.
        camera: the frame.
        count: people.
        seconds: how long they are seen.
        meet: when all that walk are in the middle of the frame, s; they go to and fro, alternately to the right and to
            the left at that time, each at its own distance, so that they hide each other and never touch.
        rng: source of all randomness.
    """
    if count > len(_LANES):
        raise VqhpsError(f"{count} people; there is room for {len(_LANES)}")
    shapes = props.shapes[rng.integers(len(props.shapes), size=count)]
    bases, heads = rest_bodies(shapes)
    actors = []
    walks = [m for m in props.motions if _is_walk(m)]
    order = rng.permutation(len(walks))
    for i in range(count):
        outfit = draw_outfit(props.wardrobe, float(shapes[i, 0]), rng)
        character = Character(props.wardrobe, outfit, bases[i], heads[i])
        person = (shapes[i], heads[i], _sole(character, len(props.wardrobe.body_vertices)))
        if count == 1:
            actors.append(Actor(character, shapes[i], _stay(props.motions, camera, person, seconds, rng)))
            continue
        to_the_right = i % 2 == 0
        own = [walks[k] for k in np.roll(order, -i)]
        track = _walk(own, camera, _LANES[i], to_the_right, person, seconds, rng)
        actors.append(Actor(character, shapes[i], track, _middle(track, meet) - meet))
    return actors


_Person = tuple[Float[np.ndarray, "S"], Float[np.ndarray, "K 3"], float]


def _sole(character: Character, body: int) -> float:
    """How much shoes add below the feet, metres."""
    height = character.rest[:, 1]
    return float(height[:body].min() - height.min())


def _is_walk(motion: Motion) -> bool:
    ground = motion.root[:, ::2]
    path, gone = np.linalg.norm(np.diff(ground, axis=0), axis=1).sum(), np.linalg.norm(ground[-1] - ground[0])
    return bool(gone > max(_STRAIGHT * path, _WALK) and gone < _FASTEST * motion.seconds)


def _stay(motions: list[Motion], camera: Camera, person: _Person, seconds: float, rng: np.random.Generator) -> Track:
    """Sequences in random order around one place, each turned such that it stays in view."""
    focal, size = camera.intrinsics[0, 0], camera.size
    near, far = (_distance(share, focal, size) for share in (_NEAREST, _FARTHEST))
    home = np.array([0.0, 0.0, -0.7 * near - 0.3 * far])
    lively = [m for m in motions if joint_speed(m) > _LIVELY]
    chosen: list[Motion] = []
    total = 0.0
    while total < seconds:
        for k in rng.permutation(len(lively)):
            whole = lively[k]
            first = int(rng.integers(max(1, len(whole.root) - int(_LONGEST * RATE))))
            motion = on_the_ground(whole.part(first, first + int(_LONGEST * RATE)), *person)
            start = motion.at(fold(0.0, motion.seconds))[1] * [1, 0, 1]
            turns = rng.uniform(0, 2 * np.pi) + np.arange(_HEADINGS) * (2 * np.pi / _HEADINGS)
            placed = [motion.moved(-start).turned(a).moved(home) for a in turns]
            outside = [_outside(m.root, near, far, size[0] / 2 / focal) for m in placed]
            if min(outside) < 0.05:
                good = [m for m, far_out in zip(placed, outside, strict=True) if far_out < 0.05]
                chosen.append(good[0])
                total += 2 * motion.seconds + JOIN
            if total >= seconds:
                break
    return Track(chosen)


def _outside(root: Float[np.ndarray, "T 3"], near: float, far: float, half: float) -> float:
    """How far a path leads out of view, at worst, metres; `half` is the tangent of half the field of view."""
    depth = -root[:, 2]
    beside = np.abs(root[:, 0]) - (half * depth - 0.5)
    return float(max(beside.max(), (near - depth).max(), (depth - far).max()))


def _walk(
    walks: list[Motion],
    camera: Camera,
    share: float,
    to_the_right: bool,
    person: _Person,
    seconds: float,
    rng: np.random.Generator,
) -> Track:
    """To and fro across the frame, first to the right or to the left, at the distance that a share gives."""
    focal, size = camera.intrinsics[0, 0], camera.size
    distance = _distance(share, focal, size)
    reach = 2 * (distance * size[0] / 2 / focal - 0.45)  # metres that may be walked in view
    side = 1.0 if to_the_right else -1.0
    placed: list[Motion] = []
    total = 0.0
    while total < seconds:
        motion = on_the_ground(walks[len(placed) % len(walks)], *person)
        gone = np.linalg.norm(motion.root[:, ::2] - motion.root[0, ::2], axis=1)
        first = int(rng.integers(max(1, int((gone < gone.max() - reach).sum()))))
        last = int(np.searchsorted(gone, gone[first] + reach))
        motion = motion.part(first, last)
        start, end = (motion.at(fold(t, motion.seconds))[1] for t in (0.0, motion.seconds))
        heading = np.arctan2(end[0] - start[0], end[2] - start[2])
        motion = motion.moved(-start * [1, 0, 1]).turned(side * np.pi / 2 - heading + np.radians(rng.uniform(-3, 3)))
        length = np.linalg.norm((end - start)[::2])
        if not placed:
            home = np.array([-side * length / 2, 0.0, -distance])
        placed.append(motion.moved(home))
        total += 2 * motion.seconds + JOIN
    return Track(placed)


def _middle(track: Track, after: float) -> float:
    """Time on a track when a sequence that is played forth is half way across the frame, first after some time."""
    number = 0
    while True:
        motion = track.motions[number % len(track.motions)]
        times = np.linspace(0, motion.seconds, 200)
        across = [abs(motion.at(fold(float(t), motion.seconds))[1][0]) for t in times]
        time = track.start(number) + float(times[int(np.argmin(across))])
        if time >= after:
            return time
        number += 1


def look(actor: Actor, camera: Camera, time: float) -> Seen:
    """A person at a time of the video, s, in camera axes."""
    pose, facing, root = actor.track.at(actor.since + time)
    mesh = actor.character.posed(pose, anny_body("base").bone_parents)
    rotation = camera.rotation @ facing
    place = camera.rotation @ (root - [0, EYE_HEIGHT, 0])
    return Seen(mesh.moved(rotation, place), pose, rotation, place)
