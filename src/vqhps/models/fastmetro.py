"""FastMETRO: joints and coarse vertices as queries of an encoder-decoder transformer (Cho et al., ECCV 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqhps.body.anny import AnnyBody
from vqhps.body.joints import COCO17
from vqhps.body.model import canonical
from vqhps.body.smpl import SMPLBody
from vqhps.body.topology import build_hierarchy, fit_blend, random_pose
from vqhps.geometry import fit_rotation, project, rotate
from vqhps.models.blazepose import Seen
from vqhps.models.first_guess import MEAN_CAMERA
from vqhps.models.losses import keypoint_error, over_known, weighted
from vqhps.models.method import BodyMethod, MethodConfig
from vqhps.models.output import Output
from vqhps.models.transformer import DecoderLayer, EncoderLayer, grid_positions, sine_positions
from vqhps.tokenizer.mesh_vqvae import blend

_BODIES, _PARENTS = 96, 8  # random bodies that the upsampling is fitted to; coarse vertices a fine one is made of


@dataclass(frozen=True)
class FastMETROLossConfig:
    """Weights of the losses, in the published proportion.

    Attributes:
        joints: L1 of joints in camera axes, metres, of those regressed and of those of the mesh.
        vertices: L1 of vertices in camera axes, metres, of the coarse and of the fine mesh.
        reprojection: L1 of the visible joints in crop coordinates, of both.
    """

    joints: float = 10.0
    vertices: float = 1.0
    reprojection: float = 1.0


@dataclass(frozen=True)
class FastMETROConfig(MethodConfig):
    """Settings of `FastMETRO`; by default those of the published S, but for the body.

    Attributes:
        body: by name (`vqhps.body.named`).
        vertices: of the coarse mesh, each a query.
        dims, hidden: width and feed-forward width of each transformer in turn.
        layers: of encoder and decoder in each.
        heads: of attention.
        dropout: in the transformers.
        loss: weights.
    """

    body: str = "anny"
    vertices: int = 431
    dims: tuple[int, ...] = (512, 128)
    hidden: tuple[int, ...] = (2048, 512)
    layers: int = 1
    heads: int = 8
    dropout: float = 0.1
    loss: FastMETROLossConfig = FastMETROLossConfig()


@dataclass
class QueryOutput(Output):
    """An output with what the queries say, metres, camera axes, centred as the vertices are.

    Attributes:
        query_joints: COCO-17.
        query_vertices: of the coarse mesh.
    """

    query_joints: Float[Tensor, "B 17 3"] | None = None
    query_vertices: Float[Tensor, "B N 3"] | None = None


class Stage(nn.Module):
    """One transformer: image and camera tokens among themselves, then joint and vertex queries that look at them."""

    def __init__(self, config: FastMETROConfig, dim: int, hidden: int) -> None:
        super().__init__()
        rest = (dim, config.heads, hidden, config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*rest) for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderLayer(*rest) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(
        self,
        memory: Float[Tensor, "B 1+M D"],
        queries: Float[Tensor, "B Q D"],
        positions: Float[Tensor, "B 1+M D"],
        among: Bool[Tensor, "Q Q"],
    ) -> tuple[Float[Tensor, "B 1+M D"], Float[Tensor, "B Q D"]]:
        """Memory and queries, updated; the camera token is the first of the memory, which the queries do not see."""
        for layer in self.encoder:
            memory = layer(memory, positions, None)
        memory = self.norms[0](memory)
        for layer in self.decoder:
            queries = layer(queries, memory[:, 1:], positions[:, 1:], None, among)
        return memory, self.norms[1](queries)


class FastMETRO(BodyMethod):
    """Regresses joints and coarse vertices in camera axes, and upsamples. Vertices attend to neighbours on the mesh."""

    config: FastMETROConfig
    among: Bool[Tensor, "Q Q"]
    kept: Int[Tensor, "N"]
    fine_of: Int[Tensor, "V P"]
    fine_weights: Float[Tensor, "V P"]
    template: Float[Tensor, "V 3"]

    def __init__(self, config: FastMETROConfig, tokenizer: nn.Module, backbone_weights: Path | None = None) -> None:
        super().__init__(config, tokenizer, backbone_weights)
        for name, value in coarse_mesh(self.body, config.vertices).items():
            self.register_buffer(name, torch.from_numpy(value))
        self.register_buffer("template", torch.from_numpy(self.body.template))
        first, last = config.dims[0], config.dims[-1]
        self.image_in = nn.Linear(self.backbone.channels, first)
        self.camera_token = nn.Parameter(0.02 * torch.randn(1, 1, first))
        self.queries = nn.Parameter(0.02 * torch.randn(len(COCO17) + config.vertices, first))
        self.stages = nn.ModuleList(Stage(config, *d) for d in zip(config.dims, config.hidden, strict=True))
        self.narrow = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(config.dims) for _ in range(2))
        self.place, self.camera = nn.Linear(last, 3), nn.Linear(last, 3)
        nn.init.normal_(self.camera.weight, std=0.002)
        self.camera.bias.data = torch.tensor(MEAN_CAMERA)

    def head(self, seen: Seen, place: Float[Tensor, "B 3"] | None) -> Output:
        """See `BodyMethod.head`."""
        count, _, height, width = seen.features.shape
        grid = grid_positions(height, width, seen.features.device)
        image = self.image_in(seen.features.flatten(2).transpose(1, 2))
        memory = torch.cat([self.camera_token.expand(count, -1, -1), image], 1)
        queries = self.queries.expand(count, -1, -1)
        for number, (stage, dim) in enumerate(zip(self.stages, self.config.dims, strict=True)):
            if number:
                memory, queries = (
                    self.narrow[2 * number - 2](memory),
                    self.narrow[2 * number - 1](queries),
                )
            positions = nn.functional.pad(sine_positions(grid, dim), (0, 0, 1, 0)).expand(count, -1, -1)
            memory, queries = stage(memory, queries, positions, self.among)
        with torch.autocast(queries.device.type, enabled=False):
            return self._meshes(self.place(queries.float()), self.camera(memory[:, 0].float()))

    def _meshes(self, points: Float[Tensor, "B Q 3"], camera: Float[Tensor, "B 3"]) -> QueryOutput:
        joints, coarse = points.split((len(COCO17), self.config.vertices), 1)
        fine = blend(coarse, self.fine_of, self.fine_weights)
        middle = fine.mean(1, keepdim=True)
        with torch.no_grad():  # nothing is regressed here that says how the body is turned: the nearest rotation
            rotation = fit_rotation(self.template.expand_as(fine), fine)
        whole = fine - middle
        seen = self.tokenizer.regressor("coco17") @ whole
        return QueryOutput(whole, seen, rotation, camera, query_joints=joints - middle, query_vertices=coarse - middle)

    def loss(self, output: Output, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """See `Method.loss`."""
        assert isinstance(output, QueryOutput)
        assert output.query_joints is not None and output.query_vertices is not None
        vertices = rotate(batch["rotation"], batch["canonical_vertices"])
        joints = self.tokenizer.regressor("coco17") @ vertices
        pairs = {
            "joints": ((output.joints, joints), (output.query_joints, joints)),
            "vertices": ((output.vertices, vertices), (output.query_vertices, vertices[:, self.kept])),
        }
        terms = {n: sum((a - b).abs().mean((1, 2)) for a, b in both) for n, both in pairs.items()}
        reprojections = [keypoint_error(project(j, output.camera), batch) for j in (output.joints, output.query_joints)]
        losses = over_known(terms, batch["has_mesh"])  # type: ignore[arg-type]
        return weighted({**losses, "reprojection": torch.stack(reprojections).sum()}, self.config.loss)


def coarse_mesh(body: AnnyBody | SMPLBody, count: int) -> dict[str, np.ndarray]:
    """A body's mesh reduced to `count` vertices.

    Returns:
        `kept` (N,), its vertices; `among` (17+N, 17+N), which queries may look at which: vertices at their neighbours
        and at the joints, joints at all; `fine_of` and `fine_weights` (V, P), each vertex of the body as a blend of
        coarse ones.
    """
    first, second = build_hierarchy(body.template, body.faces, (count,), parents=_PARENTS)
    assert first.pool is not None and first.unpool is not None
    kept = first.pool[:, 0]
    among = np.ones((len(COCO17) + count,) * 2, bool)
    near = np.zeros((count, count), bool)
    near[np.arange(count)[:, None], second.conv] = True
    among[len(COCO17) :, len(COCO17) :] = near | near.T
    rng = np.random.default_rng(0)
    shape = torch.from_numpy(body.sample_shape(_BODIES, rng))
    bodies = canonical(body.forward(random_pose(_BODIES, len(body.bone_names), rng), shape)).numpy()
    weights = fit_blend(first.unpool, bodies[:, kept], bodies)
    return {"kept": kept, "among": among, "fine_of": first.unpool, "fine_weights": weights}
