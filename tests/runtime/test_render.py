"""The renderer: meshes land on the pixels they project to, nearer people hide others, and nothing else changes."""

import numpy as np
import pytest

from shared import tiny_mesh
from vqhps.errors import VqhpsError
from vqhps.runtime import render
from vqhps.runtime.predictor import Prediction
from vqhps.runtime.render import (
    SideView,
    person_color,
    render_overlay,
    render_side,
    render_side_view,
)

FACES = tiny_mesh()[1]


def person(x: float = 0.0, y: float = 0.0, z: float = 4.0, focal: float = 400.0) -> Prediction:
    """The capsule (0.5 x 1.8 x 0.3 m) at a place in the camera frame."""
    place = np.array([x, y, z], np.float32)
    empty = np.zeros(0, np.float32)
    return Prediction(
        box=empty, score=1.0, vertices=tiny_mesh()[0] + place, joints=empty, joints2d=empty, rotation=np.eye(3),
        translation=place, camera=empty, crop_center=empty, crop_size=1.0, focal=focal, indices=empty,
    )  # fmt: skip


def grey(height: int = 300, width: int = 400) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def drawn(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows that changed."""
    rows, columns = np.nonzero((before != after).any(-1))
    return columns, rows


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.8, -0.2), (-1.9, 0.3)])
def test_mesh_covers_the_pixels_it_projects_to(x, y):
    image = grey()
    columns, rows = drawn(image, render_overlay(image, [person(x, y)], FACES))
    points = (tiny_mesh()[0] + [x, y, 4.0]) @ np.diag([400, 400, 1])
    pixels = points[:, :2] / points[:, 2:] + [200, 150]
    expected = np.clip([pixels.min(0), pixels.max(0)], 0, [400, 300])
    found = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    assert np.abs(found - expected).max() <= 2.5


def test_photo_outside_the_mesh_is_untouched_and_the_input_too():
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    copy = image.copy()
    result = render_overlay(image, [person()], FACES)
    np.testing.assert_array_equal(image, copy)
    np.testing.assert_array_equal(result[:, :160], image[:, :160])
    assert result is not image and result.dtype == np.uint8


def test_nearer_person_hides_the_other():
    far, near = person(0, 0, 8.0), person(0, 0, 4.0)
    image = grey()
    middle = render_overlay(image, [far, near], FACES)[150, 200].astype(float)
    alone = render_overlay(image, [near], FACES)[150, 200].astype(float)
    # the same place and light, in the colour of the second person instead of the first
    assert np.argmax(person_color(1)) == np.argmax(middle) != np.argmax(alone)


def test_people_have_different_colours():
    colors = np.stack([person_color(i) for i in range(6)])
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + np.eye(6)
    assert distance.min() > 0.15 and colors.min() >= 0 and colors.max() <= 1


def test_large_photo_is_drawn_at_full_size():
    image = grey(2400, 3200)
    columns, rows = drawn(image, render_overlay(image, [person(focal=3200.0)], FACES))
    assert columns.max() - columns.min() == pytest.approx(0.5 * 3200 / 4, abs=12)
    assert rows.max() - rows.min() == pytest.approx(1.8 * 3200 / 4, abs=12)


@pytest.mark.parametrize("place", [(0, 0, -5.0), (50.0, 0, 4.0), (0, 0, 0.1)])
def test_body_behind_beside_or_around_the_camera(place):
    image = grey()
    result = render_overlay(image, [person(*place)], FACES)
    assert result.shape == image.shape
    if place[2] != 0.1:
        np.testing.assert_array_equal(result, image)


def first_hits(bodies: list[np.ndarray], origins: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Which body each ray (N, 3) hits first, by Embree; -1 for none."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    vertices = np.concatenate(bodies).astype(np.float32)
    TriangleMesh(scene, vertices, np.concatenate([FACES + i * len(bodies[0]) for i in range(len(bodies))]))
    hits = scene.run(origins.astype(np.float32), rays.astype(np.float32), output=True)["primID"]
    return np.where(hits < 0, -1, hits // len(FACES))


def flat_colors(monkeypatch, count: int) -> np.ndarray:
    """Colours (N, 3) that show as they are: without light and soft edges."""
    monkeypatch.setattr(render, "_shade", lambda normals, rays, colors: colors.astype(np.float32))
    monkeypatch.setattr(render.cv2, "GaussianBlur", lambda layer, *a: layer)
    return np.eye(3)[:count]


@pytest.mark.parametrize("nearest", [3.0, 0.5, 0.0])
def test_overlay_shows_what_rays_hit_first(nearest, monkeypatch):
    """Pixel by pixel; with people who overlap, cross, are cut by the photo, and reach behind the camera."""
    colors = flat_colors(monkeypatch, 3)
    people = [person(-0.3, 0.1, nearest, 150), person(0.2, -0.6, 6.0, 150), person(0.1, 0.0, nearest + 0.2, 150)]
    picture = render_overlay(np.zeros((290, 410, 3), np.uint8), people, FACES, 1.0, list(colors))
    x, y = np.meshgrid(np.arange(410) + 0.5 - 205, np.arange(290) + 0.5 - 145)
    rays = np.stack([x.ravel(), y.ravel(), np.full(x.size, 150)], -1) / 150
    hits = first_hits([p.vertices for p in people], rays * render._NEAR, rays).reshape(290, 410)
    shown = np.where(picture.any(-1), picture.argmax(-1), -1)
    assert len(np.unique(hits)) >= 3
    assert (shown != hits).mean() < 1e-4


def test_side_view_shows_what_rays_hit_first(monkeypatch):
    colors = flat_colors(monkeypatch, 2)
    view = SideView.around(np.array([2.0, -1.0]), np.array([6.0, 1.0]), (301, 180))
    bodies = [person(0.0, 0.1, 3.2).vertices, person(0.05, -0.3, 3.4).vertices]
    picture = render_side_view(bodies, FACES, colors, view)
    z, y = np.meshgrid((np.arange(301) + 0.5) / view.metre, (np.arange(180) + 0.5) / view.metre)
    places = np.stack([np.full(z.size, 9.0), y.ravel() + view.corner[1], z.ravel() + view.corner[0]], -1)
    hits = first_hits(bodies, places, np.tile([-1.0, 0, 0], (z.size, 1))).reshape(180, 301)
    shown = np.where(np.ptp(picture, -1) > 0, picture.argmax(-1), -1)
    assert len(np.unique(hits)) == 3
    assert (shown != hits).mean() < 1e-4


def test_nobody_changes_nothing():
    np.testing.assert_array_equal(render_overlay(grey(), [], FACES), grey())


def test_side_view_shows_the_depth():
    side = render_side([person(2.0, 1.0, 7.0)], FACES, height=400)
    assert side.shape[0] == 400
    columns, rows = drawn(np.full_like(side, 255), side)
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(1.8 / 0.3, rel=0.06)
    assert abs(columns.mean() - side.shape[1] / 2) < 3


def test_side_view_has_the_camera_on_the_left():
    vertices = tiny_mesh()[0].copy()
    vertices[vertices[:, 1] > 0.7, 2] -= 1.0  # the low end of the capsule (y down) comes towards the camera
    bent = person()
    object.__setattr__(bent, "vertices", vertices + np.float32([0, 0, 4]))
    side = render_side([bent], FACES, height=400)
    columns, rows = drawn(np.full_like(side, 255), side)
    assert columns[rows > 330].mean() < columns[rows < 200].mean()


def test_side_view_has_a_panel_a_person():
    one, three = (render_side([person()] * n, FACES, height=200) for n in (1, 3))
    assert three.shape == (200, 3 * one.shape[1], 3)
    with pytest.raises(VqhpsError, match="nobody"):
        render_side([], FACES)


def test_view_from_the_side_shows_depth_to_scale():
    view = SideView.around(np.array([2.0, -1.5]), np.array([8.0, 1.5]), (600, 300))
    assert view.metre == 100 and view.size == (600, 300)
    places = [(0.5, 0.2, 4.0), (-0.5, 0.0, 6.5)]
    bodies = [person(*place).vertices for place in places]
    colors = [np.array([1.0, 0, 0]), np.array([0, 0, 1.0])]
    empty, both = render_side_view([], FACES, [], view), render_side_view(bodies, FACES, colors, view)
    assert empty.shape == both.shape == (300, 600, 3)
    assert (np.flatnonzero((empty[75] < 255).any(-1)) == np.arange(0, 600, 100)).all()  # a line a metre, 2 m to 7 m
    for (_, y, z), channel in zip(places, (0, 2), strict=True):
        colored = both[..., channel].astype(int) - both[..., 2 - channel] > 40
        rows, columns = np.nonzero(colored)
        found = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
        expected = np.array([[z - 2 - 0.15, y + 1.5 - 0.9], [z - 2 + 0.15, y + 1.5 + 0.9]]) * 100
        assert np.abs(found - expected).max() <= 3


def test_view_from_the_side_is_from_the_right():
    """Of two at one depth, the one to the right hides the other; who is out of the view is left out."""
    view = SideView.around(np.array([3.0, -1.0]), np.array([5.0, 1.0]), (200, 200))
    right, left = person(1.0).vertices, person(-1.0).vertices
    red, blue = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    for bodies, colors in (([right, left], [red, blue]), ([left, right], [blue, red])):
        middle = render_side_view(bodies, FACES, colors, view)[100, 100].astype(int)
        assert middle[0] > middle[2] + 40
    far = render_side_view([person(z=9.0).vertices], FACES, [red], view)
    np.testing.assert_array_equal(far, render_side_view([], FACES, [], view))
