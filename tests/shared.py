"""What several test files need: where optional data lies, and a tiny body."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from vqhps.body.topology import build_hierarchy
from vqhps.tokenizer.mesh_vqvae import BodyMesh, MeshVQVAE, MeshVQVAEConfig

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no data folder at {DATA}")

TINY = {"sizes": (40, 16, 6), "channels": (4, 8, 8), "num_codes": 16, "components": 24, "width": 16, "blocks": 1}


def tiny_mesh() -> tuple[np.ndarray, np.ndarray]:
    """A capsule of 162 vertices, standing, 1.8 m high, and its faces."""
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=1.0)
    return np.asarray(sphere.vertices * [0.25, 0.9, 0.15], np.float32), np.asarray(sphere.faces, np.int64)


def tiny_tokenizer(network: str = "components", **changes: object) -> MeshVQVAE:
    """An untrained tokenizer of the capsule whose full mesh is its coarse mesh."""
    torch.manual_seed(0)
    settings = {**TINY, "network": network, "code_dim": 2, **changes}
    config = MeshVQVAEConfig(**settings)  # type: ignore[arg-type]
    vertices, faces = tiny_mesh()
    count = len(vertices)
    rng = np.random.default_rng(0)
    levels = build_hierarchy(vertices, faces, config.sizes, config.neighbours)
    regressors = {name: rng.dirichlet(np.ones(count) / 20, 17).astype(np.float32) for name in ("coco17", "h36m17")}
    tensors = {
        "faces": torch.from_numpy(faces),
        "template": torch.from_numpy(vertices),
        "upsample_indices": torch.arange(count)[:, None],
        "upsample_weights": torch.ones(count, 1),
        "weight": torch.full((count,), 1 / count),
        **{f"regressor_{name}": torch.from_numpy(rows) for name, rows in regressors.items()},
        **BodyMesh.level_tensors(levels),
    }
    return MeshVQVAE(config, BodyMesh(tensors))


def set_weights(model: torch.nn.Module) -> None:
    """Weights by name from numpy, so that no library's initialisation matters."""
    own = sorted((n, p) for n, p in model.named_parameters() if not n.startswith("tokenizer"))
    for i, (name, value) in enumerate(own):
        z = torch.from_numpy(np.random.RandomState(i).standard_normal(value.shape).astype(np.float32))
        fan = value[0].numel() if value.dim() > 1 else 1
        value.data = z * (2 / fan) ** 0.5 if value.dim() > 1 else 0.1 * z + (1 if name.endswith("weight") else 0)


def tiny_bodies(count: int, seed: int = 0) -> torch.Tensor:
    """Capsules that sway, swell and twist: canonical vertices, metres."""
    vertices, _ = tiny_mesh()
    rng = np.random.default_rng(seed)
    sway, swell, twist = rng.normal(0, [[0.2], [0.1], [0.5]], (3, count)).astype(np.float32)
    x, y, z = vertices.T
    angle = twist[:, None] * y
    wide = 1 + swell[:, None]
    turned = np.stack(
        [
            wide * (np.cos(angle) * x + np.sin(angle) * z) + sway[:, None] * y**2,
            np.broadcast_to(y, angle.shape),
            wide * (np.cos(angle) * z - np.sin(angle) * x),
        ],
        -1,
    )
    bodies = torch.from_numpy(turned)
    return bodies - bodies.mean(1, keepdim=True)
