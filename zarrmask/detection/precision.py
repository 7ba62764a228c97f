"""A trained network made ready to predict: norms folded, and its bulk in bfloat16 if wished."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

Precision: TypeAlias = Literal["full", "fast"]
"""float32, or bfloat16 where most of the time goes: other masks by some pixels."""
WIDE = 256
"""Channels of layers that choose boxes, from which on bfloat16 makes a difference to the time:
detectron2's own networks have as many; the bundled one has 64 and 128."""


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm of a network in evaluation into the convolution before it.

    In double precision, so that the weights are those of the two steps, rounded once.
    """
    for module in list(model.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(
                norm, FrozenBatchNorm2d | nn.BatchNorm2d
            ):
                folded = fuse_conv_bn_eval(layer.double(), norm.double())
                setattr(module, name, folded.float())
                setattr(module, norm_name, nn.Identity())


def to_bfloat16(model: Any) -> None:
    """Let a network's convolutions and wide layers run in bfloat16.

    What says where things are and how sure that is (the last layer of every head, and the
    arithmetic of boxes) stays in float32: bfloat16 has 8 bits, too few for a place in an image.
    So do the layers before them where they are narrow: it would save no time, and of two boxes
    that are as good the other one might be taken.
    """
    model.backbone = _Bfloat16(model.backbone)
    model.roi_heads.mask_head = _Bfloat16(model.roi_heads.mask_head)
    if _width(model.rpn.head.conv) >= WIDE:
        model.rpn.head.conv = _Bfloat16(model.rpn.head.conv)
    if _width(model.roi_heads.box_head) >= WIDE:
        model.roi_heads.box_head = _Bfloat16(model.roi_heads.box_head)


def _width(part: nn.Module) -> int:
    """Channels that the widest layer of a part gives."""
    return max((len(weights) for weights in part.parameters()), default=0)


class _Bfloat16(nn.Module):
    """A part of a network that computes in bfloat16, and takes and gives float32."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Any:
        found = self.part(x.to(torch.bfloat16))
        if isinstance(found, dict):
            return {name: features.float() for name, features in found.items()}
        return found.float()
