"""`vqhps prepare synthetic-video`: a rendered video of moving people with its truth, to measure video prediction with.

`clip-{people}-{seed}.mp4` (H.264) comes with `clip-{people}-{seed}.truth.npz` of plain arrays. Rows are sorted by
frame, then person; who is wholly outside of the frame has no row:

    frame        (N,)      int32     number of the frame
    time         (N,)      float64   seconds since the first
    person       (N,)      int32     who it is
    box          (N,4)     float32   the person's projection cut by the frame, xyxy px
    visible      (N,)      float32   share of its COCO-17 joints that are in the frame and not hidden
    joints       (N,17,3)  float32   COCO-17, metres, camera axes
    joints2d     (N,17,2)  float32   their projection, px
    rotation     (N,3,3)   float32   body axes -> camera axes (x right, y down, z forward)
    translation  (N,3)     float32   metres: vertices in the camera = rotation @ body vertices + translation
    pose         (N,31,4)  float16   local bone rotations, unit quaternions wxyz, w >= 0; the root's is the identity
    shape        (P,6)     float32   of each person, Anny phenotypes in the order of `AnnyBody.shape_names`
    focal, fps             float64   px, frames a second; the principal point is the middle of the frame
    size         (2,)      int32     width, height, px
    frames                 int32     in the video
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from vqhps.data.synthetic.camera import bounds
from vqhps.data.synthetic.motion import fold
from vqhps.data.synthetic.prepare import check_settings
from vqhps.data.synthetic.renderer import Lighting, Renderer, background, eight_bits, render
from vqhps.data.synthetic.scene import (
    coco_joints,
    draw_lighting,
    mark_rectangle,
    seen_joints,
    shown_vertices,
    stored_pose,
)
from vqhps.data.synthetic.split import Split
from vqhps.data.synthetic.stage import EYE_HEIGHT, Actor, Props, Seen, draw_actors, load_props, look, video_camera
from vqhps.errors import VqhpsError

_COLUMNS = (360, 460)  # of the panorama across the frame
_QUALITY = "18"  # of x264: near what the eye tells from the original
_SHADOWS = ((15, 0.12, 0.45), (16, 0.12, 0.45), (11, 0.3, 0.2), (12, 0.3, 0.2))  # joint, metres of blur, strength
_SHADOW_REACH = 1.0  # metres


@dataclasses.dataclass(frozen=True)
class VideoSettings:
    """What to film.

    Attributes:
        people: who move; more than one walk past each other in the middle of the clip.
        seconds: of the clip.
        fps: frames a second.
        size: width and height, px, even.
        seed: of everything random.
        repeat: how often the clip comes in the file. If more than once, the second half of the motion is the first one
            backwards, so that there is no jump; people then meet at a quarter of the clip. Rendered once only.
    """

    people: int = 1
    seconds: float = 20.0
    fps: int = 25
    size: tuple[int, int] = (1280, 720)
    seed: int = 0
    repeat: int = 1

    @property
    def rendered(self) -> int:
        """Frames to render."""
        return round(self.seconds * self.fps)

    @property
    def name(self) -> str:
        """Of the files, without their endings."""
        return f"clip-{self.people}-{self.seed}" + (f"-x{self.repeat}" if self.repeat > 1 else "")

    def check(self) -> None:
        """Fail early, in one line.

        Raises:
            VqhpsError: a setting is out of range.
        """
        if self.people not in (1, 2, 3):
            raise VqhpsError(f"{self.people} people; there is room for 1 to 3")
        if min(self.size) < 32 or any(side % 2 for side in self.size):
            raise VqhpsError(f"size is {self.size[0]} x {self.size[1]}; both must be even and 32 or more")
        if min(self.rendered, self.fps, self.repeat) < 1 or self.seed < 0:
            raise VqhpsError(
                f"seconds {self.seconds}, fps {self.fps}, repeat {self.repeat}, seed {self.seed}: too small"
            )


def prepare_synthetic_video(out_dir: Path, data_root: Path, split: Split, settings: VideoSettings) -> Path:
    """Render a video and its truth; files that exist are kept. Frames are encoded as they are made.

    Args:
        out_dir: created if needed.
        data_root: folder with `clothes/`, `backgrounds/`, `mocap/`.
        split: whose people, clothes, panoramas and motion.
        settings: what to film.

    Returns:
        The path of the `.mp4`; its truth lies beside it.

    Raises:
        VqhpsError: a setting is out of range, data is missing, or the files exist and were made with other settings.
    """
    settings.check()
    check_settings(data_root, split, 1, 1, 1)
    out_dir = Path(out_dir)
    path, truth = out_dir / f"{settings.name}.mp4", out_dir / f"{settings.name}.truth.npz"
    if path.exists() and truth.exists():
        _check_kept(truth, settings)
        return path
    out_dir.mkdir(parents=True, exist_ok=True)
    film = Film(load_props(Path(data_root), split), settings)
    with _partial(path) as video, _partial(truth) as table:
        once = video.with_suffix(".once") if settings.repeat > 1 else video
        try:
            rows = _encode(once, film, settings)
            if settings.repeat > 1:
                repeat_video(once, video, settings.repeat, settings.rendered)
        finally:
            if settings.repeat > 1:
                once.unlink(missing_ok=True)
        with table.open("wb") as file:
            np.savez(file, **_table(rows, film, settings))
    return path


def _check_kept(truth: Path, settings: VideoSettings) -> None:
    wanted = (settings.rendered * settings.repeat, *settings.size, settings.fps)
    with np.load(truth, allow_pickle=False) as table:
        have = (int(table["frames"]), *table["size"].tolist(), int(table["fps"]))
    if have != wanted:
        raise VqhpsError(
            f"{truth} has frames, width, height, fps {have}, not {wanted}: remove it, or use another folder"
        )


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A temporary path, renamed at the end if all went well."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(path: Path, film: "Film", settings: VideoSettings) -> list[dict[str, Any]]:
    """Write the frames as H.264, and return the rows of the truth."""
    rows: list[dict[str, Any]] = []
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(settings.fps), options={"crf": _QUALITY})
        stream.width, stream.height = settings.size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for number in tqdm(range(settings.rendered), settings.name, unit="frame", disable=None):
            image, people = film.frame(number)
            rows += [{"frame": number, **person} for person in people]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return rows


def repeat_video(source: Path, target: Path, times: int, frames: int) -> None:
    """Write a video several times one after the other, without encoding it again.

    Args:
        source: `.mp4` of one stream.
        target: `.mp4`.
        times: how often.
        frames: of the source.
    """
    with av.open(str(target), "w", format="mp4") as out:
        stream: Any = None
        for number in range(times):
            with av.open(str(source), format="mp4") as container:
                (video,) = container.streams.video
                if stream is None:
                    stream = out.add_stream_from_template(video)
                step = round(1 / (video.average_rate * video.time_base))
                for packet in container.demux(video):
                    if packet.dts is None:  # the mark of the end
                        continue
                    packet.pts += number * frames * step
                    packet.dts += number * frames * step
                    packet.stream = stream
                    out.mux(packet)


def _table(rows: list[dict[str, Any]], film: "Film", settings: VideoSettings) -> dict[str, Any]:
    """The arrays of the truth."""
    once = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    table: dict[str, Any] = {name: np.concatenate([column] * settings.repeat) for name, column in once.items()}
    table["frame"] += np.repeat(np.arange(settings.repeat) * settings.rendered, len(rows))
    types = {"frame": np.int32, "person": np.int32, "pose": np.float16}
    table = {name: column.astype(types.get(name, np.float32)) for name, column in table.items()}
    return table | {
        "time": table["frame"] / settings.fps,
        "shape": np.stack([actor.shape for actor in film.actors]).astype(np.float32),
        "focal": np.float64(film.camera.intrinsics[0, 0]),
        "fps": np.float64(settings.fps),
        "size": np.array(settings.size, np.int32),
        "frames": np.int32(settings.rendered * settings.repeat),
    }


class Film:
    """A camera, actors and a background, from which any frame can be rendered.

    Args:
        props: of a split.
        settings: what to film.
    """

    def __init__(self, props: Props, settings: VideoSettings) -> None:
        rng = np.random.default_rng([settings.seed, settings.people])
        self.settings = settings
        self.camera = video_camera(settings.size, rng)
        length = settings.seconds / 2 if settings.repeat > 1 else settings.seconds
        self.actors: list[Actor] = draw_actors(props, self.camera, settings.people, length, length / 2, rng)
        width, height = settings.size
        self.rays = self.camera.rays(np.arange(width) + 0.5, np.arange(height) + 0.5)
        level = self.camera.project((self.camera.rotation @ [0.0, 0.0, -1.0])[None])[0]
        crop = np.array([width / 2, level[1], width])
        self.lighting: Lighting = draw_lighting(props.panoramas, self.camera, crop, _COLUMNS, rng)
        self.backdrop = background(self.rays.reshape(-1, 3), self.lighting).reshape(self.rays.shape)
        down = -self.rays @ self.camera.rotation[:, 1].astype(np.float32)  # how fast a ray comes down
        far = np.where(down > 1e-3, EYE_HEIGHT / np.maximum(down, 1e-3), np.float32(np.inf))
        self.ground = far.astype(np.float32)  # depth at which a pixel's ray meets the ground

    def frame(self, number: int) -> tuple[UInt8[np.ndarray, "H W 3"], list[dict[str, Any]]]:
        """The image, and what the truth says of each person in it."""
        time = number / self.settings.fps
        if self.settings.repeat > 1:
            time = fold(time, self.settings.seconds / 2)
        people = [look(actor, self.camera, time) for actor in self.actors]
        joints = [coco_joints(p.mesh) for p in people]
        boxes = [self._box(p) for p in people]
        near = np.zeros(self.rays.shape[:2], bool)
        for person in people:
            mark_rectangle(near, self.camera.project(person.mesh.vertices))
        behind = self.backdrop.copy()
        for points in joints:
            self._shade_ground(behind, points)
        image = eight_bits(behind)
        top, bottom, left, right = _extent(near)
        window = (slice(top, bottom), slice(left, right))
        rays = self.rays[window]
        scene = Renderer([p.mesh for p in people], np.concatenate([self.rays[0, 0, :2], self.rays[-1, -1, :2]]))
        if bottom - top > 1 and right - left > 1:
            image[window] = render(scene, rays, near[window], self.lighting, behind[window])[0]
        rows = [
            self._row(i, *labels, scene)
            for i, labels in enumerate(zip(people, joints, boxes, strict=True))
            if (labels[2][2:] > labels[2][:2]).all()
        ]
        return image, rows

    def _box(self, person: Seen) -> Float[np.ndarray, "4"]:
        """Of the person's projection, cut by the frame, xyxy px; without area where it is outside."""
        low, high = bounds(self.camera.project(shown_vertices(person.mesh)))
        return np.concatenate([low.clip(0, self.settings.size), high.clip(0, self.settings.size)])

    def _row(
        self,
        number: int,
        person: Seen,
        joints: Float[np.ndarray, "17 3"],
        box: Float[np.ndarray, "4"],
        scene: Renderer,
    ) -> dict[str, Any]:
        stored = joints.astype(np.float32).astype(float)
        pixels = self.camera.project(stored)
        visible = (seen_joints(scene, joints) & self.camera.inside(pixels)).mean()
        return {
            "person": number, "box": box, "visible": visible, "joints": stored, "joints2d": pixels,
            "rotation": person.rotation, "translation": person.translation, "pose": stored_pose(person.pose),
        }  # fmt: skip

    def _shade_ground(self, image: Float[np.ndarray, "H W 3"], joints: Float[np.ndarray, "17 3"]) -> None:
        """Darken the ground around feet and below the hips: light from above does not get there."""
        up = self.camera.rotation[:, 1]
        feet = joints[[j for j, *_ in _SHADOWS]]
        heights = feet @ up + EYE_HEIGHT
        spots = feet - heights[:, None] * up
        near = np.zeros(self.rays.shape[:2], bool)
        around = [s + self.camera.rotation @ [x, 0, z] for s in spots for x, z in _CORNERS]
        mark_rectangle(near, self.camera.project(np.stack(around)))
        top, bottom, left, right = _extent(near)
        window = (slice(top, bottom), slice(left, right))
        points = self.rays[window] * self.ground[window][..., None]
        light = np.ones(points.shape[:2], np.float32)
        for (_, blur, strength), spot, height in zip(_SHADOWS, spots, heights, strict=True):
            apart = ((points - spot.astype(np.float32)) ** 2).sum(-1) / (blur + 0.3 * max(height - 0.1, 0)) ** 2
            light *= 1 - np.float32(strength * np.exp(-max(height - 0.1, 0) / 0.8)) * np.exp(-0.5 * apart)
        image[window] *= light[..., None]


_CORNERS = [(x, z) for x in (-_SHADOW_REACH, _SHADOW_REACH) for z in (-_SHADOW_REACH, _SHADOW_REACH)]


def _extent(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """First and last row, first and last column that are marked, the last ones left out; zeros if there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
