"""What the page says, as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from vqhps.app.clip import ClipResult
from vqhps.app.limits import Limits
from vqhps.app.photo import PhotoResult

CSS = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
.vqhps-note {margin: 0; padding: .6rem .8rem; border-radius: 8px; background: var(--background-fill-secondary)}
.vqhps-note progress {display: block; width: 100%; margin-top: .4rem}
.vqhps-error {margin: 0; padding: .6rem .8rem; border-radius: 8px; background: #fdecea; color: #8c1d18}
.vqhps-table {border-collapse: collapse; width: 100%; margin: 0 0 .8rem; font-variant-numeric: tabular-nums}
.vqhps-table, .vqhps-table tr, .vqhps-table th, .vqhps-table td {border: 0 !important; text-align: left}
.vqhps-table th, .vqhps-table td {padding: .25rem .8rem .25rem 0 !important}
.vqhps-table th {font-weight: 600}
#status .html-container, #moving .html-container, #people .html-container {padding: 0}
#files .label-clear-button {display: none}
.vqhps-dot {display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em}
.vqhps-video {display: block; width: 100%; max-height: 70vh; border-radius: 8px; background: #000}
.vqhps-viewer {display: block; width: 100%; height: 480px; border: 0; border-radius: 8px; margin-top: .8rem}
"""


def note(text: str) -> str:
    """A line that tells."""
    return f'<p class="vqhps-note" role="status">{html.escape(text)}</p>'


def failure(message: str) -> str:
    """A line on why there is nothing to show."""
    text = html.escape(message[:1].upper() + message[1:])
    return f'<p class="vqhps-error" role="alert">{text}.</p>'


def progress(ahead: int, doing: tuple[str, int, int]) -> str:
    """How far a job is: how many are before it, or what is done now, how much of it, and of how much."""
    what, count, total = doing
    if ahead:
        return note(f"Waiting: {ahead} {'file is' if ahead == 1 else 'files are'} before yours.")
    share = min(count / total, 1.0) if total else None
    text = what if share is None else f"{what}: {share:.0%}"
    value = "" if share is None else f' value="{share:.3f}"'
    return f'<p class="vqhps-note">{text or "At work"}<progress aria-label="progress"{value}></progress></p>'


def limits(given: Limits) -> str:
    """What the page takes."""
    return note(
        f"Photos: JPEG, PNG, WebP and others, up to {given.photo_pixels / 1e6:g} megapixels, "
        f"{given.photo_bytes / 1e6:g} MB and {given.photo_people} people. "
        f"Clips: MP4, MOV, WebM, MKV, AVI, TS, up to {given.clip_length:g} seconds, {given.clip_frames} frames of "
        f"{given.clip_pixels / 1e6:g} megapixels (1920 x 1080), {given.clip_bytes / 1e6:g} MB and "
        f"{given.clip_people} people at a time."
    )


def summary(result: PhotoResult | ClipResult) -> str:
    """What was found, how fast, and what to know of it."""
    count = "1 person" if len(result.people) == 1 else f"{len(result.people)} people"
    seconds = sum(result.times.values()) / 1000
    where = f" in {result.frames} frames," if isinstance(result, ClipResult) else " in"
    notes = [f"{text}." for text in result.notes] if isinstance(result, ClipResult) else []
    focal = f"The focal length of {result.focal:.0f} px is {result.focal_from}."
    return note(" ".join([f"{count}{where} {seconds:.1f} s.", focal, *notes]))


def moving(result: ClipResult) -> str:
    """The overlay as a video, and the viewer as a page of its own that may run scripts but nothing else."""
    video = html.escape("gradio_api/file=" + quote(str(result.overlay)))
    viewer = html.escape(result.viewer.read_text(encoding="utf-8"))
    return (
        f'<video class="vqhps-video" src="{video}" controls loop muted autoplay playsinline '
        'aria-label="The meshes over the clip"></video>'
        f'<iframe class="vqhps-viewer" sandbox="allow-scripts" srcdoc="{viewer}" title="The people in 3D"></iframe>'
    )


def tables(result: PhotoResult | ClipResult) -> str:
    """People and times, numbers only."""
    if isinstance(result, ClipResult):
        seconds = [(stage, f"{ms / 1000:.1f} s") for stage, ms in result.times.items()]
        head = ("person", "frames", "distance", "fit error")
        people = [
            (_dot(p.color, p.person), str(p.frames), f"{p.distance:.1f} m", f"{p.error_mm:.1f} mm")
            for p in result.people
        ]
        return _table(head, people) + _table(("stage", "time"), seconds)
    times = [(stage, f"{ms:.0f} ms") for stage, ms in result.times.items()]
    rows = [(_dot(p.color, i), f"{p.score:.2f}", f"{p.distance:.1f} m") for i, p in enumerate(result.people)]
    return _table(("person", "score", "distance"), rows) + _table(("stage", "time"), times)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f'<table class="vqhps-table"><tr>{"".join(f"<th>{c}</th>" for c in head)}</tr>{"".join(lines)}</table>'


def _dot(color: Any, number: int) -> str:
    shade = ", ".join(str(round(float(value) * 255)) for value in color)
    return f'<span class="vqhps-dot" style="background:rgb({shade})"></span>{number}'
