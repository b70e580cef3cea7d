"""The examples run as their first lines say, on a real photo, and the README and the documentation show them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def folder(tmp_path):
    """A folder with a photo.jpg, and a folder named photos with a photo and something else."""
    photo = Image.fromarray(data.astronaut())
    photo.save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "astronaut.jpg")
    (tmp_path / "photos" / "broken.jpg").write_text("no photo\n")
    return tmp_path


def run(name: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_predict_photo(folder):
    line = r"[0-9.]+ m away, [+-]\d\.\d m right, [+-]\d\.\d m down; vertices \(13718, 3\)\n"
    assert re.fullmatch(line, run("predict_photo.py", folder))


def test_predict_folder(folder):
    good, bad = run("predict_folder.py", folder).splitlines()
    assert good == "astronaut.jpg: 1 found, 6 files" and len(list((folder / "out").iterdir())) == 6
    assert "broken.jpg is not an image" in bad


def test_predict_crops(folder):
    assert run("predict_crops.py", folder) == "tokens (2, 54), vertices (2, 13718, 3), cameras (2, 3)\n"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_documentation_shows_the_example(path):
    """Word for word, without its first line."""
    shown = path.read_text(encoding="utf-8").partition("\n\n")[2]
    assert f"```python\n{shown}```" in (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_first_example():
    shown = (ROOT / "examples" / "predict_photo.py").read_text(encoding="utf-8").partition("\n\n")[2]
    assert f"```python\n{shown}```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_shipped_recipes_fit_their_settings():
    from vqhps.config import load_yaml
    from vqhps.study import StudyConfig
    from vqhps.training import TokenizerTrainingConfig
    from vqhps.training_config import ImageTrainingConfig

    recipes = sorted((ROOT / "src/vqhps/recipes").glob("*.yaml"))
    assert len(recipes) >= 3
    for path in recipes:
        of = {"scarce": StudyConfig, "sources": StudyConfig}
        of |= {p.stem: TokenizerTrainingConfig for p in recipes if "tokenizer" in p.stem}
        load_yaml(of.get(path.stem, ImageTrainingConfig), path)


def test_follow_video(tmp_path):
    from moving_people import encode

    astronaut = data.astronaut()
    frames = [np.ascontiguousarray(np.roll(astronaut, 4 * i, axis=1)[:, 40:]) for i in range(8)]
    encode(tmp_path / "clip.mp4", frames, fps=4, codec="libx264")
    lines = run("follow_video.py", tmp_path).splitlines()
    assert len(lines) == 8
    assert all(re.fullmatch(r"[01]\.\d\d s: person 0 is \d+\.\d m away", line) for line in lines)
