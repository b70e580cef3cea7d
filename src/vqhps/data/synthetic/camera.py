"""The virtual camera: a full frame, a field of view, and where the main person stands in it."""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

_ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9)
_NEAREST = 0.25  # metres: no vertex of the main person comes closer


@dataclasses.dataclass(frozen=True)
class Camera:
    """A full frame.

    Attributes:
        size: (2,) width and height, px.
        intrinsics: (3,3) px.
        rotation: (3,3) world (y up) -> camera axes.
    """

    size: tuple[int, int]
    intrinsics: Float[np.ndarray, "3 3"]
    rotation: Float[np.ndarray, "3 3"]

    def project(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 2"]:
        """Full-frame pixels of points in camera axes, metres; points behind the camera give far-off pixels."""
        depth = np.maximum(points[:, 2:], 1e-3)
        focal, centre = self.intrinsics[[0, 1], [0, 1]], self.intrinsics[:2, 2]
        return points[:, :2] / depth * focal.astype(points.dtype) + centre.astype(points.dtype)

    def rays(self, x: Float[np.ndarray, "W"], y: Float[np.ndarray, "H"]) -> Float[np.ndarray, "H W 3"]:
        """Directions, z = 1, of a grid of pixels of the full frame."""
        across = (x - self.intrinsics[0, 2]) / self.intrinsics[0, 0]
        down = (y - self.intrinsics[1, 2]) / self.intrinsics[1, 1]
        return np.stack([*np.meshgrid(across, down), np.ones((len(y), len(x)))], -1).astype(np.float32)

    def inside(self, pixels: Float[np.ndarray, "N 2"]) -> np.ndarray:
        """(N,) whether pixels lie in the frame."""
        x, y = pixels[..., 0], pixels[..., 1]
        return (x >= 0) & (x < self.size[0]) & (y >= 0) & (y < self.size[1])


def bounds(points: Float[np.ndarray, "N C"]) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "C"]]:
    """Least and greatest of each coordinate (numpy is slow along the first of two axes)."""
    columns = np.ascontiguousarray(points.T)
    return columns.min(1), columns.max(1)


def draw_camera(rng: np.random.Generator) -> Camera:
    """A frame of 640 to 1920 px of common aspect, 25 to 75 degrees along its long side, mostly near level."""
    long, aspect = rng.integers(640, 1921), _ASPECTS[rng.integers(len(_ASPECTS))]
    size = (int(long), int(long / aspect))
    size = size[::-1] if rng.random() < 0.45 else size
    focal = long / 2 / np.tan(np.radians(rng.uniform(25, 75)) / 2)
    intrinsics = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    pitch = rng.normal(6, 9) if rng.random() < 0.8 else rng.uniform(-35, 55)
    roll = rng.normal(0, 3) if rng.random() < 0.9 else rng.uniform(-25, 25)
    turn = Rotation.from_euler("x", pitch, degrees=True) * Rotation.from_euler("z", roll, degrees=True)
    return Camera(size, intrinsics, turn.as_matrix() @ np.diag([1.0, -1.0, -1.0]))


def place_person(
    vertices: Float[np.ndarray, "V 3"], camera: Camera, truncated: bool, rng: np.random.Generator
) -> Float[np.ndarray, "3"]:
    """Where a person, already turned to camera axes, is put: metres, camera axes.

    Args:
        vertices: of the main person, metres, origin at the root joint.
        camera: the frame.
        truncated: put part of the person outside of the frame.
        rng: source of all randomness.
    """
    low, high = bounds(vertices)
    centre, extent = (low + high) / 2, high - low
    long = float(max(extent[0], extent[1]))
    share = rng.uniform(1.15, 2.6) if truncated else np.exp(rng.uniform(np.log(0.2), np.log(0.9)))
    frame = np.array(camera.size, float)
    focal = camera.intrinsics[0, 0]
    depth = focal * long / (share * min(frame) if not truncated else share * frame[1])
    depth = max(depth, _NEAREST - float(low[2] - centre[2]))
    half = focal * extent[:2] / depth / 2
    if truncated:
        pixel = _cut_position(frame, half, rng)
    else:
        slack = np.maximum(frame / 2 - half, 0)
        pixel = frame / 2 + rng.uniform(-1, 1, 2) * slack
    ray = (pixel - camera.intrinsics[:2, 2]) / focal
    return np.array([*(ray * depth), depth]) - centre


def _cut_position(
    frame: Float[np.ndarray, "2"], half: Float[np.ndarray, "2"], rng: np.random.Generator
) -> Float[np.ndarray, "2"]:
    """Pixel of the person's centre such that the frame cuts it: below (mostly), above, or at a side."""
    kind = rng.random()
    x = frame[0] / 2 + rng.uniform(-0.3, 0.3) * frame[0]
    if kind < 0.65:  # the head is in the upper part of the frame
        return np.array([x, rng.uniform(0.03, 0.35) * frame[1] + half[1]])
    if kind < 0.78:  # the feet are in the lower part
        return np.array([x, rng.uniform(0.65, 0.97) * frame[1] - half[1]])
    side = frame[0] * (rng.random() < 0.5) + rng.uniform(-0.3, 0.3) * half[0]
    return np.array([side, frame[1] / 2 + rng.uniform(-0.5, 0.5) * half[1]])
