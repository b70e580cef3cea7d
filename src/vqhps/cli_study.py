"""Commands of `vqhps study`: comparisons that train and measure by themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class StudyScarce:
    """Train HMR, CLIFF, FastMETRO and VQ-HPS on few samples and compare them; a stopped study goes on where it stopped.

    Writes a table, a plot and a gallery: out/report.md, out/scarce.png, out/scarce_gallery.png.
    """

    recipe: str = "scarce"
    """A YAML file, or the name of a shipped recipe."""
    data_root: Path | None = None
    """Folder of the prepared training shards, instead of the recipe's."""
    test: Path | None = None
    """Folder of the prepared test shards, instead of the recipe's."""
    photos: Path | None = None
    """Folder of photos with labelled key points, as `evaluate coco-free` takes it, instead of the recipe's."""
    tokenizer: Path | None = None
    """Checkpoint of the tokenizer, or of an image model that holds it, instead of the recipe's."""
    out: Path | None = None
    """Folder of the study, instead of the recipe's."""
    docs: Path | None = None
    """Write the report into this Markdown file too, between <!-- study --> and <!-- /study -->."""
    quick: bool = False
    """A cut of some ten minutes, in a folder of its own (its name ends in -quick)."""

    def run(self) -> int:
        """Print the report's path."""
        from vqhps.config import load_recipe
        from vqhps.study import StudyConfig, run_study

        config = load_recipe(StudyConfig, self.recipe)
        training = _changed(config.training, shards=self.data_root, tokenizer=self.tokenizer)
        config = _changed(config, test=self.test, photos=self.photos, out=self.out)
        config = dataclasses.replace(config, training=training)
        print(run_study(config.quick() if self.quick else config, self.docs))
        return 0


def _changed(config: Any, **paths: Path | None) -> Any:
    """Settings with the paths that are given."""
    return dataclasses.replace(config, **{name: str(path) for name, path in paths.items() if path is not None})
