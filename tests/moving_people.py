"""Videos for tests: encoded files, people who move (painted discs with a known detector, or a real photo)."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vqhps.runtime.detect import Detection
from vqhps.runtime.video import Frame

WIDTH, HEIGHT = 160, 120
CLOCK = 12_000  # ticks a second
COLORS = ((220, 40, 40), (40, 60, 220), (40, 200, 60))


def encode(
    path: Path, images: Sequence[np.ndarray], fps: int = 25, codec: str = "mpeg4", times: Sequence[float] | None = None
) -> Path:
    """Write images as a video; `times` in s make its frame rate vary."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 10
        stream.codec_context.time_base = Fraction(1, CLOCK)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            moment = index / fps if times is None else times[index]
            frame.pts, frame.time_base = round(moment * CLOCK), Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """An MP4 with the display matrix (a, b, c, d) of a phone that was held otherwise."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8
    a, b, c, d = (value << 16 for value in matrix)
    target.write_bytes(content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :])
    return target


def corners(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = (255, 0, 0), (0, 255, 0)
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = (0, 0, 255), (255, 255, 255)
    return image


def painted(people: dict[int, Sequence[float]], width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A grey picture with people as filled boxes (xyxy px), each in the colour of its number; later ones in front."""
    image = np.full((height, width, 3), 90, np.uint8)
    for number, box in people.items():
        x0, y0, x1, y1 = (max(0, round(v)) for v in box)
        image[y0:y1, x0:x1] = COLORS[number]
    return image


def walk(count: int, fps: float = 25.0) -> list[Frame]:
    """One red person who walks to the right and breathes."""
    boxes = [(10 + i, 30 - 5 * np.sin(i / 4), 40 + i, 110) for i in range(count)]
    return [Frame(i, i / fps, painted({0: box})) for i, box in enumerate(boxes)]


def astronaut(path: Path) -> Path:
    """A real photo of one person, 512 x 512 px."""
    from PIL import Image
    from skimage.data import astronaut as load

    Image.fromarray(load()).save(path)
    return path


class PaintDetector:
    """Finds painted people by their colour, as boxes without key points; Ctrl-C comes at look number `interrupt`."""

    def __init__(self, interrupt: int = 0, **_: object) -> None:
        self.interrupt, self.looks = interrupt, 0

    def __call__(self, image: np.ndarray) -> list[Detection]:
        self.looks += 1
        if self.looks == self.interrupt:
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a background job of a shell
                signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)
        found = []
        for color in COLORS:
            near = np.abs(image.astype(int) - color).sum(-1) < 90
            if near.sum() < 200:
                continue
            rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
            found.append(Detection(box=box, score=0.9))
        return found


class Capture:
    """A webcam that shows blue pictures without end."""

    def __init__(self, number: int) -> None:
        self.number = number

    def isOpened(self) -> bool:
        return self.number == 0

    def get(self, what: int) -> float:
        return 30.0

    def read(self) -> tuple[bool, np.ndarray]:
        return True, np.full((48, 64, 3), (220, 60, 40), np.uint8)  # OpenCV's BGR

    def release(self) -> None:
        pass
