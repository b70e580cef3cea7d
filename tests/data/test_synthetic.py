"""Synthetic people: determinism, labels, held-out assets, resumable shards."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vqhps.body.anny import anny_body
from vqhps.data.synthetic import prepare, scene
from vqhps.data.synthetic.character import Character, Mesh, draw_outfit
from vqhps.data.synthetic.light import Panorama, harmonics
from vqhps.data.synthetic.material import Material, identity_colour, sample_texture
from vqhps.data.synthetic.renderer import Lighting, Renderer, render
from vqhps.data.synthetic.split import TEST_GARMENTS, TEST_SKINS, panorama_split
from vqhps.data.synthetic.wardrobe import rest_bodies
from vqhps.errors import VqhpsError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} does not exist: no assets to render")


@pytest.fixture(scope="module")
def assets() -> scene.Assets:
    return scene.load_assets(DATA, "test")


@pytest.fixture(scope="module")
def samples(assets: scene.Assets) -> list[scene.Rendered]:
    return [scene.render_sample(assets, 3, i, size=128) for i in range(6)]


@needs_data
def test_same_seed_gives_the_same_bytes(assets: scene.Assets) -> None:
    first, again, other = (prepare.encode_sample(assets, seed, 5, 64) for seed in (1, 1, 2))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


@needs_data
def test_only_people_to_train_on_have_mixed_limbs(assets: scene.Assets) -> None:
    assert assets.mixing == 0 < scene.load_assets(DATA, "train").mixing < 1
    bank = torch.from_numpy(assets.poses.pose)
    for mixing, recorded in ((0.0, True), (1.0, False)):
        mixed = replace(assets, mixing=mixing)
        poses = [scene.render_sample(mixed, 3, i, size=8).labels["pose"] for i in range(3)]
        turned = torch.from_numpy(Rotation.from_quat(np.roll(poses, -1, 2).reshape(-1, 4)).as_matrix()).float()
        apart = [(bank - pose).abs().amax((1, 2, 3)).min() for pose in turned.view(3, -1, 3, 3)]
        assert all((a < 0.01) == recorded for a in apart)


@needs_data
def test_labels_agree_with_the_body_model(samples: list[scene.Rendered]) -> None:
    """Pose, shape, rotation, translation, intrinsics and crop give the stored key points again, through the body."""
    body = anny_body("full")
    for sample in samples:
        lab = sample.labels
        turns = Rotation.from_quat(lab["pose"][:, [1, 2, 3, 0]].astype(float)).as_matrix()
        vertices = body.forward(torch.from_numpy(turns[None]).float(), torch.from_numpy(lab["shape"])[None])[0]
        in_camera = vertices.double().numpy() @ lab["rotation"].T.astype(float) + lab["translation"]
        joints = body.joint_regressors["coco17"] @ in_camera
        assert np.abs(joints - lab["joints3d"]).max() < 5e-3
        homogeneous = joints @ lab["intrinsics"].T.astype(float)
        full = homogeneous[:, :2] / homogeneous[:, 2:]
        cx, cy, side = lab["crop"]
        pixels = (full - [cx - side / 2, cy - side / 2]) * 128 / side
        inside = lab["keypoints_visible"] > 0
        assert np.abs(pixels - lab["keypoints2d"])[inside].max() < 0.5
        assert ((full >= 0) & (full < lab["frame_size"])).all(1).tolist() == inside.tolist()


@needs_data
def test_seen_joints_lie_on_the_silhouette(assets: scene.Assets, samples: list[scene.Rendered]) -> None:
    """Seen joints fall on pixels that differ from the same scene's black outside, and inside of the box."""
    for sample in samples:
        lab = sample.labels
        seen = lab["keypoints2d"][lab["keypoints_visible"] == 2]
        cx, cy, side = lab["crop"]
        low, high = ((lab["box"].reshape(2, 2) - [cx - side / 2, cy - side / 2]) * 128 / side).round(3)
        assert ((seen >= low - 1) & (seen <= high + 1)).all()


@needs_data
def test_render_covers_the_body(assets: scene.Assets) -> None:
    """A front view hits the person at each joint, and nothing at the corners."""
    rng = np.random.default_rng(0)
    bases, heads = rest_bodies(assets.shapes[:1])
    outfit = draw_outfit(assets.wardrobe, 0.0, rng)
    character = Character(assets.wardrobe, outfit, bases[0], heads[0])
    body = anny_body("full")
    posed = character.posed(np.tile(np.eye(3, dtype=np.float32), (31, 1, 1)), body.bone_parents)
    expected = body.forward(torch.eye(3).expand(1, 31, 3, 3), torch.from_numpy(assets.shapes[:1]))[0].numpy()
    assert np.abs(posed.vertices[: len(expected)] - expected).max() < 1e-4
    mesh = posed.moved(np.diag([1.0, -1.0, -1.0]), np.array([0, 0, 4.0]))
    steps = (np.arange(128) + 0.5) / 128 * 0.6 - 0.3
    rays = np.stack([*np.meshgrid(steps, steps), np.ones((128, 128))], -1).astype(np.float32)
    renderer = Renderer([mesh], np.float32([-0.3, -0.3, 0.3, 0.3]))
    lighting = Lighting(assets.panoramas[0], np.eye(3), 0.7, 1.0, np.float32([0, 0, 1]), np.ones(3, np.float32))
    image, seen = render(renderer, rays, np.ones((128, 128), bool), lighting)
    joints = body.joint_regressors["coco17"] @ mesh.vertices[: len(expected)]
    at = ((joints[:, :2] / joints[:, 2:] + 0.3) / 0.6 * 128).astype(int)
    assert (seen[at[:, 1], at[:, 0]] >= 0).all()
    assert seen[0, 0] == seen[-1, -1] == -1
    left_is_right_in_the_image = at[5, 0] > at[6, 0]
    assert left_is_right_in_the_image and image.std() > 5


