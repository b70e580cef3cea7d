"""What smoothing does to motion that is known: straight lines, turns, gaps, noise."""

import itertools

import numpy as np
import pytest

from vqhps.runtime.smooth import Table, smooth


def turn_y(angles: np.ndarray) -> np.ndarray:
    c, s, o, i = np.cos(angles), np.sin(angles), np.zeros_like(angles), np.ones_like(angles)
    return np.stack([np.stack(r, -1) for r in ((c, o, s), (o, i, o), (-s, o, c))], -2)


def table(frames, positions, angles=None, shapes=None, person=0, fps=25.0) -> Table:
    """One person whose 17 joints and 3 vertices lie at `shapes` (N,) on the body's x axis."""
    frames, count = np.asarray(frames), len(frames)
    rotation = turn_y(np.zeros(count) if angles is None else np.asarray(angles, float))
    translation = np.stack([positions, np.zeros(count), np.full(count, 5.0)], -1)
    shapes = np.zeros(count) if shapes is None else np.asarray(shapes, float)
    body = np.zeros((count, 17, 3))
    body[..., 0] = shapes[:, None] + np.arange(17) / 10
    rows = {
        "frame": frames.astype(np.int32), "time": frames / fps, "person": np.full(count, person, np.int32),
        "rotation": rotation.astype(np.float32), "translation": translation.astype(np.float32),
        "joints": (body @ rotation.transpose(0, 2, 1) + translation[:, None]).astype(np.float32),
        "vertices": body[:, :3].astype(np.float16), "score": frames * 1.0,
    }  # fmt: skip
    stop = int(frames.max()) + 1
    return Table(0, np.arange(stop) / fps, rows)


def run(kind: str, *tables: Table) -> dict[str, np.ndarray]:
    parts = list(smooth(tables, kind))
    assert parts[0].start == 0 and all(a.stop == b.start for a, b in itertools.pairwise(parts))
    assert parts[-1].stop == tables[-1].stop
    return {name: np.concatenate([p.rows[name] for p in parts]) for name in tables[0].rows}


def test_moving_average_has_ten_frames_and_no_lag():
    positions = np.zeros(41)
    positions[20] = 1
    smoothed = run("average", table(range(41), positions))["translation"][:, 0]
    expected = np.zeros(41)
    expected[16:25], expected[[15, 25]] = 0.1, 0.05
    assert np.allclose(smoothed, expected, atol=1e-6)


@pytest.mark.parametrize(("fps", "reach"), [(1, 0), (4, 1), (12, 3), (20, 5)])
def test_moving_average_of_few_frames_a_second_has_half_a_second(fps, reach):
    positions = np.zeros(41)
    positions[20] = 1
    smoothed = run("average", table(range(41), positions, fps=fps))["translation"][:, 0]
    assert np.flatnonzero(smoothed > 1e-6).tolist() == list(range(20 - reach, 21 + reach))
    assert smoothed.sum() == pytest.approx(1, abs=1e-5)


def test_straight_motion_and_even_turns_stay_as_they_are_to_the_ends():
    frames = np.arange(40)
    original = table(frames, frames * 0.03, frames * 0.2)  # more than a whole turn
    smoothed = run("average", original)
    for name in ("translation", "rotation", "joints", "vertices", "score", "frame"):
        assert np.allclose(smoothed[name], original.rows[name], atol=1e-5), name


@pytest.mark.parametrize("kind", ["average", "one-euro"])
def test_noise_shrinks_and_rotations_stay_rotations(kind):
    rng = np.random.default_rng(0)
    noisy = table(range(100), rng.normal(0, 0.01, 100), 3.1 + rng.normal(0, 0.1, 100), rng.normal(0, 0.01, 100))
    smoothed = run(kind, noisy)
    for name in ("translation", "joints", "vertices", "rotation"):
        before, after = (r[name].astype(float)[20:].std(0).max() for r in (noisy.rows, smoothed))
        assert after < 0.75 * before, name
    rotation = smoothed["rotation"].astype(float)
    assert np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-5)
    assert np.allclose(np.linalg.det(rotation), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["average", "one-euro"])
def test_nothing_is_carried_over_a_long_gap_or_between_people(kind):
    frames = [*range(10), *range(25, 40)]
    positions = np.where(np.array(frames) < 15, 0.0, 3.0)
    smoothed = run(kind, table(frames, positions))
    assert np.allclose(smoothed["translation"][:, 0], positions, atol=1e-6)
    one, two = table(range(20), np.zeros(20)), table(range(20), np.ones(20), person=1)
    order = np.argsort(np.concatenate([one.rows["frame"], two.rows["frame"]]), kind="stable")
    both = {name: np.concatenate([one.rows[name], two.rows[name]])[order] for name in one.rows}
    assert np.allclose(run(kind, Table(0, one.times, both))["translation"][:, 0], both["person"])


@pytest.mark.parametrize("kind", ["average", "one-euro", "none"])
def test_chunks_make_no_difference(kind):
    rng = np.random.default_rng(1)
    frames = [f for f in range(60) if f not in (13, 14, 33)]
    whole = table(frames, rng.normal(size=57), rng.normal(size=57), rng.normal(size=57))
    cuts = [0, 4, 5, 18, 40, 41, 60]
    parts = [whole.part(a, b) for a, b in itertools.pairwise(cuts)]
    assert sum(len(p.times) for p in parts) == 60
    once, often = run(kind, whole), run(kind, *parts)
    for name in once:
        assert np.allclose(once[name], often[name], atol=1e-6), name


def test_one_euro_knows_only_the_past_and_follows_fast_motion():
    frames = np.arange(50)
    calm, jump = np.zeros(50), np.where(frames < 30, 0.0, 1.0)
    assert np.array_equal(
        run("one-euro", table(frames, calm))["translation"][:30],
        run("one-euro", table(frames, jump))["translation"][:30],
    )
    assert run("one-euro", table(frames, jump))["translation"][36, 0] > 0.9
    slow = run("one-euro", table(frames, frames * 0.0004))["translation"][:, 0]  # 1 cm/s
    assert abs(slow[-1] - 49 * 0.0004) < 0.002


def test_none_is_untouched():
    original = table(range(5), np.arange(5) ** 2.0)
    assert next(iter(smooth([original], "none"))) is original
