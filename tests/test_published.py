"""The authors' weights under our names: golden values, the command, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from published_files import golden_state, smpl_arrays
from shared import DATA
from vqhps.body.smpl import SMPLBody
from vqhps.checkpoint import CheckpointCard, load_checkpoint, save_checkpoint
from vqhps.cli import main
from vqhps.errors import VqhpsError
from vqhps.export import ExportConfig, export_bundle
from vqhps.geometry import matrix_from_6d, rotate
from vqhps.models.transformer import CausalHead
from vqhps.published import convert_tokenizer, convert_vqhps, read_published, used
from vqhps.runtime.bundle import OUTPUTS, open_session
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE

REFERENCE = DATA.parent / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.exists(), reason=f"no golden values at {REFERENCE}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up SMPL body and its regressor, and the published tokenizer's file with golden weights."""
    folder = tmp_path_factory.mktemp("published")
    np.savez(folder / "SMPL_NEUTRAL.npz", **smpl_arrays(6890))
    np.save(folder / "J_regressor_h36m.npy", np.random.default_rng(0).dirichlet(np.ones(6890), 17))
    state = golden_state(REFERENCE / "state_mesh_vqvae.json")
    content = {
        "model": {f"module.{n}": v for n, v in state.items()},
        "epoch": 3,
        "loss": np.float32(0.5),
        "optimizer": {},
    }
    torch.save(content, folder / "mesh_vqvae.pt")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> MeshVQVAE:
    state = read_published(folder / "mesh_vqvae.pt")
    return convert_tokenizer(state, REFERENCE / "smpl_connections", SMPLBody(folder / "SMPL_NEUTRAL.npz"))


@pytest.fixture(scope="module")
def resnet50() -> dict[str, torch.Tensor]:
    return used(golden_state(REFERENCE / "state_vqhps_resnet50.json"))


def close(found: torch.Tensor, golden: np.ndarray) -> None:
    scale = np.abs(golden).max()
    np.testing.assert_allclose(found.detach() / scale, golden / scale, atol=1e-4)


def test_golden_mesh_vqvae(tokenizer: MeshVQVAE) -> None:
    golden = np.load(REFERENCE / "golden_mesh_vqvae.npz")
    vertices = torch.from_numpy(golden["vertices"])
    with torch.no_grad():
        latents = tokenizer.latents(vertices)
        close(latents, golden["latents"])
        close(tokenizer.decode_latents(latents), golden["decoded_from_latents"])
        assert np.array_equal(tokenizer.encode(vertices), golden["indices"])
        close(tokenizer.decode(torch.from_numpy(golden["indices"])), golden["decoded"])


def test_golden_vqhps_resnet50(resnet50: dict[str, torch.Tensor], tokenizer: MeshVQVAE) -> None:
    golden = np.load(REFERENCE / "golden_vqhps_resnet50.npz")
    model = convert_vqhps(resnet50, tokenizer, np.zeros((17, 3)))
    image = torch.from_numpy(np.random.RandomState(9).standard_normal((2, 3, 224, 224))).float()
    decoded: list[torch.Tensor] = []
    model.token_head.register_forward_hook(lambda head, given, scores: decoded.append(given[0]))
    with torch.no_grad():
        for i, joints in enumerate(golden["pose_init"]):
            model.pose_head.initial_joints.copy_(torch.from_numpy(joints).view(17, 3))
            found = model.encode(image[i : i + 1])
            close(found.rotation_6d[0], golden["rotation_6d"][i])
            close(found.camera[0], golden["camera"][i])
            if i == 0:
                close(found.logits[0], golden["logits"][0])
                assert np.array_equal(found.logits[0].argmax(1), golden["indices"][0])
        logits = along_the_batch(model.token_head, torch.cat(decoded))
    close(logits, golden["logits"])
    assert np.array_equal(logits.argmax(2), golden["indices"])


