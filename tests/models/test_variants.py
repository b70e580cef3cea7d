"""Variants of VQ-HPS for ablations: each regresses what it should, and learns it."""

from typing import Any

import numpy as np
import pytest
import torch

from tiny_batch import made_batch
from tiny_batch import tiny as tiny
from tiny_shards import symmetric_tokenizer
from vqhps.errors import VqhpsError
from vqhps.geometry import fit_rotation, rotate
from vqhps.models import MODELS
from vqhps.models.vqhps import VQHPSConfig, VQHPSLossConfig
from vqhps.training_state import rate_share

PUBLISHED = {"vertices": 0.0, "joints": 0.0, "label_sigma": 0.0, "decode": "argmax"}


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    loss = VQHPSLossConfig(**{**PUBLISHED, "rotation": float(name != "vqhps_oriented")})  # type: ignore[arg-type]
    config = VQHPSConfig(dim=64, heads=4, hidden=128, dropout=0.0, loss=loss, **changes)
    return MODELS[name][1](config, symmetric_tokenizer())


def encoded(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    return model.encode(batch["image"])


def test_the_latents_are_those_of_the_mesh_and_decode_to_it() -> None:
    model = build("vqhps_latents")
    batch = made_batch(model, 4)
    with torch.no_grad():
        output = model(batch["image"])
    assert output.indices is None
    true = (model.tokenizer.latents(batch["canonical_vertices"]) - model.middle) / model.spread
    assert model.token_loss(true, batch).max() < 1e-10
    assert model.token_loss(true + 1, batch).sub(1).abs().max() < 1e-4
    exact = model.decode_mesh(true, "argmax")
    quantized = model.tokenizer.decode(model.tokenizer.encode(batch["canonical_vertices"]))
    far = (quantized - batch["canonical_vertices"]).norm(dim=-1).mean()
    assert (exact - batch["canonical_vertices"]).norm(dim=-1).mean() < 0.5 * far  # nothing is quantized
    assert list(model.readings(batch["image"])) == [""]
    torch.testing.assert_close(model.true_mesh(batch), batch["canonical_vertices"])


def test_latents_need_one_level_and_no_guess_among_codes() -> None:
    with pytest.raises(VqhpsError, match="no first_guess"):
        build("vqhps_latents", first_guess=True)


def test_the_codes_of_the_oriented_variant_are_those_of_the_turned_mesh() -> None:
    model = build("vqhps_oriented")
    batch = made_batch(model, 4)
    turned = rotate(batch["rotation"], batch["canonical_vertices"])
    indices = model.tokenizer.encode(turned)
    assert (indices != model.tokenizer.encode(batch["canonical_vertices"])).any()
    sure = 50.0 * torch.nn.functional.one_hot(indices, model.tokenizer.num_codes).float()
    assert model.token_loss(sure, batch).max() < 1e-3
    output = model.output(encoded(model, batch)._replace(logits=sure), "argmax", full=False)
    torch.testing.assert_close(output.vertices, model.tokenizer.decode(indices))
    expected = fit_rotation(model.tokenizer.template.expand_as(turned), output.vertices)
    torch.testing.assert_close(output.rotation, expected)
    torch.testing.assert_close(model.true_mesh(batch), batch["canonical_vertices"])
    assert set(model.loss(output, batch)) == {"tokens", "reprojection"}


@pytest.mark.parametrize("name", ["vqhps_latents", "vqhps_oriented"])
def test_learns_ten_images(name: str) -> None:
    model = build(name).train()
    batch = made_batch(model)
    parameters = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("backbone")]
    optimizer, steps = torch.optim.Adam(parameters), 120
    with torch.no_grad():
        seen = model.backbone(batch["image"])
    model.backbone.forward = lambda image: seen
    first = model.loss(model(batch["image"]), batch)["tokens"].item()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * rate_share(step, 20, steps)
        optimizer.zero_grad()
        torch.stack([*model.loss(model(batch["image"]), batch).values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    last = model.loss(model(batch["image"]), batch)["tokens"].item()
    assert np.isfinite(last) and last < 0.1 * first
