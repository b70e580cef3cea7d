"""The command `vqhps video`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass
class Video:
    """Recover the 3D bodies of the people in a video, each with the same number throughout.

    For `clip.mp4` writes clip.npz, clip.json and clip_overlay.mp4. A stopped run goes on where it stopped.
    """

    video: tyro.conf.Positional[str]
    """A video file, a folder or quoted pattern of images ('a/*.png'), or the number of a webcam (Ctrl-C ends it)."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("vqhps-out")
    """Folder for the files."""
    bundle: Path | None = None
    """Folder of another model; the shipped one by default."""
    focal: float | None = None
    """Focal length in px; guessed by default."""
    fps: float | None = None
    """Frames a second of an image sequence; 25 by default."""
    smooth: Literal["average", "one-euro", "none"] = "average"
    """Moving average of 10 frames (at most half a second), the One-Euro filter (looks back only), or nothing."""
    detect_every: int | None = None
    """Frames from one look of the person detector to the next; by default six, or what a quarter of a second has."""
    vertices: bool = False
    """Store every mesh in clip.npz: 82 kB a person and frame."""
    tokens: bool = False
    """Write clip.vqt: every mesh as tokens, 98 bytes a person and frame; `vqhps tokenize` turns it into an NPZ."""
    overlay: bool = True
    """Write clip_overlay.mp4."""
    side_by_side: bool = False
    """Write clip_side_by_side.mp4: the overlay, and beside it the scene from the side."""
    sequence: Literal["obj", "ply"] | None = None
    """Write the folder clip_obj or clip_ply: a mesh file a person and frame."""

    def run(self) -> int:
        """Print the files; exit code 130 after Ctrl-C."""
        from vqhps.runtime.bundle import Bundle, default_bundle
        from vqhps.runtime.detect import PersonDetector
        from vqhps.runtime.motion_files import VideoOptions, predict_video
        from vqhps.runtime.predictor import Predictor
        from vqhps.runtime.video import Webcam, open_source

        source = open_source(self.video, self.fps)
        bundle = default_bundle(1) if self.bundle is None else Bundle.load(self.bundle, 1)
        options = VideoOptions(
            vertices=self.vertices, overlay=self.overlay, smoothing=self.smooth, every=self.detect_every,
            focal=self.focal, side_by_side=self.side_by_side, sequence=self.sequence, tokens=self.tokens,
        )  # fmt: skip
        predictor = Predictor(bundle, PersonDetector(threads=1))
        stop = source.stop if isinstance(source, Webcam) else None
        chunks = self.out / f"{source.stem}.chunks"
        try:
            with _ending_by_interrupt(stop), _progress(source.total) as advance:
                result = predict_video(predictor, source, self.out, options, advance)
        except KeyboardInterrupt:
            print(f"vqhps: interrupted; what was finished is in {chunks}, the same command goes on", file=sys.stderr)
            return 130
        for note in source.notes:
            print(f"vqhps: {note}", file=sys.stderr)
        people = "1 person" if result.people == 1 else f"{result.people} people"
        files = " ".join(str(f) for f in result.files)
        print(f"{source.name}: {people} in {result.frames} frames -> {files}")
        return 0


@dataclass
class EvaluateTokens:
    """Store a video's meshes as tokens and by general means: bytes a mesh, and what is lost."""

    predictions: tyro.conf.Positional[Path]
    """What `vqhps video --vertices` wrote (.npz)."""

    def run(self) -> int:
        """Print a row a way to store them as JSON."""
        from vqhps.evaluation.motion_tokens import evaluate_motion_tokens

        for stored in evaluate_motion_tokens(self.predictions):
            print(json.dumps(asdict(stored)))
        return 0


@contextlib.contextmanager
def _ending_by_interrupt(stop: Callable[[], None] | None) -> Iterator[None]:
    """Make the first Ctrl-C the regular end of a webcam."""
    if stop is None:
        yield
        return

    def end(number: int, frame: Any) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    old = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int, str], None] | None]:
    """A bar for each stage, where somebody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def advance(count: int, what: str) -> None:
        if what not in bars:
            for bar in bars.values():
                bar.close()
            bars[what] = tqdm(total=total, unit="frame", desc=what, initial=count if what == "predict" else 0)
        bars[what].update(count - bars[what].n)

    try:
        yield advance
    finally:
        for bar in bars.values():
            bar.close()
