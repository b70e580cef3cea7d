"""Builds read from a feature map: where it is looked at, how that is fitted, and that it reaches the mesh."""

import dataclasses

import cv2
import pytest
import torch
from skimage import data
from torch.nn import functional

from shared import tiny_tokenizer
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_6d, rotate
from vqhps.models.build import _LINKS, Build, samples
from vqhps.models.first_guess import FirstGuess
from vqhps.models.losses import edge_error
from vqhps.models.vqhps import VQHPS, VQHPSConfig
from vqhps.runtime.download import blazepose_models
from vqhps.training_guess import _fit_build

CONFIG = VQHPSConfig(
    backbone="blazepose", sources=("image", "keypoints"), first_guess=True, build=3, dim=32, heads=4, hidden=64,
    dropout=0.0, mirror=True, decode="expected",
)  # fmt: skip


def test_a_map_is_looked_at_where_key_points_lie_and_between() -> None:
    torch.manual_seed(0)
    trunk, keypoints = torch.randn(2, 5, 12, 16), 2.6 * torch.rand(2, 17, 4) - 1.3
    between = torch.stack([(keypoints[:, a, :2] + keypoints[:, b, :2]) / 2 for a, b in _LINKS], 1)
    places = torch.cat([keypoints[..., :2], between], 1)[:, :, None]
    expected = functional.grid_sample(trunk, places, align_corners=False)[..., 0].transpose(1, 2)
    torch.testing.assert_close(samples(trunk, keypoints), expected, atol=1e-5, rtol=0)


def test_a_build_is_told_from_what_goes_with_it_and_no_more() -> None:
    """One channel says the first shape parameter with noise, nothing says the second; means do not matter."""
    torch.manual_seed(0)
    shape, looks = torch.randn(60_000, 2) + 5, torch.randn(60_000, 31, 2) - 3
    looks[:, 7, 1] = 20 * (shape[:, 0] + torch.randn(60_000))
    build = Build(2, 2)
    build.fit(looks.half(), shape)
    told = build(looks[:20_000])
    assert told.mean(0).abs().max() < 0.02
    slope = (told[:, 0] * (shape[:20_000, 0] - 5)).mean()
    assert 0.46 < slope < 0.51  # half of the variance is known, so half of the deviation is told
    assert told[:, 1].std() < 0.05


def test_shape_parameters_move_the_guess_as_they_move_bodies() -> None:
    torch.manual_seed(0)
    codes = torch.linspace(-1, 1, 64)[None, :, None].repeat(4, 1, 1)
    shape = torch.rand(5000, 1) - 0.5
    told = 0.8 * shape * torch.tensor([[0.0, 1.0, -1.0, 0.0]]) + 0.1 * torch.randn(5000, 4)
    indices = (told[..., None] - codes[:, :, 0]).abs().argmin(2)
    guess = FirstGuess(0, True, codes, 0.0, build=1)
    keypoints = torch.zeros(1, 17, 4)
    unknown = guess(None, keypoints)[0]
    torch.testing.assert_close(guess(None, keypoints, torch.ones(1, 1))[0], unknown)  # until it is fitted
    guess.fit_build(indices, shape)
    means = [
        (guess(None, keypoints, torch.full((1, 1), size))[0].softmax(2) @ codes[0])[0, :, 0] for size in (-0.5, 0.5)
    ]
    torch.testing.assert_close(means[1] - means[0], torch.tensor([0.0, 0.8, -0.8, 0.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(guess(None, keypoints, torch.zeros(1, 1))[0], unknown)


def test_the_build_reaches_the_mesh_from_both_views() -> None:
    torch.manual_seed(0)
    model = VQHPS(CONFIG, tiny_tokenizer(), blazepose_models()[1]).eval()
    photo = cv2.resize(data.astronaut(), (256, 256), interpolation=cv2.INTER_AREA)
    crop = torch.from_numpy(photo)[None].permute(0, 3, 1, 2).float() / 255
    average = model.predict(crop)
    torch.nn.init.normal_(model.guess.build_in.weight)
    torch.testing.assert_close(model.predict(crop).vertices, average.vertices)  # nothing is read from the image yet
    assert model.build is not None and not any(p.requires_grad for p in model.build.parameters())
    torch.nn.init.normal_(model.build.linear.weight, std=0.01)
    built = model.predict(crop)
    assert (built.vertices - average.vertices).abs().max() > 1e-3
    with torch.no_grad():
        one, other = (model.build_of(model.backbone(view)) for view in (crop, crop.flip(3)))
        wanted = model.guess.build_in((one + other) / 2).view(1, 6, 2)  # type: ignore[operator]
    assert (one - other).abs().max() > 0.1  # type: ignore[operator]
    torch.testing.assert_close(moved_places(model, built, average), wanted, atol=1e-3, rtol=1e-3)


def moved_places(model: VQHPS, one: object, other: object) -> torch.Tensor:
    """How far the guess of one output lies from that of another, read back from their logits."""
    guess = model.guess
    codes = guess.codes - guess.middle[:, None]
    change = (one.logits - other.logits).detach()  # type: ignore[attr-defined]
    change, codes = change - change.mean(2, keepdim=True), codes - codes.mean(1, keepdim=True)
    near = torch.linalg.lstsq(codes.expand(1, -1, -1, -1), change[..., None]).solution[..., 0]
    return near * guess.deviation.square() / (2 * 4 * guess.sharpness.exp() * 3 * guess.deviation)


def test_people_without_a_mesh_do_not_teach_builds() -> None:
    """Their shape parameters are not known, whatever stands there."""
    torch.manual_seed(0)
    looks, shape, indices = torch.randn(64, 31, 88), torch.rand(64, 3), torch.randint(0, 16, (64, 6))
    labels = {"indices": indices, "has_mesh": (torch.arange(64) < 40).float()}
    wrong = torch.where(labels["has_mesh"][:, None] > 0, shape, 100.0)
    told = []
    for given in (shape, wrong):
        model = VQHPS(CONFIG, tiny_tokenizer())
        told.append((_fit_build(model, looks, given, labels), model.guess.build_in.weight.detach()))
    for one, other in zip(*told, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


def test_build_needs_key_points_of_its_own() -> None:
    for changes in ({"first_guess": False}, {"backbone": "resnet50"}):
        with pytest.raises(VqhpsError, match="build needs first_guess and a backbone that finds key points"):
            VQHPS(dataclasses.replace(CONFIG, mirror=False, **changes), tiny_tokenizer())  # type: ignore[arg-type]


def test_edges_are_those_of_the_faces_and_do_not_mind_being_turned() -> None:
    tokenizer = tiny_tokenizer()
    faces = tokenizer.mesh.get_buffer("faces")
    sides = {frozenset(pair) for a, b, c in faces.tolist() for pair in ((a, b), (b, c), (c, a))}
    assert {frozenset(pair) for pair in tokenizer.edges.tolist()} == sides
    assert len(tokenizer.edges) == len(sides) == 480  # 162 vertices and 320 faces of a closed surface
    mesh = tokenizer.template[None]
    turned = rotate(matrix_from_6d(torch.tensor([[0.2, 1.0, -0.4, 0.5, 0.1, 1.0]])), mesh)
    assert edge_error(turned, mesh, tokenizer.edges).item() < 1e-6
    length = (mesh[0, tokenizer.edges[:, 0]] - mesh[0, tokenizer.edges[:, 1]]).norm(dim=1).mean()
    torch.testing.assert_close(edge_error(0.9 * mesh, mesh, tokenizer.edges), 0.1 * length[None])
