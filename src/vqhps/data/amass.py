"""AMASS and BEDLAM animations as registered meshes to train a tokenizer on, with the body files that the user brings.

Licences: AMASS (amass.is.tue.mpg.de) and BEDLAM (bedlam.is.tue.mpg.de) are free for research after registering; neither
the motions nor meshes made of them may be passed on.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor
from tqdm import tqdm

from vqhps.body.model import canonical
from vqhps.body.smpl import Gender, Kind, SMPLBody, find_body_file
from vqhps.errors import VqhpsError
from vqhps.pickles import read_npz

log = logging.getLogger(__name__)

_KINDS: dict[int, Kind] = {156: "smplh", 165: "smplx"}  # by the numbers of a pose
_BATCH = 64


@dataclass(frozen=True)
class AmassSummary:
    """What became of a folder.

    Attributes:
        meshes: written.
        clips: they come from.
        skipped: what was left out, with reasons.
        out: the file.
    """

    meshes: int
    clips: int
    skipped: tuple[str, ...]
    out: Path


@dataclass(frozen=True)
class _Clip:
    path: Path
    kind: Kind
    gender: Gender
    pose: Float[np.ndarray, "T P"]
    betas: Float[np.ndarray, "S"]


def prepare_amass(
    root: Path, out: Path, rate: float = 1.0, body_models: Path | None = None, skip_bad: bool = False
) -> AmassSummary:
    """Write `vertices` (N, V, 3), canonical, metres, and `faces` (F, 3) as `vqhps train tokenizer --meshes` reads them.

    Clips come in the order of their paths: the file's end, which is held out of a training, is of other clips than its
    beginning.

    Args:
        root: folder of the `.npz` of the data set, searched to any depth; files named `shape*` hold no motion.
        out: the `.npz` to write.
        rate: poses a second of motion.
        body_models: folder of body files, searched first; SMPL-H for AMASS, SMPL-X for BEDLAM, of the clip's gender.
        skip_bad: leave out what cannot be read instead of stopping there.

    Raises:
        VqhpsError: no motion is there, a clip cannot be read, the clips are of different bodies, or a body file is
            missing.
    """
    paths = [path for path in sorted(root.rglob("*.npz")) if not path.name.startswith("shape")]
    if not paths:
        raise VqhpsError(f"no motion in {root}: expected .npz files with `poses`, as AMASS and BEDLAM have them")
    bodies: dict[Gender, SMPLBody] = {}
    skipped: list[str] = []
    kind, meshes, clips = None, 0, 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        raw = Path(folder) / "vertices"
        with raw.open("wb") as file:
            for clip in _clips(paths, rate, skip_bad, skipped):
                kind = kind or clip.kind
                if clip.kind != kind:
                    raise VqhpsError(f"{clip.path} is of {clip.kind}, those before it of {kind}: prepare them apart")
                if clip.gender not in bodies:
                    bodies[clip.gender] = SMPLBody(find_body_file(kind, clip.gender, body_models))
                for part in _meshes(bodies[clip.gender], clip):
                    file.write(part.numpy().tobytes())
                meshes, clips = meshes + len(clip.pose), clips + 1
        if not meshes:
            raise VqhpsError(f"nothing of {root} could be used; first: {skipped[0] if skipped else 'no poses'}")
        faces = next(iter(bodies.values())).faces
        count = next(iter(bodies.values())).template.shape[0]
        with (Path(folder) / "meshes.npz").open("wb") as archive:
            np.savez(archive, vertices=np.memmap(raw, np.float32, "r", shape=(meshes, count, 3)), faces=faces)
        (Path(folder) / "meshes.npz").replace(out)
    return AmassSummary(meshes, clips, tuple(skipped), out)


def _clips(paths: list[Path], rate: float, skip_bad: bool, skipped: list[str]) -> Iterator[_Clip]:
    for path in tqdm(paths, desc="motion", unit="clip", mininterval=2):
        try:
            yield _read(path, rate)
        except VqhpsError as error:
            if not skip_bad:
                raise VqhpsError(f"{error}; --skip-bad leaves such files out") from None
            skipped.append(str(error))
            log.warning("left out: %s", error)


def _read(path: Path, rate: float) -> _Clip:
    content = read_npz(path, ("poses", "betas", "gender", "mocap_framerate", "mocap_frame_rate"))
    poses, betas = content.get("poses"), content.get("betas")
    fps = content.get("mocap_framerate", content.get("mocap_frame_rate"))
    for name, value in (("poses", poses), ("betas", betas), ("mocap_framerate", fps)):
        if value is None or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
            raise VqhpsError(f"{path}: no numbers '{name}', or not finite")
    assert poses is not None and betas is not None and fps is not None
    if poses.ndim != 2 or poses.shape[1] not in _KINDS or betas.size < 10:
        raise VqhpsError(
            f"{path}: 'poses' is {poses.shape} and 'betas' {betas.shape}; need (T, 156 or 165) and (10 or more,)"
        )
    if not len(poses) or not float(fps) > 0:
        raise VqhpsError(f"{path}: {len(poses)} poses at {float(fps)} a second")
    gender = str(np.asarray(content.get("gender", "neutral")).astype(str))  # some files hold bytes
    if gender not in ("neutral", "female", "male"):
        raise VqhpsError(f"{path}: gender '{gender}'; need neutral, female or male")
    step = max(1, round(float(fps) / rate))
    return _Clip(path, _KINDS[poses.shape[1]], gender, poses[::step], betas.ravel()[:10])  # type: ignore[arg-type]


def _meshes(body: SMPLBody, clip: _Clip) -> Iterator[Float[Tensor, "B V 3"]]:
    """Canonical meshes of a clip, a batch at a time."""
    bones = len(body.bone_names)
    shape = torch.from_numpy(clip.betas.astype(np.float32))
    for pose in np.array_split(clip.pose, -(-len(clip.pose) // _BATCH)):
        turned = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(len(pose), bones, 3, 3)
        turned[:, 0] = np.eye(3)
        yield canonical(body.forward(torch.from_numpy(turned).float(), shape.expand(len(pose), -1)))
