"""`vqhps train tokenizer` on registered capsules, as a user runs it: killed, resumed, evaluated, drawn."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from shared import TINY, tiny_bodies, tiny_mesh
from vqhps.checkpoint import load_checkpoint
from vqhps.cli import main

SRC = Path(__file__).parents[1] / "src"
STEPS = 60


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    path = tmp_path_factory.mktemp("meshes") / "capsules.npz"
    np.savez(path, vertices=tiny_bodies(400).numpy(), faces=tiny_mesh()[1])
    return path


def recipe(folder: Path, source: Path, network: str, **changes: object) -> Path:
    """Every step is saved."""
    model = {**TINY, "sizes": [40, 16, 6], "channels": [4, 8, 8], "network": network, "code_dim": 2}
    content = {
        "meshes": str(source), "out": str(folder / "run"), "steps": STEPS, "batch_size": 8, "warmup": 2,
        "evaluate_every": 5, "save_minutes": 0.0, "threads": 1, "model": model, **changes,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def train(recipe: Path) -> Path:
    assert main(["train", "tokenizer", "--recipe", str(recipe)]) == 0
    return recipe.parent / "run"


def kill_in_mid_training(recipe: Path) -> int:
    """Run the command in a process of its own and kill it; the step it had reached."""
    code = "import sys; from vqhps.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", code, "train", "tokenizer", "--recipe", str(recipe)]
    log = recipe.parent / "run" / "log.jsonl"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline, "it never got that far"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    return json.loads(log.read_text().splitlines()[-1])["step"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_run_ends_as_if_nothing_had_happened(tmp_path, meshes):
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    killed, whole = (recipe(tmp_path / name, meshes, "conv") for name in ("killed", "whole"))
    assert 0 < kill_in_mid_training(killed) < STEPS
    assert (tmp_path / "killed" / "run" / "state.pt").exists()
    assert not (tmp_path / "killed" / "run" / "checkpoint").exists()
    first, second = (load_checkpoint(train(r) / "checkpoint").state_dict() for r in (killed, whole))
    assert set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)


def test_it_learns_says_so_and_is_evaluated(tmp_path, meshes, capsys):
    run = train(recipe(tmp_path, meshes, "components"))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEPS and rows[-1]["pve_mm"] < 30
    assert f"step {STEPS}: PVE {rows[-1]['pve_mm']:.2f} mm on held-out meshes" in capsys.readouterr().out
    card = json.loads((run / "checkpoint" / "config.json").read_text())
    assert card["body"] == "capsules" and list(card["metrics"]) == ["PVE on held-out meshes, full mesh, mm"]
    command = ["evaluate", "tokenizer", "--root", str(meshes), "--checkpoint", str(run / "checkpoint")]
    assert main([*command, "--out", str(tmp_path / "out"), "--figures", str(tmp_path / "figures")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["PVE_mm"] == pytest.approx(rows[-1]["pve_mm"], abs=0.05) and found["bodies"] == 20
    assert 0.5 < found["PVE_mm by surface"] / found["PVE_mm"] < 2 and "PVE_mm head" not in found
    assert found["perplexity share of K"] == pytest.approx(found["perplexity"] / 16)
    assert found["codes"] == 96 and found["codes unused by 32,768 training bodies"] == 0
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 21
    for name in ("errors.png", "tokens.png"):
        with Image.open(tmp_path / "figures" / name) as picture:
            colors = np.asarray(picture.convert("HSV"))
        assert (colors[..., 1] > 100).mean() > 0.01  # strong colours, not a grey body alone


def test_components_alone_need_no_steps(tmp_path, meshes):
    from vqhps.data.meshes import MeshFile
    from vqhps.evaluation.tokenizer import tokenizer_errors, unused_codes

    model = {**TINY, "sizes": [6], "channels": [4], "code_dim": 2, "components": 12, "width": 0}
    run = train(recipe(tmp_path, meshes, "components", model=model, steps=0))
    tokenizer, file = load_checkpoint(run / "checkpoint"), MeshFile.open(meshes)
    held = file.held_out()
    assert not list(tokenizer.parameters()) and unused_codes(tokenizer, file) == 0
    assert tokenizer_errors(tokenizer, held, held)["pve_mm"].mean() < 30


def test_a_code_nobody_takes_is_counted(meshes):
    from tiny_fitted import fitted_tokenizer
    from vqhps.data.meshes import MeshFile
    from vqhps.evaluation.tokenizer import unused_codes

    model, file = fitted_tokenizer(), MeshFile.open(meshes)
    before = unused_codes(model, file, batches=4)
    model.codebook[2, 5] = 1e3
    assert unused_codes(model, file, batches=4) == before + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**TINY, "sizes": [6], "channels": [4], "components": 390}}, "390 components need more than 390"),
        ({"connections": "nowhere", "model": {"network": "conv"}}, "nowhere holds 0 files"),
        ({"meshes": "nowhere.npz"}, "cannot read nowhere.npz"),
        ({"model": {**TINY, "width": 0}}, "width 0 leaves nothing to train: set steps to 0"),
    ],
)
def test_what_cannot_be_trained_is_one_line(tmp_path, meshes, capsys, changes, message):
    path = recipe(tmp_path, meshes, "components", **changes)
    assert main(["train", "tokenizer", "--recipe", str(path)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_meshes_of_the_command_line_come_first(tmp_path, capsys):
    path = recipe(tmp_path, Path("recipes.npz"), "components")
    assert main(["train", "tokenizer", "--recipe", str(path), "--meshes", str(tmp_path / "mine.npz")]) == 2
    assert "mine.npz" in capsys.readouterr().err


def test_evaluation_on_another_body_is_refused(tmp_path, meshes, capsys):
    from tiny_fitted import fitted_tokenizer
    from vqhps.checkpoint import CheckpointCard, save_checkpoint

    save_checkpoint(tmp_path / "c", fitted_tokenizer(), CheckpointCard("mesh_vqvae"))
    np.savez(tmp_path / "m.npz", vertices=np.zeros((9, 4, 3), np.float32), faces=np.array([[0, 1, 2]]))
    command = ["evaluate", "tokenizer", "--root", str(tmp_path / "m.npz"), "--checkpoint", str(tmp_path / "c")]
    assert main(command) == 2
    assert "bodies of 4 vertices, the tokenizer reads 162" in capsys.readouterr().err
