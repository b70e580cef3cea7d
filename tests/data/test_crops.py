"""Training crops: labels follow the image through every augmentation."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tiny_shard import write_shard
from vqhps.body.anny import anny_body
from vqhps.body.joints import COCO17_FLIP
from vqhps.crop import crop_matrix
from vqhps.data.augment import AugmentConfig, View, augment_image, random_view
from vqhps.data.bodies import mirrored
from vqhps.data.crops import CropDataset, crop_keypoints, crop_rotations, plain_crops
from vqhps.data.sample import Shards, find_shards
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_quaternion


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return Shards([write_shard(tmp_path_factory.mktemp("shards"), "train", 6)])


def truth(shards, row, flip):
    """COCO joints of a sample in the axes of its crop's camera, from the body model, metres."""
    body = anny_body("coarse")
    pose = matrix_from_quaternion(shards.labels["pose"][row : row + 1].astype(np.float32))
    pose = mirrored(pose, body) if flip else pose
    vertices = body.forward(torch.from_numpy(pose), torch.from_numpy(shards.labels["shape"][row : row + 1]))
    return (body.joint_regressors["coco17"] @ vertices.numpy())[0]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [0.0, 35.0, -80.0])
def test_key_points_and_rotation_agree_under_turn_and_mirror(shards, flip, angle):
    """The true body, turned by the label's rotation, projects onto the label's key points by one weak camera.

    The tiny shard's people are far away, so that perspective is weak: what is left is below half a pixel.
    """
    rotations = crop_rotations(shards)
    for row in range(len(shards)):
        sample = shards[row]
        view = View(sample.center + [3, -5], 0.9 * sample.size, angle, flip)
        matrix = crop_matrix(view.center, view.size, 224, view.angle_deg, view.flip)
        points = sample.keypoints2d @ matrix[:, :2].T + matrix[:, 2]
        points = points[list(COCO17_FLIP)] if flip else points
        joints = truth(shards, row, flip) @ view.rotated(rotations[row]).T
        unknown = np.zeros((34, 3))
        unknown[0::2, 0], unknown[0::2, 1] = joints[:, 0], 1
        unknown[1::2, 0], unknown[1::2, 2] = joints[:, 1], 1
        camera = np.linalg.lstsq(unknown, points.ravel(), rcond=None)[0]
        assert camera[0] > 0
        assert np.abs(unknown @ camera - points.ravel()).max() < 0.5


def test_rotation_label_turns_with_the_image():
    view = View(np.zeros(2), 10.0, 90.0, False)
    np.testing.assert_allclose(view.rotated(np.eye(3)) @ [1, 0, 0], [0, 1, 0], atol=1e-6)  # right goes down: clockwise
    turn = Rotation.random(random_state=0).as_matrix()
    mirror = np.diag([-1, 1, 1])
    np.testing.assert_allclose(View(np.zeros(2), 1.0, 0.0, True).rotated(turn), mirror @ turn @ mirror, atol=1e-6)


def test_plain_crops_match_their_key_points(shards):
    """The painted head is where the crop's nose should be."""
    rows = np.arange(len(shards))
    crops, points = plain_crops(shards, rows, 96), (crop_keypoints(shards, rows) + 1) * 48
    for crop, point in zip(crops, points, strict=True):
        x, y = point[0].astype(int)
        red, green, blue = crop[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].reshape(-1, 3).mean(0)
        assert red > green + 20 and red > blue + 20


def test_dataset_is_reproducible_and_covers_each_epoch(shards):
    tokens = np.arange(len(shards) * 2 * 3, dtype=np.int16).reshape(len(shards), 2, 3)

    def dataset(seed):
        return CropDataset(shards, np.arange(4), tokens, 64, AugmentConfig(), seed, 100)

    first, again, other = dataset(0), dataset(0), dataset(1)
    assert all(torch.equal(first[5][k], again[5][k]) for k in first[5])
    assert not torch.equal(first[5]["image"], other[5]["image"])
    seen = sorted(int(first[i]["indices"][0]) // 6 for i in range(4))
    assert seen == [0, 1, 2, 3]
    assert torch.equal(first[2]["indices"], again[2]["indices"])  # after having read further on


def test_look_changes_but_shape_and_type_stay():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    changed = 0
    for seed in range(40):
        out = augment_image(image, AugmentConfig(), np.random.default_rng(seed))
        assert out.shape == image.shape and out.dtype == np.uint8
        changed += not np.array_equal(out, image)
    assert changed > 30


def test_views_stay_near_the_person():
    config = AugmentConfig()
    views = [random_view(np.array([50.0, 60.0]), 40.0, config, np.random.default_rng(i)) for i in range(200)]
    assert max(np.abs(v.center - [50, 60]).max() for v in views) <= config.shift * 40
    assert 0.3 < np.mean([v.flip for v in views]) < 0.7
    assert max(abs(v.angle_deg) for v in views) <= 2 * config.rotation_deg


def test_missing_and_damaged_shards_are_one_clear_error(tmp_path):
    with pytest.raises(VqhpsError, match="no shards"):
        find_shards(tmp_path, "train")
    (tmp_path / "x-train-0.tar").write_bytes(b"not a tar file")
    with pytest.raises(VqhpsError, match=r"cannot read the shard .*x-train-0.tar"):
        Shards(find_shards(tmp_path, "train"))
