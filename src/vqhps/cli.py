"""Command line: parse, call, print. No logic here, and no torch outside the commands that train."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vqhps.cli_animate import Animate, EvaluateRig, EvaluateRigFit, ExportRig
from vqhps.cli_app import App
from vqhps.cli_prepare import (
    Prepare3dpw,
    PrepareAmass,
    PrepareEmdb,
    PrepareSynthetic,
    PrepareSyntheticVideo,
    bedlam_format,
)
from vqhps.cli_study import StudyScarce
from vqhps.cli_train import (
    BenchModel,
    Convert,
    Evaluate,
    EvaluatePredictions,
    EvaluateRateDistortion,
    EvaluateVideo,
    Export,
    ExportDetector,
    TrainImageModel,
    TrainTokenizer,
)
from vqhps.cli_video import EvaluateTokens, Video
from vqhps.errors import VqhpsError
from vqhps.version import __version__

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
    """Write body meshes as discrete tokens, or tokens as meshes: the ending of the source says which.

    A mesh (.obj, .glb, .npz) becomes tokens.json and comes back; clip.npz of `vqhps video --vertices` becomes clip.vqt,
    98 bytes a person and frame, and comes back, for `vqhps animate` and whatever else reads it.
    """

    source: tyro.conf.Positional[Path]
    """Meshes of the tokenizer's body (.obj, .glb, .npz), or tokens (.json, .vqt)."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The other of the two."""
    bundle: Path | None = None
    """Folder of an exported tokenizer; the shipped one by default."""

    def run(self) -> int:
        """Print how far the tokens are from the meshes."""
        from vqhps.runtime import motion_tokens, tokens
        from vqhps.runtime.tokenizer import MeshTokenizer, default_tokenizer
        from vqhps.runtime.vqt import ENDING

        tokenizer = MeshTokenizer.load(self.bundle) if self.bundle else default_tokenizer()
        if ENDING in (self.source.suffix.lower(), self.out.suffix.lower()):
            said, note = motion_tokens.convert(tokenizer, self.source, self.out)
            if note:
                print(f"vqhps: {note}", file=sys.stderr)
        else:
            distances = tokens.convert(tokenizer, self.source, self.out).distance_mm
            said = f"{', '.join(f'{d:.1f} mm' for d in distances)} between mesh and tokens"
        print(f"{self.source} -> {self.out}: {said}")
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
class Download:
    """Fetch third-party models into the cache; the first use does it by itself."""

    what: tyro.conf.Positional[Literal["blazepose"]]
    """BlazePose: the backbone that training starts from (Apache-2.0), out of a PyPI wheel."""

    def run(self) -> int:
        """Print the files."""
        from vqhps.runtime.download import blazepose_models

        print(*blazepose_models(), sep="\n")
        return 0


@dataclass
class BenchPredict:
    """Time a prediction: milliseconds of each stage, median of the runs, and peak memory; frames a second of videos."""

    photo: tyro.conf.Positional[Path]
    """A photo with people."""
    videos: tuple[Path, ...] = ()
    """Videos to follow the people of, once each, without overlay."""
    runs: int = 20
    """Repetitions of the photo."""
    bundle: Path | None = None
    """Folder of another model."""

    def run(self) -> int:
        """Print the timings as JSON."""
        from vqhps.runtime.bench import bench_predict, bench_video

        report: dict[str, Any] = {**bench_predict(self.photo, self.runs, self.bundle)}
        report |= {video.name: bench_video(video, self.bundle) for video in self.videos}
        print(json.dumps(report, indent=1))
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
    "video": Video,
    "app": App,
    "animate": Animate,
    "tokenize": Tokenize,
    "train tokenizer": TrainTokenizer,
    "train image-model": TrainImageModel,
    "evaluate": Evaluate,
    "evaluate predictions": EvaluatePredictions,
    "evaluate rate-distortion": EvaluateRateDistortion,
    "evaluate video": EvaluateVideo,
    "evaluate rig": EvaluateRig,
    "evaluate tokens": EvaluateTokens,
    "evaluate rig-fit": EvaluateRigFit,
    "prepare 3dpw": Prepare3dpw,
    "prepare emdb": PrepareEmdb,
    "prepare coco": bedlam_format("coco", "COCO (coco.npz)"),
    "prepare mpii": bedlam_format("mpii", "MPII (mpii.npz)"),
    "prepare h36m": bedlam_format("h36m", "Human3.6M (h36m_train.npz), subjects 1, 5, 6, 7 and 8,"),
    "prepare mpi-inf-3dhp": bedlam_format("mpi-inf-3dhp", "MPI-INF-3DHP (mpi_inf_3dhp_train.npz)"),
    "prepare bedlam": bedlam_format("bedlam", "BEDLAM (every .npz under the root)"),
    "prepare amass": PrepareAmass,
    "prepare synthetic": PrepareSynthetic,
    "prepare synthetic-video": PrepareSyntheticVideo,
    "study scarce": StudyScarce,
    "convert": Convert,
    "export": Export,
    "export detector": ExportDetector,
    "export rig": ExportRig,
    "download": Download,
    "bench predict": BenchPredict,
    "bench model": BenchModel,
    "bench tokenizer": BenchTokenizer,
}


_DESCRIPTION = "3D human bodies from photos: VQ-HPS, without torch. `vqhps --version` prints the version."


def _parse(arguments: list[str]) -> Any:
    """The chosen command with its arguments; `train tokenizer` is one command of two words."""
    if " ".join(arguments[:2]) in _COMMANDS:
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    return tyro.extras.subcommand_cli_from_dict(_COMMANDS, prog="vqhps", description=_DESCRIPTION, args=arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `vqhps`. Exit codes: 0 done, 2 bad input, 130 interrupted, 141 nobody reads on."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vqhps").setLevel(logging.INFO)  # of others, warnings alone
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    given = sys.argv[1:] if arguments is None else arguments
    return _guarded(lambda: _run(given))


def _run(given: list[str]) -> int:
    if given == ["--version"]:
        print(f"vqhps {__version__}")
        return 0
    return int(_parse(given).run())


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
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        print(f"vqhps: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "vqhps":
            raise
        print(f'vqhps: this command needs {error.name}: pip install "vqhps[train]"', file=sys.stderr)
        return 2


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end is closed, as after `| head`; if so, what is left goes
    nowhere."""
    try:
        poll, output = select.poll(), sys.stdout.fileno()
    except (AttributeError, OSError):  # Windows, or no file
        return False
    poll.register(output, 0)
    broken = any(event & select.POLLERR for _, event in poll.poll(0))
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # or Python complains when it ends
    return broken
