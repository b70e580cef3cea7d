"""Imports point one way only, and predicting imports no torch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "vqhps"

_BASE = {"errors", "version"}
_PURE = _BASE | {"config", "geometry", "crop"}
_MODELS = _PURE | {"body", "tokenizer", "pickles"}
_TRAINING = _MODELS | {"models", "data", "checkpoint", "evaluation", "runtime"}
_PARTS = _TRAINING | {"training_state", "training_config"}
ALLOWED = {
    "errors": set(), "version": set(),
    "config": _BASE, "geometry": _BASE, "crop": _BASE | {"geometry"},
    "runtime": _PURE, "pickles": _BASE,
    "body": _PURE | {"pickles"}, "tokenizer": _PURE | {"body"}, "models": _MODELS, "data": _MODELS,
    "checkpoint": _MODELS | {"models"},
    "evaluation": _MODELS | {"models", "data", "checkpoint", "runtime"},
    "training_state": _PURE,
    "training": _TRAINING | {"training_state"},
    "training_config": _MODELS | {"models", "data"},
    "training_guess": _PARTS, "training_keypoints": _PARTS,
    "training_image": _PARTS | {"training_guess", "training_keypoints"},
    "study": _PARTS | {"training_image", "study_report"}, "study_report": _TRAINING | {"crop", "study"},
    "export": _TRAINING | {"export_int8"}, "export_int8": _BASE, "published": _MODELS | {"models", "checkpoint"},
    "export_detector": _TRAINING | {"export_int8"},
    "export_tokenizer": _TRAINING | {"export"}, "export_rig": _BASE | {"body", "runtime"},
    "app": _PURE | {"runtime"},
}  # fmt: skip
"""What each part may import, besides itself; `FREE` may import everything."""

FREE = {"cli", "__init__", *(path.stem for path in PACKAGE.glob("cli_*.py"))}

TORCH_FREE = {"errors", "version", "config", "geometry", "crop", "runtime", "app"}


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
    return names


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py") if part(p) not in FREE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_way(path):
    own = part(path)
    assert own in ALLOWED, f"say in this test what the new part '{own}' may import"
    others = {name.split(".")[1] for name in imported(path) if name.startswith("vqhps.")} - {own}
    assert others <= ALLOWED[own]


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in TORCH_FREE], ids=lambda p: p.name)
def test_runtime_names_no_torch(path):
    heavy = {"torch", "torchvision", "timm", "scipy", "anny", "roma", "lightning_fabric", "safetensors", "onnx"}
    assert not {name.split(".")[0] for name in imported(path)} & heavy


def run(code: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_cheap():
    heavy = "{'torch', 'numpy', 'cv2', 'onnxruntime', 'trimesh', 'PIL', 'tyro'}"
    assert run(f"import sys, vqhps; vqhps.__version__; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


def test_help_is_cheap():
    heavy = "{'torch', 'numpy', 'cv2', 'onnxruntime', 'trimesh', 'PIL'}"
    code = f"""
import sys
from vqhps.cli import main
try:
    main(['--help'])
except SystemExit:
    print(sorted({heavy} & set(sys.modules)))
"""
    assert run(code).strip().endswith("[]")


def test_public_names():
    import vqhps

    assert set(vqhps.__all__) == {"Prediction", "Predictor", "__version__", "load_checkpoint"}
    for name in vqhps.__all__:
        assert getattr(vqhps, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vqhps.nothing


def test_predicting_tells_nobody(tmp_path):
    """ONNX Runtime by itself gives the machine a number, in a file, and reports its use."""
    code = (
        "import numpy; from vqhps import Predictor; print(Predictor().predict(numpy.zeros((64, 64, 3), numpy.uint8)))"
    )
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(tmp_path))
    assert run(code, **places).strip() == "[]"
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
