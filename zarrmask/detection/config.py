"""What a detectron2 config says about a Mask R-CNN, as far as it changes what the network predicts.

Only the standard FPN architecture is understood. A key that would change the result and is not
supported is refused by name, and so is one that detectron2 does not have; keys that only concern
training or data are passed over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zarrmask.detection.config_file import Document, read_documents
from zarrmask.detection.config_keys import (
    Keys,
    choice,
    flag,
    fraction,
    is_number,
    key,
    lookup,
    numbers,
    read_values,
    stated,
    unknown_keys,
    whole,
)
from zarrmask.errors import CheckpointError, SettingsError

ARCHITECTURE = "detectron2's Mask R-CNN with a ResNet and FPN (as mask_rcnn_R_101_FPN_3x)"

GROUPS = 32
"""Of a GroupNorm, as in detectron2."""
LOWEST_SCORE = 0.05
"""Detections count above this where nothing else is said: detectron2's ``SCORE_THRESH_TEST``."""
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
"""Pixels of the network's input for each step in a feature map."""


def _number_lists(value: Any) -> tuple[tuple[float, ...], ...]:
    rows = value if isinstance(value, tuple) and value else ()
    rows = (rows,) if all(map(is_number, rows)) else rows
    if not all(isinstance(row, tuple) and row and all(map(is_number, row)) for row in rows) or (
        rows == ((),)
    ):
        raise ValueError("a list of lists of numbers")
    if min(map(min, rows)) <= 0:
        raise ValueError("a list of lists of numbers above 0")
    return tuple(tuple(float(number) for number in row) for row in rows)


def _levels(value: Any) -> tuple[str, ...]:
    levels = value if isinstance(value, tuple) else ()
    if not levels or not all(isinstance(level, str) and level in STRIDES for level in levels):
        raise ValueError(f"a list of feature maps out of {', '.join(STRIDES)}")
    return levels


def _pyramid(value: Any) -> tuple[str, ...]:
    levels = _levels(value)
    first = list(STRIDES).index(levels[0])
    if list(levels) != list(STRIDES)[first : first + len(levels)]:
        raise ValueError("neighbouring feature maps in rising order, as p2, p3, p4, p5")
    return levels


_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "GN")


