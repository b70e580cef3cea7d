"""The examples run as their first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[1]


def test_predict_photo(tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "a.png")
    arguments = [
        sys.executable,
        str(ROOT / "examples/predict_photo.py"),
        str(tmp_path / "a.png"),
        "40",
        "5",
        "440",
        "510",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\.\d m away, .* the mesh spans [0-3]\.\d\d m from top to bottom\n", done.stdout)


def test_shipped_recipes_fit_their_settings():
    from vqhps.config import load_yaml
    from vqhps.study import StudyConfig
    from vqhps.training import TokenizerTrainingConfig
    from vqhps.training_config import ImageTrainingConfig

    recipes = sorted((ROOT / "src/vqhps/recipes").glob("*.yaml"))
    assert len(recipes) >= 3
    for path in recipes:
        of = {"scarce": StudyConfig} | {p.stem: TokenizerTrainingConfig for p in recipes if "tokenizer" in p.stem}
        load_yaml(of.get(path.stem, ImageTrainingConfig), path)
