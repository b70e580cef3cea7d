"""Command line: parse, call, print. No logic here, and no torch outside the commands that train."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vqhps.errors import VqhpsError

Box = tuple[float, float, float, float]


@dataclass
class Predict:
    """Recover the 3D bodies of the people in photos.

    For `a.jpg` writes a_overlay.png, a_side.png, a_0.glb and a_0.obj (one a person), a.npz and a.json.
    """

    photos: tyro.conf.Positional[tuple[Path, ...]]
    """Photos."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("vqhps-out")
    """Folder for the files."""
    box: Box | None = None
    """Use this box (x0 y0 x1 y1, px) in every photo instead of looking for people."""
    boxes: Path | None = None
    """JSON file of boxes by photo name: {"a.jpg": [[x0, y0, x1, y1], ...]}."""
    bundle: Path | None = None
    """Folder of another model; the shipped one by default."""
    focal: float | None = None
    """Focal length in px; from EXIF, else guessed, by default."""
    overlay: bool = True
    """Write a_overlay.png."""
    side: bool = True
    """Write a_side.png."""
    glb: bool = True
    """Write a_0.glb, ..."""
    obj: bool = True
    """Write a_0.obj, ..."""
    npz: bool = True
    """Write a.npz."""
    json: bool = True
    """Write a.json."""

    def run(self) -> int:
        """Exit code 2 if any photo failed."""
        import numpy as np

        from vqhps.runtime.files import Outputs, predict_photos
        from vqhps.runtime.predictor import Predictor

        if not self.photos:
            raise VqhpsError("give at least one photo, as in `vqhps predict photo.jpg`")
        boxes: Any = None if self.box is None else np.array([self.box], np.float64)
        if self.boxes is not None:
            from vqhps.runtime.detect import read_boxes

            boxes = read_boxes(self.boxes)
        outputs = Outputs(self.overlay, self.side, self.glb, self.obj, self.npz, self.json)
        results = predict_photos(Predictor(self.bundle), self.photos, self.out, outputs, boxes, self.focal)
        failed = 0
        with _progress(len(self.photos)) as advance:
            for result in results:
                advance()
                if result.error is not None:
                    failed += 1
                    print(f"vqhps: {result.error}", file=sys.stderr)
                else:
                    people = "1 person" if result.people == 1 else f"{result.people} people"
                    print(f"{result.photo}: {people} -> " + " ".join(str(f) for f in result.files))
        return 2 if failed else 0


@dataclass
class Tokenize:
    """Write a body mesh as discrete tokens (in.obj, .glb or .npz -o tokens.json), or tokens as a mesh."""

    source: tyro.conf.Positional[Path]
    """Mesh of the tokenizer's body (.obj, .glb, .npz), or tokens (.json)."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The other of the two."""
    bundle: Path | None = None
    """Folder of an exported tokenizer; the shipped one by default."""

    def run(self) -> int:
        """Print how far the tokens are from each mesh."""
        from vqhps.runtime.tokenizer import MeshTokenizer, default_tokenizer
        from vqhps.runtime.tokens import convert

        tokenizer = MeshTokenizer.load(self.bundle) if self.bundle else default_tokenizer()
        distances = convert(tokenizer, self.source, self.out).distance_mm
        print(f"{self.source} -> {self.out}: {', '.join(f'{d:.1f} mm' for d in distances)} between mesh and tokens")
        return 0


@contextlib.contextmanager
def _progress(count: int) -> Any:
    """A progress bar where there is more than one photo and somebody looks."""
    if count < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=count, unit="photo") as bar:
        yield lambda: bar.update()


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

        from vqhps.config import load_yaml

        path = Path(self.recipe)
        shipped = Path(__file__).parent / "recipes" / f"{self.recipe}.yaml"
        if not path.exists() and not shipped.exists():
            names = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
            raise VqhpsError(f"no recipe {self.recipe}; shipped are {names}")
        config = load_yaml(config_class, path if path.exists() else shipped)
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
        from vqhps.training_image import ImageTrainingConfig, train_image_model

        print(train_image_model(self.load(ImageTrainingConfig, "shards")))
        return 0


