"""The page: what it shows and what its buttons do. Loads gradio; `server` says first what gradio may do."""

from __future__ import annotations

import html
import logging
from pathlib import Path
from typing import Any

import gradio as gr

from vqhps.app.sessions import Sessions
from vqhps.app.work import Limits, Result, Worker
from vqhps.errors import VqhpsError

logger = logging.getLogger(__name__)

_ENDINGS = [".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"]
_FAR = 2.7  # radii from the centre a sphere just fills the 3D view, which spans 0.8 rad
_KEPT = 3600  # s: files go after this time even if their page stays open

CSS = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
.vqhps-note {margin: 0; padding: .6rem .8rem; border-radius: 8px; background: var(--background-fill-secondary)}
.vqhps-error {margin: 0; padding: .6rem .8rem; border-radius: 8px; background: #fdecea; color: #8c1d18}
.vqhps-table {border-collapse: collapse; width: 100%; margin: 0 0 .8rem; font-variant-numeric: tabular-nums}
.vqhps-table, .vqhps-table tr, .vqhps-table th, .vqhps-table td {border: 0 !important; text-align: left}
.vqhps-table th, .vqhps-table td {padding: .25rem .8rem .25rem 0 !important; width: 33%}
.vqhps-table th {font-weight: 600}
#files .label-clear-button {display: none}
.vqhps-dot {display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em}
"""
_INTRO = """# Bodies of people in photos
Give a photo: every person becomes a 3D mesh in the photo's camera, computed on this computer's processor. What you send
and what comes out is deleted when you close this page, at the latest after an hour."""


def build(worker: Worker, sessions: Sessions) -> gr.Blocks:
    """The page as gradio's `Blocks`, not yet served."""
    with gr.Blocks(title="vqhps", analytics_enabled=False, delete_cache=(60, _KEPT)) as page:
        gr.Markdown(_INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.File(label="Photo", file_types=_ENDINGS, type="filepath", height=150, elem_id="photo")
                focal = gr.Textbox(
                    label="Focal length, px",
                    placeholder="optional: from EXIF, else a guess",
                    max_length=12,
                    elem_id="focal",
                )
                again = gr.Button("Find people", variant="primary", elem_id="find")
                status = gr.HTML(_note(_limits_text(worker.limits)), elem_id="status", padding=False)
            with gr.Column(scale=3, min_width=300, visible=False) as results:
                overlay = gr.Image(label="Over the photo", interactive=False, buttons=["fullscreen"], elem_id="overlay")
                model = gr.Model3D(label="In 3D: drag to turn", height=420, elem_id="model")
                people = gr.HTML(elem_id="people", padding=False)
                files = gr.File(label="Download", file_count="multiple", interactive=False, elem_id="files")
        drawn = gr.State()
        outputs = [status, results, overlay, drawn, people, files]

        def find(path: str | None, given: str, request: gr.Request) -> tuple[Any, ...]:
            return _answer(worker, sessions, path, given, str(request.session_hash))

        def close(request: gr.Request) -> None:
            sessions.close(str(request.session_hash))

        found = gr.on(
            [photo.upload, again.click], find, [photo, focal], outputs,
            concurrency_limit=1, concurrency_id="model", api_visibility="private",
        )  # fmt: skip
        # a step of its own: set together with the others, the 3D view loses its value while its code still loads
        found.then(_in_3d, drawn, model, show_progress="hidden", api_visibility="private")
        page.unload(close)
    return page


def _answer(worker: Worker, sessions: Sessions, path: str | None, focal: str, session: str) -> tuple[Any, ...]:
    """New values of all outputs: a result, or one line on why there is none."""
    try:
        if path is None:
            raise VqhpsError("give a photo first")
        folder = sessions.begin(session, Path(path))
        try:
            result = worker.photo(Path(path), _number(focal), folder)
        finally:
            sessions.finish(session, folder)
        return _shown(result)
    except VqhpsError as error:
        return _refused(str(error))
    except Exception:
        logger.exception("a photo failed")
        return _refused("something went wrong here, not with your photo; whoever runs this page finds it in the log")


def _number(focal: str) -> float | None:
    try:
        return float(focal.replace(",", ".")) if focal.strip() else None
    except ValueError:
        raise VqhpsError(f"the focal length must be a number of pixels, got {focal}") from None


def _shown(result: Result) -> tuple[Any, ...]:
    count = "1 person" if len(result.people) == 1 else f"{len(result.people)} people"
    seconds = sum(result.times.values()) / 1000
    status = _note(f"{count} in {seconds:.1f} s. The focal length of {result.focal:.0f} px is {result.focal_from}.")
    files = [str(file) for file in result.files]
    scene = (str(result.model), result.radius)
    return status, gr.update(visible=True), str(result.overlay), scene, _tables(result), files


def _in_3d(scene: tuple[str, float] | None) -> Any:
    """The 3D view of a file, from where all within a radius in m is seen."""
    if scene is None:
        return None
    return gr.update(value=scene[0], camera_position=(None, None, _FAR * scene[1]))


def _refused(message: str) -> tuple[Any, ...]:
    text = html.escape(message[:1].upper() + message[1:])
    return f'<p class="vqhps-error" role="alert">{text}.</p>', gr.update(visible=False), None, None, "", None


def _note(text: str) -> str:
    return f'<p class="vqhps-note" role="status">{html.escape(text)}</p>'


def _limits_text(limits: Limits) -> str:
    return (
        f"JPEG, PNG, WebP and others, up to {limits.pixels / 1e6:g} megapixels and {limits.file_bytes / 1e6:g} MB; "
        f"up to {limits.people} people; up to {limits.seconds:g} seconds."
    )


def _tables(result: Result) -> str:
    """People and times as HTML, numbers only."""
    people = "".join(
        f'<tr><td><span class="vqhps-dot" style="background:rgb({_css_color(person.color)})"></span>{index}</td>'
        f"<td>{person.score:.2f}</td><td>{person.distance:.1f} m</td></tr>"
        for index, person in enumerate(result.people)
    )
    times = "".join(f"<tr><td>{stage}</td><td>{ms:.0f} ms</td></tr>" for stage, ms in result.times.items())
    return (
        f'<table class="vqhps-table"><tr><th>person</th><th>score</th><th>distance</th></tr>{people}</table>'
        f'<table class="vqhps-table"><tr><th>stage</th><th>time</th></tr>{times}</table>'
    )


def _css_color(color: Any) -> str:
    return ", ".join(str(round(float(value) * 255)) for value in color)
