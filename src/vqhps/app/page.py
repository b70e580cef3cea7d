"""The page: what it shows and what its buttons do. Loads gradio; `server` says first what gradio may do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from vqhps.app import clip, photo, show
from vqhps.app.jobs import Job, Stopped
from vqhps.app.sessions import Sessions
from vqhps.app.work import Result, Worker
from vqhps.errors import VqhpsError

logger = logging.getLogger(__name__)

_FAR = 2.7  # radii from the centre a sphere just fills the 3D view, which spans 0.8 rad
_LOOK = 0.3  # s between two looks at how far a job is

_INTRO = """# Bodies of people in photos and clips
Give a photo or a short clip: every person becomes a 3D mesh in its camera, and moves as in the clip, computed on this
computer's processor. What you send and what comes out is deleted when you close this page, after an hour at the latest.
"""
_BUG = "something went wrong here, not with your file; whoever runs this page finds it in the log"


def build(worker: Worker, sessions: Sessions, kept: int) -> gr.Blocks:
    """The page as gradio's `Blocks`, not yet served; uploads are deleted after `kept` seconds."""
    with gr.Blocks(title="vqhps", analytics_enabled=False, delete_cache=(60, kept)) as page:
        gr.Markdown(_INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                given = gr.File(
                    label="Photo or clip",
                    file_types=[*photo.ENDINGS, *clip.ENDINGS],
                    type="filepath",
                    height=150,
                    elem_id="given",
                )
                focal = gr.Textbox(
                    label="Focal length, px",
                    placeholder="optional: from EXIF, else a guess",
                    max_length=12,
                    elem_id="focal",
                )
                again = gr.Button("Find people", variant="primary", elem_id="find")
                stop = gr.Button("Stop", visible=False, elem_id="stop")
                status = gr.HTML(show.limits(worker.limits), elem_id="status", padding=False)
            with gr.Column(scale=3, min_width=300, visible=False) as results:
                overlay = gr.Image(label="Over the photo", interactive=False, buttons=["fullscreen"], elem_id="overlay")
                moving = gr.HTML(visible=False, elem_id="moving", padding=False)
                model = gr.Model3D(label="In 3D: drag to turn", height=420, elem_id="model")
                people = gr.HTML(elem_id="people", padding=False)
                files = gr.File(label="Download", file_count="multiple", interactive=False, elem_id="files")
        drawn = gr.State()
        outputs = [status, stop, results, overlay, moving, drawn, people, files]

        async def find(path: str | None, focal: str, request: gr.Request) -> AsyncIterator[Any]:
            session = str(request.session_hash)
            try:
                job = _start(worker, sessions, session, path, focal)
                said = None
                while not job.over():
                    if (line := show.progress(worker.line.ahead(job), job.doing)) != said:
                        said = line
                        yield _busy(line)
                    await asyncio.sleep(_LOOK)
                yield _shown(job.result())
            except Stopped:
                if not worker.line.has(session):  # else the visitor gave another file, and looks at that now
                    yield _ended(show.note("Stopped."))
            except VqhpsError as error:
                yield _ended(show.failure(str(error)))
            except Exception:
                logger.exception("a file failed")
                yield _ended(show.failure(_BUG))

        def halt(request: gr.Request) -> None:
            worker.line.stop(str(request.session_hash))

        def close(request: gr.Request) -> None:
            halt(request)
            sessions.close(str(request.session_hash))

        found = gr.on(
            [given.upload, again.click], find, [given, focal], outputs, trigger_mode="multiple",
            show_progress="hidden", concurrency_limit=None, api_visibility="private",
        )  # fmt: skip
        # a step of its own: set together with the others, the 3D view loses its value while its code still loads
        found.then(_in_3d, drawn, model, show_progress="hidden", api_visibility="private")
        stop.click(halt, show_progress="hidden", api_visibility="private")
        page.unload(close)
    return page


def _start(worker: Worker, sessions: Sessions, session: str, path: str | None, focal: str) -> Job[Result]:
    """Put a visitor's file in line; its folder is looked after."""
    if path is None:
        raise VqhpsError("give a photo or a clip first")
    length = _number(focal)
    folder = sessions.begin(session, Path(path))
    try:
        return worker.start(session, Path(path), length, folder, lambda good: sessions.finish(session, folder, good))
    except VqhpsError:
        sessions.finish(session, folder, False)
        raise


def _number(focal: str) -> float | None:
    try:
        return float(focal.replace(",", ".")) if focal.strip() else None
    except ValueError:
        raise VqhpsError(f"the focal length must be a number of pixels, got {focal}") from None


def _busy(line: str) -> tuple[Any, ...]:
    """New values of all outputs while a job is at work."""
    return line, gr.update(visible=True), *[gr.skip()] * 6


def _ended(line: str) -> tuple[Any, ...]:
    """New values of all outputs where there is no result."""
    return line, gr.update(visible=False), gr.update(visible=False), None, None, None, "", None


def _shown(result: Result) -> tuple[Any, ...]:
    """New values of all outputs for a result."""
    if isinstance(result, clip.ClipResult):
        overlay, moving, scene = gr.update(value=None, visible=False), show.moving(result), None
    else:
        overlay, moving = gr.update(value=str(result.overlay), visible=True), ""
        scene = (str(result.model), result.radius)
    return (
        show.summary(result),
        gr.update(visible=False),
        gr.update(visible=True),
        overlay,
        gr.update(value=moving, visible=bool(moving)),
        scene,
        show.tables(result),
        [str(file) for file in result.files],
    )


def _in_3d(scene: tuple[str, float] | None) -> Any:
    """The 3D view of a photo's file, from where all within a radius in m is seen; nothing for a clip."""
    if scene is None:
        return gr.update(value=None, visible=False)
    return gr.update(value=scene[0], camera_position=(None, None, _FAR * scene[1]), visible=True)
