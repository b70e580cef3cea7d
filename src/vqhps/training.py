"""The training loop of the tokenizer, over Lightning Fabric."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from vqhps.body.connections import read_connections
from vqhps.checkpoint import CheckpointCard, save_checkpoint
from vqhps.data.bodies import BodyStream, camera_turns, test_bodies
from vqhps.data.meshes import MeshFile
from vqhps.data.mocap import SOURCES, Source, load_poses
from vqhps.errors import VqhpsError
from vqhps.evaluation.tokenizer import tokenizer_errors
from vqhps.geometry import rotate
from vqhps.tokenizer.build import anny_tokenizer, registered_tokenizer
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE, MeshVQVAEConfig
from vqhps.tokenizer.networks import ComponentNetwork
from vqhps.training_state import rate_share, resume_state, save_state

log = logging.getLogger(__name__)

_FIRST = 32  # batches of 512 bodies that codes are placed by, and components found from ...
_LAST = 64  # ... that the last use of the codes is counted by
_MAX_NUMBERS = 32 * 512 * 1229 * 3  # ... as far as memory allows: as many coordinates as the default body has


@dataclass(frozen=True)
class TokenizerTrainingConfig:
    """A run of `vqhps train tokenizer`.

    Attributes:
        data_root: folder that holds `mocap/`, to train the default body.
        out: folder of the run; a run found there goes on where it stopped.
        model: settings of the tokenizer.
        meshes: `.npz` of registered meshes to train on instead: `vertices` (N, V, 3) and `faces` (F, 3).
        connections: folder of published connection matrices for `meshes`; computed from the faces by default.
        steps: training steps in all; 0 to keep principal components and k-means as they are.
        batch_size: bodies a step.
        learning_rate: highest rate of Adam; rises over `warmup` steps and falls to zero as a cosine.
        warmup: steps.
        commitment: weight of the commitment loss.
        children: default body: all ages instead of adults only.
        jitter: default body: random turn of every bone, radians an axis.
        turned: default body: in axes of cameras all around, in place of canonical (`vqhps_oriented`).
        sources: default body: motion sets to train on.
        evaluate_every: steps between evaluations on the held-out bodies.
        save_minutes: between saved states.
        seed: of everything random.
        threads: of the processor; 0 for all.
    """

    data_root: str = ""
    out: str = "runs/tokenizer"
    model: MeshVQVAEConfig = MeshVQVAEConfig()
    meshes: str = ""
    connections: str = ""
    steps: int = 10000
    batch_size: int = 256
    learning_rate: float = 5e-4
    warmup: int = 200
    commitment: float = 0.25
    children: bool = False
    jitter: float = 0.02
    turned: bool = False
    sources: tuple[Source, ...] = SOURCES
    evaluate_every: int = 1000
    save_minutes: float = 3.0
    seed: int = 0
    threads: int = 0


def train_tokenizer(config: TokenizerTrainingConfig) -> Path:
    """Train a Mesh-VQ-VAE on the default body or on registered meshes; a stopped run goes on exactly.

    Returns: the checkpoint, `out/checkpoint`. `out/log.jsonl` keeps the errors on the held-out bodies.

    Raises:
        VqhpsError: the meshes or connections cannot be used, or `out` holds another run.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(accelerator="auto", devices=1)
    fabric.seed_everything(config.seed)
    if config.steps and config.model.network == "components" and config.model.width == 0:
        raise VqhpsError("width 0 leaves nothing to train: set steps to 0")
    bodies = _bodies(config)
    stream, model = bodies.stream, bodies.model
    if not (out / "state.pt").exists():
        _initialise(model, stream, config.seed)
    if config.steps:
        model = _train(fabric, config, bodies)
    return _finish(out, config, model, bodies)


def _train(fabric: Fabric, config: TokenizerTrainingConfig, bodies: "_Bodies") -> MeshVQVAE:
    """The steps; returns the model with averaged weights."""
    out, stream, model = Path(config.out), bodies.stream, bodies.model
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=False)
    modules = {"model": model, "average": average}
    start = resume_state(out, config, modules, optimizer)
    model, optimizer = fabric.setup(model, optimizer)
    saved = time.monotonic()
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="tokenizer", mininterval=2)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate_share(step, config.warmup, config.steps)
        vertices = fabric.to_device(stream.batch(config.batch_size, (config.seed, step)))
        distance, commitment = _losses(model, vertices)
        optimizer.zero_grad()
        fabric.backward(distance + config.commitment * commitment)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        average.update_parameters(model.module)
        bar.set_postfix_str(f"{1000 * distance.item():.2f} mm", refresh=False)
        last = step + 1 == config.steps
        if (step + 1) % config.evaluate_every == 0 or last:
            _report(out, step + 1, _averaged(model.module, average), bodies)
        if time.monotonic() - saved > 60 * config.save_minutes or last:
            save_state(out, config, step + 1, modules, optimizer)
            saved = time.monotonic()
    return _averaged(model.module, average)


