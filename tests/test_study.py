"""The study in miniature: four methods on painted capsules; it resumes after being killed and skips what is done."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tiny_shards import TinyBody, symmetric_tokenizer, write_shard
from vqhps import cli, study, training_image
from vqhps.body import named
from vqhps.checkpoint import CheckpointCard, save_checkpoint
from vqhps.data import crops
from vqhps.errors import VqhpsError
from vqhps.evaluation import run
from vqhps.models import MODELS, method, vqhps
from vqhps.models.backbones import Backbone, create_backbone
from vqhps.study import Row, StudyConfig, StudyEntry, interval, run_study
from vqhps.training_config import ImageTrainingConfig
from vqhps.training_image import training_rows

pytestmark = pytest.mark.filterwarnings("ignore")
BACKBONE = {"backbone": "blazepose_features", "frozen_stages": 2}
SMALL: dict[str, dict[str, Any]] = {
    "vqhps": {"dim": 32, "heads": 4, "hidden": 32},
    "hmr": {"hidden": 32},
    "cliff": {"hidden": 32},
    "fastmetro": {"vertices": 24, "dims": (16, 8), "hidden": (16, 8), "heads": 4},
}


def same_backbone(name: Any, weights: Path | None) -> Backbone:
    """Random weights, the same for all."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return create_backbone(name, weights)


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve training and four test images, a tokenizer, and a backbone of random weights."""
    for module in (crops, named, method, study):
        monkeypatch.setattr(module, "named_body", lambda name: TinyBody())
    monkeypatch.setattr(study, "_TIMES", 1)
    monkeypatch.setattr(run, "anny_body", lambda mesh: TinyBody())
    monkeypatch.setattr(training_image, "blazepose_models", lambda: (None, None))
    for module in (method, vqhps):
        monkeypatch.setattr(module, "create_backbone", same_backbone)
    for split, count in (("train", 12), ("test", 4)):
        (tmp_path / split).mkdir()
        write_shard(tmp_path / split / f"tiny-{split}-0-000000.tar", count, seed=count)
    save_checkpoint(tmp_path / "tokenizer", symmetric_tokenizer(), CheckpointCard("mesh_vqvae", "tiny"))
    return tmp_path


def config(folder: Path, out: str, methods: tuple[str, ...] = tuple(SMALL), **changes: Any) -> StudyConfig:
    training = ImageTrainingConfig(
        shards=str(folder / "train"), tokenizer=str(folder / "tokenizer"), steps=3, batch_size=2, image_size=256,
        final_image_size=256, warmup=1, validation=2, save_minutes=0.0, kept_views=1, workers=0, average=0.5,
    )  # fmt: skip
    entries = tuple(StudyEntry(n, n, MODELS[n][0](**BACKBONE, **SMALL[n])) for n in methods)
    settings: dict[str, Any] = {
        "sizes": (4, 8), "seeds": (0, 1), "rates": (1e-3, 1e-4), "rate_size": 4, "test_samples": 4, "hard_samples": 2,
        "bodily_samples": 2, **changes,
    }  # fmt: skip
    return StudyConfig(training, str(folder / "test"), entries, str(folder / out), **settings)


def files(out: Path, name: str) -> dict[str, Any]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob(f"runs/*/{name}"))}


def test_four_methods_make_one_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, from a recipe, cut short by --quick."""
    whole = config(folder, "out")
    values = json.loads(json.dumps(dataclasses.asdict(whole)))
    values["training"] = {k: v for k, v in values["training"].items() if k not in ("method", "model")}
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    docs = folder / "docs" / "scarce.md"
    docs.parent.mkdir()
    docs.write_text("before\n<!-- study -->\nold\n<!-- /study -->\nafter\n")
    command = ["study", "scarce", "--recipe", str(folder / "study.yaml"), "--quick", "--docs", str(docs)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.strip().endswith("out-quick/report.md")
    text = docs.read_text()
    assert (
        text.startswith("before\n<!-- study -->\n") and text.endswith("<!-- /study -->\nafter\n") and "old" not in text
    )
    for name in SMALL:
        assert text.count(f"| {name} | 4 |") == text.count(f"| {name} | 8 |") == 3  # errors, bodies, hard versions
    assert "| true meshes |" in text and "truncated" in text
    assert (docs.parent / "scarce.png").exists() and (docs.parent / "scarce_gallery.png").exists()
    measures = files(folder / "out-quick", "measures.json")
    assert len(measures) == 8
    vqhps = next(found for name, found in measures.items() if name.startswith("vqhps"))
    assert (
        vqhps["bodily"]["nearest body mm"] < 1 < measures["fastmetro-4-seed0-rate0.0001"]["bodily"]["nearest body mm"]
    )
    assert set(vqhps["hard"]) == {"dark", "blurred", "occluded", "truncated"}


def test_a_killed_study_goes_on_as_if_it_had_not_been(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"methods": ("hmr",), "sizes": (4,)}
    run_study(config(folder, "whole", **settings))
    started: list[str] = []
    train = study.train_image_model
    report, count = training_image._report, [0]

    def stop(*arguments: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        report(*arguments)

    def counted(one: ImageTrainingConfig) -> Path:
        started.append(Path(one.out).name)
        return train(one)

    monkeypatch.setattr(study, "train_image_model", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_image, "_report", stop)
        run_study(config(folder, "parts", **settings))
    assert len(started) == 2 and (folder / "parts" / "runs" / started[1] / "state.pt").exists()
    write_shard(folder / "train" / "tiny-train-0-000001.tar", 4, seed=1)  # data that came since is not looked at
    run_study(config(folder, "parts", **settings))
    assert len(started) == 4 and started[2] == started[1]  # the first run was done, the second goes on
    for name in ("done.json", "measures.json"):
        assert files(folder / "whole", name) == files(folder / "parts", name)
    run_study(config(folder, "parts", **settings))
    assert len(started) == 4
    assert not [*folder.glob("*/runs/*/state.pt")]


def test_more_seeds_may_follow_but_not_other_settings(folder: Path) -> None:
    first = config(folder, "out", ("hmr",))
    study.Study(first)
    study.Study(dataclasses.replace(first, seeds=(0, 1, 2), rates=(1e-2,)))
    with pytest.raises(VqhpsError, match="other settings"):
        study.Study(dataclasses.replace(first, training=dataclasses.replace(first.training, steps=4)))
    other = StudyEntry("other", "hmr", MODELS["hmr"][0](backbone="resnet50"))
    with pytest.raises(VqhpsError, match="must have the same backbone"):
        study.Study(dataclasses.replace(first, entries=(*first.entries, other)))
    with pytest.raises(VqhpsError, match="method is cliff"):
        ImageTrainingConfig("a", "b", method="cliff", model=MODELS["hmr"][0]())


def test_smaller_subsets_are_among_larger_ones_and_seeds_draw_anew() -> None:
    def rows(samples: int, seed: int) -> set[int]:
        one = ImageTrainingConfig("a", "b", samples=samples, pool=80, seed=seed, validation=10)
        return set(training_rows(one, 100).tolist())

    assert rows(10, 0) < rows(40, 0) < rows(80, 0) == set(range(80))
    assert rows(10, 0) != rows(10, 1)
    with pytest.raises(VqhpsError, match="81 are asked for, there are 80"):
        rows(81, 0)
    assert len(training_rows(ImageTrainingConfig("a", "b", validation=10), 100)) == 90


def test_the_rate_is_the_best_one_on_held_back_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study.Study(config(folder, "out", ("hmr",)))
    scores = {1e-3: float("nan"), 1e-4: 80.0}
    monkeypatch.setattr(one, "train", lambda run: scores[run.rate])
    assert one.rate(one.config.entries[0]) == 1e-4
    variant = StudyEntry("variant", "vqhps", MODELS["vqhps"][0](**BACKBONE, **SMALL["vqhps"]))
    other = study.Study(config(folder, "more", ("hmr",), ablations=(variant,)))
    monkeypatch.setattr(other, "train", lambda run: scores[run.rate] if run.entry.name == "hmr" else 0.0)
    assert other.rate(variant) == 1e-4


def test_an_entry_may_read_what_another_trained(folder: Path) -> None:
    model = MODELS["vqhps"][0](**BACKBONE, **SMALL["vqhps"])
    mean = StudyEntry("mean code", "vqhps", dataclasses.replace(model, decode="expected"), of="vqhps")
    alone = config(folder, "out", ("vqhps",), sizes=(4,), seeds=(0,))
    run_study(alone)
    both = dataclasses.replace(alone, entries=(*alone.entries, mean))
    run_study(both)  # an entry that joins later
    assert len(files(folder / "out", "done.json")) == 2  # two rates
    measures = files(folder / "out", "measures.json")
    assert len(measures) == 2
    best, read = (next(m["test"] for n, m in measures.items() if n.startswith(name)) for name in ("vqhps", "mean"))
    assert best != read
    assert one_row(folder / "out" / "report.md", "mean code")[:2] == ["mean code", "4"]
    for wrong, message in (
        (dataclasses.replace(mean, model=dataclasses.replace(model, dim=64)), "differ in `decode` only"),
        (dataclasses.replace(mean, of="other"), "none of the study"),
    ):
        with pytest.raises(VqhpsError, match=message):
            study.Study(dataclasses.replace(both, out=str(folder / "wrong"), entries=(*both.entries[:1], wrong)))


def one_row(report: Path, name: str) -> list[str]:
    line = next(x for x in report.read_text().splitlines() if x.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_interval_is_that_of_student() -> None:
    assert interval(np.array([1.0])) == 0
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(4.302653 * 1 / 3**0.5)
    row = Row([], [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}])
    assert row.cell(lambda found: found["a"], 2) == "2.00 ± 2.48"
