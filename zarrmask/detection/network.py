"""Mask R-CNN as detectron2 computes it, on torchvision's classes.

Here and in `backbone`, `proposals` and `heads` a class of torchvision's is overridden only where it
computes something else, and says so. Labels inside are torchvision's (0 is background, objects
count from 1); the parameters have detectron2's shapes and order, so that checkpoints go in and out
unchanged.
"""

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from zarrmask.detection.backbone import build_backbone
from zarrmask.detection.config import ModelConfig
from zarrmask.detection.even_contrast import even
from zarrmask.detection.heads import Heads
from zarrmask.detection.proposals import Proposals

PADDED_TO = 32
"""Images are padded to multiples of this, pixels; a batch, to its largest."""


def build_model(config: ModelConfig) -> nn.Module:
    """Build the network that a config describes, with fresh weights, in training mode.

    In training, `model(images, targets)` gives torchvision's dictionary of losses. An image is a
    tensor (1 or 3, h, w) of grey or BGR values 0 to 255, already of the network's size; a target
    has `boxes` (n, 4) float32 x0, y0, x1, y1 in pixels, `labels` (n,) int64 counted from 1, and
    `masks` (n, h, w) uint8 0/1. In evaluation, `model(images)` gives for each image a dictionary of
    `boxes` in the image's own pixels, `labels` from 1, `scores` descending, and `masks`
    (n, 1, m, m), probabilities within the box.
    """
    model: nn.Module = GeneralizedRCNN(
        build_backbone(config), Proposals(config), Heads(config), _Input(config)
    )
    return model


class _Input(GeneralizedRCNNTransform):
    """Takes grey values 0 to 255 of the network's size: the resizing was done before."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(0, 0, config.pixel_mean, config.pixel_std, size_divisible=PADDED_TO)
        self.is_rgb = config.channel_order == "RGB"
        self.evens = config.even_contrast

    def normalize(self, image: Tensor) -> Tensor:
        image = even(image.float()) if self.evens else image.float()
        image = image.expand(3, -1, -1)
        normal: Tensor = super().normalize(image.flip(0) if self.is_rgb else image)
        return normal

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Any, original_image_sizes: Any
    ) -> list[dict[str, Tensor]]:
        return result
