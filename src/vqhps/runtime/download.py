"""Model files that cannot ship with the package: fetched once, checked, kept in a cache."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from vqhps.errors import VqhpsError

logger = logging.getLogger(__name__)

_WHEEL = "mediapipe==0.10.14"
_PIP_TIMEOUT = 600  # seconds


class DownloadError(VqhpsError):
    """A file could not be fetched, or is not the file it should be."""


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel: its path there and its SHA-256 in hex."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """File name without folders: its name in the cache."""
        return self.path.rsplit("/", 1)[-1]


POSE_DETECTION = WheelMember(
    "mediapipe/modules/pose_detection/pose_detection.tflite",
    "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
)
POSE_LANDMARK = WheelMember(
    "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
    "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
)


def default_cache_dir() -> Path:
    """`$VQHPS_CACHE`, else `vqhps` in the user's cache folder of the platform."""
    if chosen := os.environ.get("VQHPS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vqhps"


def blazepose_models(cache_dir: Path | None = None) -> tuple[Path, Path]:
    """Paths of BlazePose's detection and landmark models, downloaded on first use.

    Both are Apache-2.0 and lie in the PyPI wheel of mediapipe: pip fetches it, two files are taken out, nothing is run.

    Args:
        cache_dir: folder to keep them in; `default_cache_dir()` where None.

    Raises:
        DownloadError: the wheel cannot be fetched, the cache cannot be written, or a file has the wrong SHA-256.
    """
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    members = (POSE_DETECTION, POSE_LANDMARK)
    if not all((folder / member.name).is_file() for member in members):
        logger.info("first use of BlazePose: fetching its models (35 MB, once) with pip into %s", folder)
        with tempfile.TemporaryDirectory(prefix="vqhps-") as scratch:
            wheel = _pip_download(Path(scratch), folder)
            for member in members:
                _store(_read_member(wheel, member), member, folder)
    for member in members:
        _check_sha256((folder / member.name).read_bytes(), member, str(folder / member.name))
    return folder / POSE_DETECTION.name, folder / POSE_LANDMARK.name


def _pip_download(folder: Path, cache: Path) -> Path:
    """Have pip put the wheel into `folder`, whatever the platform and Python here; `cache` is for the advice only."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--platform", "manylinux_2_17_x86_64", "--python-version", "3.11"]
    command += [_WHEEL, "-d", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DownloadError(_advice(f"pip did not finish: {error}", cache)) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise DownloadError(_advice(f"pip says: {errors[-1]}", cache))
    return wheels[0]


def _advice(reason: str, cache: Path) -> str:
    """One line: what failed and what to do."""
    return (
        f"cannot fetch the BlazePose models ({reason}): run `vqhps download blazepose` with pip and a network, "
        f"or copy {POSE_DETECTION.name} and {POSE_LANDMARK.name} into {cache}"
    )


def _read_member(wheel: Path, member: WheelMember) -> bytes:
    """The bytes of one file of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member.path)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(f"{wheel.name} is not the wheel it should be ({error}): try the download again") from error


def _check_sha256(data: bytes, member: WheelMember, source: str) -> None:
    """Refuse bytes that are not those of `member`."""
    found = hashlib.sha256(data).hexdigest()
    if found != member.sha256:
        raise DownloadError(
            f"{source} has SHA-256 {found[:16]}..., expected {member.sha256[:16]}...: "
            "it is damaged or another version; delete it and run `vqhps download blazepose`"
        )


def _store(data: bytes, member: WheelMember, folder: Path) -> None:
    """Check the bytes and put them into `folder` in one step, so that no half-written file is ever found there."""
    _check_sha256(data, member, f"{member.name} from the wheel {_WHEEL}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=member.name, suffix=".part", delete=False) as file:
            file.write(data)
        os.replace(file.name, folder / member.name)
    except OSError as error:
        raise DownloadError(
            f"cannot write {folder / member.name} ({error}): set VQHPS_CACHE to a writable folder"
        ) from error
    logger.info("cached %s (%d bytes)", folder / member.name, len(data))
