"""The authors' weights of Mesh-VQ-VAE and VQ-HPS as our checkpoints: the same tensors under our names, none left over.

Source: Fiche et al., "VQ-HPS: Human Pose and Shape Estimation in a Vector-Quantized Latent Space", ECCV 2024.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vqhps.body.connections import read_connections
from vqhps.body.smpl import H36M_FILE, SMPLBody, find_body_file
from vqhps.body.topology import Level
from vqhps.checkpoint import CheckpointCard, load_tokenizer, save_checkpoint
from vqhps.errors import VqhpsError
from vqhps.models.vqhps import VQHPS, VQHPSConfig, VQHPSLossConfig
from vqhps.tokenizer.build import registered_tokenizer
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE, MeshVQVAEConfig

PublishedBackbone = Literal["resnet50", "hrnet_w48"]
_State = dict[str, Tensor]

_IGNORED = ("rotcam_feat", "final_layer", "attn.mask", "vq_vae._ema_")  # training state, and a head that is not used
_RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_LAYERS = {  # of the transformer: theirs, ours
    "transformer.encoder.layers.0.": "encoder.",
    "transformer.encoder.norm.": "encoder_norm.",
    "transformer.decoder.layers.0.": "decoder.",
    "transformer.decoder.norm.": "decoder_norm.",
    "transformer.dec_head.blocks.0.": "token_head.",
    "transformer.dec_head.ln_f.": "token_head.norm.",
    "transformer.dec_head.head.": "token_head.scores.",
    "conv_1x1.": "image_in.",
    "mesh_token_embed.weight": "mesh_queries",
    "fc1.": "pose_head.fc1.",
    "fc2.": "pose_head.fc2.",
    "rot_predictor.": "pose_head.rotation.",
    "cam_predictor.": "pose_head.camera.",
}
_INSIDE = {  # of a layer: theirs, ours
    "linear1.": "feed_forward.0.", "linear2.": "feed_forward.3.", "mlp.0.": "feed_forward.0.",
    "mlp.2.": "feed_forward.3.", "ln1.": "norm1.", "ln2.": "norm2.", "attn.": "attention.",
}  # fmt: skip


def read_published(path: Path) -> _State:
    """The tensors of a published file `{"model": state, ...}`, without the prefix `module.` and what is not used.

    Raises:
        VqhpsError: the file is damaged, would run code, or holds no state.
        OSError: it cannot be read.
    """
    numbers = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"]]
    harmless = [np.float64(0).__reduce__()[0], np.dtype, *numbers]  # such as a loss beside the weights
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # its own message advises to run what is in the file
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise VqhpsError(
                f"{path} is refused: it asks to load {named[1]}, which could run code; nothing was run"
            ) from None
        raise VqhpsError(f"{path} is damaged or no file that torch saved ({type(error).__name__})") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise VqhpsError(f"{path} holds no state of tensors under 'model'")
    return used(state)


def used(state: Mapping[str, Tensor]) -> _State:
    """The tensors of a published state that prediction needs, without the prefix `module.`."""
    named = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in named.items() if not any(part in name for part in _IGNORED)}


def convert(
    weights: Path, out: Path, connections: Path | None, tokenizer: Path | None, body_models: Path | None = None
) -> Path:
    """Write a published file as a checkpoint.

    Args:
        weights: published file, of a Mesh-VQ-VAE or of VQ-HPS.
        out: folder of the checkpoint.
        connections: folder of the published connection matrices; needed for a Mesh-VQ-VAE.
        tokenizer: checkpoint of the converted Mesh-VQ-VAE; needed for VQ-HPS.
        body_models: folder of body files, searched first.

    Raises:
        VqhpsError: one of these is missing, damaged, or does not fit.
    """
    state = read_published(weights)
    body = SMPLBody(find_body_file("smpl", folder=body_models))
    notes = f"Converted from the authors' {weights.name}."
    if is_tokenizer(state):
        if connections is None:
            raise VqhpsError(f"{weights} is a Mesh-VQ-VAE: give the published matrices with --connections FOLDER")
        save_checkpoint(
            out, convert_tokenizer(state, connections, body), CheckpointCard("mesh_vqvae", "smpl", notes=notes)
        )
        return out
    if tokenizer is None:
        raise VqhpsError(f"{weights} is a VQ-HPS: give the converted Mesh-VQ-VAE with --tokenizer CHECKPOINT")
    model = convert_vqhps(state, load_tokenizer(tokenizer), initial_joints(body))
    save_checkpoint(out, model, CheckpointCard("vqhps", "smpl", notes=notes))
    return out


def convert_tokenizer(state: Mapping[str, Tensor], connections: Path, body: SMPLBody) -> MeshVQVAE:
    """The published Mesh-VQ-VAE on SMPL.

    Args:
        state: from `read_published`.
        connections: folder of the published connection matrices.
        body: SMPL, for faces and joint regressors; its template is not subtracted, as published.

    Raises:
        VqhpsError: a tensor is missing, left over or misshapen, or the matrices do not fit.
    """
    levels = read_connections(connections)
    orders = _decoder_orders(connections, levels)
    depth = len(levels) - 1
    last = 4 * depth + 1  # number of the last layer
    own: _State = {}
    for name, value in state.items():  # encoder and decoder are one network, whose tensors stand under both names
        short = name.removeprefix("encoder.model.").removeprefix("decoder.model.")
        if not torch.equal(own.setdefault(short, value), value):
            raise VqhpsError(f"the published state does not fit: its encoder and decoder differ in '{short}'")
    codebook = _tensor(own, "vq_vae._embedding.weight")
    if lost := {"weights0", *(f"bias{2 * i}" for i in range(depth))} - own.keys():
        raise VqhpsError(f"the published state lacks '{min(lost)}'")
    config = MeshVQVAEConfig(
        network="conv", sizes=tuple(len(level.conv) for level in levels[1:]), num_codes=len(codebook),
        code_dim=codebook.shape[1], shared_codebook=True, bases=len(own["weights0"]),
        channels=tuple(len(own[f"bias{2 * i}"]) for i in range(depth)),
    )  # fmt: skip
    tokenizer = registered_tokenizer(config, np.zeros_like(body.template), body.faces, levels)
    for name in ("coco17", "h36m17"):
        if name in body.joint_regressors:
            tokenizer.mesh.register_buffer(f"regressor_{name}", torch.from_numpy(body.joint_regressors[name]))
    found: _State = {"quantizer.codebook": codebook[None], "quantizer.sums": codebook[None]}
    names = [name for name in tokenizer.state_dict() if name.startswith("network.")]
    for part, first in (("encoder", 0), ("decoder", 2 * depth + 1)):
        layers = sorted({int(name.split(".")[2]) for name in names if name.split(".")[1] == part})
        for number, layer in enumerate(layers, first):
            prefix = f"network.{part}.{layer}."
            if f"{prefix}weights" in names:
                found[f"{prefix}weights"] = _tensor(own, f"p_neighbors{number}")
                continue
            matrices, bias = _tensor(own, f"weights{number}"), _tensor(own, f"bias{number}")
            found[f"{prefix}bases"] = matrices.unflatten(1, (len(bias), -1)).transpose(1, 2)
            found[f"{prefix}bias"] = bias
            coefficients = _tensor(own, f"w_weights{number}")
            if part == "decoder":
                order = orders[(last - number) // 2]
                coefficients = coefficients.gather(1, order[..., None].expand_as(coefficients))
            found[f"{prefix}coefficients"] = coefficients
    _load(tokenizer, found, own, ("mesh.", "quantizer.usage"))
    return tokenizer.eval()


def _decoder_orders(connections: Path, levels: Sequence[Level]) -> list[Tensor]:
    """For each level and place of a neighbour in the encoder's convolution, its place in the decoder's."""
    orders = []
    for i, level in enumerate(levels):
        theirs = np.load(connections / f"_unpool{2 * i}.npy", allow_pickle=False)[:, 1::2]
        place = np.argsort(np.argsort(level.conv, 1, kind="stable"), 1, kind="stable")
        orders.append(torch.from_numpy(np.take_along_axis(np.argsort(theirs, 1, kind="stable"), place, 1)))
    return orders


def is_tokenizer(state: Mapping[str, Tensor]) -> bool:
    """Whether a published state is of a Mesh-VQ-VAE."""
    return "vq_vae._embedding.weight" in state


def initial_joints(body: SMPLBody) -> Float[np.ndarray, "17 3"]:
    """What the published VQ-HPS is given beside the image: Human3.6M joints of the T-pose in the axes of the body file,
    metres, in the order of `J_regressor_h36m.npy`.

    Raises:
        VqhpsError: the body came without that file.
    """
    if "h36m17" not in body.joint_regressors:
        raise VqhpsError("VQ-HPS needs the joints of Human3.6M: put J_regressor_h36m.npy beside the body file")
    return (body.joint_regressors["h36m17"] @ (body.template + body.root))[list(H36M_FILE)]


def convert_vqhps(
    state: Mapping[str, Tensor], tokenizer: MeshVQVAE, initial_joints: Float[np.ndarray, "17 3"]
) -> VQHPS:
    """The published VQ-HPS with ResNet-50 or HRNet-W48, whichever the state is of.

    Args:
        state: from `read_published`.
        tokenizer: from `convert_tokenizer`.
        initial_joints: Human3.6M joints of the T-pose, metres, which the published network is given.

    Raises:
        VqhpsError: a tensor is missing, left over or misshapen.
    """
    backbone: PublishedBackbone = "hrnet_w48" if "backbone_pose.conv1.weight" in state else "resnet50"
    config = VQHPSConfig(
        backbone=backbone, shared_backbone=False, head_attention="self", head_activation="none", decode="argmax",
        loss=VQHPSLossConfig(label_sigma=0.0, decode="argmax"),
    )  # fmt: skip
    with torch.device("meta"):  # every weight is given below
        model = VQHPS(config, tokenizer)
    found: _State = {"pose_head.initial_joints": torch.from_numpy(np.asarray(initial_joints, np.float32))}
    for name, value in state.items():
        found |= _ours(name, value)
    _load(model, found, {}, ("tokenizer.",))
    return model.eval()


def _ours(name: str, value: Tensor) -> _State:
    """A tensor of the published VQ-HPS under our name; the projections of an attention come apart."""
    for theirs, ours in (("backbone_pose.", "backbone.body."), ("backbone_rot.", "backbone_rotation.body.")):
        if name.startswith(theirs):
            return {ours + _backbone_name(name.removeprefix(theirs)): value}
    for theirs, ours in _LAYERS.items():
        if name.startswith(theirs):
            inside = name.removeprefix(theirs)
            if ours.count(".") != 1 or ours == "image_in.":
                return {ours + inside: value}
            attention = "attention." if ours == "encoder." else "self_attention."
            inside = inside.replace("multihead_attn.", "cross_attention.").replace("self_attn.", attention)
            inside = inside.replace("out_proj.", "proj.")
            for old, new in _INSIDE.items():
                if inside.startswith(old):
                    inside = new + inside.removeprefix(old)
            if "in_proj_" not in inside:
                return {ours + inside: value}
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            return {ours + inside.replace("in_proj_", f"{part}."): chunk for part, chunk in parts}
    return {name: value}  # unknown: `_load` says so


def _backbone_name(name: str) -> str:
    first, _, rest = name.partition(".")
    if first.startswith("downsample_stage_"):
        return f"downsample.{int(first.removeprefix('downsample_stage_')) - 1}.{rest}"
    return f"net.{_RESNET.get(first, first)}.{rest}"


def _tensor(state: _State, name: str) -> Tensor:
    if name not in state:
        raise VqhpsError(f"the published state lacks '{name}'")
    return state.pop(name).float()


def _load(model: Any, found: _State, left: Mapping[str, Tensor], given: tuple[str, ...]) -> None:
    """Load strictly; `given` are the beginnings of names that the model has already."""
    own = model.state_dict()
    wanted = {name for name in own if not name.startswith(given)}
    if odd := sorted([*(found.keys() ^ wanted), *left]):
        raise VqhpsError(f"the published state does not fit: {len(odd)} tensors missing or left over, first '{odd[0]}'")
    if misfit := [name for name, value in found.items() if value.shape != own[name].shape]:
        shapes = f"{tuple(found[misfit[0]].shape)}, not {tuple(own[misfit[0]].shape)}"
        raise VqhpsError(f"the published state does not fit: '{misfit[0]}' is {shapes}")
    model.load_state_dict({**own, **found}, assign=True)
