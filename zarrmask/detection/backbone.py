"""ResNet and feature pyramid as in detectron2, from torchvision's blocks."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from zarrmask.detection.config import GROUPS, ModelConfig

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def build_backbone(config: ModelConfig) -> nn.Module:
    """Build what makes feature maps p2 to p6 of an image, (n, 3, h, w)."""
    backbone: nn.Module = BackboneWithFPN(
        _resnet(config),
        return_layers={"res2": "p2", "res3": "p3", "res4": "p4", "res5": "p5"},
        in_channels_list=[config.res2_channels * 2**stage for stage in range(4)],
        out_channels=config.fpn_channels,
        extra_blocks=_P6(),
        norm_layer=_norm(config.fpn_norm),
    )
    return backbone


class _P6(LastLevelMaxPool):
    """torchvision's, which calls its output "pool"."""

    def forward(
        self, x: list[Tensor], y: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        maps, names = super().forward(x, y, names)
        return maps, [*names[:-1], "p6"]


def _resnet(config: ModelConfig) -> nn.Module:
    """Assemble a ResNet of torchvision's blocks: its own has neither other widths nor strides."""
    norm = _norm(config.resnet_norm)
    assert norm is not None
    channels = config.stem_channels
    stages = OrderedDict[str, nn.Module](
        stem=nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False),
                bn1=norm(channels),
                relu=nn.ReLU(inplace=True),
                maxpool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )
        )
    )
    for stage, count in enumerate(_BLOCKS[config.depth]):
        blocks = []
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(_block(config, stage, channels, stride, norm))
            channels = config.res2_channels * 2**stage
        stages[f"res{stage + 2}"] = nn.Sequential(*blocks)
    resnet = nn.Sequential(stages)
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return resnet


def _block(
    config: ModelConfig, stage: int, channels: int, stride: int, norm: Callable[[int], nn.Module]
) -> nn.Module:
    width = config.res2_channels * 2**stage
    shortcut = None
    if stride > 1 or channels != width:
        shortcut = nn.Sequential(conv1x1(channels, width, stride), norm(width))
    if not config.is_bottleneck:
        basic: nn.Module = BasicBlock(channels, width, stride, shortcut, norm_layer=norm)
        return basic
    planes = width // Bottleneck.expansion
    # torchvision wants the inner width as a ratio and rounds down: the half makes it come out.
    base_width = 64 * (config.bottleneck_channels * 2**stage + 0.5) / planes
    block: Any = Bottleneck(
        channels, planes, stride, shortcut, base_width=base_width, norm_layer=norm
    )
    if config.stride_in_1x1:  # torchvision's stride is always in the 3x3 convolution
        block.conv1.stride, block.conv2.stride = (stride, stride), (1, 1)
    bottleneck: nn.Module = block
    return bottleneck


def _norm(name: str) -> Callable[[int], nn.Module] | None:
    if name == "":
        return None
    if name == "GN":
        return partial(nn.GroupNorm, GROUPS)
    return _FrozenNorm if name == "FrozenBN" else nn.BatchNorm2d


class _FrozenNorm(FrozenBatchNorm2d):
    """In one step, as detectron2 does it: torchvision's two round differently."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
