"""Real encoded files: containers, times, rotation, damage; image sequences and webcams."""

import wave

import cv2
import numpy as np
import pytest
from PIL import Image

from moving_people import HEIGHT, WIDTH, Capture, corners, encode, painted, turned
from vqhps.errors import VqhpsError
from vqhps.runtime.video import VideoFile, VideoWriter, Webcam, open_source


def noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mp4", "mpeg4"), ("a.mkv", "libx264"), ("a.mov", "mpeg4")]
)
def test_every_frame_of_any_container(tmp_path, name, codec):
    images = [painted({0: (10 + 6 * i, 20, 50 + 6 * i, 100)}) for i in range(12)]
    source = open_source(str(encode(tmp_path / name, images, 25, codec)))
    frames = list(source.frames())
    assert [f.index for f in frames] == list(range(12))
    assert np.allclose([f.time for f in frames], np.arange(12) / 25, atol=2e-3)
    assert source.stem == "a" and source.fps == pytest.approx(25, rel=0.1) and source.notes == []
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 8
    assert [f.index for f in source.frames(9)] == [9, 10, 11]
    assert np.array_equal(next(source.frames(9)).image, frames[9].image)


def test_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0.0, 0.04, 0.08, 0.5, 0.54, 1.5]
    source = open_source(str(encode(tmp_path / "a.mp4", [corners()] * 6, times=times)))
    assert np.allclose([f.time for f in source.frames()], times, atol=1e-3)


@pytest.mark.parametrize(
    ("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0)]
)
def test_phone_clips_are_upright(tmp_path, matrix, quarters):
    path = encode(tmp_path / "a.mp4", [corners()] * 2)
    image = next(open_source(str(turned(path, tmp_path / "b.mp4", matrix))).frames()).image
    expected = np.rot90(corners(), quarters)
    assert image.shape == expected.shape
    inner = np.s_[8:-8:20, 8:-8:20]
    assert np.abs(image[inner].astype(int) - expected[inner]).max() < 60


def test_cut_file_gives_what_can_be_decoded(tmp_path):
    whole = encode(tmp_path / "a.mkv", noise(30), codec="libx264").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    source = open_source(str(tmp_path / "cut.mkv"))
    frames = list(source.frames())
    assert 10 <= len(frames) <= 20
    assert len(source.notes) == 1 and "cut.mkv" in source.notes[0] and "\n" not in source.notes[0]


def test_damage_in_the_middle_costs_some_frames(tmp_path):
    content = bytearray(encode(tmp_path / "a.mkv", noise(30)).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    (tmp_path / "bad.mkv").write_bytes(content)
    assert 5 < len(list(open_source(str(tmp_path / "bad.mkv")).frames())) <= 30


def test_files_that_are_no_video(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello\n" * 50)
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    whole = encode(tmp_path / "whole.mp4", noise(5)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    expected = {"empty.mp4": "0 bytes", "text.mp4": "no video|no pictures", "sound.mp4": "no pictures, only sound"}
    expected |= {"cut.mp4": "cut off before its index", "missing.mp4": "does not exist"}
    for name, message in expected.items():
        with pytest.raises(VqhpsError, match=message) as error:
            open_source(str(tmp_path / name))
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_frames_beyond_a_limit_are_not_decoded(tmp_path):
    large = encode(tmp_path / "large.ts", [corners(1280, 720)] * 2)
    with pytest.raises(VqhpsError, match=r"large\.ts has frames of 1280 x 720 px, more than 0\.5 million pixels"):
        VideoFile(large, 500_000)
    with pytest.raises(VqhpsError, match=r"its frames have more than 0\.1 million pixels: not one can be decoded"):
        list(VideoFile(large, 100_000).frames())  # not even looked at for their size
    small = encode(tmp_path / "small.ts", [corners()] * 12)
    (tmp_path / "grows.ts").write_bytes(small.read_bytes() + large.read_bytes())
    source = VideoFile(tmp_path / "grows.ts", 100_000)
    assert len(list(source.frames())) == 12 and len(source.notes) == 1
    assert len(list(VideoFile(tmp_path / "grows.ts").frames())) == 14


def test_only_the_wanted_containers_are_opened(tmp_path):
    inside = encode(tmp_path / "a.ts", [corners()] * 3)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inside.name}\n#EXT-X-ENDLIST\n")
    assert len(list(VideoFile(playlist).frames())) == 3, "FFmpeg reads the file that this one names"
    with pytest.raises(VqhpsError, match="cannot be read"):
        VideoFile(playlist, formats=("mov", "mpegts"))
    assert len(list(VideoFile(inside, formats=("mov", "mpegts")).frames())) == 3


def test_image_sequences_in_natural_order(tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in (1, 2, 10):
        Image.fromarray(np.full((40, 60, 3), number * 20, np.uint8)).save(folder / f"{number}.png")
    for text in (str(folder), str(folder / "*.png")):
        source = open_source(text, fps=10)
        frames = list(source.frames())
        assert [int(f.image[0, 0, 0]) for f in frames] == [20, 40, 200]
        assert [f.time for f in frames] == [0, 0.1, 0.2] and source.stem == "shots" and source.total == 3
    Image.fromarray(np.zeros((41, 60, 3), np.uint8)).save(folder / "11.png")
    with pytest.raises(VqhpsError, match=r"11\.png has 60 x 41 px, the first image 60 x 40"):
        list(open_source(str(folder)).frames())
    with pytest.raises(VqhpsError, match="holds no images"):
        open_source(str(tmp_path / "*.jpg"))
    with pytest.raises(VqhpsError, match="frame rate"):
        open_source(str(folder), fps=0)


def test_webcam_until_it_is_stopped_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    camera = open_source("0")
    assert isinstance(camera, Webcam)
    camera.record = tmp_path / "seen.mp4"
    count = 0
    for frame in camera.frames():
        count += 1
        assert frame.image[0, 0].tolist() == [40, 60, 220] and frame.index == count - 1
        if count == 7:
            camera.stop()
    assert count == 7 and len(list(camera.replay())) == 7
    with pytest.raises(VqhpsError, match="no webcam 3"):
        open_source("3")


def test_written_videos_keep_times_and_odd_sizes_lose_a_line(tmp_path):
    times = [0.0, 0.1, 0.15, 0.9]
    with VideoWriter(tmp_path / "a.mp4", 25) as video:
        for moment in times:
            video.write(corners(61, 41), moment)
    frames = list(open_source(str(tmp_path / "a.mp4")).frames())
    assert np.allclose([f.time for f in frames], times, atol=1e-3)
    assert frames[0].image.shape == (40, 60, 3)
    assert frames[0].image[5, 5, 0] > 200 > 60 > frames[0].image[5, -5, 0]
