"""Bundles, photos and the way back into the full frame, on a tiny hand-made ONNX graph (see `tiny_bundle`)."""

import json

import numpy as np
import onnx
import pytest
from PIL import Image

import tiny_bundle
from shared import tiny_mesh
from vqhps.errors import VqhpsError
from vqhps.geometry import crop_to_full, default_focal, project
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.detect import BoxDetector
from vqhps.runtime.photo import MAX_PIXELS, read_photo
from vqhps.runtime.predictor import Predictor

BOX = [60.0, 30.0, 120.0, 130.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(folder)


def grey(value: int = 128, height: int = 160, width: int = 240) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def damaged(folder, target, name, content: bytes | None):
    """A copy of the bundle with one file replaced, or left out."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / name).unlink()
    if content is not None:
        (target / name).write_bytes(content)
    return target


def test_bundle_runs_any_batch(folder):
    bundle = Bundle.load(folder)
    assert bundle.info == tiny_bundle.INFO and bundle.faces.dtype == np.int32
    for count in (1, 3, 19):
        output = bundle.run(np.full((count, tiny_bundle.SIZE, tiny_bundle.SIZE, 3), 255, np.uint8))
        assert output.vertices.shape == (count, 162, 3) and output.joints.shape == (count, 17, 3)
        assert output.indices.dtype == np.int64
        np.testing.assert_array_equal(output.indices, np.repeat(tiny_bundle.TOKEN_IDS, count, 0))
        np.testing.assert_allclose(output.vertices[-1], 1.5 * tiny_mesh()[0] * [1, -1, -1], atol=1e-6)


def test_bundle_refuses_other_crops(folder):
    with pytest.raises(VqhpsError, match=r"reads crops of shape \(N, 32, 32, 3\)"):
        Bundle.load(folder).run(np.zeros((1, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("name", ["model.onnx", "bundle.json", "body.npz"])
def test_bundle_missing_or_damaged(folder, tmp_path, name):
    with pytest.raises(VqhpsError, match=f"has no {name}"):
        Bundle.load(damaged(folder, tmp_path / "a", name, None))
    for number, content in enumerate((b"", b"\x00garbage", (folder / name).read_bytes()[:200])):
        with pytest.raises(VqhpsError, match=name) as error:
            Bundle.load(damaged(folder, tmp_path / str(number), name, content))
        assert "\n" not in str(error.value)


def test_bundle_of_another_format_or_graph(folder, tmp_path):
    values = json.loads((folder / "bundle.json").read_text())
    newer = json.dumps({**values, "format": 99}).encode()
    with pytest.raises(VqhpsError, match="bundle format 99, this version of vqhps reads 1"):
        Bundle.load(damaged(folder, tmp_path / "a", "bundle.json", newer))
    odd = json.dumps({**values, "nonsense": 1}).encode()
    with pytest.raises(VqhpsError, match="unknown key 'nonsense'"):
        Bundle.load(damaged(folder, tmp_path / "b", "bundle.json", odd))
    other = tiny_bundle.graph_model("picture").SerializeToString()
    with pytest.raises(VqhpsError, match="not the graph of a bundle"):
        Bundle.load(damaged(folder, tmp_path / "c", "model.onnx", other))
    fewer = tiny_bundle.graph_model()
    del fewer.graph.output[0]
    with pytest.raises(VqhpsError, match="missing outputs"):
        Bundle.load(damaged(folder, tmp_path / "d", "model.onnx", fewer.SerializeToString()))
    with pytest.raises(VqhpsError, match="no such folder"):
        Bundle.load(tmp_path / "nowhere")


def test_body_file_is_no_pickle(folder, tmp_path):
    target = damaged(folder, tmp_path / "a", "body.npz", None)
    np.savez(target / "body.npz", faces=np.array([{"evil": 1}], object))
    with pytest.raises(VqhpsError, match="cannot be read"):
        Bundle.load(target)
    np.savez(target / "body.npz", faces=np.zeros((4, 2)))
    with pytest.raises(VqhpsError, match=r"must be \(F, 3\)"):
        Bundle.load(target)


def test_graph_of_the_tests_is_valid():
    onnx.checker.check_model(tiny_bundle.graph_model(), full_check=True)


def test_prediction_fields(predictor):
    (person,) = predictor.predict(grey(), [BOX])
    assert person.vertices.shape == (162, 3) and person.vertices.dtype == np.float32
    assert person.score == 1.0 and person.focal == pytest.approx(default_focal(240, 160))
    np.testing.assert_array_equal(person.box, BOX)
    np.testing.assert_allclose(person.crop_center, [90, 80])
    assert person.crop_size == pytest.approx(125)
    np.testing.assert_array_equal(person.indices, tiny_bundle.TOKEN_IDS[0])
    np.testing.assert_allclose(person.camera, tiny_bundle.CAMERA[0])
    np.testing.assert_allclose(person.joints, tiny_bundle.regressor() @ person.vertices, atol=1e-4)
    z = person.joints[:, 2:]
    np.testing.assert_allclose(person.joints2d, person.focal * person.joints[:, :2] / z + [120, 80], atol=1e-2)


def test_crop_is_what_the_network_sees(predictor):
    """The capsule grows with the brightness of the crop, so its size tells what was cut out."""
    image = grey(0)
    image[:, 120:] = 255
    dark, half = (predictor.predict(image, [box])[0] for box in ([20, 60, 60, 100], [100, 60, 140, 100]))
    extent = np.ptp(tiny_mesh()[0][:, 1])
    assert np.ptp(dark.vertices[:, 1]) == pytest.approx(0.5 * extent, rel=0.01)
    assert np.ptp(half.vertices[:, 1]) == pytest.approx(1.0 * extent, rel=0.01)


@pytest.mark.parametrize("box", [BOX, [100.0, 60.0, 140.0, 100.0], [0.0, 0.0, 50.0, 60.0]])
def test_full_frame_position_agrees_with_the_crop(predictor, box):
    """From far away (long focal length), the body in the photo sits where the crop's camera puts it."""
    image, focal = grey(), 40_000.0
    (person,) = predictor.predict(image, [box], focal)
    body = tiny_bundle.regressor() @ (tiny_mesh()[0] * [1, -1, -1]) * (0.5 + 128 / 255)
    weak = project(body[None], person.camera[None])
    if min(box) > 40:  # the crop has no black border that would change the size of the capsule
        expected = crop_to_full(weak, person.crop_center[None], np.array([person.crop_size]))[0]
        np.testing.assert_allclose(person.joints2d, expected, atol=0.01 * person.crop_size)
    assert person.translation[2] > 100


def test_rotation_turns_with_the_viewing_ray(predictor):
    (left,), (middle,) = (predictor.predict(grey(), [box]) for box in ([0, 70, 20, 90], [110, 70, 130, 90]))
    np.testing.assert_allclose(middle.rotation, tiny_bundle.ROTATION[0], atol=1e-6)
    np.testing.assert_allclose(left.rotation @ left.rotation.T, np.eye(3), atol=1e-6)
    angle = np.arccos((np.trace(left.rotation @ middle.rotation.T) - 1) / 2)
    assert angle == pytest.approx(np.arctan(110 / left.focal), rel=1e-3)


def test_detector_is_used_and_replaceable(folder):
    detector = BoxDetector([BOX, [10.0, 10.0, 60.0, 90.0]])
    assert len(Predictor(folder, detector).predict(grey())) == 2
    assert Predictor(folder, lambda image: []).predict(grey()) == []
    assert Predictor(folder, lambda image: []).predict(grey(), np.zeros((0, 4))) == []


@pytest.mark.parametrize(
    ("image", "boxes", "focal", "message"),
    [
        (np.zeros((9, 9, 3)), [BOX], None, "uint8 array in RGB, got float64"),
        (np.zeros((9, 9), np.uint8), [BOX], None, r"\(9, 9\)"),
        (np.zeros((0, 9, 3), np.uint8), [BOX], None, "empty"),
        ("photo.jpg", [BOX], None, "got str"),
        (grey(), [[5, 5, 5, 9]], None, "box"),
        (grey(), [[5, 5, np.nan, 9]], None, "box"),
        (grey(), [[5, 5, 9]], None, "box"),
        (grey(), [[500, 5, 600, 9]], None, "lies outside the photo of 240 x 160 px"),
        (grey(), [BOX], 0.0, "focal length must be a positive"),
        (grey(), [BOX], float("nan"), "focal length must be a positive"),
    ],
)
def test_bad_input_is_one_clear_line(predictor, image, boxes, focal, message):
    with pytest.raises(VqhpsError, match=message) as error:
        predictor.predict(image, boxes, focal)
    assert "\n" not in str(error.value)


def save(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


def test_photo_orientation_and_focal_length(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    exif.get_ifd(0x8769)[0xA405] = 28
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:20, :30] = (255, 0, 0)
    photo = read_photo(save(tmp_path / "a.jpg", Image.fromarray(stored), exif=exif, quality=95))
    assert photo.image.shape == (60, 40, 3)
    assert photo.image[5, 35, 0] > 200 and photo.image[5, 5, 0] < 50  # top left went to top right
    assert photo.focal == pytest.approx(28 * np.hypot(40, 60) / np.hypot(36, 24))
    assert read_photo(save(tmp_path / "b.jpg", Image.fromarray(stored))).focal is None


def test_photo_modes(tmp_path):
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (read_photo(save(tmp_path / "a.png", clear)).image == 255).all()
    deep = Image.fromarray(np.full((20, 20), 32768, np.uint16))
    assert (read_photo(save(tmp_path / "b.png", deep)).image == 128).all()
    for mode in ("L", "P", "CMYK", "1"):
        path = save(tmp_path / f"{mode}.tiff", Image.new(mode, (20, 20)))
        assert read_photo(path).image.shape == (20, 20, 3)


def test_photos_that_are_none(tmp_path):
    whole = save(tmp_path / "a.jpg", Image.effect_noise((64, 64), 50)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("this is no photo\n")
    (tmp_path / "empty.jpg").write_bytes(b"")
    save(tmp_path / "dot.png", Image.new("RGB", (1, 1)))
    cases = {
        "cut.jpg": "cannot be read", "text.jpg": "is not an image", "empty.jpg": "is not an image",
        "dot.png": "1 x 1 pixels", "none.jpg": "does not exist", ".": "is a folder",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(VqhpsError, match=message) as error:
            read_photo(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_decompression_bomb_is_refused(tmp_path):
    side = int(MAX_PIXELS**0.5) + 500
    path = save(tmp_path / "bomb.png", Image.new("1", (side, side)))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(VqhpsError, match="more than 150 million"):
        read_photo(path)
    huge = save(tmp_path / "huge.png", Image.new("1", (30_000, 30_000)))
    with pytest.raises(VqhpsError, match="too large"):
        read_photo(huge)
