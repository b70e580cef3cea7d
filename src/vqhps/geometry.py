"""Rotations, cameras, projection, crop <-> full frame, Procrustes: the only copy of each formula.

Pure functions on the array API: numpy arrays at prediction time and torch tensors in training run the same code.
Camera axes are OpenCV's (x right, y down, z forward); pixel centres lie at integer + 0.5.
"""

import math
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor, shapes in the docstrings

DEFAULT_FOV_DEG = 55.0  # of the diagonal, for photos without EXIF; see `default_focal`


def matrix_from_6d(rotation_6d: Array) -> Array:
    """Rotation matrices from 6D, Gram-Schmidt on the first two ROWS (Zhou et al., CVPR 2019).

    Args:
        rotation_6d: (..., 6), any scale.

    Returns:
        (..., 3, 3), acting on column vectors.
    """
    xp = _namespace(rotation_6d)
    first = _normalise(rotation_6d[..., :3])
    second = rotation_6d[..., 3:]
    second = _normalise(second - xp.sum(first * second, axis=-1, keepdims=True) * first)
    third = xp.linalg.cross(first, second, axis=-1)
    return xp.stack([first, second, third], axis=-2)


def _namespace(array: Array) -> Any:
    """The functions of the array API for this kind of array."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    from array_api_compat import array_namespace  # for torch; takes long to load

    return array_namespace(array)


def _normalise(vectors: Array) -> Array:
    xp = _namespace(vectors)
    return vectors / xp.clip(xp.linalg.vector_norm(vectors, axis=-1, keepdims=True), min=1e-8)


def matrix_to_6d(rotation: Array) -> Array:
    """First two rows of (..., 3, 3) as (..., 6)."""
    xp = _namespace(rotation)
    return xp.concat([rotation[..., 0, :], rotation[..., 1, :]], axis=-1)


def matrix_from_quaternion(quaternion: Array) -> Array:
    """Rotation matrices (..., 3, 3) from quaternions (..., 4) in the order w, x, y, z; any scale but zero."""
    xp = _namespace(quaternion)
    q = _normalise(quaternion)
    w, x, y, z = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_from_matrix(rotation: Array) -> Array:
    """Unit quaternions (..., 4) in the order w, x, y, z, w >= 0, of rotation matrices (..., 3, 3).

    The largest of the four is found from the diagonal, the others by division by it (Shepperd, 1978).
    """
    xp = _namespace(rotation)
    m = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    trace = m[0][0] + m[1][1] + m[2][2]
    yz, zx, xy = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]  # 4 w x, 4 w y, 4 w z
    one_two, two_three, three_one = m[0][1] + m[1][0], m[1][2] + m[2][1], m[2][0] + m[0][2]
    rows = [  # 4 q_i times the whole quaternion
        [1 + trace, yz, zx, xy],
        [yz, 1 + 2 * m[0][0] - trace, one_two, three_one],
        [zx, one_two, 1 + 2 * m[1][1] - trace, two_three],
        [xy, three_one, two_three, 1 + 2 * m[2][2] - trace],
    ]
    candidates = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
    squares = xp.stack([row[i] for i, row in enumerate(rows)], axis=-1)
    best = xp.argmax(squares, axis=-1)[..., None] == xp.arange(4)
    quaternion = _normalise(xp.sum(xp.where(best[..., None], candidates, 0 * candidates), axis=-2))
    return xp.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_from_vector(vector: Array) -> Array:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3): axis times angle in radians."""
    xp = _namespace(vector)
    half = xp.linalg.vector_norm(vector, axis=-1, keepdims=True) / 2
    small = half < 1e-6
    sine = xp.where(small, 0.5 * xp.ones_like(half), xp.sin(half) / (2 * xp.where(small, xp.ones_like(half), half)))
    return matrix_from_quaternion(xp.concat([xp.cos(half), sine * vector], axis=-1))


def rotate(rotation: Array, points: Array) -> Array:
    """Apply rotations (..., 3, 3) to points (..., P, 3)."""
    xp = _namespace(points)
    return points @ xp.matrix_transpose(rotation)


def project(points: Array, camera: Array) -> Array:
    """Project points with the weak-perspective camera of a crop.

    Args:
        points: (B, P, 3) metres, camera axes, body-centred.
        camera: (B, 3) `(s, tx, ty)`: scale in 1/m, translation in m.

    Returns:
        (B, P, 2) crop coordinates: (-1, -1) is the top-left corner, (1, 1) the bottom-right.
    """
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


def project_perspective(points: Array, intrinsics: Array) -> Array:
    """Project camera-frame points (B, P, 3) in metres to pixels (B, P, 2) with pinhole intrinsics (B, 3, 3)."""
    focal = intrinsics[:, None, [0, 1], [0, 1]]
    return focal * points[..., :2] / points[..., 2:] + intrinsics[:, None, :2, 2]


def crop_from_box(box: Array, scale: float = 1.25) -> tuple[Array, Array]:
    """Square crop around boxes.

    Args:
        box: (B, 4) xyxy px.
        scale: side of the crop over the long side of the box.

    Returns:
        center (B, 2) px and size (B,) px.
    """
    xp = _namespace(box)
    center = (box[:, :2] + box[:, 2:]) / 2
    size = scale * xp.max(box[:, 2:] - box[:, :2], axis=-1)
    return center, size


def full_to_crop(points: Array, center: Array, size: Array) -> Array:
    """Full-frame pixels (B, P, 2) to crop coordinates in [-1, 1]."""
    return (points - center[:, None]) * (2 / size)[:, None, None]


