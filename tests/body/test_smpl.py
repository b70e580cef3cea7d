"""SMPL from files in its published forms; made-up numbers, as the real ones may not be passed on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from published_files import smpl_arrays, write_smpl_pickle
from vqhps.body.smpl import SMPLBody, find_body_file
from vqhps.errors import VqhpsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **smpl_arrays())
    return tmp_path / "SMPL_NEUTRAL.npz"


def skinned(arrays: dict[str, np.ndarray], rotations: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """One body by the formulas of the paper, in 4 x 4 matrices and double precision."""
    shaped = arrays["v_template"] + arrays["shapedirs"] @ betas
    joints = arrays["J_regressor"] @ shaped
    posed = shaped + arrays["posedirs"] @ (rotations[1:] - np.eye(3)).ravel()
    world = []
    for bone, parent in enumerate(arrays["kintree_table"][0].astype(np.int64)):
        local = np.eye(4)
        local[:3, :3] = rotations[bone]
        local[:3, 3] = joints[bone] - (joints[parent] if bone else 0)
        world.append(world[parent] @ local if bone else local)
    skin = [w @ np.block([[np.eye(3), -j[:, None]], [np.zeros(3), 1]]) for w, j in zip(world, joints, strict=True)]
    blend = np.einsum("vk,kij->vij", arrays["weights"], np.stack(skin))
    homogeneous = np.concatenate([posed, np.ones((len(posed), 1))], 1)
    return np.einsum("vij,vj->vi", blend, homogeneous)[:, :3] - joints[0]


def test_bodies_are_those_of_the_paper(file: Path) -> None:
    body, arrays = SMPLBody(file), smpl_arrays()
    rng = np.random.default_rng(1)
    rotations = Rotation.from_rotvec(rng.normal(0, 0.5, (3 * 24, 3))).as_matrix().reshape(3, 24, 3, 3)
    betas = body.sample_shape(3, rng)
    found = body.forward(torch.from_numpy(rotations).float(), torch.from_numpy(betas))
    for i in range(3):
        np.testing.assert_allclose(found[i], skinned(arrays, rotations[i], betas[i]), atol=1e-5)
    none = body.forward(torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10))[0]
    np.testing.assert_allclose(none, body.template, atol=1e-6)
    np.testing.assert_allclose(body.template + body.root, arrays["v_template"], atol=1e-6)


def test_the_root_turns_the_whole_body_about_the_origin(file: Path) -> None:
    body = SMPLBody(file)
    pose = torch.eye(3).repeat(1, 24, 1, 1)
    turn = torch.from_numpy(Rotation.from_rotvec([0.3, -1.0, 0.2]).as_matrix()).float()
    pose[:, 0] = turn
    still = body.forward(torch.eye(3).expand(1, 24, 3, 3), torch.ones(1, 10))
    torch.testing.assert_close(body.forward(pose, torch.ones(1, 10)), still @ turn.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_published_pickle_is_the_same_body(file: Path, protocol: int) -> None:
    write_smpl_pickle(file.with_suffix(".pkl"), smpl_arrays(), protocol)
    a, b = SMPLBody(file), SMPLBody(file.with_suffix(".pkl"))
    pose, shape = torch.eye(3).expand(1, 24, 3, 3), torch.ones(1, 10)
    assert torch.equal(a.forward(pose, shape), b.forward(pose, shape))
    assert a.name == b.name == "smpl" and a.bone_names[16] == "left_shoulder" and a.bone_parents[:4] == (-1, 0, 0, 0)


def test_human36m_joints_come_right_leg_first(file: Path) -> None:
    assert "h36m17" not in SMPLBody(file).joint_regressors
    rows = np.eye(17, 240, dtype=np.float32)
    np.save(file.with_name("J_regressor_h36m.npy"), rows)
    found = SMPLBody(file).joint_regressors["h36m17"]
    assert found.argmax(1).tolist() == [0, 4, 5, 6, 1, 2, 3, *range(7, 17)]
    np.save(file.with_name("J_regressor_h36m.npy"), rows[:, :-1])
    with pytest.raises(VqhpsError, match=r"J_regressor_h36m\.npy is \(17, 239\); this body needs \(17, 240\)"):
        SMPLBody(file)


def test_coco_joints_on_the_real_number_of_vertices(tmp_path: Path) -> None:
    arrays = smpl_arrays(6890)
    np.savez(tmp_path / "a.npz", **arrays)
    body = SMPLBody(tmp_path / "a.npz")
    joints = body.joint_regressors["coco17"] @ (body.template + body.root)
    np.testing.assert_allclose(joints[1], arrays["v_template"][2800], atol=1e-6)  # the left eye is one vertex
    wanted = [body.bone_names.index(n) for n in ("left_shoulder", "right_ankle")]
    np.testing.assert_allclose(joints[[5, 16]], (arrays["J_regressor"] @ arrays["v_template"])[wanted], atol=1e-5)


def test_where_files_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VQHPS_BODY_MODELS", str(tmp_path / "env"))
    with pytest.raises(VqhpsError) as error:
        find_body_file("smpl", folder=tmp_path / "mine")
    assert "register at https://smpl.is.tue.mpg.de" in str(error.value) and "\n" not in str(error.value)
    assert f"put it at {tmp_path / 'mine' / 'smpl' / 'SMPL_NEUTRAL.npz'}" in str(error.value)
    places = [
        tmp_path / "config" / "vqhps" / "body_models" / "smpl" / "SMPL_NEUTRAL.npz",
        tmp_path / "env" / "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl",
        tmp_path / "mine" / "smpl" / "SMPL_NEUTRAL.pkl",
    ]
    for place in places:  # each is found before those written earlier
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        assert find_body_file("smpl", folder=tmp_path / "mine") == place
    with pytest.raises(VqhpsError, match="no SMPLX body"):
        find_body_file("smplx", "female")
    (tmp_path / "env" / "smplh" / "male").mkdir(parents=True)
    (tmp_path / "env" / "smplh" / "male" / "model.npz").touch()
    assert find_body_file("smplh", "male").name == "model.npz"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", None, "no array 'weights'"),
        ("v_template", np.zeros((240, 2)), r"'v_template' is \(240, 2\)"),
        ("v_template", np.full((240, 3), np.nan), "'v_template' is not what it should be"),
        ("J_regressor", np.zeros((23, 240)), "no body of the SMPL family has"),
        ("shapedirs", np.zeros((240, 3, 4)), r"'shapedirs' is \(240, 3, 4\)"),
        ("f", np.full((9, 3), 240), "names a vertex beyond 240"),
        ("kintree_table", np.full((2, 24), 23), "does not come after its parent"),
    ],
)
def test_what_is_no_body_is_named(tmp_path: Path, name: str, value: np.ndarray | None, message: str) -> None:
    arrays = {**smpl_arrays(), name: value}
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    with pytest.raises(VqhpsError, match=message):
        SMPLBody(tmp_path / "a.npz")


def test_pickled_dictionaries_beside_the_arrays_are_not_looked_at(file: Path) -> None:
    """SMPL-X's `.npz` has some; an array that is needed must be plain."""
    beside = np.array({"Pelvis": 0}, object)
    np.savez(file, **smpl_arrays(), joint2num=beside)  # type: ignore[arg-type]
    assert SMPLBody(file).name == "smpl"
    np.savez(file, **{**smpl_arrays(), "weights": beside})  # type: ignore[arg-type]
    with pytest.raises(VqhpsError, match=r"no \.npz of plain arrays"):
        SMPLBody(file)


def test_a_truncated_file_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(VqhpsError, match=r"SMPL_NEUTRAL\.npz is damaged or no \.npz"):
        SMPLBody(file)
