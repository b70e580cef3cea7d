"""Moving a prediction onto the key points: what it reaches, what it leaves alone, and that a graph says the same."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shared import tiny_tokenizer
from vqhps.checkpoint import CheckpointCard, load_checkpoint, save_checkpoint
from vqhps.errors import VqhpsError
from vqhps.export import trace
from vqhps.geometry import matrix_from_vector, project, rotate
from vqhps.models.refinement import Fit, Refinement
from vqhps.models.vqhps import VQHPS, VQHPSConfig
from vqhps.runtime.bundle import open_session

TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0]))


@pytest.fixture(scope="module")
def refinement() -> Refinement:
    return Refinement(tiny_tokenizer())  # type: ignore[arg-type]


def start(refinement: Refinement, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, rotation and camera of a prediction."""
    generator = torch.Generator().manual_seed(2)
    tokens, codes, _ = refinement.codes.shape
    probability = torch.randn(count, tokens, codes, generator=generator).softmax(2)
    camera = torch.tensor([0.8, 0.05, -0.02]).expand(count, 3)
    return probability, TURN.expand(count, 3, 3), camera


def seen(refinement: Refinement, fit: Fit, sure: float = 1.0) -> Tensor:
    """The key points of a body."""
    canonical = refinement.joints + torch.einsum("bn,njc->bjc", fit.latents.flatten(1), refinement.basis)
    places = project(rotate(fit.rotation, canonical), fit.camera)
    return torch.cat([places, torch.full_like(places[..., :1], sure), torch.zeros_like(places[..., :1])], 2)


def moved(refinement: Refinement) -> tuple[tuple[Tensor, Tensor, Tensor], Fit]:
    """A prediction, and another body not far from it."""
    probability, rotation, camera = start(refinement)
    mean = torch.einsum("btk,tkd->btd", probability, refinement.codes)
    spread = torch.einsum("btk,btkd->btd", probability, (refinement.codes - mean[:, :, None]).square()).sqrt()
    turned = matrix_from_vector(torch.tensor([[0.1, -0.2, 0.05], [0.0, 0.15, -0.1]])) @ rotation
    return (probability, rotation, camera), Fit(mean + 0.5 * spread, turned, camera + torch.tensor([0.05, 0.02, -0.01]))


def apart(refinement: Refinement, fit: Fit, keypoints: Tensor) -> float:
    return (seen(refinement, fit)[..., :2] - keypoints[..., :2]).norm(dim=-1).mean().item()


def test_comes_to_the_key_points_and_nearer_to_the_body(refinement: Refinement) -> None:
    before, body = moved(refinement)
    keypoints = seen(refinement, body)
    predicted = Fit(torch.einsum("btk,tkd->btd", before[0], refinement.codes), *before[1:])
    fit = refinement(*before, keypoints)
    assert apart(refinement, predicted, keypoints) > 0.04
    assert apart(refinement, fit, keypoints) < 0.25 * apart(refinement, predicted, keypoints)
    assert (fit.rotation - body.rotation).norm() < (predicted.rotation - body.rotation).norm()
    assert (fit.camera - body.camera).norm() < (predicted.camera - body.camera).norm()
    torch.testing.assert_close(fit.rotation @ fit.rotation.mT, torch.eye(3).expand(2, 3, 3))


def test_the_step_is_that_of_a_linear_solver(refinement: Refinement, monkeypatch: pytest.MonkeyPatch) -> None:
    before, body = moved(refinement)
    keypoints = seen(refinement, body, 0.7)
    fit = refinement(*before, keypoints)
    monkeypatch.setattr(
        "vqhps.models.refinement._inverse", lambda matrix: torch.linalg.inv(torch.eye(matrix.shape[1]) + matrix)
    )
    for ours, exact in zip(fit, refinement(*before, keypoints), strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-3)


