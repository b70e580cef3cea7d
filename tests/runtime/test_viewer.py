"""The viewer in a real browser, from the disk."""

import io

import numpy as np
import pytest
from PIL import Image

from browser import visit
from rigged_people import VIEW, person, two_people
from vqhps.runtime.render import person_color
from vqhps.runtime.rig import default_rig
from vqhps.runtime.viewer import write_viewer


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page with two people, open."""
    path = tmp_path_factory.mktemp("viewer") / "a.html"
    write_viewer(path, two_people(), default_rig(), VIEW, "a <clip>")
    with visit(900, 700) as opened:
        opened.page.goto(path.as_uri())
        opened.page.wait_for_function("people.length === 2 && !state.dirty")
        yield opened


def picture(page) -> np.ndarray:
    """What is on the canvas now, (H, W, 3)."""
    page.page.wait_for_function("!state.dirty")
    shot = page.page.locator("#view").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(float)


def colored(pixels: np.ndarray, number: int) -> np.ndarray:
    """Which pixels have the hue of the person with this number, which is that of the overlay."""
    color = person_color(number)
    hue = (color - color.mean()) / np.linalg.norm(color - color.mean())
    own = pixels - pixels.mean(-1, keepdims=True)
    return (own @ hue > 25) & (own @ hue > 0.9 * np.linalg.norm(own, axis=-1))


def seek(page, frame: int) -> None:
    page.page.locator("#scrub").fill(str(frame))


def test_people_are_shown_when_they_were_seen(page):
    seek(page, 2)
    both = picture(page)
    assert colored(both, 0).sum() > 2000 and colored(both, 4).sum() > 2000
    seek(page, 5)  # the second one is away
    assert colored(picture(page), 4).sum() == 0
    assert page.errors == [] and all(url.startswith("file:") for url in page.requests)
    assert page.page.title() == "a <clip>"


_DRAWN = """(times) => {  // numbers of the people whose meshes are drawn at each time
  const bind = gl.bindVertexArray, elements = gl.drawElements, before = state.time;
  let bound, drawn;
  gl.bindVertexArray = (vao) => { bound = vao; bind.call(gl, vao); };
  gl.drawElements = (...all) => { drawn.push(people.find((p) => p.vao === bound).person); elements.apply(gl, all); };
  const all = times.map((time) => { drawn = []; state.time = time; draw(); return drawn; });
  delete gl.bindVertexArray;
  delete gl.drawElements;
  state.time = before;
  return all;
}"""


def test_who_is_not_seen_is_not_drawn_in_any_frame(page):
    """Not even as a mesh that happens to lie nowhere: in each frame, and until the next, those in it are drawn."""
    people, shares = two_people(), (0.0, 0.5, 0.99)
    frames = np.arange(10, 22)
    times = [float(frame - 10 + share) for frame in frames[:-1] for share in shares] + [11.0]
    expected = [[p.person for p in people if 10 + int(time) in p.frames] for time in times]
    assert page.page.evaluate(_DRAWN, times) == expected
    assert [0] in expected and [0, 4] in expected


def test_camera_view_is_the_photo(page):
    """Where people are in the camera's picture is where their meshes project to."""
    seek(page, 2)
    page.page.click("#camera")
    pixels = picture(page)
    height, width = pixels.shape[:2]
    scale = min(width / VIEW.size[0], height / VIEW.size[1])
    for one in two_people():
        frame = int(np.flatnonzero(one.frames == 12)[0])
        vertices = one.vertices(default_rig(), slice(frame, frame + 1))[0]
        expected = vertices[:, :2] / vertices[:, 2:] * VIEW.focal * scale + [width / 2, height / 2]
        rows, columns = np.nonzero(colored(pixels, one.person))
        inside = (expected > 0).all(1) & (expected < [width, height]).all(1)
        assert abs(columns.max() - expected[inside, 0].max()) < 6 and abs(rows.min() - expected[inside, 1].min()) < 6
    page.page.click("#reset")


def test_toggles_turning_and_playing(page):
    seek(page, 2)
    before = picture(page)
    page.page.get_by_label("Person 0").uncheck()
    without = picture(page)
    assert colored(without, 0).sum() == 0 and colored(without, 4).sum() >= colored(before, 4).sum()
    page.page.get_by_label("Person 0").check()
    canvas = page.page.locator("#view")
    canvas.focus()
    for _ in range(8):
        page.page.keyboard.press("ArrowLeft")
    assert np.abs(picture(page) - before).mean() > 1
    start = page.page.evaluate("orbit.distance")
    page.page.mouse.move(300, 200)
    page.page.mouse.wheel(0, -300)
    page.page.wait_for_function(f"orbit.distance < {0.9 * start}")
    canvas.focus()
    page.page.keyboard.press("Space")
    page.page.wait_for_function("state.playing && state.time > 2.1")
    page.page.click("#play")
    assert page.page.evaluate("!state.playing")
    page.page.click("#reset")


def test_still_on_a_phone(page, tmp_path):
    write_viewer(tmp_path / "a.html", [person(0, np.zeros(1, int), 3)], default_rig(), VIEW, "a")
    page.page.set_viewport_size({"width": 390, "height": 780})
    page.page.goto((tmp_path / "a.html").as_uri())
    assert colored(picture(page), 0).sum() > 2000
    assert page.page.locator("#playback").is_hidden()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.page.locator("#camera").bounding_box()["height"] >= 40