def test_vqhps_resnet50_in_bfloat16(
    resnet50: dict[str, torch.Tensor], tokenizer: MeshVQVAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both backbones, and nothing else; the mesh stays within 1 mm on average, and the bench says so."""
    model = convert_vqhps(resnet50, tokenizer, np.zeros((17, 3)))
    image = torch.from_numpy(np.random.RandomState(9).standard_normal((2, 3, 224, 224))).float()
    expected, features = model.predict(image), model.backbone(image).features
    save_checkpoint(tmp_path / "checkpoint", model, CheckpointCard("vqhps", "smpl"))
    assert model.to_bfloat16() is model
    lower = {name.partition(".")[0] for name, value in model.named_parameters() if value.dtype == torch.bfloat16}
    assert lower == {"backbone", "backbone_rotation"}
    seen, found = model.backbone(image), model.predict(image)
    assert seen.features.dtype == seen.vector.dtype == found.vertices.dtype == torch.float32
    assert 1e-4 < (seen.features - features).norm() / features.norm() < 0.02
    assert 0 < (found.vertices - expected.vertices).norm(dim=-1).mean() < 1e-3
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert main(["bench", "model", str(tmp_path / "checkpoint"), "--photos", str(tmp_path), "--runs", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["crops"] == 3 and report["gflop"] == pytest.approx(17.3, abs=0.1)
    assert 0 < report["torch-bfloat16"]["mean_mm"] < 1


def test_golden_vqhps_resnet50_as_a_bundle(
    resnet50: dict[str, torch.Tensor], tokenizer: MeshVQVAE, tmp_path: Path
) -> None:
    golden = np.load(REFERENCE / "golden_vqhps_resnet50.npz")
    joints = golden["pose_init"][0].reshape(17, 3)
    model = convert_vqhps(resnet50, tokenizer, joints)
    export_bundle(model, tmp_path / "bundle", ExportConfig(body="smpl", weights="single"))
    image = torch.from_numpy(np.random.RandomState(9).standard_normal((2, 3, 224, 224))[:1]).float()
    mean, std = (255 * torch.tensor(x).view(3, 1, 1) for x in (model.backbone.mean, model.backbone.std))
    session = open_session(tmp_path / "bundle" / "model.onnx", ("image",), OUTPUTS)
    found = dict(zip(OUTPUTS, session.run(OUTPUTS, {"image": (image * std + mean).numpy()}), strict=True))
    rotation = matrix_from_6d(torch.from_numpy(golden["rotation_6d"][:1]))
    decoded = tokenizer.decode(torch.from_numpy(golden["indices"][:1]))
    expected = {
        "logits": golden["logits"][:1], "camera": golden["camera"][:1], "rotation": rotation.numpy(),
        "vertices": rotate(rotation, tokenizer.upsample(decoded)).numpy(),
    }  # fmt: skip
    for name, values in expected.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(found[name] / scale, values / scale, atol=1e-3, err_msg=name)
    assert np.array_equal(found["indices"], golden["indices"][:1])


def along_the_batch(head: CausalHead, tokens: torch.Tensor) -> torch.Tensor:
    """As the published code computes a batch: its causal attention runs from image to image, token by token, so that a
    result depends on the images before it. The golden values have two; ours are those of an image by itself."""
    x = head.norm1(tokens).transpose(0, 1)
    tokens = tokens + head.attention(x, x, x, causal=True).transpose(0, 1)
    return head.scores(head.norm(tokens + head.feed_forward(head.norm2(tokens))))


def test_hrnet_converts_with_nothing_missing_and_nothing_left_over(tokenizer: MeshVQVAE) -> None:
    shapes = json.loads((REFERENCE / "state_vqhps_hrnet_w48.json").read_text())
    state = used({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert {name.split(".")[1] for name in shapes.keys() - state.keys()} == {"final_layer", "dec_head"}
    model = convert_vqhps(state, tokenizer, np.zeros((17, 3)))
    assert model.config.backbone == "hrnet_w48"
    for name in ("transformer.fc9.weight", "backbone_pose.stage9.weight"):
        with pytest.raises(VqhpsError, match="1 tensors missing or left over"):
            convert_vqhps({**state, name: torch.zeros(1)}, tokenizer, np.zeros((17, 3)))


def test_the_command_converts_and_says_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = str(folder / "mesh_vqvae.pt"), str(folder / "out")
    bodies = ["--body-models", str(folder)]
    connections = ["--connections", str(REFERENCE / "smpl_connections")]
    assert main(["convert", weights, "--out", out, *bodies]) == 2
    assert "give the published matrices with --connections FOLDER" in capsys.readouterr().err
    assert main(["convert", weights, "--out", out, *connections, "--body-models", str(folder / "none")]) == 2
    assert "register at https://smpl.is.tue.mpg.de" in capsys.readouterr().err
    assert main(["convert", weights, "--out", out, *connections, *bodies]) == 0
    model = load_checkpoint(out)
    golden = np.load(REFERENCE / "golden_mesh_vqvae.npz")
    assert isinstance(model, MeshVQVAE)
    close(model.decode(torch.from_numpy(golden["indices"])), golden["decoded"])
    assert model.regressor("coco17").shape == model.regressor("h36m17").shape == (17, 6890)


def test_tensors_missing_left_over_or_misshapen(folder: Path) -> None:
    state = read_published(folder / "mesh_vqvae.pt")
    rest = (REFERENCE / "smpl_connections", SMPLBody(folder / "SMPL_NEUTRAL.npz"))
    for name in ("encoder.model.weights0", "encoder.model.w_weights13", "vq_vae._embedding.weight"):
        lacking = {n: v for n, v in state.items() if n.rpartition(".")[2] != name.rpartition(".")[2]}
        with pytest.raises(VqhpsError, match=f"lacks '{name.removeprefix('encoder.model.')}'"):
            convert_tokenizer(lacking, *rest)
    with pytest.raises(VqhpsError, match="left over, first 'weights99'"):
        convert_tokenizer({**state, "encoder.model.weights99": torch.zeros(1)}, *rest)
    other = {"encoder.model.w_weights6": torch.zeros(54, 19, 4)}
    with pytest.raises(VqhpsError, match="its encoder and decoder differ in 'w_weights6'"):
        convert_tokenizer({**state, **other}, *rest)
    with pytest.raises(VqhpsError, match=r"coefficients' is \(54, 19, 4\), not \(54, 19, 9\)"):
        convert_tokenizer({**state, **other, "decoder.model.w_weights6": torch.zeros(54, 19, 4)}, *rest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "is damaged or no file that torch saved"),
        (b"", "is damaged or no file that torch saved"),
        ({"model": {}, "loss": Path("x")}, r"is refused: it asks to load pathlib\.\w+, which could run code"),
        ({"model": {}, "loss": eval}, r"is refused: it asks to load .*eval, which could run code"),
        ({"model": 3}, "holds no state"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(VqhpsError, match=message) as error:
        read_published(path)
    assert "\n" not in str(error.value)
