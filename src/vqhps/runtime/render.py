"""Pictures of predicted meshes: over the photo, and from the side. OpenCV draws the triangles: no GPU, no display."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.export_mesh import vertex_normals
from vqhps.runtime.predictor import Prediction

_MAX_SIDE = 1920  # px; over a larger photo the mesh is drawn at this size and enlarged
_NEAR = 0.05  # m: nothing nearer to the camera is drawn
_AWAY = 1000.0  # m: from there, rays to a body are as good as parallel
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
    middle = np.array([width, height]) / 2
    window = [(np.array(corner) / scale - middle) / people[0].focal for corner in (rect[:2], rect[2:])]
    colors = [person_color(index) for index in range(len(people))] if colors is None else colors
    layer = _draw([p.vertices for p in people], faces, colors, window, (x1 - x0, y1 - y0), perspective=True)
    corner = np.round(np.array([[x0, y0], [x1, y1]]) / scale).astype(int)
    part = result[corner[0, 1] : corner[1, 1], corner[0, 0] : corner[1, 0]]
    if part.shape[:2] != layer.shape[:2]:
        layer = cv2.resize(layer, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_LINEAR)
    part[:] = _blend(part, layer, opacity)
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
    window = [np.array(corner) / view.metre + view.corner for corner in ((x0, y0), (x1, y1))]
    layer = _draw(turned, faces, colors, window, (x1 - x0, y1 - y0))
    picture[y0:y1, x0:x1] = _blend(picture[y0:y1, x0:x1], layer, 1.0)
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
    half = 1 / max(float(camera[0]), 1e-6)
    window = [-half - camera[1:], half - camera[1:]]
    return _blend(crop, _draw([vertices], faces, [color], window, (len(crop), len(crop))), 0.85)


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
    corner = np.array([width, height]) / (2 * metre)
    panels = []
    for vertices, color in zip(centred, colors, strict=True):
        layer = _draw([vertices], faces, [color], [-corner, corner], (width, height))
        panels.append(_blend(np.full((height, width, 3), 255, np.uint8), layer, 1.0))
    return np.concatenate(panels, axis=1)


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


def _draw(
    bodies: Sequence[np.ndarray],
    faces: np.ndarray,
    colors: Sequence[np.ndarray],
    window: Sequence[np.ndarray],
    size: tuple[int, int],
    perspective: bool = False,
) -> np.ndarray:
    """Draw meshes, what is nearest over the rest: (h, w, 4) uint8, colour times coverage, and coverage; soft edges.

    Args:
        bodies: meshes (V, 3), camera axes.
        faces: (F, 3) of each.
        colors: of each body, (3,), or (V, 3) for each vertex.
        window: (2,) each, the upper left and the lower right corner of the picture: x and y in m, or, in perspective,
            over z.
        size: width and height of the picture, px.
        perspective: seen from the origin; else along z.
    """
    vertices = np.concatenate(bodies).astype(np.float32)
    normals = np.concatenate([vertex_normals(body, faces) for body in bodies])
    painted = np.concatenate([np.broadcast_to(c, (len(bodies[0]), 3)) for c in colors])
    lit = _shade(normals, vertices if perspective else np.array([[0, 0, 1]], np.float32), painted)
    depth = vertices[:, 2] if perspective else _AWAY + vertices[:, 2] - vertices[:, 2].min()
    flat = vertices[:, :2] if perspective else vertices[:, :2] * depth[:, None]
    # OpenCV looks along -z, y up, at a window whose half height is 1 at z = -1
    middle, half = (window[0] + window[1]) / 2, (window[1] - window[0]) / 2
    x, y = ((flat - middle * depth[:, None]) / half).T
    seen = np.stack([x * (size[0] / size[1]), -y, -depth], -1).astype(np.float32)
    triangles = np.concatenate([faces + i * len(bodies[0]) for i in range(len(bodies))]).astype(np.int32)
    color, nearness = np.zeros((size[1], size[0], 3), np.float32), np.ones((size[1], size[0]), np.float32)
    settings = cv2.TriangleRasterizeSettings()
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    settings.setGlCompatibleMode(cv2.RASTERIZE_COMPAT_INVDEPTH)
    near = max(_NEAR, 0.9 * float(depth.min()))
    far = max(near, float(depth.max())) * 1.1
    cv2.triangleRasterize(seen, triangles, lit, color, nearness, np.eye(4), np.pi / 2, near, far, settings)
    covered = np.where(nearness < 1, 255, 0).astype(np.uint8)[..., None]
    layer = np.concatenate([cv2.convertScaleAbs(color, alpha=255), covered], -1)
    return cv2.GaussianBlur(layer, (3, 3), 0.6)


def _shade(normals: np.ndarray, rays: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Light P surface points with unit normals (P, 3), view rays (P or 1, 3) and colours (P, 3): (P, 3) in [0, 1]."""
    facing = (normals * rays).sum(-1) / np.maximum(np.linalg.norm(rays, axis=-1), 1e-6)
    light = np.full(len(normals), _AMBIENT, np.float32)
    for direction, strength in _LIGHTS:
        towards = np.array(direction, np.float32) / np.linalg.norm(direction)
        light += strength * np.maximum(normals @ towards.astype(np.float32), 0)
    rim = 0.18 * (1 - np.abs(facing)) ** 3
    return np.clip(colors * light[:, None] + rim[:, None], 0, 1).astype(np.float32)


def _blend(picture: np.ndarray, layer: np.ndarray, opacity: float) -> np.ndarray:
    """A layer (h, w, 4) of colour times coverage, and coverage, over a picture (h, w, 3); both uint8."""
    keep = 1 - layer[..., 3].astype(np.float32) * (opacity / 255)
    behind = cv2.multiply(picture, cv2.merge([keep] * 3), dtype=cv2.CV_8U)
    return cv2.addWeighted(behind, 1, layer[..., :3], opacity, 0)
