"""HMR, CLIFF and FastMETRO: they learn ten images, their numbers stay, and each does what its paper says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from published_people import smpl_file
from shared import set_weights
from tiny_batch import made_batch, projection
from tiny_batch import tiny as tiny
from tiny_shards import random_bodies, random_poses, symmetric_tokenizer
from vqhps.body import named
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_quaternion, project, rotate
from vqhps.models import MODELS, method
from vqhps.models.cliff import positive, project_full_frame
from vqhps.models.fastmetro import FastMETROLossConfig
from vqhps.models.method import crop_axes
from vqhps.tokenizer.mesh_vqvae import BodyMesh, MeshVQVAE, MeshVQVAEConfig, blend
from vqhps.training_state import rate_share

SMALL = {
    "hmr": {"hidden": 128, "dropout": 0.0},
    "cliff": {"hidden": 128, "dropout": 0.0},
    "fastmetro": {
        "vertices": 40, "dims": (64, 32), "hidden": (128, 64), "heads": 4, "dropout": 0.0,
        "loss": FastMETROLossConfig(vertices=10.0),
    },
}  # fmt: skip
GOLDEN = {  # std of vertices, sum of joints and of camera, losses by name, gradient norm
    "hmr": [0.8438277, 0.1433868, 76.96675, 2.825672, 0.4467245, 924.0442, 0.7662471, 6.157676, 80849.53],
    "cliff": [2.978901, -5.362484, -28.45969, 10.70651, 0.7967337, 1.040361, 0.6216245, 14.96358, 1933.184],
    "fastmetro": [0.3224165, 2.063889, -6.971014, 6.073899, 4.515069, 6.366959, 492.5204],
}
REAL = named.named_body


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config, model = MODELS[name]
    return model(config(**{**SMALL[name], **changes}), symmetric_tokenizer())


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([*losses.values()]).sum()


@pytest.mark.parametrize("name", SMALL)
def test_learns_ten_images_to_near_zero_error(name: str) -> None:
    model = build(name).train()
    batch = made_batch(model)
    model.begin(batch["pose"], batch["shape"])
    with torch.no_grad():
        seen = model.backbone(batch["image"])
    heads = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("backbone")]
    optimizer, steps = torch.optim.Adam(heads), 300
    truth = rotate(batch["rotation"], batch["canonical_vertices"])
    before = model.head(seen, batch["place"]).vertices
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * rate_share(step, 30, steps)
        optimizer.zero_grad()
        total(model.loss(model.head(seen, batch["place"]), batch)).backward()
        torch.nn.utils.clip_grad_norm_(heads, 1.0)
        optimizer.step()
    output = model.eval().head(seen, batch["place"])
    first, last = (1000 * (v - truth).norm(dim=-1).mean().item() for v in (before, output.vertices))
    assert first > 100 and last < 12
    found = projection(model)(output.joints, output.camera, batch["place"])
    assert (found - batch["keypoints2d"]).abs().mean() < 0.02


@pytest.mark.parametrize("name", SMALL)
def test_golden_numbers(name: str) -> None:
    model = build(name).eval()
    set_weights(model)
    batch = made_batch(model, 2)
    output = model(batch["image"], place=batch["place"])
    losses = model.loss(output, batch)
    total(losses).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    whole = [output.vertices.std(), output.joints.sum(), output.camera.sum()]
    got = [*whole, *(losses[k] for k in sorted(losses)), norm]
    np.testing.assert_allclose(torch.stack(got).detach().numpy(), GOLDEN[name], rtol=2e-3)


@pytest.mark.parametrize("name", SMALL)
def test_samples_without_a_mesh_train_through_their_key_points_only(name: str) -> None:
    model = build(name)
    batch = made_batch(model, 2)
    output = model(batch["image"], place=batch["place"])
    alone = model.loss(output, {**batch, "has_mesh": torch.zeros(2)})
    assert {n for n, v in alone.items() if v > 0} == {"reprojection"}
    assert model.loss(output, {**batch, "keypoints_weight": torch.zeros(2, 17)})["reprojection"] == 0


@pytest.mark.parametrize("name", SMALL)
def test_true_parameters_have_no_loss(name: str) -> None:
    model = build(name)
    batch = made_batch(model, 2)
    torch.testing.assert_close(model.true_mesh(batch), batch["canonical_vertices"])
    output = model(batch["image"], place=batch["place"])
    vertices = rotate(batch["rotation"], batch["canonical_vertices"])
    output.rotation, output.vertices = batch["rotation"], vertices
    output.joints = model.tokenizer.regressor("coco17") @ vertices
    if name == "fastmetro":
        output.query_joints, output.query_vertices = output.joints, vertices[:, model.kept]
    else:
        output.pose, output.shape = matrix_from_quaternion(batch["pose"]), batch["shape"]
    losses = model.loss(output, batch)
    assert all(value < 1e-6 for n, value in losses.items() if n != "reprojection"), losses


@pytest.mark.parametrize("name", SMALL)
def test_mixed_precision_rounds_what_comes_in_and_metres_stay_single(name: str) -> None:
    model = build(name).eval()
    batch = made_batch(model, 2)
    with torch.no_grad():
        seen = model.backbone(batch["image"])
        exact, rough = model.head(seen, batch["place"]), model.head(seen, batch["place"].bfloat16())
    assert rough.vertices.dtype == torch.float32
    assert (exact.vertices - rough.vertices).abs().max() < 0.02


def test_shapes_of_another_body_are_not_learned() -> None:
    model = build("hmr")
    batch = made_batch(model, 2)
    output = model(batch["image"])
    other = model.loss(output, {**batch, "body": torch.ones(2, dtype=torch.int64)})
    assert other["shape"] == 0 and other["pose"] == model.loss(output, batch)["pose"] > 0


def test_regression_begins_at_the_mean_of_the_training_samples() -> None:
    model = build("hmr", iterations=0)
    batch = made_batch(model, 10)
    model.begin(batch["pose"], batch["shape"])
    output = model(batch["image"][:1])
    torch.testing.assert_close(output.shape[0], batch["shape"].mean(0))
    torch.testing.assert_close(output.pose[0, 0], torch.eye(3))
    assert (output.pose[0, 1:] - matrix_from_quaternion(batch["pose"])[:, 1:].mean(0)).abs().max() < 0.1


@pytest.mark.parametrize("name", ["hmr", "cliff"])
def test_the_parameters_of_smpl_give_its_mesh(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started at the true parameters, and not corrected, the mesh is the true one."""
    smpl_file(tmp_path)
    monkeypatch.setenv("VQHPS_BODY_MODELS", str(tmp_path))
    for module in (method, named):
        monkeypatch.setattr(module, "named_body", REAL)
    body = REAL("smpl-neutral", tmp_path)
    regressor = torch.from_numpy(body.joint_regressors["coco17"])
    count = len(body.template)
    mesh = {
        "faces": torch.from_numpy(body.faces), "template": torch.from_numpy(body.template),
        "upsample_indices": torch.arange(count)[:, None], "upsample_weights": torch.ones(count, 1),
        "weight": torch.full((count,), 1 / count), "regressor_coco17": regressor,
    }  # fmt: skip
    config, model_class = MODELS[name]
    tokenizer = MeshVQVAE(MeshVQVAEConfig(sizes=(40, 16, 6), num_codes=4, components=12, width=0), BodyMesh(mesh))
    model = model_class(config(body="smpl-neutral", iterations=0), tokenizer)
    rng = np.random.default_rng(0)
    pose = torch.from_numpy(Rotation.random(24, random_state=1).as_quat(scalar_first=True).astype(np.float32))[None]
    pose[:, 0] = torch.tensor([1.0, 0, 0, 0])
    shape = torch.from_numpy(body.sample_shape(1, rng))
    model.begin(pose, shape)
    batch = {"pose": pose, "shape": shape, "body": torch.tensor([named.BODY_NAMES.index("smpl-neutral")])}
    place = torch.tensor([[0.0, 0.0, 0.4]])
    output = model.coarse(torch.zeros(1, 3, 64, 64), None, place)
    torch.testing.assert_close(output.vertices, rotate(output.rotation, model.true_mesh(batch)), atol=1e-4, rtol=0)
    with pytest.raises(VqhpsError, match="has others: set `body`"):
        model_class(config(body="smpl-neutral"), symmetric_tokenizer())


