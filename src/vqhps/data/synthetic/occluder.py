"""Simple objects with pictures on them: boxes, balls and posts in front of people, in their hands or around."""

import functools

import numpy as np
import trimesh
from jaxtyping import Float, Int

from vqhps.data.synthetic import material as mt
from vqhps.data.synthetic.camera import bounds
from vqhps.data.synthetic.character import Mesh
from vqhps.data.synthetic.light import Panorama


@functools.cache
def _solids() -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
    """Vertices, normals and faces of a unit box, ball, and post, centred."""
    box = trimesh.creation.box(extents=(1, 1, 1))
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    post = trimesh.creation.cylinder(radius=0.5, height=1, sections=24)
    flat = [_unshared(box.vertices, box.faces), (ball.vertices, ball.vertices * 2, ball.faces)]
    return tuple(
        (v.astype(np.float32), n.astype(np.float32), f) for v, n, f in [*flat, _unshared(post.vertices, post.faces)]
    )


def _unshared(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return corners.reshape(-1, 3), np.repeat(across, 3, 0), np.arange(len(faces) * 3).reshape(-1, 3)


def draw_object(
    centre: Float[np.ndarray, "3"], extent: Float[np.ndarray, "3"], panoramas: list[Panorama], rng: np.random.Generator
) -> Mesh:
    """A box, ball or post.

    Args:
        centre: metres.
        extent: size along its own axes before it is turned at random, metres.
        panoramas: pictures are cut out of these.
        rng: source of all randomness.
    """
    vertices, normals, faces = _solids()[rng.choice(3, p=[0.6, 0.25, 0.15])]
    turn = np.linalg.qr(np.eye(3) + rng.normal(0, 0.25, (3, 3)))[0].astype(np.float32)
    turn *= np.sign(np.linalg.det(turn))
    rest = vertices * extent.astype(np.float32)
    flat = (rest[..., :2] + rest[..., 2:] * np.array([0.7, 0.4], np.float32)) / np.float32(extent.max())
    normal = normals / extent.astype(np.float32)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return Mesh(
        rest @ turn.T + centre.astype(np.float32), normal @ turn.T, rest, faces, (flat + 0.5)[faces],
        np.zeros(len(faces), np.int32), (_picture(panoramas, rng),),
    )  # fmt: skip


def _picture(panoramas: list[Panorama], rng: np.random.Generator) -> mt.Material:
    """A plain colour, or a piece of a panorama as it is or in one colour."""
    if rng.random() < 0.35:
        return mt.cloth(rng, mt.flat_texture(), 1.0)
    image = panoramas[rng.integers(len(panoramas))].image
    side = int(rng.integers(48, 256))
    top, left = rng.integers(image.shape[0] - side), rng.integers(image.shape[1] - side)
    piece: Int[np.ndarray, "h w 3"] = np.ascontiguousarray(image[top : top + side, left : left + side])
    if rng.random() < 0.4:
        return mt.cloth(rng, piece, mt.mean_luma(piece))
    return mt.Material(piece, mt.identity_colour(), gloss=rng.uniform(0, 0.1))


def draw_objects(
    person: Mesh, wrists: Float[np.ndarray, "2 3"], panoramas: list[Panorama], rng: np.random.Generator
) -> list[Mesh]:
    """Objects around one person, who is already in camera axes.

    A third of the scenes have something between camera and person, some have something in a hand, some have things
    behind or beside.
    """
    low, high = bounds(person.vertices)
    extent = high - low
    objects = []
    for _ in range(rng.choice(3, p=[0.72, 0.22, 0.06])):
        aim = low + rng.uniform(-0.05, 1.05, 3) * extent
        near = rng.uniform(0.45, 0.9) * max(float(low[2]), 0.3) / max(float(aim[2]), 0.3)
        size = rng.uniform(0.06, 0.45, 3) * extent[:2].max() * near
        if rng.random() < 0.3:  # a rail, a table, a post
            size[rng.integers(2)] *= 5
        objects.append(draw_object(aim * near, size, panoramas, rng))
    if rng.random() < 0.18:
        hand = wrists[rng.integers(2)] + rng.normal(0, 0.05, 3)
        objects.append(draw_object(hand, rng.uniform(0.04, 0.3, 3), panoramas, rng))
    for _ in range(rng.choice(3, p=[0.6, 0.25, 0.15])):
        away = np.array([rng.uniform(-2, 2), rng.uniform(-0.5, 0.9), rng.uniform(0.8, 4)])
        size = rng.uniform(0.2, 1.8, 3)
        objects.append(draw_object((low + high) / 2 + away + [0, 0, size.max() / 2], size, panoramas, rng))
    return objects
