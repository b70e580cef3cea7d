"""Draw a scene, render the crop around its main person, and give the labels."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from vqhps.body.anny import anny_body
from vqhps.data.mixing import mix_limbs
from vqhps.data.mocap import PoseBank, load_poses
from vqhps.data.sample import STORED_SCALE
from vqhps.data.synthetic.camera import Camera, bounds, draw_camera, place_person
from vqhps.data.synthetic.character import Character, Mesh, draw_outfit
from vqhps.data.synthetic.light import Panorama, load_panoramas
from vqhps.data.synthetic.occluder import draw_objects
from vqhps.data.synthetic.renderer import Lighting, Renderer, render
from vqhps.data.synthetic.split import Split
from vqhps.data.synthetic.wardrobe import Wardrobe, load_wardrobe, rest_bodies

_TRUNCATED = 0.27
_MIXING = 0.75
_EXTRA_PEOPLE = (0.6, 0.25, 0.1, 0.05)
_MIN_JOINTS, _FEW_JOINTS = 6, 3
_JOINT_DEPTH = 0.12  # metres that a joint may lie below the surface
_ATTEMPTS = 200
_SEEN_SHARE = 0.25
_TEXELS = (60, 220)
_SHAPES = 20000
_SHAPE_SEED = {"train": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class Assets:
    """Everything that scenes of one split are made of; `mixing` is the share of people whose limbs come from several
    poses."""

    wardrobe: Wardrobe
    panoramas: list[Panorama]
    poses: PoseBank
    shapes: Float[np.ndarray, "N S"]
    mixing: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rendered:
    """An image (S,S,3) uint8 with its labels; `labels` is what a shard's npz holds, see `prepare`."""

    image: np.ndarray
    labels: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Person:
    mesh: Mesh
    pose: Float[np.ndarray, "K 3 3"]
    shape: Float[np.ndarray, "S"]
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    source: str
    names: tuple[str, ...]


def load_assets(data_root: Path, split: Split) -> Assets:
    """Read wardrobe, panoramas and poses of a split; only the people to train on have mixed limbs.

    Raises:
        VqhpsError: something is missing in `data_root`.
    """
    wardrobe, panoramas = load_wardrobe(data_root, split), load_panoramas(data_root, split)
    poses, mixing = load_poses(data_root, split), _MIXING if split == "train" else 0.0
    return Assets(wardrobe, panoramas, poses, split_shapes(split), mixing)


def split_shapes(split: Split) -> Float[np.ndarray, "N S"]:
    """The bodies of a split, phenotypes."""
    return anny_body("base").sample_shape(_SHAPES, np.random.default_rng(_SHAPE_SEED[split]))


def render_sample(assets: Assets, seed: int, index: int, size: int = 256) -> Rendered:
    """Draw and render one sample; the result depends on the arguments only.

    Args:
        assets: of a split.
        seed: of the dataset.
        index: of the sample.
        size: side of the stored image, px.
    """
    rng = np.random.default_rng([seed, index])
    camera, people = _draw_setting(assets, rng)
    joints = coco_joints(people[0].mesh)
    box, crop = _box(people[0].mesh, camera)
    in_frame = camera.inside(camera.project(joints))
    rays = _crop_rays(camera, crop, size)
    objects = draw_objects(people[0].mesh, joints[9:11], assets.panoramas, rng)
    bodies, things = [p.mesh for p in people], [o for o in objects if o.vertices[:, 2].min() > 0.1]
    for meshes in (bodies + things, bodies, bodies[:1]):  # fewer things if the main person is hidden
        scene = Renderer(meshes, np.concatenate([rays[0, 0, :2], rays[-1, -1, :2]]))
        seen = in_frame & seen_joints(scene, joints)
        if seen.sum() >= _SEEN_SHARE * in_frame.sum():
            break
    lighting = draw_lighting(assets.panoramas, camera, crop, _TEXELS, rng)
    framed = _framed(camera, crop, size)
    image = render(scene, rays, _near(meshes, camera, crop, size) & framed, lighting)[0]
    image[~framed] = 0
    labels = _labels(people[0], camera, box, crop, size)
    pixels = (camera.project(joints) - crop[:2] + crop[2] / 2) * size / crop[2]
    visible = in_frame.astype(np.uint8) + seen
    labels |= {"keypoints2d": pixels.astype(np.float32), "keypoints_visible": visible}
    labels |= {"joints3d": joints.astype(np.float32), "panorama": lighting.panorama.name}
    return Rendered(image, labels)