def test_cliff_turns_with_the_place_of_the_crop_and_hmr_does_not() -> None:
    """The same features elsewhere in the photo: seen from the crop, CLIFF's body is another."""
    cliff = build("cliff").eval()
    image = torch.randn(1, 3, 64, 64)
    places = torch.tensor([[0.0, 0.0, 0.4], [0.5, 0.1, 0.4]])
    middle, side = (cliff.coarse(image, None, place[None]) for place in places)
    assert (middle.vertices - side.vertices).abs().max() > 0.05
    hmr = build("hmr").eval()
    assert torch.equal(*(hmr.coarse(image, None, place[None]).vertices for place in places))
    with pytest.raises(VqhpsError, match="where in its photo"):
        cliff(image)


def test_the_full_frame_agrees_with_weak_perspective_far_away() -> None:
    joints, camera = torch.randn(3, 17, 3) / 3, torch.tensor([[0.9, 0.1, -0.2]]).expand(3, 3)
    far = torch.tensor([[0.002, -0.001, 0.004]]).expand(3, 3)
    torch.testing.assert_close(project_full_frame(joints, camera, far), project(joints, camera), atol=5e-3, rtol=0)
    near = torch.tensor([[0.5, -0.2, 0.6]]).expand(3, 3)
    assert (project_full_frame(joints, camera, near) - project(joints, camera)).abs().max() > 0.05
    ray = crop_axes(near)[0] @ torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(ray[:2] / ray[2], near[0, :2])


def test_cliff_keeps_bodies_before_the_camera_with_a_gradient_back() -> None:
    scale = torch.tensor([[-3.0], [0.0], [0.0999], [0.9]], requires_grad=True)
    kept = positive(scale)
    (gradient,) = torch.autograd.grad(kept.sum(), scale)
    assert (kept > 0).all() and (gradient > 0).all() and torch.equal(kept[3], scale[3])


def test_vertex_queries_look_at_neighbours_and_joints_only() -> None:
    model = build("fastmetro")
    among = model.among
    assert among[:17].all() and among[:, :17].all() and torch.equal(among, among.T)
    vertices = among[17:, 17:]
    assert vertices.diagonal().all() and 0.08 < vertices.float().mean() < 0.3
    layer = model.stages[0].decoder[0].self_attention
    tokens = torch.randn(1, 57, 64)
    changed = tokens.clone()
    changed[:, 17] += 1
    before, after = (layer(x, x, x, among=among) for x in (tokens, changed))
    moved = (before - after).abs().amax(2)[0, 17:] > 1e-6
    assert torch.equal(moved, vertices[:, 0])


def test_coarse_vertices_are_those_of_the_mesh_and_give_it_back() -> None:
    model = build("fastmetro")
    rng = np.random.default_rng(4)
    vertices = random_bodies(*random_poses(4, rng))
    fine = blend(vertices[:, model.kept], model.fine_of, model.fine_weights)
    assert 1000 * (fine - vertices).norm(dim=-1).mean() < 8
    torch.testing.assert_close(model.fine_weights.sum(1), torch.ones(162), atol=1e-5, rtol=0)
