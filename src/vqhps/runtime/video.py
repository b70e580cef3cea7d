"""Moving pictures in and out: video files, image sequences and webcams as upright frames with times; H.264 files."""

from __future__ import annotations

import contextlib
import glob
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import cv2
import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.photo import MAX_PIXELS, MIN_SIDE, read_photo

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the files of a folder that is an image sequence."""

_FPS = 25.0  # of what does not say
_CLOCK = 60_000  # ticks a second of the files written: MPEG-4 allows no more than 65535
_PADDING = 4  # times the pixels of a frame that decoders may ask for, edges included
_SHORT = 0.95  # of the frames a file promises: fewer, and it is cut off


@dataclass(frozen=True)
class Frame:
    """One picture of a video: `index` from 0, `time` in s since the first, `image` (H, W, 3) uint8 RGB, upright."""

    index: int
    time: float
    image: np.ndarray


class Source(Protocol):
    """Where frames come from.

    Attributes:
        name: for messages.
        stem: of the names of the files made from it.
        fps: frames a second.
        total: number of frames it promises; `None` where it does not.
        identity: plain values that change when the content does; a run goes on only where they are the same.
        notes: what went wrong but did not stop it, one line each; complete after the last frame.
    """

    name: str
    stem: str
    fps: float
    total: int | None
    identity: dict[str, Any]
    notes: list[str]

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """The frames from number `start` on, all of one size."""
        ...

    def replay(self) -> Iterator[Frame]:
        """All frames once more."""
        ...


def open_source(text: str, fps: float | None = None) -> Source:
    """What a user means: a number is a webcam, a folder or a pattern an image sequence, all else a video file.

    Args:
        text: `clip.mp4`, `frames/`, `frames/*.png`, `0`.
        fps: frames a second of an image sequence, 25 by default.

    Raises:
        VqhpsError: there is no such thing, or it is no video.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise VqhpsError(f"the frame rate must be a positive number, got {fps:g}")
    path = Path(text)
    if text.isdecimal() and not path.exists():
        return Webcam(int(text))
    if path.is_dir():
        return ImageSequence(text, [p for p in path.iterdir() if p.suffix.lower() in IMAGES], fps or _FPS)
    if not path.exists() and glob.has_magic(text):
        return ImageSequence(text, [Path(p) for p in glob.glob(text)], fps or _FPS)
    return VideoFile(path)


class VideoFile:
    """A video file of any container and codec that FFmpeg knows."""

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None) -> None:
        """Look at the file's header.

        Args:
            path: of the file.
            max_pixels: of a frame; larger ones are refused by the header, those that come later left out undecoded.
            formats: FFmpeg's names of the containers that may be opened, which then can name no other file or address
                to read; all it knows by default.

        Raises:
            VqhpsError: it holds no pictures, or too large ones.
        """
        self.name, self.stem, self.notes = str(path), path.stem, list[str]()
        self._path, self._max_pixels = path, max_pixels
        self._decoder = {"max_pixels": str(_PADDING * max_pixels)}
        self._options = dict(self._decoder)
        if formats is not None:
            self._options |= {"format_whitelist": ",".join(formats), "protocol_whitelist": "file"}
        with self._open() as container:
            stream = container.streams.video[0]
            if stream.width and stream.height:
                self._square_size(stream, float(stream.sample_aspect_ratio or 1))
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else _FPS
            self.total = stream.frames or self._expected(container, stream)
        status = path.stat()
        self.identity = {"file": path.name, "bytes": status.st_size, "changed": status.st_mtime_ns}

    def _expected(self, container: Any, stream: Any) -> int | None:
        """Number of frames by the duration that the file states."""
        if stream.duration and stream.time_base:
            return round(float(stream.duration * stream.time_base) * self.fps)
        return round(container.duration / 1e6 * self.fps) if container.duration else None

    def _open(self) -> Any:
        import av

        if not self._path.exists():
            raise VqhpsError(f"{self._path} does not exist")
        if self._path.stat().st_size == 0:
            raise VqhpsError(f"{self._path} is empty (0 bytes)")
        try:
            container = av.open(str(self._path), options=self._options)
        except (av.FFmpegError, ValueError) as error:
            raise VqhpsError(
                f"{self._path} is no video, damaged at its start or cut off before its index, "
                f"or of a format that cannot be read ({_reason(error)})"
            ) from error
        if not container.streams.video:
            kinds = _kinds(container)
            container.close()
            raise VqhpsError(f"{self._path} holds no pictures, only {kinds}: give a video")
        return container

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """See `Source`; a damaged or cut file gives the frames that can be decoded, and a note."""
        self.notes.clear()
        size: tuple[int, int] | None = None
        first = last = 0.0
        count = 0
        for frame, ratio in self._decoded():
            moment = count / self.fps if frame.time is None else float(frame.time)
            if size is None:
                size, first = self._square_size(frame, ratio), moment
            last = max(moment - first, last + 1e-4) if count else 0.0  # damaged files may step back in time
            if count >= start:
                yield Frame(count, last, _upright(frame, size))
            count += 1
        if count == 0:
            limit = f"{self._max_pixels / 1e6:g} million pixels"
            raise VqhpsError(f"{self._path} is damaged, or its frames have more than {limit}: not one can be decoded")
        if self.total and count < _SHORT * self.total and not self.notes:
            self.notes.append(f"{self._path} ends after {count} of {self.total} frames: it is cut off")

    def replay(self) -> Iterator[Frame]:
        """See `Source`."""
        return self.frames()

    def _square_size(self, picture: Any, ratio: float) -> tuple[int, int]:
        """Width and height of a frame or stream with square pixels, before rotation."""
        width, height = round(picture.width * ratio), picture.height
        if width * height > self._max_pixels:
            limit = f"{self._max_pixels / 1e6:g} million pixels"
            raise VqhpsError(f"{self._path} has frames of {width} x {height} px, more than {limit}: scale it down")
        if min(width, height) < MIN_SIDE:
            raise VqhpsError(f"{self._path} has frames of {width} x {height} px: these cannot be used")
        return width, height

    def _decoded(self) -> Iterator[tuple[Any, float]]:
        """Frames as FFmpeg gives them, past damaged places, and width over height of their pixels."""
        import av

        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = self._decoder
            packets = container.demux(stream)
            damaged = 0
            while True:
                frames = []
                try:
                    packet = next(packets, None)
                    if packet is None:
                        break
                    frames = packet.decode()
                except av.FFmpegError:
                    damaged += 1
                ratio = float(stream.sample_aspect_ratio or 1)
                yield from ((frame, ratio) for frame in frames if frame.width and frame.height)
            if damaged:
                self.notes.append(f"{self._path} is damaged in {damaged} places: what could be decoded is used")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _kinds(container: Any) -> str:
    names = {"audio": "sound", "subtitle": "subtitles"}
    kinds = sorted({names.get(stream.type, str(stream.type)) for stream in container.streams})
    return " and ".join(kinds) or "nothing that can be read"


