"""The motion of people as one HTML file that any browser with WebGL 2 opens from disk, without a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.runtime.body_motion import PersonMotion, Timeline
from vqhps.runtime.export_mesh import whole_file, y_up
from vqhps.runtime.export_motion import View, gltf_turns, smallest_index
from vqhps.runtime.render import person_color
from vqhps.runtime.rig import Rig

_TURN_STEPS = 32767  # of a quaternion's components
_LOOKED_AT = 50  # frames of a person that say where the ground is


def write_viewer(path: Path, people: Sequence[PersonMotion], rig: Rig, view: View, title: str) -> None:
    """Write a page that shows people from all sides: orbit, zoom, play, and each person on or off.

    Args:
        path: `.html`.
        people: at least one.
        rig: of their bodies.
        view: the camera, for its button.
        title: of the page.
    """
    timeline = Timeline.of(people)
    lowest, low, high = _extent(people, rig)
    index = smallest_index(len(rig.skin_bones))
    data = {
        "parents": rig.parents,
        "frames": len(timeline.frames),
        "step": timeline.step,
        "fov": view.fov,
        "aspect": view.size[0] / view.size[1],
        "ground": lowest,
        "middle": ((low + high) / 2).tolist(),
        "extent": float(np.linalg.norm(high - low)),
        "wide": index is np.uint32,
        "faces": _text(rig.faces.astype(index)),
        "skin_bones": _text(rig.skin_bones),
        "skin_weights": _text(rig.skin_weights),
        "people": [_person(person, timeline) for person in people],
    }
    template = Path(__file__).with_name("viewer.html").read_text(encoding="utf-8")
    page = template.replace("__TITLE__", html.escape(title)).replace("__DATA__", json.dumps(data))
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _person(person: PersonMotion, timeline: Timeline) -> dict[str, Any]:
    step = float(np.abs(person.rest.vertices).max() / _TURN_STEPS)
    return {
        "person": person.person,
        "color": person_color(person.person).tolist(),
        "step": step,
        "vertices": _text(np.round(person.rest.vertices / step).astype(np.int16)),
        "joints": _text(person.rest.joints.astype(np.float32)),
        "turns": _text(np.round(gltf_turns(person) * _TURN_STEPS).astype(np.int16)),
        "places": _text(y_up(person.translation).astype(np.float32)),
        "rows": np.where(timeline.seen(person), timeline.held(person), -1).tolist(),
    }


def _extent(people: Sequence[PersonMotion], rig: Rig) -> tuple[float, np.ndarray, np.ndarray]:
    """Height of the ground, under the lowest foot of most frames, and corners (3,) of where the joints are; y up."""
    soles = []
    for person in people:
        for frame in np.unique(np.linspace(0, len(person.frames) - 1, _LOOKED_AT).astype(int)).tolist():
            soles.append(y_up(person.vertices(rig, slice(frame, frame + 1)))[0, :, 1].min())
    joints = np.concatenate([y_up(person.joints(rig)).reshape(-1, 3) for person in people])
    return float(np.quantile(soles, 0.1)), joints.min(0), joints.max(0)


def _text(values: np.ndarray) -> str:
    """Little-endian numbers in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode()
