"""A checkpoint is a folder that rebuilds its model: `model.safetensors`, `config.json` and a README card."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqhps.config import from_dict, to_dict
from vqhps.errors import VqhpsError
from vqhps.models import MODELS
from vqhps.tokenizer.mesh_vqvae import BodyMesh, MeshVQVAE, MeshVQVAEConfig
from vqhps.version import __version__


@dataclass(frozen=True)
class CheckpointCard:
    """What `config.json` holds beside the settings of the model.

    Attributes:
        kind: `mesh_vqvae`, or the name of an image model.
        body: name of the body, for people.
        metrics: figures of the evaluation, by name.
        notes: data and licence, for people.
        version: of the package that wrote it.
        date: of writing.
    """

    kind: str
    body: str = "anny"
    metrics: Mapping[str, float] | None = None
    notes: str = ""
    version: str = __version__
    date: str = ""


def save_checkpoint(folder: Path, model: nn.Module, card: CheckpointCard, half: bool = False) -> None:
    """Write a checkpoint; the folder appears complete or not at all.

    Args:
        folder: replaced if it exists.
        model: a `MeshVQVAE` or an image model that holds its tokenizer.
        card: description.
        half: store floating-point weights in 16 bits.
    """
    config: dict[str, Any] = {
        "kind": card.kind,
        "model": to_dict(model.config),
        "body": card.body,
        "metrics": dict(card.metrics or {}),
        "notes": card.notes,
        "version": card.version,
        "date": card.date or date.today().isoformat(),
    }
    if card.kind != "mesh_vqvae":
        config["tokenizer"] = to_dict(model.tokenizer.config)  # type: ignore[union-attr]
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = {name: _stored(value, half) for name, value in model.state_dict().items()}
    save_file(state, partial / "model.safetensors")
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(_readme(config), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous().clone()
    if value.dtype == torch.int64:
        return value.int()
    return value.half() if half and value.is_floating_point() else value


def _readme(config: Mapping[str, Any]) -> str:
    lines = [f"# {config['kind']} ({config['body']})", "", f"Written by vqhps {config['version']} on {config['date']}."]
    lines += ["", config["notes"], ""] if config["notes"] else [""]
    lines += [f"- {name}: {value:.4g}" for name, value in config["metrics"].items()]
    lines += ["", "Load it with `vqhps.load_checkpoint(folder)`.", ""]
    return "\n".join(lines)


def load_checkpoint(folder: Path | str, kind: Literal["mesh_vqvae"] | str | None = None) -> nn.Module:
    """Rebuild the model of a checkpoint, in eval mode, strictly.

    Args:
        folder: the checkpoint.
        kind: what it must hold; by default anything.

    Raises:
        VqhpsError: files are missing or damaged, the kind differs, or a tensor is missing, left over or misshapen.
    """
    folder = Path(folder)
    config, state = _read(folder)
    if kind is not None and config.get("kind") != kind:
        raise VqhpsError(f"{folder} holds a {config.get('kind')}, not a {kind}")
    if config.get("kind") == "mesh_vqvae":
        model: nn.Module = _tokenizer(config["model"], state, "")
    elif config.get("kind") in MODELS:
        config_class, model_class = MODELS[config["kind"]]
        tokenizer = _tokenizer(config["tokenizer"], state, "tokenizer.")
        model = model_class(from_dict(config_class, config["model"], f"{folder.name}: model"), tokenizer)
    else:
        raise VqhpsError(f"{folder} holds '{config.get('kind')}', which this version does not know")
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise VqhpsError(f"{folder}: the weights do not fit the settings: {' '.join(str(error).split())}") from error
    return model.eval()


def load_tokenizer(folder: Path | str) -> MeshVQVAE:
    """The tokenizer of a checkpoint, which may be its own or that of an image model.

    Raises:
        VqhpsError: as `load_checkpoint`.
    """
    model = load_checkpoint(folder)
    return model if isinstance(model, MeshVQVAE) else model.tokenizer  # type: ignore[return-value]


def body_of_checkpoint(folder: Path | str) -> str:
    """Name of the body of a checkpoint.

    Raises:
        VqhpsError: as `load_checkpoint`.
    """
    body = _config(Path(folder)).get("body")
    return "anny-full" if body == "anny" else str(body)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise VqhpsError(f"{folder} is not a checkpoint: no readable config.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VqhpsError(f"{folder} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise VqhpsError(f"{folder}/config.json does not hold a mapping")
    return config


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = _config(folder)
    try:
        state = load_file(folder / "model.safetensors")
    except OSError as error:
        raise VqhpsError(f"{folder} is not a checkpoint: no readable {Path(error.filename or '').name}") from error
    except SafetensorError as error:
        raise VqhpsError(f"{folder} is damaged: {error}") from error
    widen = {torch.float16: torch.float32, torch.int32: torch.int64}
    return config, {name: value.to(widen.get(value.dtype, value.dtype)) for name, value in state.items()}


def _tokenizer(config: dict[str, Any], state: Mapping[str, Tensor], prefix: str) -> MeshVQVAE:
    mesh = {n.removeprefix(prefix + "mesh."): v for n, v in state.items() if n.startswith(prefix + "mesh.")}
    if "template" not in mesh:
        raise VqhpsError("the checkpoint holds no body mesh")
    return MeshVQVAE(from_dict(MeshVQVAEConfig, config, "tokenizer"), BodyMesh(mesh))