def test_what_is_not_seen_moves_nothing_and_what_is_sure_stays(refinement: Refinement) -> None:
    before, body = moved(refinement)
    mean = torch.einsum("btk,tkd->btd", before[0], refinement.codes)
    fit = refinement(*before, seen(refinement, body, 0.0))
    torch.testing.assert_close(fit.latents, mean)
    torch.testing.assert_close(fit.rotation, before[1])
    sure = torch.nn.functional.one_hot(before[0].argmax(2), refinement.codes.shape[1]).float()
    fit = refinement(sure, *before[1:], seen(refinement, body))  # no doubt about the codes: the camera may move only
    torch.testing.assert_close(fit.latents, torch.einsum("btk,tkd->btd", sure, refinement.codes))


def test_a_point_of_somebody_else_counts_little(refinement: Refinement) -> None:
    before, body = moved(refinement)
    good = seen(refinement, body)
    bad = good.clone()
    bad[:, 9, 0] += 0.9
    all_right = refinement(*before, good)
    without = good * torch.where(torch.arange(17) == 9, 0.0, 1.0)[:, None]
    one_wrong, ignored = refinement(*before, bad), refinement(*before, without)
    assert (one_wrong.camera - ignored.camera).norm() < 0.1 * (ignored.camera - before[2]).norm()
    assert apart(refinement, one_wrong, good) < 1.5 * apart(refinement, all_right, good) + 5e-3


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_a_graph_says_the_same(refinement: Refinement, tmp_path: Path) -> None:
    class OfPoints(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.refinement = refinement

        def forward(self, keypoints: Tensor) -> tuple[Tensor, ...]:
            probability, rotation, camera = (
                x[:1].expand(keypoints.shape[0], -1, -1) for x in (*before[:2], before[2][None])
            )
            return tuple(self.refinement(probability, rotation, camera[:, 0], keypoints))

    before, body = moved(refinement)
    points = OfPoints()
    keypoints = seen(refinement, body)
    trace(points, {"keypoints": keypoints}, Fit._fields, tmp_path / "a.onnx")
    session = open_session(tmp_path / "a.onnx", ("keypoints",), Fit._fields, 1)
    for rows in (keypoints, keypoints[:1]):
        for found, expected in zip(session.run(None, {"keypoints": rows.numpy()}), points(rows), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_loaded_model_refines_by_the_tokenizer_it_loads(tmp_path: Path) -> None:
    """A checkpoint is loaded into a model whose tokenizer knows nothing yet."""
    config = VQHPSConfig(
        dim=32, heads=4, hidden=64, backbone="blazepose", sources=("image", "keypoints"), decode="expected", refine=True
    )
    tokenizer = tiny_tokenizer(width=0)
    torch.nn.init.normal_(tokenizer.network.basis, std=0.1)  # type: ignore[arg-type]
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    model = VQHPS(config, tokenizer).eval()
    save_checkpoint(tmp_path / "checkpoint", model, CheckpointCard("vqhps"))
    loaded = load_checkpoint(tmp_path / "checkpoint", "vqhps").eval()
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.predict(image).vertices, model.predict(image).vertices, atol=1e-4, rtol=1e-4)
    unrefined = VQHPS(dataclasses.replace(config, refine=False), tokenizer).eval()
    unrefined.load_state_dict(model.state_dict())
    assert (unrefined.predict(image).vertices - model.predict(image).vertices).abs().max() > 1e-3


def test_refusals() -> None:
    config = VQHPSConfig(dim=32, heads=4, hidden=64, refine=True)
    with pytest.raises(VqhpsError, match="refine needs a backbone that finds key points"):
        VQHPS(config, tiny_tokenizer())
    config = dataclasses.replace(config, backbone="blazepose", sources=("image", "keypoints"))
    curved = tiny_tokenizer(width=16)
    torch.nn.init.normal_(curved.network.decoder[-1].weight)  # type: ignore[index, union-attr]
    with pytest.raises(VqhpsError, match="whose decoder is linear"):
        VQHPS(config, curved)
    VQHPS(config, tiny_tokenizer(width=0))