_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


def _upright(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as the file's display matrix says, to the nearest quarter."""
    image = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    turn = round(frame.rotation / 90) * 90 % 360
    return cv2.rotate(image, _TURNS[turn]) if turn else image


class ImageSequence:
    """Images of one size as the frames of a video, in the natural order of their names (2 before 10)."""

    def __init__(self, name: str, paths: list[Path], fps: float) -> None:
        """Keep the paths; raises `VqhpsError` where there are none."""
        if not paths:
            raise VqhpsError(f"{name} holds no images ({', '.join(IMAGES)})")
        self._paths = sorted(paths, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.name)])
        self.name, self.fps, self.notes = name, fps, list[str]()
        self.total: int | None = len(paths)
        self.stem = self._paths[0].parent.resolve().name or "images"
        changed = [p.stat().st_mtime_ns for p in self._paths]
        self.identity: dict[str, Any] = {"images": [p.name for p in self._paths], "changed": changed, "fps": fps}

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """See `Source`; raises `VqhpsError` where an image cannot be read or has another size than the first."""
        shape = read_photo(self._paths[0]).image.shape
        for index, path in enumerate(self._paths[start:], start):
            image = read_photo(path).image
            if image.shape != shape:
                sizes = f"{image.shape[1]} x {image.shape[0]} px, the first image {shape[1]} x {shape[0]}"
                raise VqhpsError(f"{path} has {sizes}: an image sequence needs images of one size")
            yield Frame(index, index / self.fps, image)

    def replay(self) -> Iterator[Frame]:
        """See `Source`."""
        return self.frames()


class Webcam:
    """A camera of this machine, until `stop` is called or it is unplugged. A run cannot go on later.

    `record` is where its pictures are kept as a video; nowhere by default.
    """

    def __init__(self, number: int) -> None:
        """Open the camera; raises `VqhpsError` where there is none."""
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise VqhpsError(f"there is no webcam {number}, or another program uses it")
        self.name, self.stem, self.notes = f"webcam {number}", f"webcam-{number}", list[str]()
        self.total: int | None = None
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS)) or _FPS
        self.identity: dict[str, Any] = {"webcam": number, "opened": time.time_ns()}
        self.record: Path | None = None
        self._running = True

    def stop(self) -> None:
        """End after the next frame."""
        self._running = False

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """See `Source`; frames that come while nobody asks for one are lost, `time` tells."""
        begin, index = time.monotonic(), start
        try:
            with contextlib.nullcontext() if self.record is None else VideoWriter(self.record, self.fps) as record:
                while self._running:
                    good, image = self._capture.read()
                    if not good:
                        break
                    frame = Frame(index, time.monotonic() - begin if index else 0.0, image[..., ::-1].copy())
                    if record is not None:
                        record.write(frame.image, frame.time)
                    yield frame
                    index += 1
        finally:
            self._capture.release()

    def replay(self) -> Iterator[Frame]:
        """See `Source`; needs `record`."""
        if self.record is None:
            raise VqhpsError(f"the pictures of {self.name} were not kept")
        return VideoFile(self.record).frames()


class VideoWriter:
    """Writes frames of one size as a video: H.264 where this FFmpeg has it, else MPEG-4. Use it in a `with` block."""

    def __init__(self, path: Path, fps: float) -> None:
        """Write to `path`, whose ending chooses the container, at about `fps` frames a second."""
        self._path, self._fps = path, fps
        self._container: Any = None
        self._stream: Any = None
        self._ticks = -1

    def __enter__(self) -> VideoWriter:
        """Nothing is written before the first frame."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file."""
        if self._container is not None:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()

    def write(self, image: np.ndarray, moment: float) -> None:
        """Add an RGB frame (H, W, 3) uint8 shown from `moment` on, s; odd sizes lose a row or column."""
        import av

        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        if self._container is None:
            self._container = av.open(str(self._path), "w")
            self._stream = self._add_stream(width, height)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        self._ticks = max(round(moment * _CLOCK), self._ticks + 1)
        frame.pts, frame.time_base = self._ticks, Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))

    def _add_stream(self, width: int, height: int) -> Any:
        import av

        rate = Fraction(self._fps).limit_denominator(1001)
        if "libx264" in av.codecs_available:
            stream = self._container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        else:
            stream = self._container.add_stream("mpeg4", rate=rate, options={"q:v": "3"})
            stream.codec_context.bit_rate = 8 * width * height
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        return stream