@dataclass
class Evaluate:
    """Measure a model, the tokenizer or the detector on held-out data."""

    data: tyro.conf.Positional[Literal["synthetic-test", "coco-free", "tokenizer", "detector"]]
    """synthetic-test and coco-free measure an image model."""
    root: Path
    """Folder of the shards, of the photos, or (tokenizer) the one that holds mocap/; or .npz of meshes."""
    bundle: Path | None = None
    """ONNX bundle of an image model; the shipped one by default."""
    checkpoint: Path | None = None
    """Checkpoint of the tokenizer, or of an image model that holds it."""
    mean_body: bool = False
    """Measure the prediction that is always the mean body instead of a model."""
    out: Path | None = None
    """Folder for results.csv (a row a sample) and results.json."""
    figures: Path | None = None
    """Folder for pictures of what a tokenizer gets wrong and of what its tokens govern."""

    def run(self) -> int:
        """Print the summary as JSON."""
        print(json.dumps(self._measure(), indent=1))
        return 0

    def _measure(self) -> dict[str, Any]:
        if self.data == "detector":
            from vqhps.evaluation.detector import evaluate_detector
            from vqhps.runtime.detect import BlazePoseDetector

            return evaluate_detector(BlazePoseDetector(), self.root)
        if self.data == "tokenizer":
            from vqhps.evaluation.tokenizer import evaluate_tokenizer

            if self.checkpoint is None:
                raise VqhpsError("name the tokenizer with --checkpoint")
            return evaluate_tokenizer(self.checkpoint, self.root, self.out, self.figures)
        from vqhps.data.sample import Shards, find_shards
        from vqhps.evaluation.run import bundle_model, evaluate_coco, evaluate_synthetic, mean_body_model
        from vqhps.runtime.bundle import Bundle, default_bundle

        bundle = Bundle.load(self.bundle) if self.bundle else default_bundle()
        model, size = (mean_body_model() if self.mean_body else bundle_model(bundle)), bundle.info.input_size
        if self.data == "coco-free":
            return evaluate_coco(model, size, self.root, self.out)
        return evaluate_synthetic(model, size, Shards(find_shards(self.root, "test")), self.out)


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
class PrepareSynthetic:
    """Render people into WebDataset shards; a stopped run goes on where it stopped."""

    out: Path
    """Folder for the shards."""
    data_root: Path
    """Folder that holds mocap/, clothes/ and backgrounds/."""
    split: Literal["train", "test"] = "train"
    """Which subjects, garments, skins and panoramas."""
    count: int = 50_000
    """Images."""
    seed: int = 0
    """Of everything random."""
    workers: int = 2
    """Processes."""
    shard_size: int = 500
    """Images a shard."""

    def run(self) -> int:
        """Print the index."""
        from vqhps.data.synthetic.prepare import prepare_synthetic

        arguments = (self.out, self.data_root, self.split, self.count, self.seed, self.workers, self.shard_size)
        print(prepare_synthetic(*arguments))
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
    training_data: str = "unknown"
    """One line for the bundle's metadata."""

    def run(self) -> int:
        """Print what the checks found."""
        from dataclasses import asdict

        from vqhps.checkpoint import load_checkpoint
        from vqhps.export import ExportConfig, export_bundle
        from vqhps.export_tokenizer import export_tokenizer
        from vqhps.tokenizer.mesh_vqvae import MeshVQVAE

        model: Any = load_checkpoint(self.checkpoint)
        if self.tokenizer or isinstance(model, MeshVQVAE):
            tokenizer = model if isinstance(model, MeshVQVAE) else model.tokenizer
            report = export_tokenizer(tokenizer, self.out, self.training_data)
            print(json.dumps(asdict(report), indent=1))
            return 0
        size = self.input_size or model.backbone.input_size or 224
        config = ExportConfig(input_size=size, training_data=self.training_data)
        print(json.dumps(asdict(export_bundle(model, self.out, config)), indent=1))
        return 0


@dataclass
class Download:
    """Fetch third-party models into the cache; the first use does it by itself."""

    what: tyro.conf.Positional[Literal["blazepose"]]
    """BlazePose: the person detector (Apache-2.0), out of a PyPI wheel."""

    def run(self) -> int:
        """Print the files."""
        from vqhps.runtime.download import blazepose_models

        print(*blazepose_models(), sep="\n")
        return 0


@dataclass
class BenchPredict:
    """Time a prediction: milliseconds of each stage, median of the runs, and peak memory."""

    photo: tyro.conf.Positional[Path]
    """A photo with people."""
    runs: int = 20
    """Repetitions."""
    bundle: Path | None = None
    """Folder of another model."""

    def run(self) -> int:
        """Print the timings as JSON."""
        from vqhps.runtime.bench import bench_predict

        print(json.dumps(bench_predict(self.photo, self.runs, self.bundle), indent=1))
        return 0


@dataclass
class BenchTokenizer:
    """Time the tokenizer's mesh convolutions in turns with the published order of operations, at equal weights.

    On a sphere of SMPL's size (6890 -> 1925 -> 400 -> 54 vertices, neighbours as many as published) and on Anny; fails
    if outputs or gradients differ. Takes some minutes and about 6 GB of memory, nearly all for the published order.
    """

    runs: int = 5
    """Repetitions; medians are printed."""
    quick: bool = False
    """A miniature sphere only: to see that it works."""

    def run(self) -> int:
        """Print the timings as JSON."""
        from vqhps.evaluation.tokenizer_speed import bench_tokenizer

        print(json.dumps(bench_tokenizer(self.runs, self.quick), indent=1))
        return 0


_COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": Predict,
    "tokenize": Tokenize,
    "train tokenizer": TrainTokenizer,
    "train image-model": TrainImageModel,
    "evaluate": Evaluate,
    "evaluate rate-distortion": EvaluateRateDistortion,
    "prepare synthetic": PrepareSynthetic,
    "export": Export,
    "download": Download,
    "bench predict": BenchPredict,
    "bench tokenizer": BenchTokenizer,
}


def _parse(arguments: list[str]) -> Any:
    """The chosen command with its arguments; `train tokenizer` is one command of two words."""
    if " ".join(arguments[:2]) in _COMMANDS:
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    return tyro.extras.subcommand_cli_from_dict(
        _COMMANDS, prog="vqhps", description="3D human bodies from photos: VQ-HPS, without torch.", args=arguments
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `vqhps`. Exit codes: 0 done, 2 bad input, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("anny").setLevel(logging.WARNING)
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return _guarded(lambda: _parse(sys.argv[1:] if arguments is None else arguments).run())


def _guarded(action: Callable[[], int]) -> int:
    try:
        return action()
    except VqhpsError as error:
        print(f"vqhps: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vqhps: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"vqhps: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "vqhps":
            raise
        print(f'vqhps: this command needs {error.name}: pip install "vqhps[train]"', file=sys.stderr)
        return 2
