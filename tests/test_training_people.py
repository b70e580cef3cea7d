"""Training as published, on tiny files in the published formats: recipes run, mixtures are as likely as they say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from published_files import golden_state, smpl_arrays
from shared import DATA
from vqhps.body.smpl import SMPLBody
from vqhps.checkpoint import CheckpointCard, load_checkpoint, save_checkpoint
from vqhps.config import load_yaml
from vqhps.data.augment import AugmentConfig
from vqhps.data.bedlam_format import prepare_bedlam_format
from vqhps.data.crops import CropDataset
from vqhps.data.sample import Shards, find_shards
from vqhps.errors import VqhpsError
from vqhps.models.vqhps import VQHPS
from vqhps.published import convert_tokenizer, used
from vqhps.training_config import DataShare, ImageTrainingConfig
from vqhps.training_image import row_probabilities, train_image_model

REFERENCE = DATA.parent / "reference"
RECIPES = Path(__file__).parents[1] / "src" / "vqhps" / "recipes"


def write_annotations(path: Path, photos: int) -> None:
    """COCO or Human3.6M as the BEDLAM release annotates them, on photos of noise."""
    import cv2

    rng, names = np.random.default_rng(photos), [f"S1/{i}.jpg" for i in range(photos)]
    path.parent.mkdir(parents=True, exist_ok=True)
    keypoints = np.concatenate([rng.uniform(100, 200, (photos, 24, 2)), np.ones((photos, 24, 1))], 2)
    np.savez(
        path, imgname=names, center=np.full((photos, 2), 150.0), scale=np.full(photos, 0.8), part=keypoints,
        pose_cam=rng.normal(0, 0.3, (photos, 72)), shape=rng.normal(0, 1, (photos, 10)),
    )  # fmt: skip
    for name in names:
        (path.parent / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path.parent / name), rng.integers(0, 255, (300, 300, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of four data sets, and a body."""
    folder = tmp_path_factory.mktemp("people")
    np.savez(folder / "SMPL_NEUTRAL.npz", **smpl_arrays(6890))
    np.save(folder / "J_regressor_h36m.npy", np.random.default_rng(0).dirichlet(np.ones(6890), 17))
    sizes = {"coco": ("coco.npz", 2), "h36m": ("h36m_train.npz", 6), "mpii": ("mpii.npz", 4)}
    sizes["mpi-inf-3dhp"] = ("mpi_inf_3dhp_train.npz", 2)
    for name, (file, count) in sizes.items():
        write_annotations(folder / name / file, count)
        prepare_bedlam_format(name, folder / name, folder / "shards", workers=1)  # type: ignore[arg-type]
    return folder


def test_a_mixture_is_as_likely_as_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQHPS_BODY_MODELS", str(folder))
    shards = Shards(find_shards(folder / "shards", "train"))
    rows = np.arange(12)  # the last two are held back
    mixture = (DataShare("coco", 0.6), DataShare("h36m", 0.2))
    probability = row_probabilities(shards, rows, mixture)
    names = np.array([p.name.split("-train-")[0] for p in shards.paths])[shards.shard[rows]]
    sums = {name: probability[names == name].sum() for name in set(names)}
    assert sums == pytest.approx({"coco": 0.75, "h36m": 0.25, "mpii": 0, "mpi-inf-3dhp": 0})
    crops = CropDataset(shards, rows, np.zeros((14, 2, 54), np.int16), 32, AugmentConfig(), 0, 4800, probability)
    drawn = []
    for position in range(0, 4800, 12):
        crops[position]
        drawn.append(crops._order[1].copy())
    share = (names[np.concatenate(drawn)] == "coco").mean()
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4800) ** 0.5)
    for bad in (DataShare("lsp", 0.5), DataShare("coco", 0.0)):
        with pytest.raises(VqhpsError, match="both must be positive"):
            row_probabilities(shards, rows, (bad,))


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"no golden values at {REFERENCE}")
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_published_recipes_run_and_resume_to_3dpw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQHPS_BODY_MODELS", str(folder))
    state = used(golden_state(REFERENCE / "state_mesh_vqvae.json"))
    tokenizer = convert_tokenizer(state, REFERENCE / "smpl_connections", SMPLBody(folder / "SMPL_NEUTRAL.npz"))
    save_checkpoint(folder / "tokenizer", tokenizer, CheckpointCard("mesh_vqvae", "smpl"))
    for name in ("vqhps-resnet50", "vqhps-hrnet"):
        recipe = load_yaml(ImageTrainingConfig, RECIPES / f"{name}.yaml")
        assert [share.name for share in recipe.mixture] == ["h36m", "mpi-inf-3dhp", "coco", "mpii"]
        assert not recipe.model.shared_backbone and recipe.model.decode == recipe.model.loss.decode == "argmax"
        small = dict(
            shards=str(folder / "shards"), out=str(folder / name), steps=1, batch_size=2, validation=2, workers=0,
            validate_every=5, average=0.5, image_size=64, final_image_size=64, warmup=1,
        )  # fmt: skip
        first = dataclasses.replace(recipe, tokenizer=str(folder / "tokenizer"), backbone_weights=None, **small)
        with torch.random.fork_rng():
            model = load_checkpoint(train_image_model(first), "vqhps")
        assert isinstance(model, VQHPS) and model.backbone_rotation is not None
    recipe = load_yaml(ImageTrainingConfig, RECIPES / "vqhps-resnet50-3dpw.yaml")
    start = str(folder / "vqhps-resnet50" / "checkpoint")
    more = dataclasses.replace(recipe, tokenizer=start, start_from=start, **{**small, "out": str(folder / "more")})
    before, after = load_checkpoint(start), load_checkpoint(train_image_model(more))
    assert not torch.equal(before.token_head.scores.weight, after.token_head.scores.weight)


def test_a_backbone_starts_from_the_file_that_is_named(folder: Path, tmp_path: Path) -> None:
    recipe = load_yaml(ImageTrainingConfig, RECIPES / "vqhps-resnet50.yaml")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    from shared import tiny_tokenizer

    save_checkpoint(tmp_path / "tokenizer", tiny_tokenizer(), CheckpointCard("mesh_vqvae"))
    config = dataclasses.replace(
        recipe, shards=str(folder / "shards"), tokenizer=str(tmp_path / "tokenizer"), out=str(tmp_path / "run"),
        backbone_weights=str(tmp_path / "bad.pth"),
    )  # fmt: skip
    with pytest.raises(VqhpsError, match=r"cannot read backbone weights .*bad\.pth"):
        train_image_model(config)
