"""SMPL, SMPL-H and SMPL-X, from files that the user brings (Loper et al., SIGGRAPH Asia 2015; Romero et al., 2017;
Pavlakos et al., CVPR 2019).

The files may not be passed on: get them from their authors after registering, see `find_body_file`.
"""

import functools
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vqhps.body.joints import COCO17
from vqhps.body.skinning import skin
from vqhps.errors import VqhpsError
from vqhps.pickles import read_npz, read_pickle

Kind = Literal["smpl", "smplh", "smplx"]
Gender = Literal["neutral", "female", "male"]

_BODY = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
_FINGERS = tuple(
    f"{side}_{finger}{i}"
    for side in ("left", "right")
    for finger in ("index", "middle", "pinky", "ring", "thumb")
    for i in (1, 2, 3)
)
_BONES: dict[Kind, tuple[str, ...]] = {
    "smpl": (*_BODY, "left_hand", "right_hand"),
    "smplh": (*_BODY, *_FINGERS),
    "smplx": (*_BODY, "jaw", "left_eye", "right_eye", *_FINGERS),
}
SMPL_BONES = _BONES["smpl"]
_SHAPES = 10  # first components of the shape space
_FACE = {  # vertices of nose, left and right eye, left and right ear
    6890: (332, 2800, 6260, 583, 4071),
    10475: (9120, 9448, 9929, 6, 616),
}
H36M_FILE = (0, 4, 5, 6, 1, 2, 3, *range(7, 17))  # `J_regressor_h36m.npy` lists the left leg first, `h36m17` the right
_SITES = {"smpl": "smpl.is.tue.mpg.de", "smplh": "mano.is.tue.mpg.de", "smplx": "smpl-x.is.tue.mpg.de"}
_OFFICIAL = {
    "neutral": ("basicModel_neutral_lbs_10_207_0_v1.0.0.pkl", "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl"),
    "female": ("basicModel_f_lbs_10_207_0_v1.0.0.pkl", "basicmodel_f_lbs_10_207_0_v1.1.0.pkl"),
    "male": ("basicmodel_m_lbs_10_207_0_v1.0.0.pkl", "basicmodel_m_lbs_10_207_0_v1.1.0.pkl"),
}
_ENVIRONMENT = "VQHPS_BODY_MODELS"


def body_model_folders(folder: Path | None = None) -> list[Path]:
    """Where body files are looked for, in this order: the folder given, `VQHPS_BODY_MODELS`, the configuration folder
    (`$XDG_CONFIG_HOME/vqhps/body_models`, by default under `~/.config`)."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "vqhps" / "body_models"
    named = os.environ.get(_ENVIRONMENT)
    return [*([folder] if folder else []), *([Path(named)] if named else []), config]


def find_body_file(kind: Kind, gender: Gender = "neutral", folder: Path | None = None) -> Path:
    """The file of a body, under any of the names it is published with.

    Args:
        kind: which body.
        gender: which of its files.
        folder: searched first; see `body_model_folders` for the others.

    Raises:
        VqhpsError: there is none; the message says where to get it and where to put it.
    """
    stem = f"{kind.upper()}_{gender.upper()}"
    names = [f"{stem}.npz", f"{stem}.pkl", f"{gender}/model.npz", f"{gender}/model.pkl"]
    names += _OFFICIAL[gender] if kind == "smpl" else ()
    folders = body_model_folders(folder)
    for place in folders:
        for candidate in (place / sub / name for sub in (kind, "") for name in names):
            if candidate.is_file():
                return candidate
    raise VqhpsError(
        f"no {kind.upper()} body ({gender}): register at https://{_SITES[kind]}, download it, and put it at "
        f"{folders[0] / kind / names[0]} (looked in {', '.join(str(f) for f in folders)})"
    )


@functools.cache
def smpl_body(gender: Gender, folder: Path | None = None) -> "SMPLBody":
    """SMPL of a gender, from the user's file (`find_body_file`), read once."""
    return SMPLBody(find_body_file("smpl", gender, folder))


