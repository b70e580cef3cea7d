"""`vqhps study scarce`: methods trained on few samples, all in one way, and measured in one way.

Every run has its folder and every measurement its file, so that a study that was killed goes on where it stopped: what
is done is skipped, and a run in the middle resumes exactly.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqhps.body.named import named_body, posed_bodies
from vqhps.checkpoint import load_checkpoint, load_tokenizer
from vqhps.config import to_dict
from vqhps.data.crops import BodyLabels, CropDataset, crop_places, crop_rotations, plain_crops
from vqhps.data.hard import HARD
from vqhps.data.sample import Shards, find_shards
from vqhps.errors import VqhpsError
from vqhps.evaluation.bodily import bodily_measures
from vqhps.evaluation.coco import evaluate_coco
from vqhps.evaluation.run import evaluate_people
from vqhps.evaluation.tokenizer_speed import in_turns
from vqhps.evaluation.torch_model import TrunkMemory, torch_model
from vqhps.geometry import rotate
from vqhps.models.method import Method
from vqhps.runtime.export_mesh import whole_file
from vqhps.training_config import ImageTrainingConfig, model_config
from vqhps.training_image import train_image_model

log = logging.getLogger(__name__)

KEPT = ("standard PVE", "standard MPJPE", "standard PA-MPJPE", "PCK@0.1")  # of a summary, for the tables
_BATCH, _TIMES = 25, 10


@dataclass(frozen=True)
class StudyEntry:
    """A method, or a variant of one, with its settings.

    Attributes:
        name: in the tables.
        method: in `vqhps.models.MODELS`.
        model: its settings.
        tokenizer: checkpoint of its own tokenizer; by default that of the training all have in common.
        of: the name of another entry whose trained models this one reads by another `decode`; all else is the same.
    """

    name: str
    method: str
    model: Any
    tokenizer: str = ""
    of: str = ""

    @staticmethod
    def types_of(values: dict[str, Any]) -> dict[str, type[Any]]:
        """The type of `model` by `method`, for `vqhps.config.from_dict`."""
        return {"model": model_config(values.get("method"))}


@dataclass(frozen=True)
class StudyConfig:
    """A study.

    Attributes:
        training: what all runs have in common; method, model, number of samples, rate, seed and folder vary.
        test: folder of prepared test shards.
        entries: what is compared.
        out: folder of the study.
        photos: folder of photos with labelled key points, as `evaluate coco-free` takes it; without it, none.
        ablations: variants of the first entry, that are trained at `ablation_size` only.
        ablation_size, ablation_seeds: see above, and below.
        sizes: numbers of training samples; in one seed those of a smaller number are among those of a larger.
        seeds: each draws samples, weights and order anew.
        rates: learning rates; each entry gets the one that is best on held-back samples after training with the first
            seed on `rate_size` samples.
        rate_size: see above.
        test_samples, hard_samples, bodily_samples: how many test samples are measured; in each hard version; for how
            bodily the meshes are.
    """

    training: ImageTrainingConfig
    test: str
    entries: tuple[StudyEntry, ...]
    out: str = "runs/scarce"
    photos: str | None = None
    ablations: tuple[StudyEntry, ...] = ()
    ablation_size: int = 1000
    ablation_seeds: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = (300, 1000, 3000, 10_000)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    rate_size: int = 1000
    test_samples: int = 500
    hard_samples: int = 200
    bodily_samples: int = 100

    def quick(self) -> "StudyConfig":
        """A cut that takes some ten minutes: two sizes, one seed, one rate, an eighth of the steps, no ablations."""
        short = dataclasses.replace(self.training, steps=max(1, self.training.steps // 8))
        return dataclasses.replace(
            self, training=short, out=f"{self.out}-quick", ablations=(), sizes=self.sizes[:2], seeds=self.seeds[:1],
            rates=self.rates[len(self.rates) // 2 :][:1], test_samples=min(self.test_samples, 100),
            hard_samples=min(self.hard_samples, 50), bodily_samples=min(self.bodily_samples, 25),
        )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training: an entry on `size` samples with a seed and a rate; `folder` holds it."""

    entry: StudyEntry
    size: int
    seed: int
    rate: float
    folder: Path


@dataclass(frozen=True)
class Row:
    """The runs of one entry on one number of samples, one a seed, and what each measured."""

    runs: list[Run]
    measures: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of the entry."""
        return self.runs[0].entry.name

    @property
    def size(self) -> int:
        """Training samples."""
        return self.runs[0].size

    def values(self, read: Callable[[dict[str, Any]], float]) -> np.ndarray:
        """One number a seed."""
        return np.array([read(found) for found in self.measures], float)

    def cell(self, read: Callable[[dict[str, Any]], float], digits: int = 1) -> str:
        """Mean and half of the 95 % interval over the seeds."""
        values = self.values(read)
        half = f" ± {interval(values):.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{half}"


def interval(values: np.ndarray) -> float:
    """Half of Student's 95 % confidence interval of a mean; 0 for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return 0.0
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


