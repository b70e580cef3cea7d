"""Pictures of predicted meshes by ray casting on the CPU: over the photo, and from the side. No GL, no display."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.predictor import Prediction

_MAX_SIDE = 1920  # px; over a larger photo the mesh is cast at this size and enlarged
_NEAR = 0.05  # m
_LIGHTS = (((-0.4, -0.55, -0.75), 0.70), ((0.7, -0.1, -0.5), 0.25), ((0.0, 0.8, -0.3), 0.10))  # towards it, strength
_AMBIENT = 0.26
_GRID = 205  # grey of the lines of a side view, a metre apart
_PANEL_MARGIN = 0.08  # of the height of the side view


def person_color(index: int) -> np.ndarray:
    """Colour (3,) in [0, 1] of the person with this number; neighbours in number are far apart in hue."""
    hue = (0.57 + index * 0.381966) % 1.0  # golden-angle steps
    return np.array(colorsys.hls_to_rgb(hue, 0.63, 0.80))


def render_overlay(
    image: np.ndarray,
    people: Sequence[Prediction],
    faces: np.ndarray,
    opacity: float = 0.85,
    colors: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Draw meshes over their photo, in perspective.

    Args:
        image: (H, W, 3) uint8 RGB.
        people: predictions for this photo; nearer ones hide those behind.
        faces: (F, 3) of their mesh.
        opacity: of the meshes, in [0, 1].
        colors: of each mesh, (3,) in [0, 1]; by their order by default.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    result = image.copy()
    height, width = image.shape[:2]
    shrink = min(1.0, _MAX_SIDE / max(height, width))
    small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    rect = _bounds(people, (width, height), small)
    if rect is None:
        return result
    x0, y0, x1, y1 = rect
    scale = np.array([small[0] / width, small[1] / height])
    x = ((np.arange(x0, x1) + 0.5) / scale[0] - width / 2) / people[0].focal
    y = ((np.arange(y0, y1) + 0.5) / scale[1] - height / 2) / people[0].focal
    colors = [person_color(index) for index in range(len(people))] if colors is None else colors
    layer = _cast([p.vertices for p in people], faces, x, y, colors, perspective=True)
    corner = np.round(np.array([[x0, y0], [x1, y1]]) / scale).astype(int)
    window = result[corner[0, 1] : corner[1, 1], corner[0, 0] : corner[1, 0]]
    if window.shape[:2] != layer.shape[:2]:
        layer = cv2.resize(layer, (window.shape[1], window.shape[0]), interpolation=cv2.INTER_LINEAR)
    window[:] = _blend(window, layer, opacity)
    return result


def render_side(people: Sequence[Prediction], faces: np.ndarray, height: int = 640) -> np.ndarray:
    """Draw each mesh from the side: turned by 90 degrees about the vertical through its centre.

    Orthographic, one panel a person, all at one scale, on white; the photo's camera is to the left.

    Args:
        people: predictions.
        faces: (F, 3) of their mesh.
        height: of the picture, px.

    Returns:
        (height, W, 3) uint8 RGB; W grows with the number of people.
    """
    if not people:
        raise VqhpsError("there is nobody to draw from the side")
    colors = [person_color(index) for index in range(len(people))]
    return render_row([_turn_to_side(p.vertices) for p in people], faces, colors, height)


@dataclass(frozen=True)
class SideView:
    """Looks at a scene from its right, orthographic: depth runs to the right, the photo's camera is to the left.

    Attributes:
        corner: (2,) depth and height (z and y of the camera frame) at the upper left corner, m.
        metre: px.
        size: width and height of the picture, px.
    """

    corner: np.ndarray
    metre: float
    size: tuple[int, int]

    @staticmethod
    def around(low: np.ndarray, high: np.ndarray, size: tuple[int, int]) -> SideView:
        """The view that holds depths and heights from `low` to `high`, (2,) each, m; at most 1920 px wide or high."""
        shrink = min(1.0, _MAX_SIDE / max(size))
        small = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
        metre = float(np.min(np.array(small) / np.maximum(high - low, 1e-3)))
        return SideView((low + high) / 2 - np.array(small) / (2 * metre), metre, small)


def render_side_view(
    bodies: Sequence[np.ndarray], faces: np.ndarray, colors: Sequence[np.ndarray], view: SideView
) -> np.ndarray:
    """Draw the meshes of a photo where they stand, seen from the side, before a grid of metres.

    Args:
        bodies: meshes (V, 3) m, camera frame; none is allowed.
        faces: (F, 3) of each.
        colors: of each, (3,) in [0, 1].
        view: where to look from, and the size of the picture.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = np.full((view.size[1], view.size[0], 3), 255, np.uint8)
    for axis, side in enumerate(view.size):
        metres = np.arange(np.ceil(view.corner[axis]), view.corner[axis] + side / view.metre)
        lines = ((metres - view.corner[axis]) * view.metre).astype(int)
        picture[(slice(None), lines) if axis == 0 else (lines,)] = _GRID
    if not bodies:
        return picture
    turned = [_turn_to_side(v) for v in bodies]
    points = (np.concatenate(turned)[:, :2] - view.corner) * view.metre
    x0, y0 = (int(v) for v in np.clip(np.floor(points.min(axis=0)) - 2, 0, view.size))
    x1, y1 = (int(v) for v in np.clip(np.ceil(points.max(axis=0)) + 2, 0, view.size))
    if x1 <= x0 or y1 <= y0:
        return picture
    x = (np.arange(x0, x1) + 0.5) / view.metre + view.corner[0]
    y = (np.arange(y0, y1) + 0.5) / view.metre + view.corner[1]
    window = picture[y0:y1, x0:x1]
    window[:] = _blend(window, _cast(turned, faces, x, y, colors), 1.0)
    return picture