def crop_to_full(points: Array, center: Array, size: Array) -> Array:
    """Crop coordinates in [-1, 1] (B, P, 2) to full-frame pixels."""
    return points * (size / 2)[:, None, None] + center[:, None]


def default_focal(width: int, height: int) -> float:
    """Focal length in pixels assumed for a photo without EXIF: a 55 degree diagonal field of view, as phones have it
    at their main camera."""
    return math.hypot(width, height) / (2 * math.tan(math.radians(DEFAULT_FOV_DEG) / 2))


def full_translation(camera: Array, center: Array, size: Array, focal: Array, principal: Array) -> Array:
    """Position in the full-frame camera that reprojects like the weak-perspective camera of the crop.

    The crop's camera looks along the ray through the crop's centre (`ray_rotation`). Depth on that ray follows from the
    scale, `2 f' / (s size)`, with `f'` the distance in px from the camera to the crop's centre; compare CLIFF (ECCV
    2022), which keeps the axes of the full frame.

    Args:
        camera: (B, 3) `(s, tx, ty)`.
        center: (B, 2) px, of the crops.
        size: (B,) px, their sides.
        focal: (B,) px.
        principal: (B, 2) px.

    Returns:
        (B, 3) metres, full-frame camera axes.
    """
    xp = _namespace(camera)
    offset = xp.linalg.vector_norm(center - principal, axis=-1)
    depth = 2 * (focal**2 + offset**2) ** 0.5 / (camera[:, 0] * size)
    position = xp.concat([camera[:, 1:], depth[:, None]], axis=-1)
    return (ray_rotation(center, focal, principal) @ position[..., None])[..., 0]


def crop_camera(translation: Array, center: Array, size: Array, focal: Array, principal: Array) -> Array:
    """Weak-perspective camera of a crop, `(s, tx, ty)`, (B, 3), of a position: the inverse of `full_translation`.

    Args:
        translation: (B, 3) metres, full-frame camera axes, in front of the camera.
        center, size, focal, principal: as in `full_translation`.
    """
    xp = _namespace(translation)
    turn = xp.matrix_transpose(ray_rotation(center, focal, principal))
    position = (turn @ translation[..., None])[..., 0]
    offset = xp.linalg.vector_norm(center - principal, axis=-1)
    scale = 2 * (focal**2 + offset**2) ** 0.5 / (position[:, 2] * size)
    return xp.concat([scale[:, None], position[:, :2]], axis=-1)


def procrustes(source: Array, target: Array) -> Array:
    """Move, turn and scale `source` onto `target` in the least-squares sense (Umeyama, PAMI 1991).

    Args:
        source: (B, P, 3).
        target: (B, P, 3).

    Returns:
        (B, P, 3) aligned copy of `source`; never mirrored.
    """
    xp = _namespace(source)
    target_mean = xp.mean(target, axis=1, keepdims=True)
    x, y = source - xp.mean(source, axis=1, keepdims=True), target - target_mean
    turned = rotate(fit_rotation(x, y), x)
    scale = xp.sum(turned * y, axis=(1, 2)) / xp.clip(xp.sum(x * x, axis=(1, 2)), min=1e-12)
    return scale[:, None, None] * turned + target_mean


def fit_rotation(source: Array, target: Array, weight: Array | None = None) -> Array:
    """Rotation that brings points closest to others once both are centred (Kabsch, Acta Cryst. 1976).

    Args:
        source: (B, P, 3).
        target: (B, P, 3).
        weight: (P,) of each point's squared distance, not all zero; all alike by default.

    Returns:
        (B, 3, 3), acting on column vectors: source -> target; never a mirror.
    """
    xp = _namespace(source)
    share = xp.ones_like(target[0, :, :1]) if weight is None else weight[:, None]
    share = share / xp.sum(share)
    x = source - xp.sum(share * source, axis=1, keepdims=True)
    y = target - xp.sum(share * target, axis=1, keepdims=True)
    return nearest_rotation(xp.matrix_transpose(share * y) @ x)


def nearest_rotation(matrix: Array) -> Array:
    """Rotations (..., 3, 3) nearest to matrices in the Frobenius norm; of a mean of rotations: their chordal mean."""
    xp = _namespace(matrix)
    u, _, vh = xp.linalg.svd(matrix, full_matrices=False)
    sign = xp.sign(xp.linalg.det(u @ vh))
    flip = xp.stack([xp.ones_like(sign), xp.ones_like(sign), sign], axis=-1)
    return (u * flip[..., None, :]) @ vh


def ray_rotation(center: Array, focal: Array, principal: Array) -> Array:
    """Smallest rotation that turns the optical axis onto the viewing ray through a pixel.

    A crop shows a body as a camera would that looks at the crop's centre. `ray_rotation @ rotation_crop` is the
    rotation in the axes of the full-frame camera.

    Args:
        center: (B, 2) px, of the crops.
        focal: (B,) px.
        principal: (B, 2) px.

    Returns:
        (B, 3, 3): axes of the crop's camera -> axes of the full-frame camera.
    """
    xp = _namespace(center)
    ones = xp.ones_like(focal)[:, None]
    ray = _normalise(xp.concat([(center - principal) / focal[:, None], ones], axis=-1))
    x, y, z = ray[:, 0], ray[:, 1], ray[:, 2]
    k = 1 / (1 + z)  # Rodrigues' formula for the axis (-y, x, 0)
    rows = [[1 - k * x * x, -k * x * y, x], [-k * x * y, 1 - k * y * y, y], [-x, -y, z]]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
