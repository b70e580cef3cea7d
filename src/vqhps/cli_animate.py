"""Commands of the rig: animated files out of predictions, and the rig itself."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Animate:
    """Fit the parametric body to predicted meshes: joint angles, one shape a person, and files that move.

    For `a.npz` writes a.glb (everybody, skinned, with the camera), a_0.bvh (one a person), a_joints.csv, a.html (a
    viewer), a_motion.npz and a_motion.json; prints how far the fitted bodies are from the meshes.
    """

    predictions: tyro.conf.Positional[Path]
    """What `vqhps video --vertices` or, for a still, `vqhps predict` wrote (.npz)."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("vqhps-out")
    """Folder for the files."""
    glb: bool = True
    """Write a.glb."""
    bvh: bool = True
    """Write a_0.bvh, ..."""
    csv: bool = True
    """Write a_joints.csv."""
    viewer: bool = True
    """Write a.html."""
    npz: bool = True
    """Write a_motion.npz."""
    json: bool = True
    """Write a_motion.json."""

    def run(self) -> int:
        """Print the error of each person's fit, then the files."""
        from tqdm import tqdm

        from vqhps.runtime.animate import Files, Predictions, fit_people, write_files
        from vqhps.runtime.rig import default_rig

        rig, predictions = default_rig(), Predictions.open(self.predictions)
        with tqdm(total=2 * len(predictions.frame), unit="mesh", disable=not sys.stderr.isatty()) as bar:
            people = fit_people(rig, predictions, bar.update)
        for person in people:
            error, count = person.error_mm, len(person.frames)
            frames = "1 frame" if count == 1 else f"{count} frames"
            print(
                f"person {person.person}: {frames}, {error.mean():.1f} mm from the meshes, at worst {error.max():.1f}"
            )
        files = Files(self.glb, self.bvh, self.csv, self.viewer, self.npz, self.json)
        written = write_files(self.out, self.predictions.stem, people, rig, predictions.view, files)
        print(f"{self.predictions} -> " + " ".join(str(path) for path in written))
        return 0


@dataclass
class ExportRig:
    """Write the rig of the default body, which `vqhps animate` fits: bones, skinning weights, shapes."""

    out: Path
    """The .npz to write."""

    def run(self) -> int:
        """Print how exact it is."""
        from dataclasses import asdict

        from vqhps.export_rig import export_rig
        from vqhps.runtime.rig import default_faces

        print(json.dumps(asdict(export_rig(self.out, default_faces())), indent=1))
        return 0


@dataclass
class EvaluateRig:
    """Fit the rig to motion that nothing was trained on: to true meshes, and to those that the tokenizer rebuilds."""

    data_root: Path
    """Folder that holds mocap/."""
    clips: int = 12
    """How many clips of the held-out subjects."""
    frames: int = 24
    """Meshes of each, evenly spread."""
    inverter: bool = False
    """Also time Anny's own inverter, on the first meshes of each clip; slow."""

    def run(self) -> int:
        """Print errors and times as JSON."""
        from vqhps.evaluation.rig import evaluate_rig

        print(json.dumps(evaluate_rig(self.data_root, self.clips, self.frames, self.inverter), indent=1))
        return 0


@dataclass
class EvaluateRigFit:
    """Fit the rig to predicted meshes, as `vqhps animate` does, and say how far it is from them, by part and person."""

    predictions: tyro.conf.Positional[Path]
    """What `vqhps video --vertices` or `vqhps predict` wrote (.npz)."""

    def run(self) -> int:
        """Print errors and times as JSON."""
        from vqhps.evaluation.rig import evaluate_fit

        print(json.dumps(evaluate_fit(self.predictions), indent=1))
        return 0
