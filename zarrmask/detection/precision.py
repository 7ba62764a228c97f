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
        self.part = in_bfloat16(part)

    def forward(self, x: Tensor) -> Any:
        found = self.part(x.to(torch.bfloat16))
        if isinstance(found, dict):
            return {name: features.float() for name, features in found.items()}
        return found.float()


def in_bfloat16(part: nn.Module) -> nn.Module:
    """Take a part's layers to bfloat16."""
    if isinstance(part, nn.Conv2d):
        return _Convolution(part)
    layers = list(part.named_children())
    for name, layer in layers:
        setattr(part, name, in_bfloat16(layer))
    return part if layers else part.to(torch.bfloat16)


class _Convolution(nn.Module):
    """A convolution in bfloat16 that is as true on average as one in float32.

    What rounding does to a channel's weights and bias it does at every pixel of every slice: it
    shifts what is found. So weights are rounded in turn, each with what those before it lost or
    gained, and on a processor, whose kernel can, the bias is added before the sum is rounded.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        with torch.no_grad():
            layer.weight.copy_(rounded_in_turn(layer.weight))
        self.layer = layer.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        if x.device.type != "cpu":
            found: Tensor = layer(x)
            return found
        # What nn.Conv2d calls on processors with bfloat16, but that it wants a bias in bfloat16.
        return torch.mkldnn_convolution(
            x, layer.weight, self.bias, layer.padding, layer.stride, layer.dilation, layer.groups
        )


def rounded_in_turn(weights: Tensor) -> Tensor:
    """Round to bfloat16 such that each kernel's sum is kept: error diffusion.

    Neighbouring pixels are alike, and what comes out of a ReLU has one sign: errors of one kernel's
    weights that cancel leave the sum of products nearly as it was.

    Parameters
    ----------
    weights : (n, ...) float32

    Returns
    -------
    (n, ...) float32
        That bfloat16 holds as they are.
    """
    rows = weights.flatten(1).T.contiguous()
    carried = torch.zeros_like(rows[0])
    for row in rows:
        wished = row + carried
        row.copy_(wished.to(torch.bfloat16))
        carried = wished - row
    return rows.T.reshape(weights.shape)
