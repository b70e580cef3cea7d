"""VQ-HPS: body meshes from an image as a sequence of discrete codes (Fiche et al., ECCV 2024)."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vqhps.body.joints import COCO17
from vqhps.errors import VqhpsError
from vqhps.geometry import matrix_from_6d, project, rotate
from vqhps.models.backbones import create_backbone
from vqhps.models.blazepose import BlazePose, Seen
from vqhps.models.build import Build, samples
from vqhps.models.first_guess import (
    DistanceScores,
    FirstGuess,
    disturbed,
    either_way,
    joint_depth,
    keypoint_loss,
    with_confidence,
)
from vqhps.models.losses import edge_error, keypoint_error, mesh_terms, neighbour_targets, over_known, weighted
from vqhps.models.method import Method, MethodConfig
from vqhps.models.output import Output
from vqhps.models.pose_head import PoseHead
from vqhps.models.refinement import Refinement
from vqhps.models.transformer import CausalHead, DecoderLayer, EncoderLayer, grid_positions, sine_positions

Source = Literal["image", "keypoints"]
Decode = Literal["argmax", "expected"]


@dataclass(frozen=True)
class VQHPSLossConfig:
    """Weights of the losses.

    Attributes:
        tokens: cross-entropy of the codes.
        rotation: mean squared error of the rotation matrix.
        reprojection: L1 of the visible joints in crop coordinates.
        vertices: L1 of canonical vertices, metres.
        joints: L1 of joints in camera axes, metres.
        edges: L1 of the lengths of the mesh's edges, metres: the mean of poses in doubt has shorter limbs than each.
        keypoints: of the backbone's own key points, if it finds some: L1 in crop coordinates, and cross-entropy of
            being inside of the crop.
        label_sigma: width of the soft targets around the true code, as a share of the spread of the token's codes; 0
            for one-hot targets.
        decode: what the mesh of the losses is decoded from. `expected`, the mean code under the predicted
            distribution, lets them reach the logits; `argmax` is the published way.
    """

    tokens: float = 1.0
    rotation: float = 1.0
    reprojection: float = 1.0
    vertices: float = 10.0
    joints: float = 10.0
    edges: float = 0.0
    keypoints: float = 1.0
    label_sigma: float = 0.1
    decode: Decode = "expected"


@dataclass(frozen=True)
class VQHPSConfig(MethodConfig):
    """Settings of `VQHPS`; see `MethodConfig` for those of its backbone.

    Attributes:
        shared_backbone: take rotation and camera from the same network; `False`, as published, uses a second one.
        sources: what the memory of the transformer is made of. Key points are those that come with the image, or those
            that the backbone finds (`blazepose`, which is run for them even if `image` is not among the sources).
        hints: share of training samples that are shown the true key points, disturbed, in place of found ones.
        first_guess: let a multilayer perceptron on the backbone's vector and the key points place each token among its
            codes first; the transformer's scores are added. It gives rotation and camera as well.
        build: number of the body's shape parameters that are read from the image and shown to the first guess
            (`vqhps.models.build`; `blazepose` only); 0 for none.
        dim, heads, hidden: width, attention heads and feed-forward width of the transformer.
        dropout: in the transformer and between the layers of the rotation and camera head.
        head_attention: of the block that scores the codes: causal, from token to token, or `self`, each token to itself
            alone, which is what the published code does with one image.
        scores: of the codes: `free` weights a code, as published, or by their `distance` from a predicted place.
        head_activation: between the layers of the rotation and camera head; the published one has none.
        decode: at prediction, the mesh of the best code of each token or of the expected code.
        refine: at prediction, move the body of the expected codes onto the key points that the backbone finds, see
            `vqhps.models.refinement`.
        mirror: at prediction, average the key points that the backbone finds with those it finds in the mirrored crop.
        loss: weights.
    """

    shared_backbone: bool = True
    sources: tuple[Source, ...] = ("image",)
    hints: float = 0.0
    first_guess: bool = False
    build: int = 0
    dim: int = 512
    heads: int = 8
    hidden: int = 1024
    dropout: float = 0.1
    head_attention: Literal["causal", "self"] = "causal"
    scores: Literal["free", "distance"] = "free"
    head_activation: Literal["none", "relu"] = "relu"
    decode: Decode = "argmax"
    mirror: bool = False
    refine: bool = False
    loss: VQHPSLossConfig = VQHPSLossConfig()


class Encoded(NamedTuple):
    """What the networks say: scores of the codes, 6D rotation, camera, and the backbone's own key points."""

    logits: Float[Tensor, "B T K"]
    rotation_6d: Float[Tensor, "B 6"]
    camera: Float[Tensor, "B 3"]
    keypoints: Float[Tensor, "B 17 4"] | None