@dataclass(frozen=True)
class _Bodies:
    """What to train: an untrained model, what it sees, and held-out bodies, coarse and full."""

    stream: BodyStream | MeshFile
    model: MeshVQVAE
    coarse: Tensor
    full: Tensor
    name: str
    held_out: str


def _bodies(config: TokenizerTrainingConfig) -> _Bodies:
    if config.meshes:
        file = MeshFile.open(Path(config.meshes))
        levels = read_connections(Path(config.connections)) if config.connections else ()
        if config.model.network == "components" and file.training_count <= config.model.components:
            least = config.model.components
            raise VqhpsError(f"{file.path}: {least} components need more than {least} meshes to train on")
        model, held = registered_tokenizer(config.model, file.template, file.faces, levels), file.held_out()
        return _Bodies(file, model, held, held, file.path.stem, "held-out meshes")
    root = Path(config.data_root)
    bank = load_poses(root, "train", 0.06, config.sources)
    stream = BodyStream(bank, config.children, config.jitter, turned=config.turned)
    coarse, full, _ = test_bodies(root)
    if config.turned:
        turns = camera_turns(len(coarse), np.random.default_rng(0))
        coarse, full = rotate(turns, coarse), rotate(turns, full)
    return _Bodies(stream, anny_tokenizer(config.model), coarse, full, "anny", "held-out CMU subjects")


def _losses(model: Any, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance of the rebuilt vertices, metres, and commitment."""
    rebuilt, _, commitment = model(vertices)
    return ((rebuilt - vertices).norm(dim=-1) * model.mesh.get_buffer("weight")).sum(1).mean(), commitment


def _initialise(model: MeshVQVAE, stream: BodyStream | MeshFile, seed: int) -> None:
    """Start from what needs no training: principal components, and codes placed by k-means."""
    template = model.mesh.get_buffer("template")
    if isinstance(model.network, ComponentNetwork):
        count = max(1, min(_FIRST, _MAX_NUMBERS // (512 * template.numel())))
        offsets = torch.cat([stream.batch(512, (seed, 0, i)) for i in range(count)]) - template
        log.info("principal components of %d bodies", len(offsets))
        model.network.initialise(offsets, model.mesh.get_buffer("weight"))
    log.info("k-means codes")
    model.quantizer.initialise(_latents(model, stream, _FIRST, (seed, 0)))


@torch.no_grad()
def _latents(model: MeshVQVAE, stream: BodyStream | MeshFile, batches: int, seed: tuple[int, int]) -> Tensor:
    parts = (part for i in range(batches) for part in stream.batch(512, (*seed, i)).split(64))
    return torch.cat([model.latents(part) for part in parts])


def _averaged(model: MeshVQVAE, average: AveragedModel) -> MeshVQVAE:
    """The model with averaged weights and its own current codebook."""
    merged: MeshVQVAE = average.module  # type: ignore[assignment]
    for mine, theirs in zip(merged.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
    return merged.eval()


def _report(out: Path, step: int, model: MeshVQVAE, bodies: _Bodies) -> None:
    errors = tokenizer_errors(model, bodies.coarse, bodies.full)
    row = {"step": step, "pve_mm": errors["pve_mm"].mean().item(), "perplexity": errors["perplexity"]}
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    tqdm.write(f"step {step}: PVE {row['pve_mm']:.2f} mm on {bodies.held_out}, perplexity {row['perplexity']:.0f}")


def _finish(out: Path, config: TokenizerTrainingConfig, model: MeshVQVAE, bodies: _Bodies) -> Path:
    """Leave no code unused, and save."""
    moved = model.eval().quantizer.share_cells(_latents(model, bodies.stream, _LAST, (config.seed, 1)))
    log.info("%d rarely used codes moved", moved)
    errors = tokenizer_errors(model, bodies.coarse, bodies.full)
    metrics = {f"PVE on {bodies.held_out}, full mesh, mm": errors["pve_mm"].mean().item()}
    data = Path(config.meshes).name if config.meshes else "mocap"
    size = f"{model.num_tokens} tokens x {model.num_codes} codes"
    how = f"trained on {data} for {config.steps} steps" if config.steps else f"placed by {data}, not trained further"
    notes = f"Mesh-VQ-VAE, {size}, {how}."
    save_checkpoint(out / "checkpoint", model, CheckpointCard("mesh_vqvae", bodies.name, metrics, notes), half=True)
    return out / "checkpoint"
