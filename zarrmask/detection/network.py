"""Mask R-CNN as detectron2 computes it, on torchvision's classes.

A class is overridden only where torchvision computes something else, and says so. Labels inside are
torchvision's (0 is background, objects count from 1); the parameters have detectron2's shapes and
order, so that checkpoints go in and out unchanged.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1
from torchvision.ops import (
    FrozenBatchNorm2d,
    MultiScaleRoIAlign,
    batched_nms,
    box_area,
    clip_boxes_to_image,
    roi_align,
)
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from zarrmask.detection.config import STRIDES, ModelConfig

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


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
        _backbone(config), _Proposals(config), _Heads(config), _Input(config)
    )
    return model


class _Input(GeneralizedRCNNTransform):
    """Takes grey values 0 to 255 of the network's size: the resizing was done before."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(0, 0, config.pixel_mean, config.pixel_std, size_divisible=32)
        self.is_rgb = config.channel_order == "RGB"

    def normalize(self, image: Tensor) -> Tensor:
        image = image.float().expand(3, -1, -1)
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


def _norm(name: str) -> Callable[[int], nn.Module] | None:
    if name == "":
        return None
    if name == "GN":
        return partial(nn.GroupNorm, 32)
    return FrozenBatchNorm2d if name == "FrozenBN" else nn.BatchNorm2d


def _backbone(config: ModelConfig) -> nn.Module:
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


class _Anchors(AnchorGenerator):
    """Anchors that are not rounded, size by size, on strides that the padding cannot change."""

    def __init__(self, config: ModelConfig) -> None:
        levels = len(config.rpn_levels)
        super().__init__(
            _for_each(config.anchor_sizes, levels), _for_each(config.anchor_ratios, levels)
        )
        self.strides = [STRIDES[level] for level in config.rpn_levels]

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """One size after the other, each with all ratios (height / width)."""
        halves = [
            (size / ratio**0.5 / 2, size * ratio**0.5 / 2)
            for size in scales
            for ratio in aspect_ratios
        ]
        return torch.tensor([(-x, -y, x, y) for x, y in halves], dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        grids = [features.shape[-2:] for features in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [(step, step) for step in self.strides]))
        return [anchors] * len(image_list.image_sizes)


class _Proposals(RegionProposalNetwork):
    """Proposals from the config's feature maps, ranked by logit; only empty boxes are dropped."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            _Anchors(config),
            RPNHead(config.fpn_channels, config.anchors_per_place),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": config.rpn_pre_nms},
            post_nms_top_n={"training": 1000, "testing": config.rpn_post_nms},
            nms_thresh=config.rpn_nms,
        )
        self.box_coder.weights = config.rpn_box_weights
        self.levels = config.rpn_levels

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        wanted = {level: features[level] for level in self.levels}
        proposals, losses = super().forward(images, wanted, targets)
        return proposals, losses

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take the best proposals of each level, then the best of those left by suppression."""
        objectness = objectness.detach().reshape(len(proposals), -1)
        best = self._get_top_n_idx(objectness, num_anchors_per_level)
        level = torch.repeat_interleave(
            torch.arange(len(num_anchors_per_level), device=best.device),
            torch.tensor(num_anchors_per_level, device=best.device),
        )
        kept_boxes, kept_logits = [], []
        for boxes, logits, top, shape in zip(
            proposals, objectness, best, image_shapes, strict=True
        ):
            boxes, logits, levels = _finite(boxes[top], logits[top], level[top])
            boxes = clip_boxes_to_image(boxes, shape)
            solid = _is_solid(boxes)
            boxes, logits, levels = boxes[solid], logits[solid], levels[solid]
            keep = batched_nms(boxes, logits, levels, self.nms_thresh)[: self.post_nms_top_n()]
            kept_boxes.append(boxes[keep])
            kept_logits.append(logits[keep])
        return kept_boxes, kept_logits


class _Pool(MultiScaleRoIAlign):
    """ROIAlign on fixed strides, aligned as ROIAlignV2; levels as in the FPN paper."""

    def __init__(self, levels: Sequence[str], size: int, samples: int, kind: str) -> None:
        super().__init__(list(levels), size, samples)
        self.aligned = kind == "ROIAlignV2"

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        every_box = torch.cat(boxes)
        image = torch.cat([box.new_full((len(box), 1), i) for i, box in enumerate(boxes)])
        rois = torch.cat([image, every_box], dim=1)
        side = torch.sqrt(box_area(every_box))
        finest = list(STRIDES).index(self.featmap_names[0]) + 2
        number = torch.floor(4 + torch.log2(side / 224 + 1e-8)) - finest
        number = number.clamp(0, len(self.featmap_names) - 1)
        first = x[self.featmap_names[0]]
        pooled = first.new_zeros((len(rois), first.shape[1], *self.output_size))
        for i, level in enumerate(self.featmap_names):
            here = torch.where(number == i)[0]
            pooled[here] = roi_align(
                x[level],
                rois[here],
                self.output_size,
                spatial_scale=1 / STRIDES[level],
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            ).to(pooled.dtype)
        return pooled


