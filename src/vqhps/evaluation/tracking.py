"""How well people are followed through a video: who is matched with whom, CLEAR MOT and identity metrics."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

_OVERLAP = 0.3
_NEAR = 0.15  # of the diagonal of the true box


@dataclass(frozen=True)
class Tracks:
    """People in a video, a row a person and frame, sorted by frame.

    Attributes:
        frame: (N,) its number.
        person: (N,) who it is.
        box: (N,4) xyxy px.
        joints2d: (N,17,2) px.
    """

    frame: Int[np.ndarray, "N"]
    person: Int[np.ndarray, "N"]
    box: Float[np.ndarray, "N 4"]
    joints2d: Float[np.ndarray, "N 17 2"]


@dataclass(frozen=True)
class Matches:
    """Which rows belong together.

    Attributes:
        found: (N,) row of the prediction for each row of the truth, -1 where there is none.
        extra: (M,) rows of the prediction that belong to nobody.
        switches: how often a true person comes back, or goes on, under another number.
        scores: MOTA, IDF1, recall and precision.
    """

    found: Int[np.ndarray, "N"]
    extra: Bool[np.ndarray, "M"]
    switches: int
    scores: dict[str, float]


def match(true: Tracks, found: Tracks, counted: Bool[np.ndarray, "N"]) -> Matches:
    """Match people frame by frame and score that.

    A pair may match if its boxes overlap by an IoU of 0.3, or if its key points are 0.15 box diagonals or less apart on
    average. As in CLEAR MOT (Bernardin and Stiefelhagen, 2008) who was matched stays so while that is allowed; the
    others are matched such that their key points are nearest (Hungarian method). A switch is a true person whose number
    is not the one it had when it was last matched. MOTA = 1 - (misses + extra + switches) / true. IDF1 (Ristani et al.,
    2016) is over the one-to-one match of whole tracks that agrees most often.

    Args:
        true: the truth.
        found: the prediction.
        counted: rows of the truth that have to be found; the others, and what is matched to them, count for nothing.
    """
    rows = np.full(len(true.frame), -1)
    allowed_pairs: list[tuple[int, int]] = []
    number: dict[int, int] = {}  # of each true person when it was last matched
    owner: dict[int, int] = {}
    switches = 0
    for t, p in _frames(true.frame, found.frame):
        cost, allowed = _costs(true, found, t, p)
        allowed_pairs += [(t[i], p[j]) for i, j in np.argwhere(allowed)]
        for i, j in _assign(cost, allowed, true.person[t], found.person[p], number, owner):
            rows[t[i]] = p[j]
            who, which = int(true.person[t[i]]), int(found.person[p[j]])
            if counted[t[i]]:
                switches += number.get(who, which) != which
                number[who], owner[which] = which, who
    ignored = np.zeros(len(found.frame), bool)
    ignored[rows[~counted & (rows >= 0)]] = True
    extra = np.ones(len(found.frame), bool)
    extra[rows[rows >= 0]] = False
    pairs = [(t, p) for t, p in allowed_pairs if counted[t] and not ignored[p]]
    total, hits = int(counted.sum()), int((counted & (rows >= 0)).sum())
    agree, said = _agreeing(true.person, found.person, pairs), int((~ignored).sum())
    scores = {
        "MOTA": 1 - (total - hits + int(extra.sum()) + switches) / max(total, 1),
        "IDF1": 2 * agree / max(total + said, 1),
        "recall": hits / max(total, 1),
        "precision": hits / max(hits + int(extra.sum()), 1),
    }
    return Matches(rows, extra, switches, scores)


def _frames(a: Int[np.ndarray, "N"], b: Int[np.ndarray, "M"]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Rows of each frame that both have."""
    for frame in np.intersect1d(a, b):
        ends = (np.searchsorted(x, [frame, frame + 1]) for x in (a, b))
        yield tuple(np.arange(*end) for end in ends)  # type: ignore[misc]


def _costs(
    true: Tracks, found: Tracks, t: Int[np.ndarray, "T"], p: Int[np.ndarray, "P"]
) -> tuple[Float[np.ndarray, "T P"], Bool[np.ndarray, "T P"]]:
    """Mean distance of key points over the diagonal of the true box, and which pairs may match."""
    a, b = true.box[t][:, None], found.box[p][None]
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    both = sides.prod(-1)
    either = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    apart = np.linalg.norm(true.joints2d[t][:, None] - found.joints2d[p][None], axis=-1).mean(-1)
    cost = apart / np.linalg.norm(a[..., 2:] - a[..., :2], axis=-1).clip(1e-6)
    return cost, (both >= _OVERLAP * either) & (either > 0) | (cost <= _NEAR)


def _assign(
    cost: Float[np.ndarray, "T P"],
    allowed: Bool[np.ndarray, "T P"],
    people: Int[np.ndarray, "T"],
    numbers: Int[np.ndarray, "P"],
    number: dict[int, int],
    owner: dict[int, int],
) -> list[tuple[int, int]]:
    """Pairs of one frame: first those who belonged together before, then the nearest."""
    pairs = [
        (i, j)
        for i, j in np.argwhere(allowed).tolist()
        if number.get(int(people[i])) == numbers[j] and owner.get(int(numbers[j])) == people[i]
    ]
    free_t = [i for i in range(len(people)) if i not in {i for i, _ in pairs}]
    free_p = [j for j in range(len(numbers)) if j not in {j for _, j in pairs}]
    forbidden = 1e6
    rest = np.where(allowed, cost.clip(max=1e3), forbidden)[np.ix_(free_t, free_p)]
    for i, j in zip(*linear_sum_assignment(rest), strict=True):
        if rest[i, j] < forbidden:
            pairs.append((free_t[i], free_p[j]))
    return pairs


def _agreeing(people: Int[np.ndarray, "N"], numbers: Int[np.ndarray, "M"], pairs: list[tuple[int, int]]) -> int:
    """Most pairs of rows that one-to-one pairs of tracks can explain."""
    if not pairs:
        return 0
    t, p = np.array(pairs).T
    _, who = np.unique(people[t], return_inverse=True)
    _, which = np.unique(numbers[p], return_inverse=True)
    counts = np.zeros((who.max() + 1, which.max() + 1), int)
    np.add.at(counts, (who, which), 1)
    best = linear_sum_assignment(counts, maximize=True)
    return int(counts[best].sum())
