"""Commands of `vqhps prepare`: data sets into what trainings and evaluations read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass
class PrepareSynthetic:
    """Render people into WebDataset shards; a stopped run goes on where it stopped."""

    out: Path
    """Folder for the shards."""
    data_root: Path
    """Folder that holds mocap/, clothes/ and backgrounds/."""
    split: Literal["train", "test"] = "train"
    """Which subjects, garments, skins and panoramas."""
    count: int = 50_000
    """Images."""
    seed: int = 0
    """Of everything random."""
    workers: int = 2
    """Processes."""
    shard_size: int = 500
    """Images a shard."""

    def run(self) -> int:
        """Print the index."""
        from vqhps.data.synthetic.prepare import prepare_synthetic

        arguments = (self.out, self.data_root, self.split, self.count, self.seed, self.workers, self.shard_size)
        print(prepare_synthetic(*arguments))
        return 0


@dataclass
class PrepareSyntheticVideo:
    """Render a video of moving people with its truth: what `vqhps evaluate video` compares with."""

    out: Path
    """Folder for clip-PEOPLE-SEED.mp4 and clip-PEOPLE-SEED.truth.npz; files that exist are kept."""
    data_root: Path
    """Folder that holds mocap/, clothes/ and backgrounds/."""
    people: Literal[1, 2, 3] = 1
    """More than one walk past each other in the middle of the clip."""
    seconds: float = 20.0
    """Of the clip."""
    fps: int = 25
    """Frames a second."""
    size: tuple[int, int] = (1280, 720)
    """Width and height, px."""
    seed: int = 0
    """Of everything random."""
    split: Literal["train", "test"] = "test"
    """Which subjects, garments, skins and panoramas."""
    repeat: int = 1
    """Play the clip forth and back so many times: a long video for the rendering time of a short one."""

    def run(self) -> int:
        """Print the video."""
        from vqhps.data.synthetic.video import VideoSettings, prepare_synthetic_video

        settings = VideoSettings(self.people, self.seconds, self.fps, self.size, self.seed, self.repeat)
        print(prepare_synthetic_video(self.out, self.data_root, self.split, settings))
        return 0


@dataclass
class PreparePeople:
    """What the data sets of photos have in common."""

    root: Path
    """Folder of the data set as it comes."""
    out: Path
    """Folder for the shards; those that exist are kept, so that a stopped run goes on."""
    body_models: Path | None = None
    """Folder of body files; by default VQHPS_BODY_MODELS, then ~/.config/vqhps/body_models."""
    workers: int = 2
    """Processes."""
    shard_size: int = 500
    """People a shard."""
    skip_bad: bool = False
    """Leave out files and photos that cannot be read instead of stopping there; the summary lists them."""

    def run(self) -> int:
        """Print what was written and what was left out."""
        summary = self.prepare(self.body_models, self.workers, self.shard_size, self.skip_bad)
        for reason in summary.skipped[:20]:
            print(f"left out: {reason}")
        print(f"{summary.index}: {summary.people} people, {len(summary.skipped)} files or photos left out")
        return 0

    def prepare(self, *rest: Any) -> Any:
        """Of one data set."""
        raise NotImplementedError


@dataclass
class Prepare3dpw(PreparePeople):
    """3DPW into shards; needs SMPL, female and male."""

    split: Literal["train", "validation", "test"] = "train"
    """Official split."""

    def prepare(self, *rest: Any) -> Any:
        """See `prepare_3dpw`."""
        from vqhps.data.threedpw import prepare_3dpw

        return prepare_3dpw(self.root, self.out, self.split, *rest)


@dataclass
class PrepareEmdb(PreparePeople):
    """EMDB into shards; needs SMPL of each gender."""

    split: Literal["train", "validation", "test"] = "train"
    """test: EMDB 1; train and validation: the other sequences of EMDB 2, four to one."""

    def prepare(self, *rest: Any) -> Any:
        """See `prepare_emdb`."""
        from vqhps.data.emdb import prepare_emdb

        return prepare_emdb(self.root, self.out, self.split, *rest)


def bedlam_format(dataset: str, what: str) -> type[PreparePeople]:
    """The command of a data set that the BEDLAM release annotates."""

    @dataclass
    class Prepare(PreparePeople):
        def prepare(self, *rest: Any) -> Any:
            from vqhps.data.bedlam_format import prepare_bedlam_format

            return prepare_bedlam_format(dataset, self.root, self.out, *rest)  # type: ignore[arg-type]

    Prepare.__doc__ = f"{what} into shards, with the SMPL bodies of the BEDLAM release."
    return Prepare


@dataclass
class PrepareAmass:
    """Pose the SMPL-H or SMPL-X bodies of AMASS or BEDLAM animations: meshes to train a tokenizer on (--meshes)."""

    root: Path
    """Folder of the data set's .npz files, searched to any depth."""
    out: Path
    """The .npz of meshes to write; each takes 83 kB (SMPL-H) or 126 kB (SMPL-X)."""
    rate: float = 1.0
    """Poses a second of motion."""
    body_models: Path | None = None
    """Folder of body files; by default VQHPS_BODY_MODELS, then ~/.config/vqhps/body_models."""
    skip_bad: bool = False
    """Leave out files that cannot be read instead of stopping there."""

    def run(self) -> int:
        """Print what was written and what was left out."""
        from vqhps.data.amass import prepare_amass

        summary = prepare_amass(self.root, self.out, self.rate, self.body_models, self.skip_bad)
        print(f"{summary.out}: {summary.meshes} meshes of {summary.clips} clips, {len(summary.skipped)} files left out")
        return 0
