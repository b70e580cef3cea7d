"""Video metrics against cases that can be worked out: shifts, swaps, delays, trembling."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqhps.cli import main
from vqhps.errors import VqhpsError
from vqhps.evaluation.video import evaluate_video

FRAMES = 40
REST = np.random.default_rng(0).normal(0, 0.3, (17, 3))


def joints_at(frame: np.ndarray, speed: float = 0.01, sway: float = 0.2) -> np.ndarray:
    """(N,17,3) of somebody who walks at `speed` m/frame and swings all joints but the hips."""
    frame = np.asarray(frame, float)
    swing = sway * np.sin(2 * np.pi * frame / 25)[:, None, None] * np.linspace(-1, 1, 17)[None, :, None]
    swing[:, 11:13] = 0
    return REST + [0, 0, 5] + frame[:, None, None] * [speed, 0, 0] + swing * [1, 0.5, 0]


def table(people: dict[int, np.ndarray], rows: np.ndarray | None = None, **changes: Any) -> dict[str, np.ndarray]:
    """The arrays of a file: `people` maps a number to (F,17,3) joints, 2 m apart, of whom `rows` are kept."""
    frame = np.repeat(np.arange(FRAMES), len(people))
    person = np.tile(list(people), FRAMES)
    joints = np.stack(list(people.values()), 1).reshape(-1, 17, 3)
    pixels = 1000 * joints[..., :2] / joints[..., 2:] + [640, 360]
    box = np.concatenate([pixels.min(1), pixels.max(1)], 1)
    columns = {"frame": frame, "person": person, "joints": joints, "joints2d": pixels, "box": box}
    columns |= {"visible": np.ones(len(frame))} | changes
    if rows is not None:
        columns = {name: column[rows] for name, column in columns.items()}
    return columns | {"frames": np.int32(FRAMES), "fps": np.float64(25), "size": np.array([1280, 720])}


def score(tmp_path: Path, true: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, Any]:
    np.savez(tmp_path / "clip.truth.npz", **true)
    np.savez(tmp_path / "clip.npz", **found)
    return evaluate_video([tmp_path / "clip.npz"], tmp_path / "clip.truth.npz")["clip"]


TRUTH = joints_at(np.arange(FRAMES))


def test_a_shift_is_no_error_of_the_pose(tmp_path: Path) -> None:
    """10 mm for everything is none between the hips; 10 mm for all but the hips are 10 x 15 / 17."""
    shifted = score(tmp_path, table({0: TRUTH}), table({5: TRUTH + [0.006, 0, 0.008]}))
    assert shifted["mpjpe_mm"] == pytest.approx(0, abs=1e-6) and shifted["MOTA"] == shifted["IDF1"] == 1
    others = np.ones(17)
    others[11:13] = 0
    moved = score(tmp_path, table({0: TRUTH}), table({5: TRUTH + others[:, None] * [0.006, 0, 0.008]}))
    assert moved["mpjpe_mm"] == pytest.approx(150 / 17) and 0 < moved["pa_mpjpe_mm"] < 150 / 17
    assert moved["accel_mm"] == pytest.approx(0, abs=1e-6) and moved["jitter_mm"] == pytest.approx(
        moved["jitter_true_mm"]
    )
    assert moved["well visible"]["mpjpe_mm"] == moved["mpjpe_mm"]


def test_trembling(tmp_path: Path) -> None:
    """Joints that go 1 mm back and forth beside a steady walk: 4 mm of acceleration, 8 of jitter."""
    steady = joints_at(np.arange(FRAMES), sway=0)
    tremble = 0.001 * (-1.0) ** np.arange(FRAMES)[:, None, None] * [0, 1, 0]
    found = score(tmp_path, table({0: steady}), table({0: steady + tremble}))
    assert found["accel_camera_mm"] == pytest.approx(4) and found["jitter_camera_mm"] == pytest.approx(8)
    assert found["accel_mm"] == pytest.approx(0, abs=1e-6) == found["jitter_true_camera_mm"]
    alone = np.arange(17)[:, None] == 0
    found = score(tmp_path, table({0: steady}), table({0: steady + tremble * alone}))
    assert found["accel_mm"] == pytest.approx(4 / 17) and found["jitter_mm"] == pytest.approx(8 / 17)


@pytest.mark.parametrize("late", [2.0, 0.0, -3.0, 1.5])
def test_lag(tmp_path: Path, late: float) -> None:
    noise = np.random.default_rng(1).normal(0, 0.003, TRUTH.shape)
    found = score(tmp_path, table({0: TRUTH}), table({0: joints_at(np.arange(FRAMES) - late) + noise}))
    assert found["lag_frames"] == pytest.approx(late, abs=0.1)
    assert found["lag_camera_frames"] == pytest.approx(late, abs=0.1)


def test_motion_is_measured_along_one_track_only(tmp_path: Path) -> None:
    """Two people swap numbers, and one is not found in frame 30: no difference goes across either."""
    people = {0: TRUTH, 1: TRUTH + [2.0, 0, 0]}
    late = np.arange(FRAMES) >= 20
    numbers = np.where(np.repeat(late, 2), np.tile([1, 0], FRAMES), np.tile([0, 1], FRAMES))
    rows = np.delete(np.arange(2 * FRAMES), 61)
    true, found = table(people), table(people, rows, person=numbers)
    summary = score(tmp_path, true, found)
    assert summary["id_switches"] == 2 and summary["MOTA"] == pytest.approx(1 - 3 / 80)
    assert summary["accel_mm"] == pytest.approx(0, abs=1e-6)
    evaluate_video([tmp_path / "clip.npz"], tmp_path / "clip.truth.npz", tmp_path / "out")
    rows_out = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    accelerations = {row["sample"] for row in rows_out if row["accel_mm"] != "nan"}
    without = {f"{f}:{p}" for f in (0, 19, 20, 39) for p in (0, 1)} | {"29:1", "30:1", "31:1"}
    assert accelerations == {f"{f}:{p}" for f in range(FRAMES) for p in (0, 1)} - without
    assert next(row["found"] for row in rows_out if row["sample"] == "30:1") == "-1.0000"
    assert json.loads((tmp_path / "out" / "results.json").read_text())["id_switches"] == 2


def test_well_visible_people_are_scored_apart(tmp_path: Path) -> None:
    """Errors where a person is half hidden, or hidden, do not count among the well visible."""
    hidden = np.where(np.arange(FRAMES) < 10, 0.3, 1.0)
    hidden[0] = 0.0
    others = np.ones((17, 1))
    others[11:13] = 0
    found = TRUTH + 0.03 * others * (np.arange(FRAMES) < 10)[:, None, None]
    summary = score(tmp_path, table({0: TRUTH}, visible=hidden), table({0: found}))
    assert summary["mpjpe_mm"] == pytest.approx(9 / 39 * 30 * 3**0.5 * 15 / 17) and summary["people"] == 39
    assert summary["well visible"]["mpjpe_mm"] == pytest.approx(0, abs=1e-6)
    assert summary["well visible"]["people"] == 30 and summary["well visible"]["MOTA"] == 1


def test_several_predictions_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "clip.truth.npz", **table({0: TRUTH}))
    files = []
    for name, late in (("none", 0), ("moving-average", 2)):
        files.append(tmp_path / name / "clip.npz")
        files[-1].parent.mkdir()
        np.savez(files[-1], **table({0: joints_at(np.arange(FRAMES) - late)}))
    arguments = ["--truth", str(tmp_path / "clip.truth.npz"), "--predictions", *map(str, files)]
    assert main(["evaluate", "video", *arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    content, end = json.JSONDecoder().raw_decode(printed)
    assert list(content) == ["none/clip", "moving-average/clip"]
    assert [round(s["lag_frames"], 1) for s in content.values()] == [0, 2]
    lines = printed[end:].strip().splitlines()
    assert len(lines) == 6 and lines[2].startswith("moving-average/clip")
    assert float(lines[2].split()[-1]) == pytest.approx(2, abs=0.1)
    assert (tmp_path / "out" / "moving-average" / "clip" / "results.csv").is_file()


def test_nobody_found(tmp_path: Path) -> None:
    found = table({0: TRUTH}, np.zeros(0, int))
    summary = score(tmp_path, table({0: TRUTH}), found)
    assert summary["recall"] == summary["MOTA"] == summary["IDF1"] == 0
    assert summary["mpjpe_mm"] is summary["lag_frames"] is None


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    good = table({0: TRUTH})
    cases: list[tuple[dict[str, np.ndarray], str]] = [
        ({k: v for k, v in good.items() if k != "joints"}, "lacks joints"),
        (good | {"joints": good["joints"][:, :16]}, r"'joints' is float64 \(40, 16, 3\)"),
        (good | {"box": good["box"] * np.nan}, "'box' is not finite"),
        (good | {"frame": good["frame"] // 2}, "twice in one frame"),
        (good | {"fps": np.float64(30)}, "of a video of"),
    ]
    for arrays, message in cases:
        with pytest.raises(VqhpsError, match=message) as error:
            score(tmp_path, good, arrays)
        assert "\n" not in str(error.value)
    with pytest.raises(VqhpsError, match="cannot read"):
        evaluate_video([tmp_path / "no.npz"], tmp_path / "clip.truth.npz")
    with pytest.raises(VqhpsError, match="given twice"):
        evaluate_video([tmp_path / "clip.npz"] * 2, tmp_path / "clip.truth.npz")
