"""Files of people as tokens: what comes back, what a cut file keeps, and clear refusals."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vqhps.errors import VqhpsError
from vqhps.runtime.tokenizer import default_tokenizer
from vqhps.runtime.vqt import Header, pack_rotation, read_vqt, row_keys, unpack_rotation, write_vqt

ROW = 98


@pytest.fixture(scope="module")
def tokenizer():
    return default_tokenizer()


def rows_of_two(tokenizer, seed=0):
    """Person 0 in frames 0 to 9, person 7 in frames 4 to 9, with anything else at random."""
    rng = np.random.default_rng(seed)
    frame = np.array([*range(4), *np.repeat(range(4, 10), 2)], np.int32)
    count = len(frame)
    corner = rng.uniform(-300, 900, (count, 2))
    return {
        "frame": frame, "person": np.array([*[0] * 4, *[0, 7] * 6], np.int32), "time": frame / 29.97 + 0.004,
        "box": np.concatenate([corner, corner + rng.uniform(20, 700, (count, 2))], 1).astype(np.float32),
        "score": rng.uniform(0, 1, count).astype(np.float32),
        "rotation": Rotation.random(count, rng=rng).as_matrix().astype(np.float32),
        "translation": rng.uniform((-3, -2, 1), (3, 2, 40), (count, 3)).astype(np.float32),
        "indices": rng.integers(0, tokenizer.info.codes, (count, tokenizer.info.tokens)).astype(np.uint16),
    }  # fmt: skip


def header_of(tokenizer, **changes):
    info = tokenizer.info
    header = Header(1, "a.mp4", (1280, 720), 29.97, 1400.5, 10, 16, "average", 1.25, info.name, tokenizer.fingerprint,
                    info.tokens, info.codes)  # fmt: skip
    return dataclasses.replace(header, **changes)


@pytest.fixture
def path(tokenizer, tmp_path):
    rows = rows_of_two(tokenizer)
    parts = ({name: column[i : i + 5] for name, column in rows.items()} for i in range(0, 16, 5))
    write_vqt(tmp_path / "a.vqt", header_of(tokenizer), parts)
    return tmp_path / "a.vqt"


def test_rows_come_back(tokenizer, path):
    rows, found = rows_of_two(tokenizer), read_vqt(path, tokenizer)
    assert found.header == header_of(tokenizer) and found.note is None
    for name in ("frame", "person", "translation", "indices"):
        np.testing.assert_array_equal(found.rows[name], rows[name])
        assert found.rows[name].dtype == rows[name].dtype
    np.testing.assert_allclose(found.rows["time"], rows["time"], atol=1e-8)
    assert np.abs(found.rows["box"] - rows["box"]).max() < 0.05
    assert np.abs(found.rows["score"] - rows["score"]).max() < 0.003
    turn = Rotation.from_matrix(found.rows["rotation"] @ rows["rotation"].transpose(0, 2, 1)).magnitude()
    assert np.degrees(turn).max() < 0.01


def test_98_bytes_a_row(tokenizer, path):
    content = path.read_bytes()
    length = struct.unpack("<I", content[10:14])[0]
    assert len(content) == 14 + length + 16 * ROW
    assert json.loads(content[14 : 14 + length])["fingerprint"] == tokenizer.fingerprint


def test_rotations_with_ties_and_half_turns():
    still = [np.eye(3), *(np.diag(d) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1]))]
    axes = Rotation.from_rotvec(np.pi / 2 * np.concatenate([np.eye(3), -np.eye(3)])).as_matrix()
    third = Rotation.from_rotvec(2 * np.pi / 3 * np.array([[1, 1, 1], [-1, 1, -1]]) / np.sqrt(3)).as_matrix()
    rotations = np.concatenate([still, axes, third, Rotation.random(500, rng=np.random.default_rng(0)).as_matrix()])
    packed = pack_rotation(rotations)
    assert packed.dtype == np.uint16 and packed.shape == (len(rotations), 3)
    turn = Rotation.from_matrix(unpack_rotation(packed) @ rotations.transpose(0, 2, 1)).magnitude()
    assert np.degrees(turn).max() < 0.01


def test_other_numbers_of_tokens_and_codes(tokenizer):
    for tokens, codes, size in ((6, 16, 40), (5, 1000, 44), (3, 2, 38)):
        header = header_of(tokenizer, tokens=tokens, codes=codes)
        rows = rows_of_two(tokenizer)
        rows["indices"] = np.random.default_rng(1).integers(0, codes, (16, tokens)).astype(np.uint16)
        content = header.pack(rows)
        assert len(content) == 16 * size
        np.testing.assert_array_equal(header.unpack(content)["indices"], rows["indices"])


@pytest.mark.parametrize(("missing", "kept"), [(1, 14), (ROW, 14), (ROW + 1, 12), (2 * ROW, 12), (12 * ROW - 1, 3)])
def test_a_cut_file_keeps_whole_frames(tokenizer, path, missing, kept):
    """A frame that ends where the file does may have had more people."""
    path.write_bytes(path.read_bytes()[:-missing])
    found = read_vqt(path, tokenizer)
    rows = rows_of_two(tokenizer)
    np.testing.assert_array_equal(row_keys(found.rows), row_keys(rows)[:kept])
    np.testing.assert_array_equal(found.rows["indices"], rows["indices"][:kept])
    assert found.note == f"{path} is cut off: {kept} of 16 persons and frames are there"


def test_cut_anywhere_is_one_line(tokenizer, path):
    content = path.read_bytes()
    start = len(content) - 16 * ROW
    for end in (0, 5, 9, 10, 13, 14, 40, start - 1, start, start + 50, start + ROW):
        path.write_bytes(content[:end])
        with pytest.raises(VqhpsError) as caught:
            read_vqt(path, tokenizer)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def changed(path, **values):
    """Other values in the header."""
    content = path.read_bytes()
    start = 14 + struct.unpack("<I", content[10:14])[0]
    header = json.loads(content[14:start]) | values
    text = json.dumps({k: v for k, v in header.items() if v is not None}).encode()
    path.write_bytes(content[:10] + struct.pack("<I", len(text)) + text + content[start:])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "has schema 2, this version of vqhps reads 1"),
        ({"fingerprint": "0123", "tokenizer": "other"}, "written with the tokenizer other 0123, this one is tokenizer"),
        ({"tokens": 53}, "53 tokens of 512 codes"),
        ({"codes": 0}, "impossible numbers"),
        ({"fps": -25.0}, "impossible numbers"),
        ({"size": [1280, 0]}, "impossible numbers"),
        ({"rows": -1}, "impossible numbers"),
        ({"rows": 15}, "bytes"),
        ({"focal": 10**400}, "focal: expected float"),
        ({"frames": 10**400}, "impossible numbers"),
        ({"frames": 9}, "no people of a video of 9 frames"),
        ({"focal": None}, "missing key 'focal'"),
        ({"focal": "wide"}, "focal"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_bad_headers_are_one_line(tokenizer, path, values, message):
    changed(path, **values)
    with pytest.raises(VqhpsError, match=message) as caught:
        read_vqt(path, tokenizer)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("translation", np.nan), ("translation", -1.0), ("frame", 0), ("frame", 2**31), ("time", np.inf), ("person", 7)],
)
def test_rows_in_disorder_are_refused(tokenizer, tmp_path, name, value):
    rows = rows_of_two(tokenizer)
    rows["frame"] = rows["frame"].astype(np.int64)
    rows[name][14] = value
    write_vqt(tmp_path / "a.vqt", header_of(tokenizer), [rows])
    with pytest.raises(VqhpsError, match="damaged: its rows are no people"):
        read_vqt(tmp_path / "a.vqt", tokenizer)


def test_too_many_people_are_refused(tokenizer, tmp_path):
    rows = rows_of_two(tokenizer)
    rows["person"][-1] = 1 << 16
    with pytest.raises(VqhpsError, match=r"a.mp4: .vqt files hold up to 65536 people"):
        write_vqt(tmp_path / "a.vqt", header_of(tokenizer), [rows])
    assert not list(tmp_path.iterdir())


def test_foreign_files_and_noise_are_refused(tokenizer, path, tmp_path):
    (tmp_path / "b.vqt").write_bytes(b"PK\x03\x04" + bytes(500))
    for bad in (tmp_path / "b.vqt", tmp_path / "missing.vqt", tmp_path):
        with pytest.raises(VqhpsError, match=str(bad)):
            read_vqt(bad, tokenizer)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        noisy = np.frombuffer(content, np.uint8).copy()
        where = rng.integers(0, len(noisy), 3)
        noisy[where] = rng.integers(0, 256, 3)
        path.write_bytes(noisy.tobytes())
        try:
            rows = read_vqt(path, tokenizer).rows
        except VqhpsError as error:
            assert str(path) in str(error)
        else:
            assert len(rows["frame"]) <= 16 and rows["indices"].max() < tokenizer.info.codes
            assert np.isfinite(rows["rotation"]).all()
