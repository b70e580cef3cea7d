"""Videos of the meshes of a video: over its frames, and beside these from the side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from vqhps.runtime.export_mesh import whole_file
from vqhps.runtime.motion import predictions
from vqhps.runtime.render import SideView, person_color, render_overlay, render_side_view
from vqhps.runtime.threads import MOST_THREADS, in_threads, prefetch
from vqhps.runtime.video import Frame, VideoWriter

if TYPE_CHECKING:
    from vqhps.runtime.motion_files import Advance, Motion

_OUTLIERS = 1.0  # percent of the rows at either end that need not fit into the view from the side
_ROOM = 0.5  # m around the joints

Draw = Callable[[Frame, dict[str, np.ndarray]], list[np.ndarray]]


def write_pictures(motion: Motion, told: Advance) -> list[Path]:
    """Write `<stem>_overlay.mp4`, the meshes over the frames, and `<stem>_side_by_side.mp4`, as the options want."""
    options, stem = motion.options, motion.source.stem
    wanted = {"overlay": options.overlay, "side_by_side": options.side_by_side}
    paths = [motion.npz.with_name(f"{stem}_{name}.mp4") for name, asked in wanted.items() if asked]
    if not paths:
        return []
    view = _side_view(motion) if options.side_by_side else None

    def draw(frame: Frame, rows: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = predictions(rows, motion.focal, motion.size)
        people, colors = list(found.values()), [person_color(person) for person in found]
        overlay = render_overlay(frame.image, people, motion.bundle.faces, colors=colors)
        if view is None:
            return [overlay]
        side = render_side_view([person.vertices for person in people], motion.bundle.faces, colors, view)
        if side.shape != overlay.shape:
            side = cv2.resize(side, motion.size, interpolation=cv2.INTER_LINEAR)
        return [overlay] * options.overlay + [np.concatenate([overlay, side], axis=1)]

    _write(motion, paths, draw, told)
    return paths


def _write(motion: Motion, paths: list[Path], draw: Draw, told: Advance) -> None:
    """Draw in several threads, and write in order."""

    def drawn(of: tuple[Frame, dict[str, np.ndarray]]) -> tuple[Frame, list[np.ndarray]]:
        return of[0], draw(*of)

    with contextlib.ExitStack() as stack:
        temporary = [stack.enter_context(whole_file(path)) for path in paths]
        videos = [stack.enter_context(VideoWriter(path, motion.source.fps)) for path in temporary]
        reader = stack.enter_context(contextlib.closing(prefetch(motion.source.replay(), MOST_THREADS)))
        frames = zip(reader, motion.by_frame(), strict=False)
        for frame, pictures in stack.enter_context(contextlib.closing(in_threads(drawn, frames))):
            for video, picture in zip(videos, pictures, strict=True):
                video.write(picture, frame.time)
            told(frame.index + 1, "pictures")


def _side_view(motion: Motion) -> SideView:
    """The view from the side that holds everybody, in all frames, but for outliers."""
    low: list[np.ndarray] = []
    high: list[np.ndarray] = []
    for table in motion.tables(False):
        joints = table.rows["joints"][..., [2, 1]]
        low.append(joints.min(1))
        high.append(joints.max(1))
    corners = np.concatenate(low), np.concatenate(high)
    if not len(corners[0]):
        return SideView.around(np.zeros(2), np.ones(2), motion.size)
    near, far = np.percentile(corners[0], _OUTLIERS, 0), np.percentile(corners[1], 100 - _OUTLIERS, 0)
    return SideView.around(near - _ROOM, far + _ROOM, motion.size)
