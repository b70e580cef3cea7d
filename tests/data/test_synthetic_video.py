"""Rendered videos: truth that agrees with the pixels, people who cross and stand on the ground, files without seams."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shared import DATA, needs_data
from vqhps.body.anny import anny_body
from vqhps.data.mocap import MOCAP_TEST_SUBJECTS
from vqhps.data.synthetic import video
from vqhps.data.synthetic.motion import JOIN, Motion, Track, fold
from vqhps.data.synthetic.renderer import eight_bits
from vqhps.data.synthetic.stage import EYE_HEIGHT, Props, load_props, look
from vqhps.data.synthetic.video import Film, VideoSettings, prepare_synthetic_video
from vqhps.errors import VqhpsError

SMALL = VideoSettings(people=3, seconds=1.0, fps=8, size=(160, 90), seed=2)


@pytest.fixture(scope="module")
def props() -> Props:
    return load_props(DATA, "test")


@pytest.fixture
def written(props: Props, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    monkeypatch.setattr(video, "load_props", lambda *_: props)
    path = prepare_synthetic_video(tmp_path, DATA, "test", SMALL)
    with np.load(path.with_name("clip-3-2.truth.npz"), allow_pickle=False) as table:
        return dict(table)


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@needs_data
def test_truth_is_consistent(written: dict[str, np.ndarray]) -> None:
    """Joints project to their pixels and come out of the body model."""
    assert written["frames"] == 8 and written["size"].tolist() == [160, 90] and len(written["frame"]) == 24
    assert written["frame"].tolist() == np.repeat(range(8), 3).tolist() and written["person"][:4].tolist() == [
        0,
        1,
        2,
        0,
    ]
    assert np.allclose(written["time"], written["frame"] / 8)
    joints = written["joints"].astype(float)
    pixels = joints[..., :2] / joints[..., 2:] * written["focal"] + written["size"] / 2
    assert np.abs(pixels - written["joints2d"]).max() < 0.01
    turns = Rotation.from_quat(written["pose"].reshape(-1, 4).astype(float), scalar_first=True).as_matrix()
    body, shape = anny_body("full"), torch.from_numpy(written["shape"][written["person"]])
    vertices = body.forward(torch.from_numpy(turns.reshape(-1, 31, 3, 3)).float(), shape).double().numpy()
    placed = vertices @ written["rotation"].transpose(0, 2, 1) + written["translation"][:, None]
    assert np.abs(body.joint_regressors["coco17"] @ placed - joints).max() < 5e-3
    low, high = pixels.min(1).clip(0, [160, 90]), pixels.max(1).clip(0, [160, 90])
    assert (written["box"][:, :2] <= low + 1).all() and (written["box"][:, 2:] >= high - 1).all()


@needs_data
def test_people_are_where_the_truth_says(props: Props) -> None:
    film = Film(props, SMALL)
    image, rows = film.frame(0)
    changed = (np.abs(image.astype(int) - eight_bits(film.backdrop)) > 2).any(-1)
    outside = np.ones_like(changed)
    for row in rows:
        left, top, right, bottom = row["box"].round().astype(int)
        assert changed[top:bottom, left:right].mean() > 0.25
        outside[max(top - 1, 0) : bottom + 2, max(left - 1, 0) : right + 2] = False
    level = int(film.camera.project((film.camera.rotation @ [0, 0, -1.0])[None])[0, 1])
    assert not changed[:level][outside[:level]].any()  # above the horizon; below it lie the shadows
    assert changed[level:][outside[level:]].any()


@needs_data
def test_people_cross_in_mid_clip_and_touch_nobody(written: dict[str, np.ndarray]) -> None:
    middle = written["joints2d"][:, 11:13].mean((1, 2)).reshape(8, 3)
    place = written["joints2d"][:, 11:13, 0].mean(1).reshape(8, 3)
    assert (np.argsort(place[0]) != np.argsort(place[-1])).any()
    assert place[0, 0] < 80 < place[-1, 0] and place[0, 1] > 80 > place[-1, 1]
    assert np.ptp(place[4]) < 0.2 * np.ptp(place[[0, -1]])
    hidden = written["visible"].reshape(8, 3)
    assert hidden[4, 1:].min() < 0.3 < hidden[4, 0] and np.isfinite(middle).all()
    roots = written["translation"].reshape(8, 3, 3)
    apart = np.linalg.norm(roots[:, :, None] - roots[:, None], axis=-1)[:, [0, 0, 1], [1, 2, 2]]
    assert apart.min() > 0.8


@needs_data
@pytest.mark.parametrize("people", [1, 3])
def test_feet_are_on_the_ground(props: Props, people: int) -> None:
    film = Film(props, VideoSettings(people, 12.0, 4, (160, 90), 1))
    lowest = []
    for actor in film.actors:
        for time in np.arange(0, 12, 0.75):
            seen = look(actor, film.camera, time)
            lowest.append(float((seen.mesh.vertices @ film.camera.rotation[:, 1]).min()) + EYE_HEIGHT)
    assert np.abs(np.median(lowest)) < 0.02 and np.min(lowest) > -0.07
    assert people == 1 or np.max(lowest) < 0.05


@needs_data
def test_same_seed_gives_the_same_files(
    props: Props, written: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, other = tmp_path / "again", VideoSettings(**{**vars(SMALL), "seed": 3, "seconds": 0.25})
    for folder, settings in ((again, SMALL), (tmp_path, other)):
        prepare_synthetic_video(folder, DATA, "test", settings)
    for name in ("clip-3-2.mp4", "clip-3-2.truth.npz"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()
    with np.load(tmp_path / "clip-3-3.truth.npz") as table:
        assert np.abs(table["joints"][:6] - written["joints"][:6]).max() > 0.01
    assert sorted(p.suffix for p in again.iterdir()) == [".mp4", ".npz"]
    monkeypatch.setattr(video, "load_props", lambda *_: pytest.fail("rendered again"))
    prepare_synthetic_video(again, DATA, "test", SMALL)
    with pytest.raises(VqhpsError, match=r"frames, width, height, fps \(8, 160, 90, 8\), not \(16, 160, 90, 8\)"):
        prepare_synthetic_video(again, DATA, "test", VideoSettings(3, 2.0, 8, (160, 90), 2))


@needs_data
def test_repeated_video_has_no_seam(props: Props, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "load_props", lambda *_: props)
    path = prepare_synthetic_video(tmp_path, DATA, "test", VideoSettings(1, 2.0, 5, (160, 90), 0, repeat=3))
    frames = frames_of(path)
    assert len(frames) == 30 and path.name == "clip-1-0-x3.mp4"
    assert all((a == b).all() for a, b in zip(frames[:10], frames[20:], strict=True))
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert np.allclose(np.diff(times), 0.2)
    with np.load(path.with_name("clip-1-0-x3.truth.npz")) as table:
        assert table["frame"].tolist() == list(range(30)) and table["frames"] == 30
        steps = np.linalg.norm(np.diff(table["joints"], axis=0), axis=-1).mean(1)
        assert (table["joints"][3] == table["joints"][13]).all()
    assert steps[9] == steps[19] <= steps.max() and steps.max() < 1.0  # 9 to 10 is the seam


@needs_data
def test_only_held_out_people_move_in_the_test_split(props: Props) -> None:
    assert {m.name.removeprefix("cmu/").split("_")[0] for m in props.motions} <= set(MOCAP_TEST_SUBJECTS)


def test_forth_and_back_without_a_jolt() -> None:
    times = np.arange(0, 8, 0.01)
    places = np.array([fold(t, 2.0) for t in times])
    speed = np.diff(places) / 0.01
    assert places.min() == pytest.approx(0.2) and places.max() == pytest.approx(1.8)
    assert np.abs(speed).max() <= 1 + 1e-9 and np.abs(np.diff(speed)).max() < 0.03
    assert places[100] == pytest.approx(1.0) and places[300] == pytest.approx(1.0) and speed[300] < 0


def test_track_joins_sequences_smoothly() -> None:
    """Two sequences that begin at one place, the second turned by a quarter and higher."""
    bones = anny_body("coarse").bone_names
    still = np.tile([1.0, 0, 0, 0], (61, len(bones), 1))
    there = np.linspace(0, 1, 61)[:, None] * [1.0, 0, 0]
    first = Motion("a", still, there - [0.1, 0, 0])
    second = Motion("b", still, there - [0.1, 0, 0]).turned(np.pi / 2).moved(np.array([0, 0.1, 0]))
    track = Track([first, second])
    assert track.seconds == pytest.approx(2 * (4 + JOIN))
    times = np.arange(0, track.seconds, 0.02)
    states = [track.at(t) for t in times]
    root = np.array([s[2] for s in states])
    assert np.linalg.norm(np.diff(root, axis=0), axis=1).max() < 0.02 * 0.55
    facing = np.array([Rotation.from_matrix(s[1]).as_rotvec()[1] for s in states])
    assert np.abs(np.diff(facing)).max() < 0.02 * np.pi / 2 * 1.8
    assert facing[0] == pytest.approx(0) and facing[np.searchsorted(times, 7.0)] == pytest.approx(np.pi / 2)
    assert track.start(3) == pytest.approx(5 + 10)


def test_wrong_settings_are_one_clear_line(tmp_path: Path) -> None:
    cases = [({"people": 4}, "room for 1 to 3"), ({"size": (161, 90)}, "must be even"), ({"repeat": 0}, "too small")]
    for changes, message in [*cases, ({"seconds": 0.0}, "too small")]:
        with pytest.raises(VqhpsError, match=message) as error:
            prepare_synthetic_video(tmp_path, DATA, "test", VideoSettings(**changes))
        assert "\n" not in str(error.value)
    with pytest.raises(VqhpsError, match="no clothes"):
        prepare_synthetic_video(tmp_path, tmp_path, "test", VideoSettings())
