"""How to train, in the keys of a detectron2 config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from zarrmask.detection.config import ARCHITECTURE, NETWORK, ModelConfig
from zarrmask.detection.config_file import Document
from zarrmask.detection.config_keys import (
    Check,
    Keys,
    choice,
    flag,
    fraction,
    is_number,
    key,
    stated,
    unknown_keys,
    whole,
)
from zarrmask.errors import CheckpointError
from zarrmask.training.schedule import Course, along_a_cosine, in_steps, warmed_up


def _number(*, above: bool = False) -> Check:
    def check(value: Any) -> float:
        if not is_number(value) or value < 0 or (above and value == 0):
            raise ValueError(f"a number {'above' if above else 'of at least'} 0")
        return float(value)

    return check


def _number_or_none(value: Any) -> float | None:
    return None if value is None else _number()(value)


def _norm_type(value: Any) -> float:
    return inf if value == inf else _number(above=True)(value)


def _wholes(least: int) -> Check:
    def check(value: Any) -> tuple[int, ...]:
        values = value if isinstance(value, tuple) else (value,)
        try:
            return tuple(whole(least)(one) for one in values)
        except ValueError:
            raise ValueError(f"whole numbers of at least {least}") from None

    return check


def _pair(value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError("two numbers above 0")
    height, width = (_number(above=True)(side) for side in value)
    return height, width


@dataclass(frozen=True)
class Recipe:
    """How to train, in detectron2's terms.

    Every field names its key; its default is detectron2's. Keys under ``ZARRMASK`` are zarrmask's
    own, and detectron2 has none of them. Sizes are in pixels.
    """

    batch: int = key("SOLVER.IMS_PER_BATCH", 16, whole(1))
    """Images of a batch, over all processes."""
    iterations: int = key("SOLVER.MAX_ITER", 40000, whole(1))
    rate: float = key("SOLVER.BASE_LR", 0.001, _number(above=True))
    last_rate: float = key("SOLVER.BASE_LR_END", 0.0, _number())
    schedule: str = key(
        "SOLVER.LR_SCHEDULER_NAME",
        "WarmupMultiStepLR",
        choice("WarmupMultiStepLR", "WarmupCosineLR"),
    )
    steps: tuple[int, ...] = key("SOLVER.STEPS", (30000,), _wholes(1))
    gamma: float = key("SOLVER.GAMMA", 0.1, _number(above=True))
    warmup: int = key("SOLVER.WARMUP_ITERS", 1000, whole(0))
    warmup_factor: float = key("SOLVER.WARMUP_FACTOR", 0.001, _number())
    warmup_method: str = key("SOLVER.WARMUP_METHOD", "linear", choice("linear", "constant"))
    momentum: float = key("SOLVER.MOMENTUM", 0.9, fraction)
    nesterov: bool = key("SOLVER.NESTEROV", False, flag)
    decay: float = key("SOLVER.WEIGHT_DECAY", 0.0001, _number())
    norm_decay: float | None = key("SOLVER.WEIGHT_DECAY_NORM", 0.0, _number_or_none)
    bias_decay: float | None = key("SOLVER.WEIGHT_DECAY_BIAS", None, _number_or_none)
    bias_rate: float = key("SOLVER.BIAS_LR_FACTOR", 1.0, _number())
    clipped: bool = key("SOLVER.CLIP_GRADIENTS.ENABLED", False, flag)
    clip_type: str = key(
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", choice("value", "norm", "full_model")
    )
    """Each number, each parameter's norm, or (not in detectron2) the norm of all together."""
    clip_value: float = key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, _number(above=True))
    clip_norm: float = key("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 2.0, _norm_type)
    mixed: bool = key("SOLVER.AMP.ENABLED", False, flag)
    period: int = key("SOLVER.CHECKPOINT_PERIOD", 5000, whole(1))
    validation_period: int = key("TEST.EVAL_PERIOD", 0, whole(0))
    """0: whenever a checkpoint is written."""

    short: tuple[int, ...] = key("INPUT.MIN_SIZE_TRAIN", (800,), _wholes(1))
    sampling: str = key("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", choice("choice", "range"))
    limit: int = key("INPUT.MAX_SIZE_TRAIN", 1333, whole(1))
    flip: str = key("INPUT.RANDOM_FLIP", "horizontal", choice("none", "horizontal", "vertical"))
    cropped: bool = key("INPUT.CROP.ENABLED", False, flag)
    crop_type: str = key(
        "INPUT.CROP.TYPE",
        "relative_range",
        choice("relative_range", "relative", "absolute", "absolute_range"),
    )
    crop_size: tuple[float, float] = key("INPUT.CROP.SIZE", (0.9, 0.9), _pair)

    frozen_stages: int = key("MODEL.BACKBONE.FREEZE_AT", 2, whole(0, 5))
    """1: the stem; 2: res2 too; and so on."""
    anchors: int = key("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 256, whole(1))
    anchor_share: float = key("MODEL.RPN.POSITIVE_FRACTION", 0.5, fraction)
    anchor_beta: float = key("MODEL.RPN.SMOOTH_L1_BETA", 0.0, _number())
    pre_nms: int = key("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 12000, whole(1))
    post_nms: int = key("MODEL.RPN.POST_NMS_TOPK_TRAIN", 2000, whole(1))
    regions: int = key("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512, whole(1))
    region_share: float = key("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.25, fraction)
    region_beta: float = key("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0, _number())

    seed: int = key("SEED", -1, whole(-1))
    """-1: any; zarrmask takes 0."""
    workers: int = key("DATALOADER.NUM_WORKERS", 4, whole(0, 1024))
    drops_empty: bool = key("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True, flag)

    keep: int = key("ZARRMASK.KEEP", 3, whole(0))
    """Numbered checkpoints that stay, the newest, besides the best and the last; 0: all."""
    optimizer: str = key("ZARRMASK.OPTIMIZER", "SGD", choice("SGD", "AdamW"))
    average: float = key("ZARRMASK.AVERAGE", 0.0, fraction)
    """Decay of a running mean of the weights, which is kept instead of the last ones; 0: none."""
    helped: bool = key("ZARRMASK.HELP", False, flag)
    """Whether the finest feature maps learn by themselves what is papyrus: see `pupil.Pupil`."""
    still: bool = key("ZARRMASK.FREEZE_NORM", False, flag)
    """Whether batch norms keep the statistics that they began with."""
    margin: float = key("ZARRMASK.BOX_MARGIN", 0.0, fraction)
    """By this share of its sides a box is larger than what is in it, so that it cuts no mask."""
    missed: tuple[int, ...] = key("ZARRMASK.MISSED", (), _wholes(0))
    """Simulated slices, by number, on which a network missed papyrus, to be shown more often."""
    mistaken: tuple[int, ...] = key("ZARRMASK.MISTAKEN", (), _wholes(0))
    """The same, without papyrus, on which it found something; see `simulated.numbered_slice`."""

    def course(self) -> Course:
        """Give the share of the base rate at each iteration."""
        course = (
            in_steps(self.steps, self.gamma)
            if self.schedule == "WarmupMultiStepLR"
            else along_a_cosine(self.iterations, self.last_rate / self.rate)
        )
        warmup = min(self.warmup, self.iterations)
        linear = self.warmup_method == "linear"
        return warmed_up(course, warmup, self.warmup_factor, linear=linear)


# Keys that must stand as here: (detectron2's default, the only value understood).
_FIXED: dict[str, tuple[Any, Any]] = {
    "MODEL.RPN.BOUNDARY_THRESH": (-1, -1),
    "MODEL.RPN.IOU_THRESHOLDS": ((0.3, 0.7), (0.3, 0.7)),
    "MODEL.RPN.IOU_LABELS": ((0, -1, 1), (0, -1, 1)),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1", "smooth_l1"),
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": (1.0, 1.0),
    "MODEL.RPN.LOSS_WEIGHT": (1.0, 1.0),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": ((0.5,), (0.5,)),
    "MODEL.ROI_HEADS.IOU_LABELS": ((0, 1), (0, 1)),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": (True, True),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1", "smooth_l1"),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": (1.0, 1.0),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False, False),
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": (False, False),
    "SOLVER.RESCALE_INTERVAL": (False, False),
    "SOLVER.REFERENCE_WORLD_SIZE": (0, 0),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "TrainingSampler"),
    "TEST.PRECISE_BN.ENABLED": (False, False),
}

# What else detectron2 has in these sections: it changes nothing here, or nothing while the keys
# above stand as they must.
_HARMLESS = {
    "SOLVER": {"NUM_DECAYS"},
    "SOLVER.CLIP_GRADIENTS": set[str](),
    "SOLVER.AMP": set[str](),
    "INPUT.CROP": set[str](),
    "DATALOADER": {"ASPECT_RATIO_GROUPING", "REPEAT_THRESHOLD", "REPEAT_SQRT"},
    "DATASETS": {
        *("TRAIN", "PROPOSAL_FILES_TRAIN", "PRECOMPUTED_PROPOSAL_TOPK_TRAIN"),
        *("TEST", "PROPOSAL_FILES_TEST", "PRECOMPUTED_PROPOSAL_TOPK_TEST"),
    },
    "TEST.PRECISE_BN": {"NUM_ITER"},
    "ZARRMASK": set[str](),
}


def _contradictions(recipe: Recipe) -> Iterable[str]:
    short = recipe.short
    if recipe.sampling == "range" and (len(short) != 2 or short[0] > short[1]):
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {short}; with MIN_SIZE_TRAIN_SAMPLING 'range' it must be the "
            "least size and the greatest"
        )
    if not short:
        yield "INPUT.MIN_SIZE_TRAIN is empty, must hold a size"
    if recipe.nesterov and recipe.momentum == 0:
        yield "SOLVER.NESTEROV is True, must be False where SOLVER.MOMENTUM is 0"
    if recipe.schedule == "WarmupCosineLR" and recipe.last_rate > recipe.rate:
        yield f"SOLVER.BASE_LR_END is {recipe.last_rate}, must not be above SOLVER.BASE_LR"
    if recipe.cropped:
        relative = recipe.crop_type.startswith("relative")
        if relative and max(recipe.crop_size) > 1:
            yield f"INPUT.CROP.SIZE is {recipe.crop_size}, must be parts of the image up to 1"
        if not relative and any(side != int(side) for side in recipe.crop_size):
            yield f"INPUT.CROP.SIZE is {recipe.crop_size}, must be whole pixels"
        if recipe.crop_type == "absolute_range" and recipe.crop_size[0] > recipe.crop_size[1]:
            yield (
                f"INPUT.CROP.SIZE is {recipe.crop_size}; with INPUT.CROP.TYPE 'absolute_range' it "
                "must be the least side and the greatest"
            )


_TRAINING = Keys(Recipe, _FIXED, _HARMLESS, _contradictions)


def interpret_training(documents: Sequence[Document], source: str) -> tuple[ModelConfig, Recipe]:
    """Make a network and a `Recipe` of nested mappings, the first of which takes precedence.

    Raises
    ------
    CheckpointError
        Listing every key of `source` that is unknown, out of range or not supported.
    """
    problems = list(unknown_keys(documents, NETWORK, _TRAINING))
    network = NETWORK.read(documents, problems)
    recipe = _TRAINING.read(documents, problems)
    if problems or network is None or recipe is None:
        raise CheckpointError(
            f"{source}: this is not how zarrmask trains. It trains {ARCHITECTURE}.\n  "
            + "\n  ".join(problems)
        )
    return network, recipe


def recipe_keys(recipe: Recipe) -> dict[str, Any]:
    """Give what a config has to state, by path, of what detectron2 knows.

    Rates and decays are an optimizer's: those of one that detectron2 lacks would mislead it, and
    whoever trains on. So would gradients that are clipped as it cannot.
    """
    left_out: tuple[str, ...] = ("ZARRMASK.",)
    if recipe.optimizer != "SGD":
        left_out += ("SOLVER.",)
    elif recipe.clip_type == "full_model":
        left_out += ("SOLVER.CLIP_GRADIENTS.",)
    return {key: value for key, value in stated(recipe).items() if not key.startswith(left_out)}
