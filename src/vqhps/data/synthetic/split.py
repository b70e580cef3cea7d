"""Which assets belong to training and which to testing, fixed by name.

A garment, skin or panorama that is used for a reported number is never trained on.
"""

from pathlib import Path
from typing import Literal

from vqhps.errors import VqhpsError

Split = Literal["train", "test"]

TEST_SUITS = frozenset({"male_casualsuit05", "female_elegantsuit01"})
TEST_SHOES = frozenset({"shoes04"})
TEST_HAIR = frozenset({"afro01", "long01"})
TEST_SKINS = frozenset({"old_asian_female", "young_african_male", "middleage_caucasian_male", "young_caucasian_female"})
TEST_GARMENTS = TEST_SUITS | TEST_SHOES | TEST_HAIR
PANORAMA_STRIDE = 6


def panorama_split(names: list[str], split: Split) -> list[str]:
    """Select the panoramas of a split: every sixth in alphabetical order is for testing.

    Args:
        names: all panorama names, in any order.
        split: which part to return.
    """
    ordered = sorted(names)
    held_out = set(ordered[PANORAMA_STRIDE - 1 :: PANORAMA_STRIDE])
    return [name for name in ordered if (name in held_out) == (split == "test")]


def asset_names(folder: Path, held_out: frozenset[str], split: Split) -> list[str]:
    """List the asset folders of a split.

    Args:
        folder: folder with one sub-folder an asset.
        held_out: names that belong to the test split.
        split: which part to return.

    Raises:
        VqhpsError: the folder does not exist or has no asset of this split.
    """
    if not folder.is_dir():
        raise VqhpsError(f"no folder {folder}; point data_root to the folder that holds clothes/, backgrounds/, mocap/")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    chosen = [name for name in names if (name in held_out) == (split == "test")]
    if not chosen:
        raise VqhpsError(f"no {split} asset in {folder}: expected {sorted(held_out)} and others")
    return chosen