class Study:
    """Trains and measures what is not done yet.

    Args:
        config: the study.

    Raises:
        VqhpsError: the folder holds another study, or the entries differ in what should be the same.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config, self.out = config, Path(config.out)
        everyone = (*config.entries, *config.ablations)
        if len({e.name for e in everyone}) < len(everyone):
            raise VqhpsError("two entries of the study have the same name")
        self.named = {e.name: e for e in everyone}
        for entry in everyone:
            base = self.trained_as(entry)
            ours, theirs = ({**to_dict(e), "name": "", "of": ""} for e in (entry, base))
            for one in (ours, theirs):
                one["model"].pop("decode", None)
            if entry.of and (base.of or ours != theirs):
                raise VqhpsError(f"entry {entry.name} reads models of {entry.of}: it may differ in `decode` only")
        backbones = {(e.model.backbone, e.model.frozen_stages, e.model.freeze_norm) for e in everyone}
        if len(backbones) > 1:
            raise VqhpsError(f"the entries must have the same backbone, frozen alike; these have {sorted(backbones)}")
        self.pool = max(*config.sizes, config.rate_size, config.ablation_size if config.ablations else 0)
        self.shards = self._begin()
        self.test = Shards(find_shards(Path(config.test), "test"))
        self.memory = TrunkMemory()

    def _begin(self) -> list[str]:
        """The names of the shards that the study began with."""
        now = to_dict(self.config)
        path = self.out / "study.json"
        if not path.exists():
            names = [p.name for p in find_shards(Path(self.config.training.shards), "train")]
            write_json(path, {"config": now, "shards": names})
        begun = json.loads(path.read_text(encoding="utf-8"))
        before = begun["config"]
        ours, theirs = ({e["name"]: e for e in (*c["entries"], *c["ablations"])} for c in (now, before))
        changed = [n for n in ours if n in theirs and ours[n] != theirs[n]]
        if changed or any(now[key] != before[key] for key in ("training", "test", "test_samples")):
            what = f"entry {changed[0]}" if changed else "training or test"
            raise VqhpsError(f"{self.out} holds a study with other settings ({what}); name another folder with --out")
        return begun["shards"]

    def trained_as(self, entry: StudyEntry) -> StudyEntry:
        """The entry whose models an entry reads: itself, or the one that it is `of`."""
        if entry.of not in ("", *self.named):
            raise VqhpsError(f"entry {entry.name} reads models of {entry.of}, which is none of the study")
        return self.named[entry.of] if entry.of else entry

    def run(self, entry: StudyEntry, size: int, seed: int, rate: float) -> Run:
        """A run by its folder."""
        name = f"{entry.name.replace(' ', '-')}-{size}-seed{seed}-rate{rate:g}"
        return Run(entry, size, seed, rate, self.out / "runs" / name)

    def train(self, run: Run) -> float:
        """PVE on the held-back samples, mm; trained first if need be."""
        run = self.run(self.trained_as(run.entry), run.size, run.seed, run.rate)
        done = run.folder / "done.json"
        if not done.exists():
            log.info("study: %s", run.folder.name)
            if not (run.folder / "shards.json").exists():
                write_json(run.folder / "shards.json", self.shards)
            config = dataclasses.replace(
                self.config.training, out=str(run.folder), method=run.entry.method, model=run.entry.model,
                samples=run.size, pool=self.pool, seed=run.seed, learning_rate=run.rate,
                validate_every=self.config.training.steps,
                tokenizer=run.entry.tokenizer or self.config.training.tokenizer,
            )  # fmt: skip
            train_image_model(config)
            row = json.loads((run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
            key = "pve_mm" if "pve_mm" in row else f"pve_{run.entry.model.decode}_mm"
            write_json(done, {"validation_pve_mm": row[key]})
            (run.folder / "state.pt").unlink()
        return float(json.loads(done.read_text(encoding="utf-8"))["validation_pve_mm"])

    def rate(self, entry: StudyEntry) -> float:
        """The rate that is best for an entry; a variant has that of the first entry, as all else but one thing."""
        config = self.config
        entry = config.entries[0] if entry in config.ablations else self.trained_as(entry)
        if len(config.rates) == 1:
            return config.rates[0]
        runs = {rate: self.run(entry, config.rate_size, config.seeds[0], rate) for rate in config.rates}
        tried = {rate: self.train(run) for rate, run in runs.items()}
        return min(tried, key=lambda r: (not np.isfinite(tried[r]), tried[r]))

    def row(self, entry: StudyEntry, size: int, seeds: Sequence[int]) -> Row:
        """The runs of each seed, trained and measured."""
        runs = [self.run(entry, size, seed, self.rate(entry)) for seed in seeds]
        for run in runs:
            self.train(run)
        return Row(runs, [self.measure(run) for run in runs])

    def measure(self, run: Run) -> dict[str, Any]:
        """What `run` is worth, see `docs/scarce.md`; from its file if that is done."""
        path = run.folder / "measures.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        model = self.load(run)
        config, size = self.config, self.config.training.final_image_size
        predict = torch_model(model, self.memory)
        plain = evaluate_people(predict, size, self.test, most=config.test_samples)
        measures: dict[str, Any] = {"test": {name: plain[name] for name in KEPT}, "bounds": plain["bounds"], "hard": {}}
        for name, change in HARD.items():
            hard = evaluate_people(predict, size, self.test, data=name, change=change, most=config.hard_samples)
            measures["hard"][name] = {key: hard[key] for key in KEPT}
        if config.photos:
            photos = evaluate_coco(predict, size, Path(config.photos))
            measures["photos"] = {key: value for key, value in photos.items() if key.startswith("PCK")}
        measures["bodily"] = self._bodily(model)
        measures["parameters"] = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("tokenizer"))
        write_json(path, measures)
        return measures

    def load(self, run: Run) -> Any:
        """The model of a run."""
        trained = self.run(self.trained_as(run.entry), run.size, run.seed, run.rate)
        model: Any = load_checkpoint(trained.folder / "checkpoint", run.entry.method)
        model.config = run.entry.model
        return model

    @torch.no_grad()
    def _bodily(self, model: Method | None) -> dict[str, float]:
        """How bodily a model's meshes are; without one, the true meshes."""
        rows = np.arange(len(self.test))[: self.config.bodily_samples]
        tokenizer: Any = load_tokenizer(self.config.training.tokenizer)
        body = named_body(str(self.test.labels["body"][0]))
        columns: dict[str, list[np.ndarray]] = {}
        for part in np.array_split(rows, -(-len(rows) // _BATCH)):
            if model:
                crops = plain_crops(self.test, part, self.config.training.final_image_size)
                output = model.coarse(None, self.memory(model, crops), torch.from_numpy(crop_places(self.test, part)))
                vertices, rotation = output.vertices, output.rotation
            else:
                labels = BodyLabels(self.test).of(part, 0 * part)
                rotation = torch.from_numpy(crop_rotations(self.test)[part])
                true = (torch.from_numpy(labels[name]) for name in ("pose", "shape", "body"))
                vertices = rotate(rotation, posed_bodies(*true))
            for name, values in bodily_measures(tokenizer, vertices, rotation, body.template, body.faces).items():
                columns.setdefault(name, []).append(values)
        return {name: float(np.concatenate(parts).mean()) for name, parts in columns.items()}

    def truth(self) -> dict[str, float]:
        """How bodily the true meshes of the test set are."""
        path = self.out / "truth.json"
        if not path.exists():
            write_json(path, self._bodily(None))
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def times(self, runs: list[Run]) -> dict[str, dict[str, float]]:
        """Of each entry, in turns: milliseconds of a training step on kept features, and of one crop's prediction."""
        path = self.out / "times.json"
        found = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        if not {run.entry.name for run in runs} <= found.keys():  # others may have joined since
            models = {run.entry.name: self.load(run) for run in runs}
            steps = in_turns({name: self._step(model) for name, model in models.items()}, _TIMES, "steps")
            size = self.config.training.final_image_size
            crop, place = np.full((1, size, size, 3), 128, np.uint8), np.zeros((1, 3), np.float32) + 0.1
            actions = {n: functools.partial(torch_model(m.eval()), crop, place) for n, m in models.items()}
            crops = in_turns({**actions}, _TIMES, "predictions")
            found = {n: {"step ms": 1000 * steps[n], "prediction ms": 1000 * crops[n]} for n in models}
            write_json(path, found)
        return found

    def _step(self, model: Any) -> Any:
        """Forward and backward pass of a batch, without the optimizer."""
        training = self.config.training
        tokens = np.zeros((len(self.test), 2, model.tokenizer.num_tokens), np.int16)
        rows, size = np.arange(len(self.test)), training.final_image_size
        dataset = CropDataset(self.test, rows, tokens, size, training.augment, 0, training.batch_size)
        items = [dataset[i] for i in range(training.batch_size)]
        batch: dict[str, Any] = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        trunk = self.memory(model, batch.pop("image").numpy())

        def step() -> None:
            model.train().zero_grad()
            batch["canonical_vertices"] = model.true_mesh(batch)
            losses = model.loss(model(trunk=trunk, place=batch["place"]), batch)
            torch.stack([*losses.values()]).sum().backward()

        return step


def write_json(path: Path, content: Any) -> None:
    """Write a file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run_study(config: StudyConfig, docs: Path | None = None) -> Path:
    """Train, measure and report; what is done is skipped.

    Args:
        config: the study.
        docs: a Markdown file whose section between `<!-- study -->` and `<!-- /study -->` is written anew; the
            pictures go beside it.

    Returns:
        The report, `out/report.md`, which is written anew whenever a seed is done: one stopped early has fewer seeds.
    """
    from vqhps.study_report import write_report

    study = Study(config)
    for count in range(1, len(config.seeds) + 1):
        seeds = config.seeds[:count]
        rows = [study.row(entry, size, seeds) for size in sorted(config.sizes) for entry in config.entries]
        write_report(study, rows, [], None)
    ablations = [study.row(entry, config.ablation_size, config.ablation_seeds) for entry in config.ablations]
    return write_report(study, rows, ablations, docs)
