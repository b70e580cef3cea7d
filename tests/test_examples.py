"""The examples run as their first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
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
    from vqhps.training import TokenizerTrainingConfig
    from vqhps.training_config import ImageTrainingConfig

    recipes = sorted((ROOT / "src/vqhps/recipes").glob("*.yaml"))
    assert len(recipes) >= 3
    for path in recipes:
        load_yaml(TokenizerTrainingConfig if "tokenizer" in path.stem else ImageTrainingConfig, path)


def test_follow_video(tmp_path):
    import numpy as np

    from moving_people import encode
    from vqhps.runtime import download

    try:
        download.blazepose_models()
    except download.DownloadError as error:
        pytest.skip(f"the models are not cached and cannot be fetched here: {error}")
    astronaut = data.astronaut()
    frames = [np.ascontiguousarray(np.roll(astronaut, 4 * i, axis=1)[:, 40:]) for i in range(8)]
    clip = encode(tmp_path / "clip.mp4", frames, fps=4, codec="libx264")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    arguments = [sys.executable, str(ROOT / "examples/follow_video.py"), str(clip)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"[01]\.\d s: person 0 \d+\.\d m away", line) for line in lines)
