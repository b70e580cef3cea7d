"""CLEAR MOT and identity metrics against cases counted by hand."""

import numpy as np
import pytest

from vqhps.evaluation.tracking import Tracks, match

Row = tuple[int, int, float]  # frame, number, place


def tracks(rows: list[Row]) -> Tracks:
    """People 40 px wide and 100 px high whose left edges are at `place`."""
    frame, person, place = (np.array(column) for column in zip(*sorted(rows), strict=True))
    box = place[:, None] + np.array([0.0, 0, 40, 0]) * [1, 0, 1, 0]
    box = np.stack([place, np.zeros_like(place), place + 40, np.full_like(place, 100)], 1)
    joints = np.random.default_rng(0).uniform(0, 40, (17, 2))
    return Tracks(frame.astype(int), person.astype(int), box, place[:, None, None] * [1.0, 0.0] + joints)


def both(frames: range, numbers: tuple[int, int] = (0, 1)) -> list[Row]:
    return [(f, n, 200.0 * i + f) for f in frames for i, n in enumerate(numbers)]


TRUE = tracks(both(range(10)))
ALL = np.ones(20, bool)


def test_numbers_alone_do_not_matter() -> None:
    found = match(TRUE, tracks(both(range(10), (7, 3))), ALL)
    assert found.scores == {"MOTA": 1.0, "IDF1": 1.0, "recall": 1.0, "precision": 1.0}
    assert found.switches == 0 and not found.extra.any()


def test_swapped_numbers() -> None:
    """Two switches among 20 people in frames; each track is right half of the time."""
    found = match(TRUE, tracks(both(range(5)) + both(range(5, 10), (1, 0))), ALL)
    assert found.switches == 2
    assert found.scores == pytest.approx({"MOTA": 0.9, "IDF1": 0.5, "recall": 1.0, "precision": 1.0})


def test_misses_and_extra_people() -> None:
    """Four people missed, three that are nobody: (20 - 4 - 3) / 20, and 2 x 16 / (20 + 19)."""
    rows = [row for row in both(range(10)) if row[1] == 0 or row[0] >= 4]
    found = match(TRUE, tracks([*rows, *((f, 9, 900.0) for f in range(3))]), ALL)
    assert found.extra.sum() == 3 and (found.found == -1).sum() == 4
    wanted = {"MOTA": 13 / 20, "IDF1": 32 / 39, "recall": 0.8, "precision": 16 / 19}
    assert found.scores == pytest.approx(wanted) and found.switches == 0


def test_who_comes_back_under_another_number_is_switched() -> None:
    true = tracks([(f, 0, 0.0) for f in range(10)])
    found = match(true, tracks([(f, 1 if f < 4 else 2, 0.0) for f in range(10) if f != 4]), np.ones(10, bool))
    assert found.switches == 1
    assert found.scores == pytest.approx(
        {"MOTA": 1 - 2 / 10, "IDF1": 2 * 5 / (10 + 9), "recall": 0.9, "precision": 1.0}
    )


def test_who_was_matched_stays_matched() -> None:
    """Number 2 comes nearer to the person than number 1, which is still near enough: no switch."""
    rows = [(f, 1, 3.0) for f in range(4)] + [(f, 2, 1.0) for f in range(2, 4)]
    found = match(tracks([(f, 0, 0.0) for f in range(4)]), tracks(rows), np.ones(4, bool))
    assert found.switches == 0 and found.extra.sum() == 2
    assert found.scores == pytest.approx({"MOTA": 0.5, "IDF1": 0.8, "recall": 1.0, "precision": 4 / 6})


def test_too_far_is_no_match() -> None:
    """An IoU of a third is enough, one of 0.29 is not; near key points are enough without any box."""
    true = tracks([(0, 0, 0.0)])
    for place, hit in ((20.0, True), (22.0, False)):
        assert (match(true, tracks([(0, 0, place)]), np.ones(1, bool)).found[0] == 0) == hit
    near = tracks([(0, 0, 0.0)])
    boxless = Tracks(near.frame, near.person, np.zeros((1, 4)), near.joints2d)
    assert match(true, boxless, np.ones(1, bool)).found[0] == 0


def test_hidden_people_need_not_be_found() -> None:
    """Whoever is hidden and missed costs nothing; whoever is hidden and found is no extra person."""
    counted = np.ones(20, bool)
    counted[[4, 5, 6]] = False  # both people of frame 2, the first of frame 3
    rows = [row for row in both(range(10)) if row not in ((2, 0, 2.0), (3, 0, 3.0))]
    found = match(TRUE, tracks(rows), counted)
    assert found.scores == {"MOTA": 1.0, "IDF1": 1.0, "recall": 1.0, "precision": 1.0}
    swapped = tracks(both(range(3)) + both(range(3, 10), (1, 0)))
    hidden = np.ones(20, bool)
    hidden[6:10] = False
    assert match(TRUE, swapped, hidden).switches == 2  # seen again two frames later, under other numbers
    back = tracks(both(range(3)) + both(range(3, 5), (1, 0)) + both(range(5, 10)))
    assert match(TRUE, back, hidden).switches == 0
