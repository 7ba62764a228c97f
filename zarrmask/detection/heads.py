"""From proposals to boxes, classes and masks, as in detectron2; and the losses of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import (
    MultiScaleRoIAlign,
    batched_nms,
    box_area,
    clip_boxes_to_image,
    roi_align,
)

from zarrmask.detection.config import LOWEST_SCORE, STRIDES, ModelConfig
from zarrmask.detection.mirroring import Look, Size
from zarrmask.detection.proposals import finite
from zarrmask.detection.region_pooling import pool_regions


class Heads(RoIHeads):
    """Boxes and masks; no small box is dropped, and mask targets lie on pixel centres."""

    beta = 0.0
    """Where the box loss goes from quadratic to linear: detectron2's ``SMOOTH_L1_BETA``."""

    def __init__(self, config: ModelConfig) -> None:
        pooled = config.box_pool_size
        super().__init__(
            box_roi_pool=Pool(
                config.roi_levels, pooled, config.box_pool_samples, config.box_pool_type
            ),
            box_head=BoxHead(
                (config.fpn_channels, pooled, pooled),
                conv_layers=[],
                fc_layers=[config.box_fc_channels] * config.box_fc_count,
            ),
            box_predictor=BoxPredictor(config.box_fc_channels, config.classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=config.box_weights,
            score_thresh=LOWEST_SCORE if config.score_threshold is None else config.score_threshold,
            nms_thresh=config.nms,
            detections_per_img=config.detections_per_image,
            mask_roi_pool=Pool(
                config.roi_levels,
                config.mask_pool_size,
                config.mask_pool_samples,
                config.mask_pool_type,
            ),
            mask_head=MaskRCNNHeads(
                config.fpn_channels, [config.mask_channels] * config.mask_convs, dilation=1
            ),
            mask_predictor=MaskPredictor(
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
        images = enumerate(zip(proposals, image_shapes, strict=True))
        return [
            self.detect(RegionLook.of_image(self, features, n, size), boxes, size)
            for n, (boxes, size) in images
        ], {}

    def detect(self, look: Look, proposals: Tensor, size: Size) -> dict[str, Tensor]:
        """Find objects in one image of this size, by what is said of its proposals, (n, 4)."""
        boxes, scores, labels = self._best(*look.boxes(proposals), size)
        masks = look.masks(boxes, labels)
        return {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}

    def _best(self, scores: Tensor, boxes: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Give boxes, scores and labels of what is found, the best first."""
        boxes, scores = finite(boxes.flatten(1), scores)
        place, label = torch.where(scores[:, 1:] > self.score_thresh)
        label = label + 1
        score = scores[place, label]
        box = clip_boxes_to_image(boxes.unflatten(1, (-1, 4))[place, label], size)
        keep = batched_nms(box, score, label, self.nms_thresh)[: self.detections_per_img]
        return box[keep], score[keep], label[keep]

    def predict_boxes(self, features: Any, boxes: Any, shapes: Any) -> tuple[Tensor, Tensor]:
        """Give class logits and box deltas of boxes, (n, 4) for each image."""
        pooled = self.box_roi_pool(features, boxes, shapes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits, deltas

    def predict_masks(self, features: Any, boxes: Any, shapes: Any) -> Tensor:
        """Give mask logits, (n, classes + 1, m, m), of boxes, (n, 4) for each image."""
        pooled = self.mask_roi_pool(features, boxes, shapes)
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits

    def _losses(
        self, features: Any, proposals: list[Tensor], shapes: Any, targets: Any
    ) -> dict[str, Tensor]:
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        loss_classifier, loss_box_reg = self._box_losses(
            *self.predict_boxes(features, proposals, shapes), torch.cat(labels), torch.cat(deltas)
        )
        is_object = [label > 0 for label in labels]
        boxes = [box[here] for box, here in zip(proposals, is_object, strict=True)]
        logits = self.predict_masks(features, boxes, shapes)
        truth = torch.cat(
            [
                mask_targets(target["masks"], which[here], box, logits.shape[-1])
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

    def _box_losses(
        self, logits: Tensor, every_delta: Tensor, labels: Tensor, truth: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Give the losses of classes and of the boxes of objects, both over all samples."""
        here = torch.where(labels > 0)[0]
        deltas = every_delta.unflatten(1, (-1, 4))[here, labels[here]]
        apart = F.smooth_l1_loss(deltas.float(), truth[here], reduction="sum", beta=self.beta)
        count = max(len(labels), 1)
        return F.cross_entropy(logits, labels, reduction="sum") / count, apart / count


@dataclass(frozen=True)
class RegionLook:
    """What heads say of regions of one image; a `Look`.

    Attributes
    ----------
    heads : Heads
    features : dict
        Feature maps of the image, (1, channels, h', w'), by level.
    size : (int, int)
        Of the image, height and width, without padding.
    """

    heads: Heads
    features: dict[str, Tensor]
    size: Size

    @classmethod
    def of_image(cls, heads: Heads, features: Mapping[str, Tensor], n: int, size: Size) -> Self:
        """Take the n-th of the images that feature maps are of."""
        return cls(heads, {level: maps[n : n + 1] for level, maps in features.items()}, size)

    def boxes(self, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """See `Look.boxes`; the background's come first."""
        logits, deltas = self.heads.predict_boxes(self.features, [proposals], [self.size])
        boxes = self.heads.box_coder.decode(deltas, [proposals]).flatten(1)
        return F.softmax(logits, -1), boxes.unflatten(1, (-1, 4))

    def masks(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """See `Look.masks`."""
        logits = self.heads.predict_masks(self.features, [boxes], [self.size])
        masks: Tensor = maskrcnn_inference(logits, [labels])[0]
        return masks


class Pool(MultiScaleRoIAlign):
    """ROIAlign on fixed strides, aligned as ROIAlignV2; levels as in the FPN paper."""

    def __init__(self, levels: Sequence[str], size: int, samples: int, kind: str) -> None:
        super().__init__(list(levels), size, samples)
        self.aligned = kind == "ROIAlignV2"

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Give (boxes of all images, channels, size, size)."""
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
            pooled[here] = pool_regions(
                x[level].float(),  # as autocast does, but on MPS
                rois[here],
                self.output_size,
                spatial_scale=1 / STRIDES[level],
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            ).to(pooled.dtype)
        return pooled


class BoxHead(FastRCNNConvFCHead):
    """Begins with detectron2's weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)


class BoxPredictor(FastRCNNPredictor):
    """Holds detectron2's rows (background last, a box for each object class alone)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, classes * 4)
        for layer, spread in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give scores and box deltas as torchvision orders them."""
        scores, deltas = super().forward(x)
        return scores.roll(1, dims=1), F.pad(deltas, (4, 0))


class MaskPredictor(MaskRCNNPredictor):
    """Holds a mask for each object class alone; the background's is zeros."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__(channels, hidden, classes)
        nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)  # as detectron2: nothing is sure
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Give mask logits with the background's in front."""
        return F.pad(super().forward(x), (0, 0, 0, 0, 1, 0))


def mask_targets(masks: Tensor, which: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut masks out along boxes, aligned (torchvision's lie half a pixel off)."""
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    rois = torch.cat([which[:, None].to(boxes), boxes], dim=1)
    cut: Tensor = roi_align(masks[:, None].to(boxes), rois, (size, size), aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes)