def _draw_setting(assets: Assets, rng: np.random.Generator) -> tuple[Camera, list[_Person]]:
    """A camera and people, of whom the first has enough joints in the frame and is not too near."""
    for _ in range(_ATTEMPTS):
        camera = draw_camera(rng)
        people = _draw_people(assets, camera, rng)
        box, _ = _box(people[0].mesh, camera)
        wanted = _FEW_JOINTS if rng.random() < 0.04 else _MIN_JOINTS
        enough = camera.inside(camera.project(coco_joints(people[0].mesh))).sum() >= wanted
        if enough and min(box[2:] - box[:2]) >= 24 and people[0].mesh.vertices[:, 2].min() > 0.1:
            return camera, people
    raise RuntimeError(f"no acceptable scene in {_ATTEMPTS} draws")


def _source(poses: PoseBank, index: int) -> str:
    """The motion clip of a pose."""
    clips = getattr(poses, "clip", None)
    return str(index) if clips is None else str(clips[index])


def _draw_people(assets: Assets, camera: Camera, rng: np.random.Generator) -> list[_Person]:
    """The main person, then others on the same ground; all in camera axes."""
    count = 1 + rng.choice(len(_EXTRA_PEOPLE), p=_EXTRA_PEOPLE)
    body = anny_body("base")
    shapes = assets.shapes[rng.integers(len(assets.shapes), size=count)]
    bases, heads = rest_bodies(shapes)
    people: list[_Person] = []
    floor, at = 0.0, np.zeros(3)
    truncated = bool(rng.random() < _TRUNCATED)
    for i in range(count):
        outfit = draw_outfit(assets.wardrobe, float(shapes[i, 0]), rng)
        character = Character(assets.wardrobe, outfit, bases[i], heads[i])
        chosen = int(rng.integers(len(assets.poses.pose)))
        pose = assets.poses.pose[chosen]
        if assets.mixing:
            pose = mix_limbs(pose[None], assets.poses, rng, assets.mixing)[0]
        mesh = character.posed(pose, body.bone_parents, coarse=not truncated or i > 0)
        yaw = Rotation.from_euler("y", rng.uniform(-np.pi, np.pi)).as_matrix()
        world = yaw @ assets.poses.rotation[chosen]
        low = float((mesh.vertices @ world[1].astype(np.float32)).min())
        rotation = camera.rotation @ world
        if i == 0:
            turned = mesh.moved(rotation, np.zeros(3))
            at = place_person(turned.vertices, camera, truncated, rng)
            floor = low
        place = at if i == 0 else at + camera.rotation @ _beside(floor - low, rng)
        mesh = mesh.moved(rotation, place)
        if i == 0 or mesh.vertices[:, 2].min() > 0.3:
            source = _source(assets.poses, chosen)
            people.append(_Person(mesh, pose, shapes[i], rotation, place, source, outfit.names))
    return people


def _beside(lift: float, rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """Where another person stands from the main one, world axes (y up), metres: mostly beside or behind."""
    distance = rng.uniform(0.35, 0.8) if rng.random() < 0.35 else rng.uniform(0.6, 3.5)
    angle = rng.uniform(-np.pi, np.pi)
    offset = np.array([np.sin(angle), 0.0, -np.cos(angle)]) * distance
    if offset[2] > 0.3 and rng.random() < 0.6:
        offset[2] *= -1
    return offset + [0, lift, 0]


def coco_joints(mesh: Mesh) -> Float[np.ndarray, "17 3"]:
    """COCO-17 joints of a person, metres."""
    regressor = anny_body("full").joint_regressors["coco17"]
    return (regressor @ mesh.vertices[: regressor.shape[1]]).astype(np.float64)


def _box(mesh: Mesh, camera: Camera) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "3"]]:
    """Box of the person's part in the frame, xyxy px, and the stored square (centre x, y, side), px."""
    pixels = camera.project(shown_vertices(mesh))
    pixels = pixels[camera.inside(pixels)]
    if len(pixels) < 50:
        return np.zeros(4), np.ones(3)
    box = np.concatenate(bounds(pixels))
    return box, np.array([*(box[:2] + box[2:]) / 2, STORED_SCALE * (box[2:] - box[:2]).max()])


def shown_vertices(mesh: Mesh) -> Float[np.ndarray, "N 3"]:
    """Those that a triangle uses, metres."""
    used = np.zeros(len(mesh.vertices), bool)
    used[mesh.faces] = True
    return mesh.vertices[used].astype(np.float64)


def _crop_rays(camera: Camera, crop: Float[np.ndarray, "3"], size: int) -> Float[np.ndarray, "S S 3"]:
    """Directions of the pixel centres of a square of the frame, z = 1."""
    steps = (np.arange(size) + 0.5) * crop[2] / size - crop[2] / 2
    return camera.rays(crop[0] + steps, crop[1] + steps)


