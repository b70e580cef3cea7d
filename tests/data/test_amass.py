"""Motions in the formats of AMASS and BEDLAM become meshes, of bodies made up here: real ones may not be passed on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from published_files import smpl_arrays
from vqhps.body.model import canonical
from vqhps.body.smpl import SMPLBody
from vqhps.cli import main
from vqhps.data.amass import prepare_amass
from vqhps.data.meshes import MeshFile
from vqhps.errors import VqhpsError


def motion(frames: int, width: int = 156, seed: int = 0, **changes: object) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    return {
        "poses": rng.normal(0, 0.3, (frames, width)), "betas": rng.normal(0, 1, 16), "gender": "female",
        "trans": rng.normal(0, 1, (frames, 3)), "mocap_framerate": 120.0, **changes,
    }  # fmt: skip


def write(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in content.items() if v is not None})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Body files of both kinds and two clips of AMASS."""
    for gender in ("FEMALE", "MALE"):
        arrays = {**smpl_arrays(60, seed=len(gender), bones=52), "f": smpl_arrays(60)["f"]}
        write(tmp_path / "bodies" / "smplh" / f"SMPLH_{gender}.npz", dict(arrays))
    write(tmp_path / "bodies" / "SMPLX_NEUTRAL.npz", dict(smpl_arrays(80, bones=55)))
    write(tmp_path / "amass" / "CMU" / "01" / "01_01_poses.npz", motion(250))
    write(tmp_path / "amass" / "KIT" / "a_poses.npz", motion(70, seed=1, gender=np.array(b"male"), mocap_framerate=60))
    write(tmp_path / "amass" / "CMU" / "01" / "shape.npz", {"betas": np.zeros(16)})
    return tmp_path


def test_meshes_are_those_of_the_poses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--root", folder / "amass", "--out", folder / "m.npz", "--body-models", folder / "bodies"]
    assert main(["prepare", "amass", *map(str, arguments), "--rate", "2"]) == 0
    assert "8 meshes of 2 clips, 0 files left out" in capsys.readouterr().out  # 250 / 60 and 70 / 30, rounded up
    written = MeshFile.open(folder / "m.npz")
    body = SMPLBody(folder / "bodies" / "smplh" / "SMPLH_MALE.npz")
    clip = motion(70, seed=1)
    pose = Rotation.from_rotvec(clip["poses"][30].reshape(-1, 3)).as_matrix()  # type: ignore[index]
    pose[0] = np.eye(3)
    betas = torch.from_numpy(clip["betas"][:10]).float()  # type: ignore[index]
    expected = canonical(body.forward(torch.from_numpy(pose)[None].float(), betas[None]))[0]
    np.testing.assert_allclose(written.vertices[6], expected, atol=1e-6)
    np.testing.assert_array_equal(written.faces, body.faces)
    assert not list(folder.glob(".m.npz*"))


def test_bedlam_is_of_another_body(folder: Path) -> None:
    write(folder / "bedlam" / "a.npz", motion(9, 165, gender="neutral", mocap_framerate=None, mocap_frame_rate=30))
    summary = prepare_amass(folder / "bedlam", folder / "x.npz", 30, folder / "bodies")
    assert (summary.meshes, summary.clips) == (9, 1)
    assert MeshFile.open(folder / "x.npz").vertices.shape == (9, 80, 3)
    write(folder / "amass" / "Z" / "bedlam.npz", motion(9, 165, gender="neutral"))
    with pytest.raises(VqhpsError, match=r"bedlam\.npz is of smplx, those before it of smplh"):
        prepare_amass(folder / "amass", folder / "y.npz", 1, folder / "bodies")
    assert not (folder / "y.npz").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 cut", "is damaged or no .npz"),
        (b"", "is damaged or no .npz"),
        (motion(5, poses=np.full((5, 156), np.nan)), "no numbers 'poses', or not finite"),
        (motion(5, 72), r"'poses' is \(5, 72\)"),
        (motion(5, betas=None), "no numbers 'betas'"),
        (motion(5, mocap_framerate=None), "no numbers 'mocap_framerate'"),
        (motion(5, mocap_framerate=0), "5 poses at 0.0 a second"),
        (motion(0), "0 poses at 120.0 a second"),
        (motion(5, gender="?"), r"gender '\?'"),
        (motion(5, poses=np.array([None], object)), "is damaged or no .npz|no numbers 'poses'"),
    ],
)
def test_bad_clips_are_named_or_left_out(folder: Path, content: bytes | dict[str, object], message: str) -> None:
    bad = folder / "amass" / "A" / "bad.npz"
    bad.parent.mkdir()
    if isinstance(content, bytes):
        bad.write_bytes(content)
    else:
        write(bad, content)
    with pytest.raises(VqhpsError, match=message) as error:
        prepare_amass(folder / "amass", folder / "m.npz", 1, folder / "bodies")
    assert "--skip-bad leaves such files out" in str(error.value) and str(bad) in str(error.value)
    summary = prepare_amass(folder / "amass", folder / "m.npz", 1, folder / "bodies", skip_bad=True)
    assert summary.clips == 2 and len(summary.skipped) == 1


def test_folders_without_motion(folder: Path) -> None:
    with pytest.raises(VqhpsError, match="no motion in"):
        prepare_amass(folder / "bodies" / "none", folder / "m.npz")
    with pytest.raises(VqhpsError, match="no SMPLH body"):
        prepare_amass(folder / "amass", folder / "m.npz", body_models=folder / "nowhere")
    write(folder / "bad" / "a.npz", motion(0))
    with pytest.raises(VqhpsError, match=r"nothing of .* could be used; first: .*0 poses"):
        prepare_amass(folder / "bad", folder / "m.npz", skip_bad=True)
