"""BlazePose's landmark network in torch against LiteRT on a real photo, and VQ-HPS on top of it."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from skimage import data

from shared import tiny_tokenizer
from vqhps.body.joints import COCO17_FLIP
from vqhps.errors import VqhpsError
from vqhps.evaluation.blazepose import KEYPOINT_NAMES, TfliteModel
from vqhps.export import ExportConfig, export_bundle, trace
from vqhps.models.backbones import create_backbone
from vqhps.models.blazepose import _COCO17, BlazePose, HeatMaps, _DepthwiseConv
from vqhps.models.first_guess import disturbed, either_way, keypoint_loss
from vqhps.models.vqhps import VQHPS, Encoded, VQHPSConfig
from vqhps.runtime.bundle import Bundle
from vqhps.runtime.download import blazepose_models
from vqhps.training_keypoints import heat_loss

CONFIG = VQHPSConfig(
    backbone="blazepose", sources=("image", "keypoints"), first_guess=True, dim=32, heads=4, hidden=64, dropout=0.0
)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """scikit-image's astronaut, (256, 256, 3)."""
    return cv2.resize(data.astronaut(), (256, 256), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def model() -> VQHPS:
    torch.manual_seed(0)
    return VQHPS(CONFIG, tiny_tokenizer(), blazepose_models()[1]).eval()


def as_batch(photo: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(photo)[None].permute(0, 3, 1, 2).float() / 255


def test_landmarks_are_those_of_the_original(photo: np.ndarray) -> None:
    path = blazepose_models()[1]
    expected = TfliteModel(path)(photo.astype(np.float32) / 255)[0].reshape(-1, 5)
    network = BlazePose().eval()
    network.load_tflite(path)
    with torch.no_grad():
        found = network(as_batch(photo)).first[0].numpy()
    np.testing.assert_allclose((found[:, :2] + 1) * 128, expected[list(_COCO17), :2], atol=0.01)
    np.testing.assert_allclose(found[:, 2], expected[list(_COCO17), 3], atol=0.01)


class Told(torch.nn.Module):
    """Stands in for the last layer of heat maps: says what it is given, whatever it sees."""

    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps.expand(len(x), -1, -1, -1)


def look_again(maps: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    heat = HeatMaps().eval()
    heat.maps = Told(maps)  # type: ignore[assignment]
    with torch.no_grad():
        return heat(torch.randn(1, 88, 16, 16), torch.randn(1, 288, 8, 8), torch.randn(1, 4 * 288), first)


def test_without_heat_the_second_look_agrees_with_the_first() -> None:
    torch.manual_seed(0)
    first = torch.cat([torch.rand(1, 17, 2) - 0.5, torch.randn(1, 17, 2)], 2)
    found, heat = look_again(torch.zeros(1, 6 * 17, 16, 16), first)
    torch.testing.assert_close(found, first, atol=2e-3, rtol=0)
    row, column = divmod(int(heat[0, 3].argmax()), 32)
    assert torch.allclose((torch.tensor([column, row]) + 0.5) / 16 - 1, first[0, 3, :2], atol=0.04)


def test_heat_moves_a_sure_point_there_and_tells_its_depth() -> None:
    """Joint 2 is hot in one cell of stride 8, whose corner of a cell of stride 16 says depth and confidence."""
    row, column = 20, 11
    maps = torch.zeros(1, 6 * 17, 16, 16)
    maps[0, 4 * 2 + 2 * (row % 2) + column % 2, row // 2, column // 2] = 50.0
    maps[0, 4 * 17 + 2, row // 2, column // 2] = -3.0  # confidence
    maps[0, 4 * 17 + 17 + 2, row // 2, column // 2] = 0.7  # depth
    first = torch.zeros(1, 17, 4)
    first[..., 2] = 20.0
    found, heat = look_again(maps, first)
    assert int(heat[0, 2].argmax()) == 32 * row + column
    hot = torch.tensor([(column + 0.5) / 16 - 1, (row + 0.5) / 16 - 1, 17.0, 0.7])
    torch.testing.assert_close(found[0, 2], hot, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0, 3], first[0, 3], atol=2e-3, rtol=0)
    first[..., 2] = -20.0  # out of view, it says
    torch.testing.assert_close(look_again(maps, first)[0][0, 2, :2], torch.zeros(2))


def test_loss_of_heat_maps_is_least_at_the_true_place() -> None:
    true = torch.tensor([[[0.3, -0.4], [0.0, 0.5], [1.4, 0.0]]])
    grid = (torch.arange(32) + 0.5) / 16 - 1
    apart = (grid - true[..., None]).square() / (2 / 16**2)  # a cell is 1/16 wide: half a squared deviation
    best = -(apart[:, :, 1, :, None] + apart[:, :, 0, None, :])
    weight = torch.ones(1, 3)
    least = heat_loss(best, true, weight)
    entropy = np.log(2 * np.pi * np.e)  # of a normal density in two dimensions
    assert abs(float(least) - entropy) < 0.02
    for other in (best.transpose(2, 3), torch.zeros_like(best), 2 * best):
        assert heat_loss(other, true, weight) > least + 0.05
    changed = best.clone()
    changed[0, 2] = torch.randn(32, 32)  # the third lies outside: it says nothing
    torch.testing.assert_close(heat_loss(changed, true, weight), least)


def test_coco_order() -> None:
    names = [KEYPOINT_NAMES[i] for i in _COCO17]
    assert names[:5] == ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]
    assert names[5:] == [
        f"{s}_{p}" for p in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for s in ("left", "right")
    ]


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"no model")
    with pytest.raises(VqhpsError, match=r"a\.tflite is not BlazePose's full landmark network"):
        BlazePose().load_tflite(tmp_path / "a.tflite")
    with pytest.raises(VqhpsError, match="is not BlazePose's full landmark network"):
        BlazePose().load_tflite(blazepose_models()[0])


def test_only_crops_of_256_px_are_read() -> None:
    with pytest.raises(VqhpsError, match="reads crops of 256 px"):
        create_backbone("blazepose")(torch.zeros(1, 3, 128, 128))


def test_kept_trunk_features_give_the_same(model: VQHPS, photo: np.ndarray) -> None:
    with torch.no_grad():
        whole = model.encode(as_batch(photo))
        parts = model.encode(None, trunk=model.backbone.trunk(as_batch(photo)))
    for name, a, b in zip(Encoded._fields, whole, parts, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_found_key_points_stand_in_for_given_ones(model: VQHPS, photo: np.ndarray) -> None:
    with torch.no_grad():
        alone = model.predict(as_batch(photo))
        told = model.predict(as_batch(photo), torch.zeros(1, 17, 4))
    assert alone.keypoints is not None and alone.keypoints[0, :5, 1].max() < alone.keypoints[0, 11:13, 1].min()
    torch.testing.assert_close(alone.logits, told.logits)  # at prediction the model trusts its own


def test_points_look_at_each_other() -> None:
    """What one point's place changes of another's, with features that are the same everywhere."""
    torch.manual_seed(0)
    heat = HeatMaps().eval()
    torch.nn.init.normal_(heat.change[1].weight)
    first = torch.cat([torch.rand(2, 17, 2) - 0.5, torch.randn(2, 17, 2)], 2)
    first[1] = first[0]
    first[1, 5, 3] += 0.5
    with torch.no_grad():
        found, _ = heat(torch.zeros(2, 88, 16, 16), torch.zeros(2, 288, 8, 8), torch.zeros(2, 4 * 288), first)
    moved = (found[1] - found[0]).abs().amax(1)
    assert (moved[[0, 6, 16]] > 1e-4).all()


def test_a_mirrored_crop_has_mirrored_key_points(photo: np.ndarray) -> None:
    torch.manual_seed(0)
    model = VQHPS(dataclasses.replace(CONFIG, mirror=True), tiny_tokenizer(), blazepose_models()[1]).eval()
    crop = as_batch(photo)[..., :256]
    with torch.no_grad():
        one, other = (model.predict(x).keypoints for x in (crop, crop.flip(3)))
    assert one is not None and other is not None
    back = other[:, list(COCO17_FLIP)] * torch.tensor([-1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(one, back, atol=1e-3, rtol=0)
    assert not torch.allclose(one, other, atol=0.05)


def test_of_two_views_the_surer_one_counts() -> None:
    found, mirrored = torch.zeros(1, 17, 4), torch.zeros(1, 17, 4)
    found[0, 9], mirrored[0, 10] = torch.tensor([0.3, 0.2, 0.0, 0.1]), torch.tensor([-0.5, 0.4, 0.0, 0.3])
    mirrored[0, :, 2] = -30.0
    mirrored[0, 10, 2] = 0.0
    torch.testing.assert_close(either_way(found, mirrored)[0, 9], torch.tensor([0.4, 0.3, 0.0, 0.2]))
    mirrored[0, 10, 2] = -30.0
    torch.testing.assert_close(either_way(found, mirrored)[0, 9], found[0, 9], atol=5e-3, rtol=0)
    found[0, 9, 2] = mirrored[0, 10, 2] = -1000.0  # neither is sure: the middle
    torch.testing.assert_close(either_way(found, mirrored)[0, 9, :2], torch.tensor([0.4, 0.3]))


class EitherWay(torch.nn.Module):
    def forward(self, both: torch.Tensor) -> torch.Tensor:
        return either_way(both[:, :17], both[:, 17:])


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_unsure_points_stay_finite_in_onnx_runtime(tmp_path: Path) -> None:
    """Its sigmoid gives 0 where torch's does not yet."""
    both = torch.zeros(2, 34, 4)
    both[..., 2] = torch.tensor([-19.0, -200.0])[:, None]
    both[:, 17:, 0] = -1.0
    trace(EitherWay(), {"both": both}, ("found",), tmp_path / "a.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"both": both.numpy()})
    np.testing.assert_allclose(found, EitherWay()(both), atol=1e-5)
    np.testing.assert_allclose(found[..., 0], 0.5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_becomes_a_bundle_whose_one_input_is_an_image(photo: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQHPS(dataclasses.replace(CONFIG, mirror=True, build=3), tiny_tokenizer(), blazepose_models()[1]).eval()
    torch.nn.init.normal_(model.build.linear.weight, std=1e-3)  # type: ignore[union-attr]
    torch.nn.init.normal_(model.guess.build_in.weight)
    report = export_bundle(model, tmp_path / "bundle", ExportConfig(input_size=256))
    assert report.single_mm < 0.1 and report.written_mean_mm < 1
    found = Bundle.load(tmp_path / "bundle").run(photo[None])
    expected = model.predict(as_batch(photo))
    np.testing.assert_allclose(found.camera, expected.camera, atol=1e-2)
    np.testing.assert_allclose(found.rotation, expected.rotation, atol=1e-2)


def test_hints_reach_the_model_in_training_only(photo: np.ndarray) -> None:
    torch.manual_seed(0)
    model = VQHPS(dataclasses.replace(CONFIG, hints=1.0), tiny_tokenizer(), blazepose_models()[1]).train()
    keypoints = torch.full((1, 17, 4), 0.5)
    torch.manual_seed(1)
    first = model(as_batch(photo), keypoints)
    torch.manual_seed(1)
    second = model(as_batch(photo), -keypoints)
    assert (first.logits - second.logits).abs().max() > 1e-3
    assert first.keypoints is not None and second.keypoints is not None
    torch.testing.assert_close(first.keypoints, second.keypoints)


def test_first_guess_scores_codes_by_their_distance(model: VQHPS) -> None:
    guess = model.guess
    torch.manual_seed(0)
    keypoints = torch.rand(2, 17, 4)
    place, sure, depth = keypoints.split((2, 1, 1), 2)
    weighted = torch.cat([place * sure, sure, depth * sure], 2).flatten(1)
    latents = guess.latents(guess.layers(guess.keypoint_in(weighted))).view(2, 6, 2)
    place = guess.middle + 3 * guess.deviation * latents
    apart = (place[:, :, None] - guess.codes) / guess.deviation[:, None]
    nearest = (apart.square() * guess.sharpness.exp()[:, None]).sum(3).argmin(2)
    torch.testing.assert_close(guess(None, keypoints)[0].argmax(2), nearest)


def test_first_guess_learns_to_lift() -> None:
    """Eight bodies from their key points alone, no image."""
    torch.manual_seed(0)
    model = VQHPS(CONFIG, tiny_tokenizer())
    keypoints, target = torch.rand(8, 17, 4), torch.randint(0, 16, (8, 6))
    optimizer = torch.optim.Adam(model.guess.parameters(), 1e-3)
    for _ in range(150):
        logits = model.lift(keypoints).logits
        assert logits is not None
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(2) == target).float().mean() > 0.9


def test_disturbed_key_points_stay_near_and_lose_what_is_outside() -> None:
    torch.manual_seed(0)
    true = torch.cat([2.4 * torch.rand(64, 17, 2) - 1.2, torch.ones(64, 17, 1), torch.rand(64, 17, 1)], 2)
    shown = disturbed(true)
    seen = shown[..., 2] > 0
    assert (shown[..., :2] - true[..., :2])[seen].abs().max() < 0.2
    assert not seen[(true[..., :2].abs() > 1.2).any(-1)].any()
    inside = (true[..., :2].abs() < 0.85).all(-1)
    assert 0.9 < seen[inside].float().mean() < 1
    assert (shown[~seen] == 0).all()
    assert 0.01 < (shown[..., 3] - true[..., 3])[seen].abs().mean() < 0.1


def test_key_point_loss_counts_what_is_inside_most() -> None:
    true = torch.zeros(1, 17, 2)
    true[:, 8:] = 1.5
    rest = (true, torch.ones(1, 17), torch.zeros(1, 17), torch.ones(1))
    found = torch.cat([true, torch.where(true[..., :1] < 1, 20.0, -20.0), torch.zeros(1, 17, 1)], 2)
    assert keypoint_loss(found, *rest) < 1e-6
    near, far, deep = found.clone(), found.clone(), found.clone()
    near[:, 0, :2] += 0.1
    far[:, 10, :2] += 0.1
    deep[:, 0, 3] += 0.1
    losses = [keypoint_loss(x, *rest) for x in (near, far, deep)]
    assert losses[0] > 3 * losses[1] > 0
    assert losses[2] > 1e-3
    assert keypoint_loss(deep, *rest[:3], torch.zeros(1)) < 1e-6  # without a mesh nobody knows the depth


def test_confidence_says_how_far_off_a_key_point_is() -> None:
    """The loss is least for a confidence that falls with the error, and is 0 outside of the crop."""
    true, one = torch.zeros(1, 17, 2), torch.ones(1, 17)
    true[:, 8:] = 1.5
    for off, joint, best in ((0.0, 0, 1.0), (0.1, 0, 0.368), (0.0, 10, 0.0)):
        found = torch.cat([true, torch.zeros(1, 17, 2)], 2)
        found[:, joint, 0] += off
        found.requires_grad_(True)
        keypoint_loss(found, true, one, torch.zeros(1, 17), torch.ones(1)).backward()
        assert found.grad is not None
        slope = 0.1 * (0.5 - best) / 17
        torch.testing.assert_close(found.grad[0, joint, 2].item(), slope, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [6, 9])
def test_own_backward_pass_of_depthwise_convolutions_is_exact(side: int) -> None:
    torch.manual_seed(0)
    ours = _DepthwiseConv(8, 5).double()
    plain = torch.nn.Conv2d(8, 8, 5, padding=2, groups=8).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 8, side, side, dtype=torch.float64).to(memory_format=torch.channels_last)
    results = []
    for layer in (ours, plain):
        given = x.clone().requires_grad_(True)
        layer(given).square().sum().backward()
        results.append([layer(x), given.grad, layer.weight.grad, layer.bias.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_features_alone_are_those_of_the_whole_network(model: VQHPS, photo: np.ndarray) -> None:
    alone = create_backbone("blazepose_features", blazepose_models()[1]).eval()
    with torch.no_grad():
        whole, seen = model.backbone(as_batch(photo)), alone(as_batch(photo))
        kept = alone.from_trunk(alone.trunk(as_batch(photo)))
    assert seen.keypoints is None and not alone.finds_keypoints
    for one in (seen, kept):
        torch.testing.assert_close(one.features, whole.features)
        torch.testing.assert_close(one.vector, whole.vector)
