"""A model's config told from the shapes of its weights, for checkpoints that come alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from zarrmask.detection.config import (
    RESNET_LEVELS,
    STRIDES,
    ModelConfig,
    interpret,
    read_config,
)
from zarrmask.detection.config_file import Document, read_documents
from zarrmask.detection.files import config_file
from zarrmask.detection.names import is_counter
from zarrmask.errors import CheckpointError

# detectron2's Base-RCNN-FPN.yaml, as far as it matters here.
STANDARD_FPN: Document = {
    "MODEL": {
        "MASK_ON": True,
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {"OUT_FEATURES": RESNET_LEVELS},
        "FPN": {"IN_FEATURES": RESNET_LEVELS},
        "ANCHOR_GENERATOR": {"SIZES": ((32,), (64,), (128,), (256,), (512,))},
        "RPN": {
            "IN_FEATURES": tuple(STRIDES),
            "PRE_NMS_TOPK_TRAIN": 2000,
            "POST_NMS_TOPK_TRAIN": 1000,
            "PRE_NMS_TOPK_TEST": 1000,
        },
        "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": ("p2", "p3", "p4", "p5")},
        "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7},
        "ROI_MASK_HEAD": {"NUM_CONV": 4},
    }
}

_ANCHORS = "proposal_generator.rpn_head.objectness_logits.weight"


def config_of(
    checkpoint: Path, shapes: Mapping[str, Sequence[int]], given: Path | None = None
) -> ModelConfig:
    """Give a checkpoint's config: what its file says (see `config_file`), else what shapes tell.

    Raises
    ------
    CheckpointError
        If that file cannot be used, or the shapes are not those of a Mask R-CNN with FPN.
    """
    file = config_file(checkpoint, given)
    return infer_config(shapes, str(checkpoint)) if file is None else read_config(file)


def documents_of(
    checkpoint: Path, shapes: Mapping[str, Sequence[int]], given: Path | None = None
) -> list[Document]:
    """Give what `config_of` interprets.

    Raises
    ------
    CheckpointError
        If the config's file cannot be read, or the shapes are not those of a Mask R-CNN with FPN.
    """
    file = config_file(checkpoint, given)
    return read_documents(file) if file else infer_documents(shapes, str(checkpoint))


def infer_config(shapes: Mapping[str, Sequence[int]], source: str) -> ModelConfig:
    """Tell the config from the shapes of a checkpoint's tensors; see `infer_documents`.

    Raises
    ------
    CheckpointError
        If the tensors are not those of a Mask R-CNN with FPN, or the anchors are not the usual.
    """
    config = interpret(infer_documents(shapes, source), source)
    anchors = shapes[_ANCHORS][0]
    if anchors != config.anchors_per_place:
        raise CheckpointError(
            f"{source} has {anchors} anchors a place, not the usual {config.anchors_per_place}: "
            "their sizes cannot be told from the weights. Give the config it was trained with "
            "(--config)."
        )
    return config


def infer_documents(shapes: Mapping[str, Sequence[int]], source: str) -> list[Document]:
    """Write the config that the shapes of a checkpoint's tensors tell, in detectron2's names.

    What shapes do not show (thresholds, input size, anchors) is as in detectron2's
    `mask_rcnn_R_*_FPN` configs.

    Raises
    ------
    CheckpointError
        If the tensors are not those of a Mask R-CNN with FPN.
    """
    bottom_up = "backbone.bottom_up."
    try:
        blocks = len({name.split(".")[3] for name in shapes if name.startswith(bottom_up + "res4")})
        first = shapes[bottom_up + "res2.0.conv1.weight"]
        is_bottleneck = bottom_up + "res2.0.conv3.weight" in shapes
        last = "conv3" if is_bottleneck else "conv2"
        fc1 = shapes["roi_heads.box_head.fc1.weight"]
        fpn_channels = shapes["backbone.fpn_output2.weight"][0]
        inferred: Document = {
            "MODEL": {
                "RESNETS": {
                    "DEPTH": {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}.get(
                        (blocks, is_bottleneck), f"{blocks} blocks in res4"
                    ),
                    "STEM_OUT_CHANNELS": shapes[bottom_up + "stem.conv1.weight"][0],
                    "RES2_OUT_CHANNELS": shapes[f"{bottom_up}res2.0.{last}.weight"][0],
                    "WIDTH_PER_GROUP": first[0],
                    "NORM": _resnet_norm(shapes),
                },
                "FPN": {"OUT_CHANNELS": fpn_channels, "NORM": _fpn_norm(shapes)},
                "ROI_HEADS": {
                    "NUM_CLASSES": shapes["roi_heads.mask_head.predictor.weight"][0],
                },
                "ROI_BOX_HEAD": {
                    "NUM_FC": _count(shapes, "roi_heads.box_head.fc"),
                    "FC_DIM": fc1[0],
                    "POOLER_RESOLUTION": round((fc1[1] / fpn_channels) ** 0.5),
                },
                "ROI_MASK_HEAD": {
                    "NUM_CONV": _count(shapes, "roi_heads.mask_head.mask_fcn"),
                    "CONV_DIM": shapes["roi_heads.mask_head.deconv.weight"][1],
                },
            }
        }
        _ = shapes[_ANCHORS][0]
    except (KeyError, IndexError) as missing:
        raise CheckpointError(
            f"{source} does not hold a detectron2 Mask R-CNN with FPN: {missing.args[0]} is not "
            f"among its {len(shapes)} tensors. Give a checkpoint that detectron2 trained from a "
            "mask_rcnn_R_*_FPN config, or the config it was trained with (--config)."
        ) from None
    return [inferred, STANDARD_FPN]


def _count(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(".weight") for name in shapes)


def _resnet_norm(shapes: Mapping[str, Sequence[int]]) -> str:
    """Tell norms that learn: frozen ones count no batches."""
    if "backbone.bottom_up.res2.0.conv1.norm.running_mean" not in shapes:
        return "GN"
    counted = any(name.startswith("backbone.bottom_up.res") and is_counter(name) for name in shapes)
    return "BN" if counted else "FrozenBN"


def _fpn_norm(shapes: Mapping[str, Sequence[int]]) -> str:
    if "backbone.fpn_lateral2.norm.running_mean" in shapes:
        return "BN"
    return "GN" if "backbone.fpn_lateral2.norm.weight" in shapes else ""
