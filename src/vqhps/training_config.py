"""Settings of the training of an image model, which its parts share."""

from dataclasses import dataclass
from typing import Any

from vqhps.data.augment import AugmentConfig
from vqhps.errors import VqhpsError
from vqhps.models import MODELS
from vqhps.models.vqhps import VQHPSConfig


def model_config(method: Any) -> type[Any]:
    """The class of a method's settings.

    Raises:
        VqhpsError: the method is not known.
    """
    if method not in MODELS:
        raise VqhpsError(f"no method {method!r}; known are {', '.join(MODELS)}")
    return MODELS[method][0]


@dataclass(frozen=True)
class DataShare:
    """A data set of a mixture: the shards `{name}-train-*.tar`, and how likely a crop comes from them."""

    name: str
    probability: float


@dataclass(frozen=True)
class ImageTrainingConfig:
    """A run of `vqhps train image-model`.

    Attributes:
        shards: folder of prepared training shards.
        mixture: data sets among the shards and their probabilities, for new crops in every step; by default each sample
            is seen once an epoch.
        backbone_weights: file of the backbone's weights, as timm has them; those of an installed package by default.
        tokenizer: checkpoint of the tokenizer, or of an image model that holds it.
        out: folder of the run; a run found there goes on where it stopped.
        start_from: checkpoint of an image model with the same settings to start from, tokenizer and all.
        backbone_from: checkpoint of an image model to take the trained backbone from.
        method: of the image model, a name in `vqhps.models.MODELS`.
        model: settings of the image model, of that method.
        augment: strength of the augmentation.
        steps: training steps in all.
        batch_size: crops a step.
        image_size: side of the crops, px.
        final_image_size: side of the crops in the last `final_share` of the steps, px.
        final_share: see above.
        learning_rate: highest rate of AdamW; rises over `warmup` steps and falls to zero as a cosine.
        backbone_rate: the rate of the backbone, and of a first guess that was trained before, as a share of that.
        weight_decay: of AdamW.
        warmup: steps.
        average: decay of the moving average of the weights, which is what is kept.
        precision: of the forward pass.
        validate_every: steps between evaluations on `validation` held-back samples.
        validation: samples of the last shards held back; they are never trained on.
        save_minutes: between saved states.
        samples: train on so many samples, drawn by the seed (those of fewer are among those of more); 0 for all.
        pool: from the first so many; 0 for all that are not held back.
        kept_views: where the first part of the backbone is frozen (`frozen_stages`), compute it once on this many
            augmented crops of each sample and train on those, at `final_image_size`; 0 for new crops in every step.
        keypoint_steps: first train the backbone alone, for its own key points and their depths; see
            `vqhps.training_keypoints`.
        keypoint_batch: crops a step of that.
        keypoint_rate: highest rate of that, relative to the size of the weights.
        keypoint_mesh: weight of the losses of the first guess's mesh in that, which then trains the guess along; for
            one that was trained before (`start_from`).
        cut_copies: how often that sees people cut by the frame, compared to others.
        lifting_steps: then train the model's first guess from true, disturbed key points alone, without images.
        motion: folder that holds `mocap/`, for bodies to lift (`vqhps.data.lifting`); without it, the labels of the
            kept views.
        lifting_batch: samples a step of that.
        transformer_from: share of the steps before which the first guess is trained without the transformer, which
            takes half of the time of a step.
        guess_steps: when the transformer joins, first train the guess alone on what the backbone makes of the kept
            views, computed once, and, given `motion`, as much on other bodies with the errors it makes there. How
            builds are read from the image (`build`) is fitted right before.
        workers: processes that prepare crops.
        threads: of the training process; 0 for all.
        seed: of everything random.
    """

    shards: str
    tokenizer: str
    out: str = "runs/image-model"
    mixture: tuple[DataShare, ...] = ()
    backbone_weights: str | None = None
    start_from: str | None = None
    backbone_from: str | None = None
    method: str = "vqhps"
    model: Any = VQHPSConfig()
    augment: AugmentConfig = AugmentConfig()
    steps: int = 5000
    batch_size: int = 48
    image_size: int = 160
    final_image_size: int = 224
    final_share: float = 0.15
    learning_rate: float = 4e-4
    backbone_rate: float = 0.5
    weight_decay: float = 1e-3
    warmup: int = 200
    average: float = 0.998
    precision: str = "32-true"
    validate_every: int = 500
    validation: int = 500
    save_minutes: float = 4.0
    samples: int = 0
    pool: int = 0
    kept_views: int = 0
    keypoint_steps: int = 0
    keypoint_batch: int = 32
    keypoint_rate: float = 1.5e-3
    keypoint_mesh: float = 0.0
    cut_copies: int = 1
    lifting_steps: int = 0
    motion: str | None = None
    lifting_batch: int = 256
    transformer_from: float = 0.0
    guess_steps: int = 0
    workers: int = 1
    threads: int = 0
    seed: int = 0

    @staticmethod
    def types_of(values: dict[str, Any]) -> dict[str, type[Any]]:
        """The type of `model` by `method`, for `vqhps.config.from_dict`."""
        return {"model": model_config(values.get("method", "vqhps"))}

    def __post_init__(self) -> None:
        if not isinstance(self.model, model_config(self.method)):
            raise VqhpsError(f"method is {self.method}, but model has the settings of another: {type(self.model)}")