class _BoxPredictor(FastRCNNPredictor):
    """Holds detectron2's rows (background last, a box for each object class alone)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, classes * 4)
        for layer, spread in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.roll(1, dims=1), F.pad(deltas, (4, 0))


class _MaskPredictor(MaskRCNNPredictor):
    """Holds a mask for each object class alone; the background's is zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (0, 0, 0, 0, 1, 0))


class _Heads(RoIHeads):
    """Boxes and masks; no small box is dropped, and mask targets lie on pixel centres."""

    def __init__(self, config: ModelConfig) -> None:
        pooled = config.box_pool_size
        super().__init__(
            box_roi_pool=_Pool(
                config.roi_levels, pooled, config.box_pool_samples, config.box_pool_type
            ),
            box_head=FastRCNNConvFCHead(
                (config.fpn_channels, pooled, pooled),
                conv_layers=[],
                fc_layers=[config.box_fc_channels] * config.box_fc_count,
            ),
            box_predictor=_BoxPredictor(config.box_fc_channels, config.classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=config.box_weights,
            score_thresh=0.05 if config.score_threshold is None else config.score_threshold,
            nms_thresh=config.nms,
            detections_per_img=config.detections_per_image,
            mask_roi_pool=_Pool(
                config.roi_levels,
                config.mask_pool_size,
                config.mask_pool_samples,
                config.mask_pool_type,
            ),
            mask_head=MaskRCNNHeads(
                config.fpn_channels, [config.mask_channels] * config.mask_convs, dilation=1
            ),
            mask_predictor=_MaskPredictor(
                config.mask_channels if config.mask_convs else config.fpn_channels,
                config.mask_channels,
                config.classes,
            ),
        )

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detect from proposals, or give the losses where targets are given in training."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        logits, deltas = self._predict_boxes(features, proposals, image_shapes)
        found = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        mask_logits = self._predict_masks(features, found[0], image_shapes)
        masks = maskrcnn_inference(mask_logits, found[2])
        names = ("boxes", "scores", "labels", "masks")
        return [dict(zip(names, one, strict=True)) for one in zip(*found, masks, strict=True)], {}

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Give the boxes, scores and labels of each image, the best first."""
        counts = [len(boxes) for boxes in proposals]
        every_box = self.box_coder.decode(box_regression, proposals).split(counts)
        every_score = F.softmax(class_logits, -1).split(counts)
        results: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for boxes, scores, shape in zip(every_box, every_score, image_shapes, strict=True):
            boxes, scores = _finite(boxes.flatten(1), scores)
            place, label = torch.where(scores[:, 1:] > self.score_thresh)
            label = label + 1
            score = scores[place, label]
            box = clip_boxes_to_image(boxes.unflatten(1, (-1, 4))[place, label], shape)
            keep = batched_nms(box, score, label, self.nms_thresh)[: self.detections_per_img]
            for result, values in zip(results, (box, score, label), strict=True):
                result.append(values[keep])
        return results

    def _predict_boxes(self, features: Any, boxes: Any, shapes: Any) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, boxes, shapes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits, deltas

    def _predict_masks(self, features: Any, boxes: Any, shapes: Any) -> Tensor:
        pooled = self.mask_roi_pool(features, boxes, shapes)
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits

    def _losses(
        self, features: Any, proposals: list[Tensor], shapes: Any, targets: Any
    ) -> dict[str, Tensor]:
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        loss_classifier, loss_box_reg = fastrcnn_loss(
            *self._predict_boxes(features, proposals, shapes), labels, deltas
        )
        is_object = [label > 0 for label in labels]
        boxes = [box[here] for box, here in zip(proposals, is_object, strict=True)]
        logits = self._predict_masks(features, boxes, shapes)
        truth = torch.cat(
            [
                _mask_targets(target["masks"], which[here], box, logits.shape[-1])
                for target, which, here, box in zip(targets, matched, is_object, boxes, strict=True)
            ]
        )
        label = torch.cat([label[here] for label, here in zip(labels, is_object, strict=True)])
        own = logits[torch.arange(len(label), device=label.device), label]
        loss_mask = F.binary_cross_entropy_with_logits(own, truth, reduction="sum")
        return {
            "loss_classifier": loss_classifier,
            "loss_box_reg": loss_box_reg,
            "loss_mask": loss_mask / max(truth.numel(), 1),
        }


def _mask_targets(masks: Tensor, which: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut masks out along boxes, aligned (torchvision's lie half a pixel off)."""
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    rois = torch.cat([which[:, None].to(boxes), boxes], dim=1)
    cut: Tensor = roi_align(masks[:, None].to(boxes), rois, (size, size), aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes)


def _for_each(lists: Sequence[Any], levels: int) -> tuple[Any, ...]:
    return tuple(lists) * levels if len(lists) == 1 else tuple(lists)


def _finite(boxes: Tensor, scores: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Drop the rows that hold an infinity or no number."""
    good = torch.isfinite(boxes).all(1) & torch.isfinite(scores.unsqueeze(-1).flatten(1)).all(1)
    return tuple(values[good] for values in (boxes, scores, *others))


def _is_solid(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