@dataclass(frozen=True)
class ModelConfig:
    """A Mask R-CNN with a ResNet and a feature pyramid, in detectron2's terms.

    Every field names its detectron2 key; its default is detectron2's. Sizes are in pixels of the
    network's input, channels and counts are numbers.
    """

    depth: int = key("MODEL.RESNETS.DEPTH", 50, choice(18, 34, 50, 101))
    resnet_norm: str = key("MODEL.RESNETS.NORM", "FrozenBN", choice(*_NORMS))
    stem_channels: int = key("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, whole(1))
    res2_channels: int = key("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, whole(4))
    bottleneck_channels: int = key("MODEL.RESNETS.WIDTH_PER_GROUP", 64, whole(1))
    stride_in_1x1: bool = key("MODEL.RESNETS.STRIDE_IN_1X1", True, flag)

    fpn_channels: int = key("MODEL.FPN.OUT_CHANNELS", 256, whole(1))
    fpn_norm: str = key("MODEL.FPN.NORM", "", choice("", *_NORMS))

    anchor_sizes: tuple[tuple[float, ...], ...] = key(
        "MODEL.ANCHOR_GENERATOR.SIZES", ((32.0, 64.0, 128.0, 256.0, 512.0),), _number_lists
    )
    anchor_ratios: tuple[tuple[float, ...], ...] = key(
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ((0.5, 1.0, 2.0),), _number_lists
    )
    rpn_levels: tuple[str, ...] = key("MODEL.RPN.IN_FEATURES", ("res4",), _levels)
    rpn_box_weights: tuple[float, ...] = key(
        "MODEL.RPN.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0), numbers(4)
    )
    rpn_pre_nms: int = key("MODEL.RPN.PRE_NMS_TOPK_TEST", 6000, whole(1))
    rpn_post_nms: int = key("MODEL.RPN.POST_NMS_TOPK_TEST", 1000, whole(1))
    rpn_nms: float = key("MODEL.RPN.NMS_THRESH", 0.7, fraction)

    classes: int = key("MODEL.ROI_HEADS.NUM_CLASSES", 80, whole(1))
    roi_levels: tuple[str, ...] = key("MODEL.ROI_HEADS.IN_FEATURES", ("res4",), _pyramid)
    score_threshold: float | None = key("MODEL.ROI_HEADS.SCORE_THRESH_TEST", None, fraction)
    """None where the config states none; the caller's default is to be taken then."""
    nms: float = key("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5, fraction)
    detections_per_image: int = key("TEST.DETECTIONS_PER_IMAGE", 100, whole(1))

    box_fc_count: int = key("MODEL.ROI_BOX_HEAD.NUM_FC", 0, whole(1))
    box_fc_channels: int = key("MODEL.ROI_BOX_HEAD.FC_DIM", 1024, whole(1))
    box_weights: tuple[float, ...] = key(
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), numbers(4)
    )
    box_pool_size: int = key("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, whole(1))
    box_pool_samples: int = key("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0, whole(0))
    box_pool_type: str = key(
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", choice("ROIAlignV2", "ROIAlign")
    )

    mask_convs: int = key("MODEL.ROI_MASK_HEAD.NUM_CONV", 0, whole(0))
    mask_channels: int = key("MODEL.ROI_MASK_HEAD.CONV_DIM", 256, whole(1))
    mask_pool_size: int = key("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14, whole(1))
    mask_pool_samples: int = key("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 0, whole(0))
    mask_pool_type: str = key(
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2", choice("ROIAlignV2", "ROIAlign")
    )

    min_size: int = key("INPUT.MIN_SIZE_TEST", 800, whole(0))
    max_size: int = key("INPUT.MAX_SIZE_TEST", 1333, whole(1))
    channel_order: str = key("INPUT.FORMAT", "BGR", choice("BGR", "RGB"))
    pixel_mean: tuple[float, ...] = key("MODEL.PIXEL_MEAN", (103.53, 116.28, 123.675), numbers(3))
    pixel_std: tuple[float, ...] = key(
        "MODEL.PIXEL_STD", (1.0, 1.0, 1.0), numbers(3, positive=True)
    )
    even_contrast: bool = key("ZARRMASK.EVEN_CONTRAST", False, flag)
    """zarrmask's own: whether each image is brought to one contrast; see `even_contrast.even`."""
    look_closer: bool = key("ZARRMASK.LOOK_CLOSER", False, flag)
    """zarrmask's own: whether small objects are looked at closer; see `closer.look_closer`."""

    @property
    def is_bottleneck(self) -> bool:
        """Whether the residual blocks are bottlenecks (depth 50 and more)."""
        return self.depth >= 50

    @property
    def anchors_per_place(self) -> int:
        """Anchors at each place of a feature map."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios[0])


RESNET_LEVELS = ("res2", "res3", "res4", "res5")

# Keys that must stand as here: (detectron2's default, the only value understood).
_FIXED: dict[str, tuple[Any, Any]] = {
    "VERSION": (2, 2),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "GeneralizedRCNN"),
    "MODEL.MASK_ON": (False, True),
    "MODEL.KEYPOINT_ON": (False, False),
    "MODEL.LOAD_PROPOSALS": (False, False),
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone", "build_resnet_fpn_backbone"),
    "MODEL.RESNETS.OUT_FEATURES": (("res4",), RESNET_LEVELS),
    "MODEL.RESNETS.NUM_GROUPS": (1, 1),
    "MODEL.RESNETS.RES5_DILATION": (1, 1),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ((False,) * 4, (False,) * 4),
    "MODEL.FPN.IN_FEATURES": ((), RESNET_LEVELS),
    "MODEL.FPN.FUSE_TYPE": ("sum", "sum"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "RPN"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (0, 0),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator", "DefaultAnchorGenerator"),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0.0, 0.0),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead", "StandardRPNHead"),
    "MODEL.RPN.CONV_DIMS": ((-1,), (-1,)),
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "StandardROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0, 0),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False, False),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False, False),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleHead"),
    "MODEL.ROI_MASK_HEAD.NORM": ("", ""),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (False, False),
    "TEST.AUG.ENABLED": (False, False),
}

# What else detectron2's own configs hold, by section: it changes nothing at inference, or nothing
# while the keys above stand as they must. "" is the file itself.
_HARMLESS = {
    "": {
        *("_BASE_", "DATASETS", "DATALOADER", "SOLVER", "OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK"),
        *("FLOAT32_PRECISION", "VIS_PERIOD", "GLOBAL"),
    },
    "MODEL": {
        *("DEVICE", "WEIGHTS", "RETINANET", "SEM_SEG_HEAD", "PANOPTIC_FPN", "ROI_KEYPOINT_HEAD"),
        "ROI_BOX_CASCADE_HEAD",
    },
    "MODEL.BACKBONE": {"FREEZE_AT"},
    "MODEL.RESNETS": {"DEFORM_MODULATED", "DEFORM_NUM_GROUPS"},
    "MODEL.FPN": set[str](),
    "MODEL.PROPOSAL_GENERATOR": set[str](),
    "MODEL.ANCHOR_GENERATOR": {"ANGLES"},
    "MODEL.RPN": {
        *("BOUNDARY_THRESH", "IOU_THRESHOLDS", "IOU_LABELS", "BATCH_SIZE_PER_IMAGE"),
        *("POSITIVE_FRACTION", "BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "SMOOTH_L1_BETA"),
        *("LOSS_WEIGHT", "PRE_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TRAIN"),
    },
    "MODEL.ROI_HEADS": {
        *("IOU_THRESHOLDS", "IOU_LABELS", "BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION"),
        "PROPOSAL_APPEND_GT",
    },
    "MODEL.ROI_BOX_HEAD": {
        *("BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "SMOOTH_L1_BETA", "CONV_DIM", "NORM"),
        *("TRAIN_ON_PRED_BOXES", "USE_FED_LOSS", "FED_LOSS_FREQ_WEIGHT_POWER"),
        "FED_LOSS_NUM_CLASSES",
    },
    "MODEL.ROI_MASK_HEAD": set[str](),
    "INPUT": {
        *("MIN_SIZE_TRAIN", "MIN_SIZE_TRAIN_SAMPLING", "MAX_SIZE_TRAIN", "RANDOM_FLIP", "CROP"),
        "MASK_FORMAT",
    },
    "TEST": {"EXPECTED_RESULTS", "EVAL_PERIOD", "KEYPOINT_OKS_SIGMAS", "PRECISE_BN"},
    "TEST.AUG": {"MIN_SIZES", "MAX_SIZE", "FLIP"},
    "ZARRMASK": {"KEEP", "OPTIMIZER", "AVERAGE", "HELP", "MISSED", "MISTAKEN"},
}


def read_config(path: Path) -> ModelConfig:
    """Read a detectron2 config, plain or as dumped with Python tags.

    Parameters
    ----------
    path : Path
        A YAML file. A `_BASE_` in it is read too, relative to the file.

    Raises
    ------
    CheckpointError
        If the file cannot be read as data alone, or says something that is not supported. All such
        keys are listed.
    """
    return interpret(read_documents(path), str(path))


def describes_network(documents: Sequence[Document]) -> bool:
    """Whether a config says what network it is of; one of a training alone does not."""
    return lookup(documents, "MODEL.BACKBONE.NAME", None) is not None


def interpret(documents: Sequence[Document], source: str) -> ModelConfig:
    """Make a `ModelConfig` of nested mappings, the first of which takes precedence.

    Raises
    ------
    CheckpointError
        Listing every key of `source` that is unknown or not supported.
    """
    problems = list(unknown_keys(documents, NETWORK))
    config = NETWORK.read(documents, problems)
    if problems or config is None:
        hint = (
            " This one describes no network (no MODEL.BACKBONE.NAME): where the network's own "
            "config lies beside its checkpoint, leave --config out. By detectron2's defaults:"
        )
        raise CheckpointError(
            f"{source}: this model config is not supported. zarrmask runs {ARCHITECTURE}."
            + ("" if describes_network(documents) else hint)
            + "".join(f"\n  {problem}" for problem in problems)
        )
    return config


def read_fields(documents: Sequence[Document], source: str, *names: str) -> tuple[Any, ...]:
    """Read some fields of `ModelConfig` alone, from a config that detectron2 is to understand.

    Raises
    ------
    CheckpointError
        If their values cannot be.
    """
    problems: list[str] = []
    wanted = [declared for declared in fields(ModelConfig) if declared.name in names]
    values = read_values(documents, wanted, problems)
    if problems:
        raise CheckpointError(f"{source}: this model config is wrong.\n  " + "\n  ".join(problems))
    return tuple(values[name] for name in names)


def require_classes(chosen: Iterable[int], count: int, source: str) -> None:
    """Refuse classes beyond the `count` that a network tells apart, which begin at 0.

    Raises
    ------
    SettingsError
        Naming them.
    """
    if unknown := [number for number in chosen if number not in range(count)]:
        names = ", ".join(map(str, unknown))
        known = "one class, 0" if count == 1 else f"{count} classes, 0 to {count - 1}"
        raise SettingsError(f"classes {names} are asked for, but {source} knows {known}")


def _contradictions(config: ModelConfig) -> Iterable[str]:
    for name, lists in (("SIZES", config.anchor_sizes), ("ASPECT_RATIOS", config.anchor_ratios)):
        if len(lists) not in (1, len(config.rpn_levels)) or len(set(map(len, lists))) > 1:
            yield (
                f"MODEL.ANCHOR_GENERATOR.{name} has {len(lists)} lists of "
                f"{', '.join(str(len(row)) for row in lists)} numbers for "
                f"{len(config.rpn_levels)} feature maps in MODEL.RPN.IN_FEATURES; must be lists of "
                "one length, one for each feature map or one for all"
            )
    if config.is_bottleneck and config.res2_channels % 4:
        yield f"MODEL.RESNETS.RES2_OUT_CHANNELS is {config.res2_channels}, must be a multiple of 4"
    inner = config.bottleneck_channels if config.is_bottleneck else GROUPS
    widths = {
        "RESNETS": (config.resnet_norm, (config.stem_channels, config.res2_channels, inner)),
        "FPN": (config.fpn_norm, (config.fpn_channels,)),
    }
    for section, (norm, channels) in widths.items():
        if norm == "GN" and any(width % GROUPS for width in channels):
            yield (
                f"MODEL.{section}.NORM is GN, for {', '.join(map(str, channels))} channels; GN "
                f"wants multiples of {GROUPS}"
            )


NETWORK = Keys(ModelConfig, _FIXED, _HARMLESS, _contradictions)


def stated_keys(config: ModelConfig) -> dict[str, Any]:
    """Give what a config has to state, by path, so that detectron2 and zarrmask read it so."""
    fixed = {path: value for path, (default, value) in _FIXED.items() if value != default}
    return {**fixed, **stated(config), "VERSION": 2}