def _framed(camera: Camera, crop: Float[np.ndarray, "3"], size: int) -> Bool[np.ndarray, "S S"]:
    """Pixels of the square that lie in the frame."""
    steps = (np.arange(size) + 0.5) * crop[2] / size - crop[2] / 2
    x, y = crop[0] + steps, crop[1] + steps
    return ((y >= 0) & (y < camera.size[1]))[:, None] & ((x >= 0) & (x < camera.size[0]))[None]


def _near(meshes: list[Mesh], camera: Camera, crop: Float[np.ndarray, "3"], size: int) -> Bool[np.ndarray, "S S"]:
    """Pixels inside the bounding rectangles of the meshes."""
    mask = np.zeros((size, size), bool)
    for mesh in meshes:
        pixels = (camera.project(mesh.vertices) - np.float32(crop[:2] - crop[2] / 2)) * np.float32(size / crop[2])
        mark_rectangle(mask, pixels)
    return mask


def mark_rectangle(mask: Bool[np.ndarray, "H W"], pixels: Float[np.ndarray, "N 2"]) -> None:
    """Set the bounding rectangle of some pixels in a mask."""
    low, high = bounds(pixels)
    size = np.array(mask.shape[::-1])
    low, high = (low - 1).clip(0, size).astype(int), (high + 2).clip(0, size).astype(int)
    mask[low[1] : high[1], low[0] : high[0]] = True


def seen_joints(scene: Renderer, joints: Float[np.ndarray, "J 3"]) -> Bool[np.ndarray, "J"]:
    """Whether nothing lies more than `_JOINT_DEPTH` before a joint."""
    rays = (joints / joints[:, 2:]).astype(np.float32)
    hits = scene.cast(np.ascontiguousarray(rays))
    reach = np.linalg.norm(rays, axis=1)
    return (hits.face < 0) | (hits.distance * reach > joints[:, 2] * reach - _JOINT_DEPTH)


def draw_lighting(
    panoramas: list[Panorama],
    camera: Camera,
    crop: Float[np.ndarray, "3"],
    shown: tuple[float, float],
    rng: np.random.Generator,
) -> Lighting:
    """An environment at a random heading, its exposure, and how wide it is shown.

    A panorama has fewer pixels a degree than the crop of a person: showing it wider than the camera sees keeps the
    background about as sharp as a photograph's.

    Args:
        panoramas: of the split.
        camera: the frame.
        crop: what is shown of it: centre x, y, which keeps its place in the panorama, and width, px.
        shown: least and greatest number of the panorama's columns across the crop.
        rng: source of all randomness.
    """
    panorama = panoramas[rng.integers(len(panoramas))]
    heading = Rotation.from_euler("y", rng.uniform(-np.pi, np.pi)).as_matrix()
    field = crop[2] / camera.intrinsics[0, 0]
    texels = panorama.image.shape[1] / (2 * np.pi) * field
    zoom = float(np.clip(rng.uniform(*shown) / texels, 1, 6))
    dim = np.clip((panorama.mean / 0.18) ** 0.35, 0.55, 1.25)
    centre = np.array([*((crop[:2] - camera.intrinsics[:2, 2]) / camera.intrinsics[0, 0]), 1])
    exposure = float(rng.uniform(0.4, 0.95) * dim)
    gain = 2 ** rng.uniform(-0.6, 0.3) * rng.uniform(0.93, 1.07, 3)
    return Lighting(
        panorama, heading @ camera.rotation.T, exposure, zoom, centre.astype(np.float32), gain.astype(np.float32)
    )


def _labels(
    person: _Person, camera: Camera, box: Float[np.ndarray, "4"], crop: Float[np.ndarray, "3"], size: int
) -> dict[str, Any]:
    return {
        "pose": stored_pose(person.pose),
        "shape": person.shape.astype(np.float32),
        "rotation": person.rotation.astype(np.float32),
        "translation": person.translation.astype(np.float32),
        "intrinsics": camera.intrinsics.astype(np.float32),
        "frame_size": np.array(camera.size, np.int32),
        "box": box.astype(np.float32),
        "crop": crop.astype(np.float32),
        "size": np.int32(size),
        "source": person.source,
        "assets": " ".join(person.names),
    }


def stored_pose(pose: Float[np.ndarray, "K 3 3"]) -> Float[np.ndarray, "K 4"]:
    """Rotations as they are stored: unit quaternions wxyz, w >= 0, 16 bits a number."""
    quaternion = Rotation.from_matrix(pose).as_quat()[:, [3, 0, 1, 2]]
    return (quaternion * np.where(quaternion[:, :1] < 0, -1, 1)).astype(np.float16)