class VQHPS(Method):
    """Predicts the codes of a canonical mesh, its rotation and the camera of the crop.

    Args:
        config: settings.
        tokenizer: a trained mesh tokenizer; it stays frozen and in eval mode.
        backbone_weights: file of weights to start the backbone from; see `create_backbone`.

    Attributes:
        looks: whether it has a backbone that looks at the image.
        guess_only: leave out the transformer; a training may begin so (`transformer_from`).
    """

    def __init__(self, config: VQHPSConfig, tokenizer: nn.Module, backbone_weights: Path | None = None) -> None:
        super().__init__(config, tokenizer)
        dim, heads, hidden, dropout = config.dim, config.heads, config.hidden, config.dropout
        pooled = 0
        self.looks = "image" in config.sources or config.backbone == "blazepose"
        if self.looks:
            self.backbone = create_backbone(config.backbone, backbone_weights)
            self.backbone_rotation = (
                None if config.shared_backbone else create_backbone(config.backbone, backbone_weights)
            )
            for backbone in filter(None, (self.backbone, self.backbone_rotation)):
                backbone.freeze(config.frozen_stages)
        if "image" in config.sources:
            self.image_in = nn.Conv2d(self.backbone.channels, dim, 1)
            pooled += self.backbone.pooled_channels
        if "keypoints" in config.sources:
            self.keypoint_in = nn.Linear(dim + 1, dim)
            self.keypoint_names = nn.Parameter(0.02 * torch.randn(len(COCO17), dim))
            pooled += dim
        self.encoder = EncoderLayer(dim, heads, hidden, dropout)
        self.encoder_norm = nn.LayerNorm(dim)
        self.mesh_queries = nn.Parameter(torch.randn(self.tokenizer.num_tokens, dim))
        self.decoder = DecoderLayer(dim, heads, hidden, dropout)
        self.decoder_norm = nn.LayerNorm(dim)
        alone = config.head_attention == "self"
        self.token_head = CausalHead(dim, heads, hidden, self.tokenizer.num_codes, dropout, alone)
        codes = self.tokenizer.codebook[self.tokenizer.book_of_token]
        if config.scores == "distance":
            self.token_head.scores = DistanceScores(dim, codes)
        if config.first_guess:
            channels = self.backbone.pooled_channels if "image" in config.sources else 0
            self.guess = FirstGuess(channels, "keypoints" in config.sources, codes, dropout, config.build)
            if config.scores == "distance":
                raise VqhpsError("scores by distance are what first_guess gives already: leave out one of them")
            nn.init.zeros_(self.token_head.scores.weight)  # type: ignore[arg-type]  # the transformer corrects the guess
        else:
            self.pose_head = PoseHead(pooled, dropout, config.head_activation)
        finds = self.looks and self.backbone.finds_keypoints
        if config.refine and not finds:
            raise VqhpsError("refine needs a backbone that finds key points: blazepose")
        if config.build and not (finds and config.first_guess):
            raise VqhpsError("build needs first_guess and a backbone that finds key points: blazepose")
        self.build = Build(BlazePose.trunk_channels, config.build) if config.build else None
        self.refinement = Refinement(self.tokenizer) if config.refine else None
        self.register_load_state_dict_post_hook(_read_tokenizer)

    def forward(
        self,
        image: Float[Tensor, "B 3 H W"] | None = None,
        keypoints: Float[Tensor, "B J 4"] | None = None,
        trunk: Float[Tensor, "B Ct h w"] | None = None,
        place: Float[Tensor, "B 3"] | None = None,
    ) -> Output:
        """Output on the coarse mesh, for training.

        Args:
            image: normalised crops of any size; needed if the model looks at them (`looks`).
            keypoints: COCO-17 in crop coordinates, confidence, and depth in metres (0 if unknown); those without
                confidence count as missing. Needed if `keypoints` is among the sources.
            trunk: in place of `image`, what the first part of the backbone made of it.
            place: not looked at.
        """
        return self.output(self.encode(image, keypoints, trunk), self.config.loss.decode, full=False)

    @torch.no_grad()
    def predict(
        self, image: Float[Tensor, "B 3 H W"] | None = None, keypoints: Float[Tensor, "B J 4"] | None = None
    ) -> Output:
        """Output on the full mesh; see `forward` for the arguments."""
        return self.output(self.encode(image, keypoints), self.config.decode, full=True)

    @torch.no_grad()
    def readings(
        self, image: Tensor | None = None, trunk: Tensor | None = None, place: Tensor | None = None
    ) -> dict[str, Output]:
        """See `Method.readings`: the mesh of the best codes, and that of the expected ones."""
        encoded = self.encode(image, None, trunk)
        return {how: self.output(encoded, how, full=False) for how in get_args(Decode)}

    @torch.no_grad()
    def coarse(self, image: Tensor | None = None, trunk: Tensor | None = None, place: Tensor | None = None) -> Output:
        """See `Method.coarse`."""
        return self.output(self.encode(image, None, trunk), self.config.decode, full=False)

    def true_mesh(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "B Vc 3"]:
        """What the target tokens decode to."""
        return self.tokenizer.decode(batch["indices"])

    def output(self, encoded: Encoded, decode: Decode, full: bool) -> Output:
        """What `Output` wants, from what the networks say."""
        logits, rotation_6d, camera = encoded.logits.float(), encoded.rotation_6d.float(), encoded.camera.float()
        with torch.autocast(logits.device.type, enabled=False):  # metres need float32
            rotation = matrix_from_6d(rotation_6d)
            indices: Tensor | None
            if self.refinement is not None and decode == "expected" and not self.training:
                assert encoded.keypoints is not None
                found = with_confidence(encoded.keypoints.float())
                latents, rotation, camera = self.refinement(logits.softmax(-1), rotation, camera, found)
                coarse, indices = self.tokenizer.decode_latents(latents), self.tokenizer.nearest(latents)
            else:
                coarse, indices = self.decode_mesh(logits, decode), self._indices(logits, decode)
            return Output(
                vertices=rotate(rotation, self.tokenizer.upsample(coarse) if full else coarse),
                joints=rotate(rotation, self.tokenizer.regressor("coco17") @ coarse),
                rotation=rotation,
                camera=camera,
                logits=logits,
                indices=indices,
                keypoints=encoded.keypoints,
            )

    def _indices(self, logits: Float[Tensor, "B T K"], how: Decode) -> Int[Tensor, "B T"] | None:
        """The codes that the mesh is decoded from, or those nearest to the expected ones."""
        if how == "argmax":
            return logits.argmax(-1)
        return self.tokenizer.nearest(self.tokenizer.expected_latents(logits.detach().softmax(-1)))

    def decode_mesh(self, logits: Float[Tensor, "B T K"], how: Decode) -> Float[Tensor, "B Vc 3"]:
        """Coarse canonical vertices of a distribution over codes."""
        if how == "argmax":
            return self.tokenizer.decode(logits.argmax(-1))
        return self.tokenizer.decode_expected(logits.softmax(-1))

    def encode(
        self,
        image: Float[Tensor, "B 3 H W"] | None,
        keypoints: Float[Tensor, "B J 4"] | None = None,
        trunk: Float[Tensor, "B Ct h w"] | None = None,
    ) -> Encoded:
        """What the networks say of crops; see `forward` for the arguments."""
        vector, found, features, build = None, None, None, None
        if self.looks:
            if image is not None and self.config.mirror and not self.training and self.backbone.finds_keypoints:
                seen = self.backbone(torch.cat([image, image.flip(3)]))  # together: faster
                features, vector = (x[: image.shape[0]] for x in (seen.features, seen.vector))
                found = either_way(seen.keypoints[: image.shape[0]], seen.keypoints[image.shape[0] :])
                build = self.build_of(seen)
                build = None if build is None else (build[: image.shape[0]] + build[image.shape[0] :]) / 2
            else:
                seen = self.backbone(image) if trunk is None else self.backbone.from_trunk(trunk)
                features, vector, found = seen.features, seen.vector, seen.keypoints
                build = self.build_of(seen)
            if self.backbone_rotation is not None:
                vector = self.backbone_rotation(image).vector
        features, vector = (features, vector) if "image" in self.config.sources else (None, None)
        shown = self._shown(keypoints, found) if "keypoints" in self.config.sources else None
        if not self.config.first_guess:
            logits, pooled = self._transform(features, shown)
            rotation_6d, camera = self.pose_head(torch.cat([x for x in (vector, pooled) if x is not None], 1))
            return Encoded(logits, rotation_6d, camera, found)
        logits, rotation_6d, camera = self.guess(vector, shown, build)
        if not self.guess_only:
            logits = logits + self._transform(features, shown)[0]
        return Encoded(logits, rotation_6d, camera, found)

    def _transform(
        self, features: Float[Tensor, "B C h w"] | None, keypoints: Float[Tensor, "B J 4"] | None
    ) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B D"] | None]:
        """The transformer: scores of the codes, and the mean of the key points' tokens in its memory."""
        parts = []
        if features is not None:
            positions = grid_positions(features.shape[2], features.shape[3], features.device)[None].expand(
                features.shape[0], -1, -1
            )
            tokens = self.image_in(features).flatten(2).transpose(1, 2)
            parts.append((tokens, positions, torch.zeros_like(tokens[..., 0], dtype=torch.bool)))
        if keypoints is not None:
            parts.append(self._keypoint_tokens(keypoints))
        tokens, positions, missing = (torch.cat(x, 1) for x in zip(*parts, strict=True))
        sine = sine_positions(positions, self.config.dim)
        hidden, pooled = None if keypoints is None else missing, None
        memory = self.encoder_norm(self.encoder(tokens, sine, hidden))
        if keypoints is not None:
            seen = ~missing[:, -len(COCO17) :, None]
            pooled = (memory[:, -len(COCO17) :] * seen).sum(1) / seen.sum(1)
        queries = self.mesh_queries.expand(tokens.shape[0], -1, -1)
        decoded = self.decoder_norm(self.decoder(queries, memory, sine, hidden))
        return self.token_head(decoded), pooled

    @torch.no_grad()
    def build_of(self, seen: Seen) -> Float[Tensor, "B S"] | None:
        """Shape parameters less those of the average body, if they are read from the image; nothing learns from them
        but by `Build.fit`."""
        if self.build is None:
            return None
        assert seen.trunk is not None and seen.keypoints is not None
        return self.build(samples(seen.trunk, seen.keypoints))

    def lift(
        self,
        keypoints: Float[Tensor, "B J 4"],
        vector: Float[Tensor, "B P"] | None = None,
        build: Float[Tensor, "B S"] | None = None,
    ) -> Output:
        """What the first guess alone makes of key points, as `forward` takes them, and, if it reads them, of the
        backbone's `vector` and of `build_of` what it sees."""
        vector = vector if "image" in self.config.sources else None
        logits, rotation_6d, camera = self.guess(vector, keypoints, build)
        return self.output(Encoded(logits, rotation_6d, camera, None), self.config.loss.decode, full=False)

    def _shown(self, keypoints: Float[Tensor, "B J 4"] | None, found: Tensor | None) -> Float[Tensor, "B J 4"]:
        """Key points for the memory: those given, or those found; in training, true ones for some samples."""
        if found is None:
            if keypoints is None:
                raise VqhpsError("this model reads key points beside the image; give COCO-17 with confidence")
            return keypoints
        own = with_confidence(found)
        if not self.training or keypoints is None or self.config.hints == 0:
            return own
        told = torch.rand(len(own), 1, 1, device=own.device) < self.config.hints
        return torch.where(told, disturbed(keypoints), own)

    def _keypoint_tokens(self, keypoints: Float[Tensor, "B J 4"]) -> tuple[Tensor, Tensor, Tensor]:
        positions, confidence = (keypoints[..., :2] + 1) / 2, keypoints[..., 2:3]
        missing = confidence[..., 0] <= 0
        features = torch.cat([sine_positions(positions, self.config.dim), confidence], -1) * ~missing[..., None]
        none_seen = missing.all(1, keepdim=True)  # attention needs something to look at: tokens of confidence 0
        return self.keypoint_in(features) + self.keypoint_names, positions, missing & ~none_seen

    def loss(self, output: Output, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """See `Method.loss`."""
        logits = output.logits
        assert logits is not None
        regressor, has = self.tokenizer.regressor("coco17"), batch["has_mesh"]
        terms = {"tokens": self.token_loss(logits, batch), **mesh_terms(output, batch, regressor)}
        if self.config.loss.edges:
            terms["edges"] = edge_error(output.vertices, batch["canonical_vertices"], self._edges)
        losses = over_known(terms, has)
        if output.keypoints is not None:
            joints = regressor @ rotate(batch["rotation"], batch["canonical_vertices"])
            losses["keypoints"] = keypoint_loss(
                output.keypoints, batch["keypoints2d"], batch["keypoints_weight"], joint_depth(joints), has
            )
        losses["reprojection"] = keypoint_error(project(output.joints, output.camera), batch)
        return weighted(losses, self.config.loss)

    @functools.cached_property
    def _edges(self) -> Int[Tensor, "E 2"]:
        return self.tokenizer.edges

    @functools.cached_property
    def _soft_targets(self) -> Float[Tensor, "G K K"]:
        return neighbour_targets(self.tokenizer.codebook, self.config.loss.label_sigma)

    def token_loss(self, logits: Float[Tensor, "B T K"], batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
        """Cross-entropy of the codes of each sample, with soft targets if they are asked for."""
        target = batch["indices"]
        if self.config.loss.label_sigma == 0:
            return functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)
        soft = self._soft_targets[self.tokenizer.book_of_token, target]
        return -(soft * logits.log_softmax(-1)).sum(-1).mean(1)


def _read_tokenizer(model: VQHPS, _: object) -> None:
    """The weights of the tokenizer are others now."""
    if model.refinement is not None:
        model.refinement.read(model.tokenizer)