class SMPLBody:
    """A body of the SMPL family behind the `BodyModel` protocol: blend shapes, then linear blend skinning.

    Args:
        path: `.npz`, or `.pkl` as published; from `find_body_file`. A `J_regressor_h36m.npy` beside it, or in the
            folder above, adds the regressor `h36m17`.

    Attributes:
        root: where the file has the root joint of the template, which is the origin here; metres.

    Raises:
        VqhpsError: the file is damaged, refused, or holds no such body.
    """

    def __init__(self, path: Path) -> None:
        data = _read(path)
        self.faces = data["f"].astype(np.int64)
        regressor = data["J_regressor"]
        kinds = {len(names): kind for kind, names in _BONES.items()}
        count, bones = len(data["v_template"]), len(regressor)
        kind = kinds.get(bones)
        expected = {
            "v_template": (count, 3), "shapedirs": (count, 3, _SHAPES), "posedirs": (count, 3, 9 * (bones - 1)),
            "J_regressor": (bones, count), "weights": (count, bones), "kintree_table": (2, bones),
        }  # fmt: skip
        data["shapedirs"] = data["shapedirs"][..., :_SHAPES]
        for name, shape in expected.items():
            if kind is None or data[name].shape != shape:
                raise VqhpsError(
                    f"{path}: '{name}' is {data[name].shape}; no body of the SMPL family has {shape} there"
                )
        assert kind is not None
        if self.faces.shape[1] != 3 or not 0 <= self.faces.min() <= self.faces.max() < count:
            raise VqhpsError(f"{path}: 'f' is {self.faces.shape}, or names a vertex beyond {count}")
        self.name = kind
        self.bone_names = _BONES[kind]
        self.bone_parents = (-1, *(int(p) for p in data["kintree_table"][0, 1:].astype(np.int64)))
        if any(not 0 <= parent < bone for bone, parent in enumerate(self.bone_parents) if bone):
            raise VqhpsError(f"{path}: a bone of 'kintree_table' does not come after its parent")
        self.shape_names = tuple(f"beta{i}" for i in range(_SHAPES))
        self._template, self._shapedirs, self._posedirs, self._regressor, self._weights = (
            torch.from_numpy(np.ascontiguousarray(data[name], np.float32))
            for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
        )
        self._root_mean = self._regressor[0] @ self._template
        self._root_blend = torch.einsum("v,vcs->cs", self._regressor[0], self._shapedirs)
        self.root = self._root_mean.numpy()
        self.template = self._template.numpy() - self.root
        self.joint_regressors = self._regressors(path, regressor.astype(np.float32))

    def _regressors(self, path: Path, own: Float[np.ndarray, "J V"]) -> dict[str, Float[np.ndarray, "J V"]]:
        count = own.shape[1]
        found = {f"{self.name}{len(own)}": own}
        if count in _FACE:
            face = np.eye(count, dtype=np.float32)[list(_FACE[count])]
            found["coco17"] = np.stack([*face, *(own[self.bone_names.index(name)] for name in COCO17[5:])])
        for folder in (path.parent, path.parent.parent):
            file = folder / "J_regressor_h36m.npy"
            if file.is_file():
                found["h36m17"] = _h36m(file, count)
                break
        return found

    def forward(self, pose: Float[Tensor, "B K 3 3"], shape: Float[Tensor, "B S"]) -> Float[Tensor, "B V 3"]:
        """See `BodyModel.forward`; the root joint of the posed body is the origin."""
        rest, heads = self.rest(shape)
        turned = (pose[:, 1:] - torch.eye(3)).flatten(1)
        vertices = rest + torch.einsum("vcp,bp->bvc", self._posedirs, turned)
        return skin(vertices, heads, pose, self.bone_parents, self._weights)

    def rest(self, shape: Float[Tensor, "B S"]) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B K 3"]]:
        """Vertices and bone heads in the rest pose (arms stretched out), metres in body axes."""
        vertices = self._template + torch.einsum("vcs,bs->bvc", self._shapedirs, shape)
        heads = self._regressor @ vertices
        return vertices - heads[:, :1], heads - heads[:, :1]

    def root_in_file(self, shape: Float[Tensor, "B S"]) -> Float[Tensor, "B 3"]:
        """Where the root joint of a shape lies in the axes of the file, metres: published translations move a body
        whose root is there, and turn it about that point."""
        return self._root_mean + shape @ self._root_blend.T

    def sample_shape(
        self, count: int, rng: np.random.Generator, children: bool = False
    ) -> Float[np.ndarray, "count S"]:
        """Standard normal shapes, as the shape space was scaled to, cut at three deviations.

        Raises:
            VqhpsError: `children` are asked for, which the shape space does not know.
        """
        if children:
            raise VqhpsError(f"{self.name} has shapes of adults only")
        return rng.standard_normal((count, _SHAPES)).clip(-3, 3).astype(np.float32)


def _read(path: Path) -> dict[str, np.ndarray]:
    wanted = ("f", "v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
    content: Any = read_pickle(path) if path.suffix == ".pkl" else read_npz(path, wanted)
    if not isinstance(content, dict):
        raise VqhpsError(f"{path} holds no body: not a mapping")
    for name in wanted:
        value = content.get(name)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise VqhpsError(f"{path} holds no body of the SMPL family: no array '{name}'")
        if not np.isfinite(value).all() or value.ndim != {"shapedirs": 3, "posedirs": 3}.get(name, 2):
            raise VqhpsError(f"{path}: '{name}' is not what it should be: {value.shape}, or not finite")
    return {name: content[name] for name in wanted}


def _h36m(path: Path, count: int) -> Float[np.ndarray, "17 V"]:
    """The regressor of Human3.6M's joints, in the order of `h36m17`."""
    try:
        rows = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:
        raise VqhpsError(f"{path} is damaged ({error})") from error
    if rows.shape != (17, count):
        raise VqhpsError(f"{path} is {rows.shape}; this body needs (17, {count})")
    return rows[list(H36M_FILE)].astype(np.float32)