@needs_data
def test_test_split_holds_only_held_out_assets(assets: scene.Assets) -> None:
    wardrobe = assets.wardrobe
    garments = {*wardrobe.suits, *wardrobe.shoes, *wardrobe.hair, *wardrobe.hats}
    assert garments == TEST_GARMENTS and set(wardrobe.skins) == TEST_SKINS
    names = sorted(p.stem for p in (DATA / "backgrounds").glob("*.jpg"))
    assert [p.name for p in assets.panoramas] == names[5::6]


def test_panorama_splits_are_disjoint_and_complete() -> None:
    names = [f"p{i:02d}" for i in range(46)]
    train, test = panorama_split(names, "train"), panorama_split(names[::-1], "test")
    assert not set(train) & set(test) and sorted(train + test) == names and len(test) == 7


@needs_data
def test_interrupted_run_goes_on(assets: scene.Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that exists is not rendered again; one that is missing is, to the same bytes."""

    class Counter:
        value = 0

        def get_lock(self) -> io.BytesIO:
            return io.BytesIO()

    def run(jobs: list, *_: object) -> None:
        for job in jobs:
            prepare._write_shard(*job)

    monkeypatch.setattr(prepare, "_worker", {"assets": assets, "done": Counter()})
    monkeypatch.setattr(prepare, "_run", run)
    arguments = (tmp_path, DATA, "test", 3, 7, 1, 2, 64)
    index = prepare.prepare_synthetic(*arguments)
    names = ["synthetic-test-7-000000.tar", "synthetic-test-7-000001.tar"]
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == names and index.is_file()
    whole = [(tmp_path / n).read_bytes() for n in names]
    (tmp_path / names[0]).write_bytes(b"kept")
    (tmp_path / names[1]).unlink()
    prepare.prepare_synthetic(*arguments)
    assert (tmp_path / names[0]).read_bytes() == b"kept" and (tmp_path / names[1]).read_bytes() == whole[1]
    with tarfile.open(fileobj=io.BytesIO(whole[0])) as tar:
        assert len(tar.getnames()) == 4
        stored = tar.extractfile(tar.getnames()[1])
        assert stored is not None
        with np.load(io.BytesIO(stored.read()), allow_pickle=False) as labels:
            assert labels["pose"].shape == (31, 4) and labels["keypoints2d"].shape == (17, 2)


def test_wrong_settings_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(VqhpsError, match="no clothes, backgrounds, mocap in data_root") as error:
        prepare.prepare_synthetic(tmp_path / "out", tmp_path / "nowhere")
    assert "\n" not in str(error.value) and str(tmp_path / "nowhere") in str(error.value)
    with pytest.raises(VqhpsError, match="count 0"):
        prepare.prepare_synthetic(tmp_path, tmp_path, count=0)


def test_texture_look_up_hits_pixel_centres() -> None:
    texture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    uv = np.float32([[0.5 / 3, 0.25], [2.5 / 3, 0.75]])
    assert np.allclose(sample_texture(texture, uv) * 255, [texture[0, 0], texture[1, 2]], atol=1)


def test_renderer_shades_and_passes_holes() -> None:
    """A half transparent quad in front of nothing: one half is seen, the other shows the background."""
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[:, :4, 3] = 0
    corners = np.float32([[-1, -1, 2], [1, -1, 2], [1, 1, 2], [-1, 1, 2]])
    faces, uv = np.array([[0, 1, 2], [0, 2, 3]]), (corners[:, :2] + 1) / 2
    normals = np.tile(np.float32([0, 0, -1]), (4, 1))
    material = Material(texture, identity_colour(), translucent=True)
    mesh = Mesh(corners, normals, corners, faces, uv[faces], np.zeros(2, np.int32), (material,))
    white = np.zeros((9, 3), np.float32)
    white[0] = 1 / harmonics(np.float32([[0, 0, 1]]))[0, 0]
    sky = Panorama("", np.zeros((8, 16, 3), np.uint8), 0.2, white, np.float32([0, 1, 0]), np.zeros(3, np.float32))
    steps = (np.arange(16) + 0.5) / 16 * 0.8 - 0.4
    rays = np.stack([*np.meshgrid(steps, steps), np.ones((16, 16))], -1).astype(np.float32)
    lighting = Lighting(sky, np.eye(3), 1.0, 1.0, np.float32([0, 0, 1]), np.ones(3, np.float32))
    image, seen = render(Renderer([mesh], np.float32([-1, -1, 1, 1])), rays, np.ones((16, 16), bool), lighting)
    assert (seen[:, :7] == -1).all() and (seen[:, 9:] >= 0).all()
    assert image[:, :6].max() == 0 and image[:, 10:].min() > 200