def render_crop(
    crop: np.ndarray, vertices: np.ndarray, camera: np.ndarray, faces: np.ndarray, color: np.ndarray
) -> np.ndarray:
    """Draw a mesh over its crop, with the weak-perspective camera of the crop.

    Args:
        crop: (S, S, 3) uint8 RGB.
        vertices: (V, 3) metres, camera axes, body-centred.
        camera: (3,) `(s, tx, ty)`.
        faces: (F, 3).
        color: (3,) in [0, 1].

    Returns:
        (S, S, 3) uint8 RGB, a new array.
    """
    side = len(crop)
    line = ((np.arange(side) + 0.5) * (2 / side) - 1) / max(float(camera[0]), 1e-6)
    return _blend(crop, _cast([vertices], faces, line - camera[1], line - camera[2], [color]), 0.85)


def render_row(
    bodies: Sequence[np.ndarray], faces: np.ndarray, colors: Sequence[np.ndarray], height: int
) -> np.ndarray:
    """Draw meshes beside each other: orthographic, seen along z, one panel a mesh, all at one scale, on white.

    Args:
        bodies: at least one mesh (V, 3), camera axes.
        faces: (F, 3) of each.
        colors: of each mesh, (3,), or (V, 3) for each of its vertices; in [0, 1].
        height: of the picture, px.

    Returns:
        (height, W, 3) uint8 RGB; all panels are equally wide.
    """
    centred = [v - (v.max(axis=0) + v.min(axis=0)) / 2 for v in bodies]
    half = np.max([np.abs(v).max(axis=0) for v in centred], axis=0)
    metre = height * (1 - 2 * _PANEL_MARGIN) / (2 * max(half[1], half[0] / 2, 1e-6))  # px
    width = int(np.ceil(2 * half[0] * metre + 2 * _PANEL_MARGIN * height))
    x, y = ((np.arange(side) + 0.5 - side / 2) / metre for side in (width, height))
    panels = []
    for vertices, color in zip(centred, colors, strict=True):
        layer = _cast([vertices], faces, x, y, [color])
        panels.append(_blend(np.full((height, width, 3), 255, np.uint8), layer, 1.0))
    return np.concatenate(panels, axis=1)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3) of a mesh, faces weighted by their area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    corner = faces.ravel()
    weight = np.repeat(face_normals, 3, axis=0)
    sums = [np.bincount(corner, weight[:, axis], minlength=len(vertices)) for axis in range(3)]
    normals = np.stack(sums, -1)
    return (normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def _turn_to_side(vertices: np.ndarray) -> np.ndarray:
    """Turn a mesh so that its old depth axis points right."""
    return np.stack([vertices[:, 2], vertices[:, 1], -vertices[:, 0]], -1)


def _bounds(
    people: Sequence[Prediction], photo: tuple[int, int], small: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Rectangle (x0, y0, x1, y1) of the shrunk photo that the projected meshes touch; `None` if out of sight."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for person in people:
        z = person.vertices[:, 2:]
        if z.min() < _NEAR:  # reaches behind the camera: no bound by projecting the vertices
            low, high = np.zeros(2), np.array(photo, float)
            break
        points = person.vertices[:, :2] / z * person.focal + np.array(photo) / 2
        low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
    scale = np.array(small) / photo
    x0, y0 = (int(v) for v in np.clip(np.floor(low * scale) - 2, 0, small))
    x1, y1 = (int(v) for v in np.clip(np.ceil(high * scale) + 2, 0, small))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _cast(
    bodies: Sequence[np.ndarray],
    faces: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    colors: Sequence[np.ndarray],
    perspective: bool = False,
) -> np.ndarray:
    """Shade what the rays of a picture hit first: (h, w, 4) uint8, colour times coverage, and coverage; edges are
    softened.

    Args:
        bodies: meshes (V, 3), camera axes.
        faces: (F, 3) of each.
        x: (w,) of each column, evenly spaced: m, or, in perspective, slope of the ray.
        y: (h,) of each row, the same.
        colors: of each body, (3,), or (V, 3) for each vertex.
        perspective: rays come from the origin; else they are parallel to z.
    """
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    count = len(bodies[0])
    vertices = np.concatenate(bodies).astype(np.float32)
    triangles = np.concatenate([faces + i * count for i in range(len(bodies))]).astype(np.int32)
    scene = EmbreeScene()
    TriangleMesh(scene, vertices, triangles)
    pixel = np.flatnonzero(_around(bodies, x, y, perspective))
    rows, columns = np.divmod(pixel, len(x))
    places, line = np.zeros((2, len(pixel), 3), np.float32)
    line[:, 2], places[:, 2] = 1, 0 if perspective else vertices[:, 2].min() - 1
    moving = line if perspective else places
    moving[:, 0], moving[:, 1] = x[columns], y[rows]
    hits = scene.run(places, line, output=True)
    hit = np.flatnonzero(hits["primID"] >= 0)
    corners, u, v = triangles[hits["primID"][hit]].T, hits["u"][hit, None], hits["v"][hit, None]
    normals = np.concatenate([vertex_normals(body, faces) for body in bodies])
    painted = np.concatenate([np.broadcast_to(c, (count, 3)) for c in colors]).astype(np.float32)
    weights = (1 - u - v, u, v)  # of the corners of the triangle hit
    normal, color = (sum(w * values[c] for w, c in zip(weights, corners, strict=True)) for values in (normals, painted))
    layer = np.zeros((len(y) * len(x), 4), np.uint8)
    layer[pixel[hit], :3] = _shade(normal, line[hit], color)
    layer[pixel[hit], 3] = 255
    return cv2.GaussianBlur(layer.reshape(len(y), len(x), 4), (3, 3), 0.6)


def _around(bodies: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray, perspective: bool) -> np.ndarray:
    """Pixels (h, w) in the convex outlines of meshes or at their edge, see `_cast`: no other ray can hit them."""
    mask = np.zeros((len(y), len(x)), np.uint8)
    step = np.array([(line[-1] - line[0]) / max(len(line) - 1, 1) or 1.0 for line in (x, y)])
    for body in bodies:
        if perspective and body[:, 2].min() < _NEAR:  # reaches behind the camera: no outline
            return np.ones_like(mask)
        points = body[:, :2] / body[:, 2:] if perspective else body[:, :2]
        outline = cv2.convexHull(np.round((points - (x[0], y[0])) / step).astype(np.int32))
        cv2.fillConvexPoly(mask, outline, 1)
        cv2.polylines(mask, [outline], True, 1, thickness=3)
    return mask


def _shade(normals: np.ndarray, rays: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Light P surface points with normals and view rays (P, 3) and colours (P, 3) in [0, 1]: (P, 3) uint8."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    facing = np.einsum("pc,pc->p", normals, rays) / np.linalg.norm(rays, axis=-1)
    normals = np.where(facing[:, None] > 0, -normals, normals)  # inner sides are lit like outer ones
    light = np.full(len(normals), _AMBIENT, np.float32)
    for direction, strength in _LIGHTS:
        towards = np.array(direction, np.float32) / np.linalg.norm(direction)
        light += strength * np.maximum(normals @ towards.astype(np.float32), 0)
    rim = 0.18 * (1 - np.abs(facing)) ** 3
    return np.clip((colors * light[:, None] + rim[:, None]) * 255, 0, 255).astype(np.uint8)


def _blend(picture: np.ndarray, layer: np.ndarray, opacity: float) -> np.ndarray:
    """A layer (h, w, 4) of colour times coverage, and coverage, over a picture (h, w, 3); both uint8."""
    keep = 1 - layer[..., 3:].astype(np.float32) * (opacity / 255)
    return np.clip(picture * keep + layer[..., :3] * np.float32(opacity) + 0.5, 0, 255).astype(np.uint8)
