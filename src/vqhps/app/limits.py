"""How much the page takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much the page takes, per file.

    Attributes:
        photo_bytes: of a photo's file.
        photo_pixels: of a photo.
        photo_people: on a photo; the best detections are kept.
        photo_seconds: of work for a photo.
        clip_bytes: of a clip's file.
        clip_pixels: of a clip's frame.
        clip_length: of a clip, s.
        clip_frames: of a clip.
        clip_people: in a frame of a clip; the best detections are kept.
        clip_seconds: of work for a clip.
        waiting: files in line.
    """

    photo_bytes: int = 30_000_000
    photo_pixels: int = 40_000_000
    photo_people: int = 20
    photo_seconds: float = 120.0
    clip_bytes: int = 100_000_000
    clip_pixels: int = 2_100_000
    clip_length: float = 20.0
    clip_frames: int = 600
    clip_people: int = 6
    clip_seconds: float = 600.0
    waiting: int = 8
