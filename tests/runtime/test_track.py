"""Who keeps which number: crossings, occlusions, false alarms, and states."""

import json

import numpy as np

from moving_people import PaintDetector, painted
from vqhps.runtime.detect import Detection
from vqhps.runtime.track import Tracker, assign, clothes

STEP = 0.24  # s from look to look
GREY = np.full((120, 160, 3), 90, np.uint8)


def box(x: float) -> np.ndarray:
    return np.array([x, 30.0, x + 30, 110.0])


def standing(x: float) -> Detection:
    return Detection(box=box(x), score=0.9)


def places(tracker: Tracker) -> dict[int | None, float]:
    return {track.person: round(float(track.box[0]), 1) for track in tracker.seen()}


def test_numbers_follow_people_who_cross_and_are_hidden():
    tracker, detector = Tracker(), PaintDetector()
    for look in range(14):
        red, blue = 4 + 9 * look, 125 - 9 * look
        image = painted({1: box(blue), 0: box(red)})  # red in front
        if 5 <= look <= 6:  # a wall hides the middle
            image[:, 35:125] = 90
        tracker.update(image, detector(image), look * STEP)
        if look > 8:
            assert places(tracker) == {0: red, 1: max(0, blue)}


def test_alike_people_swap_sides_and_keep_numbers():
    tracker = Tracker()
    for look in range(12):
        people = [standing(4 + 10 * look), standing(124 - 10 * look)]
        tracker.update(GREY, people[:1] if look == 6 else people, look * STEP)
    assert places(tracker) == {0: 114, 1: 14}


def test_who_is_seen_once_gets_no_number_and_who_was_away_for_long_a_new_one():
    tracker = Tracker()
    tracker.update(GREY, [standing(10), standing(100)], 0.0)
    assert places(tracker) == {None: 100.0} and tracker.numbers() == {}
    tracker.update(GREY, [standing(10)], STEP)
    assert places(tracker) == {0: 10}
    tracker.update(GREY, [], 2 * STEP)
    tracker.update(GREY, [standing(12)], 1.5)
    assert places(tracker) == {0: 12}
    tracker.update(GREY, [], 2.0)
    tracker.update(GREY, [], 4.0)
    for time in (5.0, 5.0 + STEP):
        tracker.update(GREY, [standing(12)], time)
    assert places(tracker) == {1: 12}


def test_following_bridges_what_the_detector_misses_but_takes_nobody_else():
    tracker, asked = Tracker(), []

    def follow(where: np.ndarray) -> Detection:
        asked.append(where)
        return standing(30)

    for look in range(2):
        tracker.update(GREY, [standing(10 + 10 * look)], look * STEP, follow)
    assert asked == []
    tracker.update(GREY, [], 2 * STEP, follow)
    assert places(tracker) == {0: 30} and 20 < asked[0][0] <= 30
    two = Tracker()
    for look in range(2):
        two.update(GREY, [standing(10), standing(32)], look * STEP)
    two.update(GREY, [standing(32)], 2 * STEP, lambda where: standing(31))  # finds the other one
    assert places(two) == {1: 32}


def test_state_goes_through_json():
    tracker, detector = Tracker(), PaintDetector()
    images = [painted({0: box(10 + 5 * i), 1: box(110 - 3 * i)}) for i in range(8)]
    for look in range(4):
        tracker.update(images[look], [*detector(images[look]), standing(60)], look * STEP)
    again = Tracker.restore(json.loads(json.dumps(tracker.state())))
    for look in range(4, 8):
        for each in (tracker, again):
            each.update(images[look], detector(images[look]), look * STEP)
    assert again.state() == tracker.state() and tracker.numbers()


def test_pairs_are_taken_by_falling_similarity():
    assert assign(np.array([[0.9, 0.8], [0.85, 0.05]])) == [(0, 0)]
    assert assign(np.array([[0.9, 0.8], [0.95, 0.2]])) == [(1, 0), (0, 1)]
    assert assign(np.zeros((0, 3))) == []


def test_clothes_by_colour_not_by_shadow():
    red, dark, blue = (clothes(painted({n: box(10)}) // s, box(10)) for n, s in ((0, 1), (0, 2), (1, 1)))
    assert np.sqrt(red * dark).sum() > np.sqrt(red * blue).sum()
    assert clothes(GREY, np.array([500.0, 0, 600, 50])).sum() == 1
