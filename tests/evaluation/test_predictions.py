"""Other systems' results from files: the same numbers as from arrays, whatever the order; bad files are named."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from published_files import smpl_arrays
from vqhps.body.anny import anny_body
from vqhps.body.joints import H36M17_TO_14
from vqhps.body.smpl import SMPLBody
from vqhps.cli import main
from vqhps.errors import VqhpsError
from vqhps.evaluation.metrics import confidence_interval
from vqhps.evaluation.predictions import beside_published, evaluate_predictions, published_rows
from vqhps.evaluation.protocols import PROTOCOLS, mesh_errors
from vqhps.evaluation.run import summarise

RNG = np.random.default_rng(0)
NAMES = np.array([f"clip{i // 3}/frame{i % 3}" for i in range(70)])


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def smpl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bodies")
    np.savez(folder / "SMPL_NEUTRAL.npz", **smpl_arrays(6890))
    np.save(folder / "J_regressor_h36m.npy", RNG.dirichlet(np.ones(6890), 17))
    return folder


def test_meshes_in_any_order(tmp_path: Path, smpl: Path) -> None:
    true = RNG.normal(0, 0.3, (70, 6890, 3)).astype(np.float32)
    found = true + RNG.normal(0, 0.03, true.shape).astype(np.float32)
    order = RNG.permutation(70)
    more = {"names": np.append(NAMES[order], "another"), "vertices": np.concatenate([found[order], true[:1]])}
    files = write(tmp_path / "a.npz", **more), write(tmp_path / "b.npz", names=NAMES, vertices=true)
    summary = evaluate_predictions(*files, tmp_path / "out", smpl)
    body = SMPLBody(smpl / "SMPL_NEUTRAL.npz")
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["sample"] for row in rows] == NAMES.tolist()
    for name in ("authors", "standard", "smpl24"):
        protocol = PROTOCOLS[name]
        regressor = body.joint_regressors[protocol.joint_set]
        for metric, errors in mesh_errors(protocol, found.astype(float), true.astype(float), regressor).items():
            assert summary[f"{name} {metric}"] == pytest.approx(errors.mean())
            np.testing.assert_allclose([float(row[f"{name} {metric}"]) for row in rows], errors, atol=1e-3)
            low, high = summary["interval_95"][f"{name} {metric}"]
            assert low < errors.mean() < high < low + 4 * errors.std() / 70**0.5 + 1e-3
    assert json.loads((tmp_path / "out" / "results.json").read_text())["samples"] == 70


def test_meshes_of_the_default_body(tmp_path: Path) -> None:
    """A rotated, scaled and shifted copy has no aligned error; a shift of 10 mm has no error at all once centred."""
    body = anny_body("full")
    true = np.stack([body.template * s for s in (1.0, 0.9)])
    turned = 1.2 * true @ Rotation.random(rng=RNG).as_matrix() + [0.0, 1.0, 5.0]
    truth = write(tmp_path / "b.npz", names=NAMES[:2], vertices=true)
    summary = evaluate_predictions(write(tmp_path / "a.npz", names=NAMES[:2], vertices=turned), truth)
    metrics = {f"{p} {m}" for p in ("authors", "standard") for m in ("PVE", "PA-PVE", "MPJPE", "PA-MPJPE")}
    assert set(summary) == metrics | {"interval_95", "samples"}
    assert summary["authors PA-PVE"] < 1e-3 < 100 < summary["authors PVE"]
    shifted = write(tmp_path / "c.npz", names=NAMES[:2], vertices=true + [0.006, 0.0, 0.008])
    assert max(v for k, v in evaluate_predictions(shifted, truth).items() if k in metrics) < 1e-3


@pytest.mark.parametrize(("count", "protocol"), [(17, "standard"), (24, "smpl24")])
def test_joints_alone_give_what_they_can(tmp_path: Path, count: int, protocol: str) -> None:
    true = RNG.normal(0, 0.3, (70, count, 3))
    found = true + RNG.normal(0, 0.03, true.shape)
    files = write(tmp_path / "a.npz", names=NAMES, joints=found), write(tmp_path / "b.npz", names=NAMES, joints=true)
    summary = evaluate_predictions(*files)
    assert set(summary) == {f"{protocol} MPJPE", f"{protocol} PA-MPJPE", "interval_95", "samples"}
    rows = list(H36M17_TO_14) if count == 17 else list(range(24))
    hips = [0] if count == 17 else [1, 2]
    apart = (found - found[:, hips].mean(1)[:, None] - true + true[:, hips].mean(1)[:, None])[:, rows]
    assert summary[f"{protocol} MPJPE"] == pytest.approx(1000 * np.linalg.norm(apart, axis=2).mean())


def test_what_does_not_fit_is_said(tmp_path: Path, smpl: Path) -> None:
    joints = np.zeros((3, 17, 3))
    good = write(tmp_path / "good.npz", names=NAMES[:3], joints=joints)
    cases: list[tuple[dict[str, np.ndarray], str]] = [
        ({"joints": joints}, "needs 'names'"),
        ({"names": NAMES[:3]}, "needs 'names'"),
        ({"names": NAMES[[0, 0, 1]], "joints": joints}, "found 2 of 3"),
        ({"names": NAMES[:4], "joints": joints}, r"'joints' is float64 \(3, 17, 3\), not \(4, n, 3\)"),
        ({"names": NAMES[:3], "joints": np.where(np.arange(3)[:, None, None] == 1, np.nan, joints)}, "finite in 1 sam"),
        ({"names": NAMES[:3], "joints": joints[:, :16]}, "has 16 joints"),
        ({"names": NAMES[1:4], "joints": joints}, f"lacks 1 of 3 samples, the first is '{NAMES[0]}'"),
        ({"names": NAMES[:3], "joints": np.zeros((3, 24, 3))}, "neither meshes nor the same joints"),
        ({"names": NAMES[:3], "vertices": np.zeros((3, 50, 3))}, "neither meshes nor the same joints"),
        ({"names": NAMES[:3], "joints": np.array([{}] * 3)}, "no .npz of plain arrays"),
    ]
    for arrays, message in cases:
        with pytest.raises(VqhpsError, match=message) as error:
            evaluate_predictions(write(tmp_path / "bad.npz", **arrays), good)
        assert "\n" not in str(error.value)
    few, many = (write(tmp_path / f"{n}.npz", names=NAMES[:3], vertices=np.zeros((3, n, 3))) for n in (50, 60))
    with pytest.raises(VqhpsError, match=r"50 vertices, .*60\.npz 60: they must be the same"):
        evaluate_predictions(few, many)
    with pytest.raises(VqhpsError, match="50 vertices are neither"):
        evaluate_predictions(few, few)
    (tmp_path / "half.npz").write_bytes(good.read_bytes()[:200])
    with pytest.raises(VqhpsError, match=r"half\.npz is damaged"):
        evaluate_predictions(tmp_path / "half.npz", good)
    with pytest.raises(VqhpsError, match="cannot read"):
        evaluate_predictions(tmp_path / "none.npz", good)


def test_the_command_prints_published_results_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write(tmp_path / f"{n}.npz", names=NAMES[:3], joints=RNG.normal(size=(3, 17, 3)))) for n in "ab"]
    assert main(["evaluate", "predictions", files[0], "--truth", files[1], "--dataset", "3dpw-test"]) == 0
    printed = capsys.readouterr().out
    assert '"standard MPJPE"' in printed
    assert [line.split()[-3:] for line in printed.splitlines() if "VQ-HPS (HRNet-W48)" in line] == [
        ["84.8", "71.1", "45.2"]
    ]
    assert main(["evaluate", "predictions", files[0], "--truth", files[1], "--dataset", "mars"]) == 2
    assert "no published results on 'mars'; there are some on 3dpw-test, emdb1" in capsys.readouterr().err
    lines = beside_published({"authors PVE": 90.04, "authors MPJPE": 80.0}, "emdb1", "mine").splitlines()
    assert lines[1].split() == ["mine", "authors", "90.0", "80.0", "-"]
    assert len(lines) == 2 + len(published_rows("emdb1"))


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    """95 of 100 times, and as wide as that of a normal mean; for ratios of sums likewise."""
    rng = np.random.default_rng(1)
    draws = rng.exponential(2.0, (200, 150))
    inside = [low < 2.0 < high for low, high in (confidence_interval(row, resamples=300) for row in draws)]
    assert 0.87 < np.mean(inside) < 0.99
    low, high = confidence_interval(rng.normal(5.0, 1.0, 4000))
    assert high - low == pytest.approx(2 * 1.96 / 4000**0.5, rel=0.1)
    labelled = rng.integers(1, 18, 500).astype(float)
    low, high = confidence_interval(rng.binomial(labelled.astype(int), 0.7).astype(float), labelled)
    assert low < 0.7 < high and high - low == pytest.approx(2 * 1.96 * (0.21 / labelled.sum()) ** 0.5, rel=0.15)
    table = {"a": np.array([1.0, 3.0]), "correct@0.1": np.array([1.0, 2.0]), "labelled": np.array([4.0, 2.0])}
    summary = summarise(table)
    assert summary["a"] == 2 and summary["PCK@0.1"] == 0.5 and summary["interval_95"]["a"] == [1.0, 3.0]
