"""Shards, crops, augmentation and targets: whatever is done to a picture is done to its labels."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tiny_shards import TinyBody, random_bodies, symmetric_tokenizer, write_shard
from vqhps.body.joints import COCO17_FLIP
from vqhps.crop import crop_image, crop_matrix
from vqhps.data import crops
from vqhps.data.augment import AugmentConfig, augment_image, random_view
from vqhps.data.crops import (
    BodyLabels,
    CropDataset,
    crop_keypoints,
    crop_places,
    crop_rotations,
    plain_crops,
    shard_tokens,
)
from vqhps.data.sample import Shards, find_shards, shard_labels
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_quaternion, project_perspective, ray_rotation

STILL = AugmentConfig(
    p_flip=0, p_rotation=0, scale=0, shift=0, p_colour=0, p_gray=0, p_blur=0, p_low_resolution=0, p_noise=0, p_jpeg=0,
    p_erase=0,
)  # fmt: skip
MIRROR = np.array([-1, 1, 1])


@pytest.fixture()
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    monkeypatch.setattr(crops, "named_body", lambda name: TinyBody())
    write_shard(tmp_path / "tiny-train-0-000000.tar", 5, seed=0)
    write_shard(tmp_path / "tiny-train-0-000001.tar", 3, seed=1)
    return Shards(find_shards(tmp_path, "train"))


def dataset(shards: Shards, size: int, augment: AugmentConfig, seed: int = 0) -> CropDataset:
    tokens = shard_tokens(shards, symmetric_tokenizer())
    return CropDataset(shards, np.arange(len(shards)), tokens, size, augment, seed, 1000)


def bodies(shards: Shards) -> np.ndarray:
    """True canonical vertices of all samples."""
    return random_bodies(shards.labels["pose"], shards.labels["shape"]).numpy()


def camera_residual_px(points: np.ndarray, keypoints: np.ndarray, size: int) -> float:
    """What the best weak-perspective camera `s (x + t)` leaves of the key points, px, worst joint."""
    x, y = points[:, :2] - points[:, :2].mean(0), keypoints - keypoints.mean(0)
    scale = (x * y).sum() / (x * x).sum()
    return float(np.linalg.norm(scale * x - y, axis=1).max() * size / 2)


def test_shards_are_read_in_order_and_indexed_once(shards: Shards) -> None:
    assert len(shards) == 8 and shards.counts == [5, 3]
    assert [p.name for p in shards.paths] == ["tiny-train-0-000000.tar", "tiny-train-0-000001.tar"]
    assert shards.labels["key"].tolist() == [f"00{i:04d}" for i in range(5)] + [f"01{i:04d}" for i in range(3)]
    side_file = shards.paths[0].with_suffix(".labels.npz")
    before = side_file.stat().st_mtime_ns
    Shards(shards.paths)
    assert side_file.stat().st_mtime_ns == before
    assert shards[6].image.shape == (96, 96, 3)


def test_a_newer_shard_is_indexed_again(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "tiny-train-0-000000.tar", 2)
    assert len(shard_labels(path)["key"]) == 2
    write_shard(path, 3)
    later = path.stat().st_mtime + 5
    os.utime(path, (later, later))
    assert len(shard_labels(path)["key"]) == 3


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(VqhpsError, match="no shards"):
        find_shards(tmp_path, "train")
    (tmp_path / "tiny-train-0-000000.tar").write_bytes(b"no tar")
    with pytest.raises(VqhpsError, match="cannot read the shard"):
        Shards(find_shards(tmp_path, "train"))


def test_unfinished_shards_are_left_alone(tmp_path: Path) -> None:
    write_shard(tmp_path / "tiny-train-0-000000.tar", 1)
    (tmp_path / "tiny-train-0-000001.1234.part").write_bytes(b"half")
    assert len(find_shards(tmp_path, "train")) == 1


@pytest.mark.parametrize("angle", [0.0, 33.0])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_and_its_matrix_agree(angle: float, flip: bool) -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    spot = np.array([97.5, 44.5])  # the centre of pixel (97, 44)
    image[44, 97] = 255
    image = cv2.GaussianBlur(image, (0, 0), 3) * np.uint8(10)
    place = (np.array([90.3, 50.9]), 50.0, 200, angle, flip)
    crop = crop_image(image, *place)[..., 0].astype(float)
    matrix = crop_matrix(*place)
    y, x = np.mgrid[:200, :200] + 0.5
    found = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
    np.testing.assert_allclose(found, matrix[:, :2] @ spot + matrix[:, 2], atol=0.1)


def test_crop_to_frame_and_back_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 4000, (100, 2))
    for angle, flip in ((0.0, False), (77.0, False), (-20.0, True)):
        matrix = crop_matrix(rng.uniform(0, 4000, 2), rng.uniform(20, 3000), 224, angle, flip)
        there = points @ matrix[:, :2].T + matrix[:, 2]
        back = (there - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        np.testing.assert_allclose(back, points, atol=1e-4)


def test_without_augmentation_training_sees_what_prediction_sees(shards: Shards) -> None:
    data = dataset(shards, 64, STILL)
    plain, keypoints = plain_crops(shards, np.arange(8), 64), crop_keypoints(shards, np.arange(8))
    for position in range(8):
        item = data[position]
        matches = [i for i in range(8) if np.array_equal(item["image"].numpy(), plain[i])]
        assert len(matches) == 1
        np.testing.assert_allclose(item["keypoints2d"], keypoints[matches[0]], atol=1e-4)


def test_the_crop_is_a_quarter_larger_than_the_body(shards: Shards) -> None:
    vertices = bodies(shards)
    for row in range(len(shards)):
        sample = shards[row]
        extent = np.ptp((vertices[row] @ sample.rotation.T)[:, :2], axis=0).max()
        joints = symmetric_tokenizer().regressor("coco17").numpy() @ vertices[row] @ sample.rotation.T
        pixels_a_metre = np.linalg.norm(np.ptp(sample.keypoints2d, axis=0)) / np.linalg.norm(
            np.ptp(joints[:, :2], axis=0)
        )
        assert sample.size == pytest.approx(1.25 * extent * pixels_a_metre, rel=1e-3)


@pytest.mark.parametrize(("p_flip", "p_rotation"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_labels_follow_flips_and_turns(shards: Shards, p_flip: int, p_rotation: int) -> None:
    """The true mesh, mirrored if need be, turned by the label and projected, lies on the labelled key points."""
    size = 200
    augment = AugmentConfig(p_flip=p_flip, p_rotation=p_rotation)
    data = dataset(shards, size, augment)
    vertices = bodies(shards)
    regressor = symmetric_tokenizer().regressor("coco17").numpy()
    order = np.random.default_rng((0, 0)).permutation(8)
    for position, row in enumerate(order):
        item = data[position]
        joints = regressor @ vertices[row]
        if p_flip:
            joints = (joints * MIRROR)[list(COCO17_FLIP)]
        turned = joints @ item["rotation"].numpy().T
        assert camera_residual_px(turned, item["keypoints2d"].numpy(), size) < 0.5
        assert torch.linalg.det(item["rotation"]) == pytest.approx(1, abs=1e-4)


def test_the_picture_follows_its_key_points(shards: Shards) -> None:
    """With a spot painted on a key point, the spot is found where the label says."""
    augment = AugmentConfig(p_colour=0, p_gray=0, p_blur=0, p_low_resolution=0, p_noise=0, p_jpeg=0, p_erase=0)
    sample, rng = shards[0], np.random.default_rng(5)
    inside = np.flatnonzero(((sample.keypoints2d > 20) & (sample.keypoints2d < 76)).all(1))
    spot = np.floor(sample.keypoints2d[inside[0]])
    image = np.zeros_like(sample.image)
    image[int(spot[1]), int(spot[0])] = 255
    for _ in range(20):
        view = random_view(sample.center, sample.size, augment, rng)
        place = (view.center, view.size, 256, view.angle_deg, view.flip)
        crop, matrix = crop_image(image, *place)[..., 0].astype(float), crop_matrix(*place)
        if crop.sum() == 0:
            continue
        y, x = np.mgrid[:256, :256] + 0.5
        found = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
        np.testing.assert_allclose(found, matrix[:, :2] @ (spot + 0.5) + matrix[:, 2], atol=0.3)


def test_mirrored_tokens_are_those_of_the_mirrored_mesh(shards: Shards) -> None:
    tokenizer, template = symmetric_tokenizer(), TinyBody().template
    tokens = torch.from_numpy(shard_tokens(shards, tokenizer).astype(np.int64))
    vertices = bodies(shards)
    twin = np.linalg.norm(template[:, None] * MIRROR - template[None], axis=2).argmin(1)
    mirrored = torch.from_numpy((vertices * MIRROR)[:, twin].astype(np.float32))
    assert (tokens[:, 0] == tokenizer.encode(torch.from_numpy(vertices))).float().mean() > 0.97
    assert (tokens[:, 1] == tokenizer.encode(mirrored)).float().mean() > 0.97
    assert (tokens[:, 0] != tokens[:, 1]).any()


def test_tokens_are_kept_a_tokenizer(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shard_tokens(shards, symmetric_tokenizer())
    monkeypatch.setattr(crops, "named_body", None)  # no body is needed the second time
    np.testing.assert_array_equal(shard_tokens(shards, symmetric_tokenizer()), first)
    other = symmetric_tokenizer()
    other.codebook.add_(1.0)
    with pytest.raises(TypeError):
        shard_tokens(shards, other)


def test_an_epoch_shows_each_sample_once_and_any_position_can_be_had_again(shards: Shards) -> None:
    first, second = dataset(shards, 32, AugmentConfig()), dataset(shards, 32, AugmentConfig())
    plain = plain_crops(shards, np.arange(8), 32)
    still = dataset(shards, 32, STILL)
    for epoch in (0, 1, 2):
        seen = {int(np.abs(plain - still[epoch * 8 + i]["image"].numpy()).sum((1, 2, 3)).argmin()) for i in range(8)}
        assert seen == set(range(8))
    for position in (0, 7, 20):
        a, b = first[position], second[position]
        assert all(torch.equal(a[name], b[name]) for name in a)
    changed = dataset(shards, 32, AugmentConfig(), seed=1)[0]
    assert not torch.equal(first[0]["image"], changed["image"])


def test_looks_change_and_stay_images() -> None:
    always = {name: 1.0 for name in AugmentConfig.__dataclass_fields__ if name.startswith("p_")}
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for seed in range(30):
        for config in (AugmentConfig(), AugmentConfig(**always)):
            changed = augment_image(image, config, np.random.default_rng(seed))
            assert changed.shape == image.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(augment_image(image, STILL, np.random.default_rng(0)), image)


def test_a_camera_that_looks_at_the_crop_sees_the_body_the_same_way_anywhere() -> None:
    """`ray_rotation` takes the optical axis to the ray, and a body turned by it projects there as it does ahead."""
    rng = np.random.default_rng(0)
    focal, principal = np.full(20, 800.0), np.tile([640.0, 360.0], (20, 1))
    center = rng.uniform([0, 0], [1280, 720], (20, 2))
    turn = ray_rotation(center, focal, principal)
    ray = np.concatenate([(center - principal) / 800, np.ones((20, 1))], 1)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    np.testing.assert_allclose(turn[:, :, 2], ray, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turn), 1, atol=1e-12)
    angle = Rotation.from_matrix(turn).magnitude()
    np.testing.assert_allclose(np.cos(angle), ray[:, 2], atol=1e-12)
    intrinsics = np.broadcast_to(np.array([[800, 0, 640], [0, 800, 360], [0, 0, 1.0]]), (20, 3, 3))
    ahead = np.array([[[0.0, 0.0, 5.0]]])
    np.testing.assert_allclose(project_perspective(ahead @ turn.transpose(0, 2, 1), intrinsics)[:, 0], center)


def test_rotations_are_seen_from_the_crop(shards: Shards) -> None:
    np.testing.assert_allclose(crop_rotations(shards), shards.labels["rotation"], atol=1e-3)
    labels = dict(shards.labels)
    shards.labels = {**labels, "box": labels["box"] + np.float32(200_000)}
    turned = crop_rotations(shards)
    box = shards.labels["box"].astype(float)
    ray = np.concatenate([((box[:, :2] + box[:, 2:]) / 2 - [320, 240]) / 1e5, np.ones((8, 1))], 1)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    back = turned @ labels["rotation"].transpose(0, 2, 1) @ ray[..., None]
    np.testing.assert_allclose(back[..., 0], np.tile([0, 0, 1.0], (8, 1)), atol=1e-5)


def test_mirrored_parameters_are_those_of_the_mirrored_mesh(shards: Shards) -> None:
    bodies, rows = BodyLabels(shards), np.arange(8)
    sides = [bodies.of(rows, np.full(8, flip)) for flip in (0, 1)]
    meshes = [
        TinyBody().forward(matrix_from_quaternion(torch.from_numpy(s["pose"])), torch.from_numpy(s["shape"])).numpy()
        for s in sides
    ]
    template = TinyBody().template
    twin = np.linalg.norm(template[:, None] * [-1, 1, 1] - template, axis=2).argmin(1)
    np.testing.assert_allclose(meshes[1], meshes[0][:, twin] * [-1, 1, 1], atol=2e-3)  # poses are of half precision
    assert np.abs(meshes[1] - meshes[0]).max() > 0.05
    assert (sides[0]["body"] == 0).all()


@pytest.mark.parametrize(("p_flip", "p_rotation"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_places_say_where_in_the_photo_the_key_points_are(shards: Shards, p_flip: int, p_rotation: int) -> None:
    """In a photo that is turned about its optical axis and mirrored as the crop is."""
    labels = shards.labels
    labels["intrinsics"][:] = np.array([[500, 0, 250], [0, 500, 200], [0, 0, 1]])
    pixel = labels["crop"][:, 2] / labels["stored"]
    frame = (labels["keypoints2d"] - labels["stored"][:, None, None] / 2) * pixel[:, None, None]
    frame = (frame + labels["crop"][:, None, :2] - [250, 200]) / 500
    crops = dataset(shards, 64, AugmentConfig(p_flip=p_flip, p_rotation=p_rotation, rotation_deg=20.0))
    for position in range(8):
        crop = crops[position]
        index = int(np.random.default_rng((0, 0)).permutation(8)[position])
        place, keypoints = crop["place"].numpy(), crop["keypoints2d"].numpy()
        seen = place[:2] + keypoints * place[2] / 2
        true = frame[index]
        if p_flip:
            true = true[list(COCO17_FLIP)] * [-1, 1]
        assert np.abs(np.linalg.norm(seen, axis=1) - np.linalg.norm(true, axis=1)).max() < 1e-4
        turn = [np.arctan2(x[:, 1], x[:, 0]) for x in (seen, true)]
        apart = np.angle(np.exp(1j * (turn[0] - turn[1])))
        assert np.ptp(apart) < 1e-3 and (np.abs(apart).max() > 1e-3) == bool(p_rotation)


def test_places_of_plain_crops_and_of_photos_without_a_camera(shards: Shards) -> None:
    crops = dataset(shards, 64, STILL)
    order = np.random.default_rng((0, 0)).permutation(8)
    plain = crop_places(shards, order)
    np.testing.assert_allclose([crops[i]["place"].numpy() for i in range(8)], plain, atol=1e-6)
    shards.labels["intrinsics"][:] = np.diag([np.inf, np.inf, 1.0])
    assumed = crop_places(shards, order)
    assert np.isfinite(assumed).all() and (assumed[:, 2] > plain[:, 2]).all()
