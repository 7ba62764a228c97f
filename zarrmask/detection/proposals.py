"""Anchors and the proposals made of them, as in detectron2."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from zarrmask.detection.config import STRIDES, ModelConfig


class Proposals(RegionProposalNetwork):
    """Proposals from the config's feature maps, ranked by logit; only empty boxes are dropped."""

    beta = 0.0
    """Where the box loss goes from quadratic to linear: detectron2's ``SMOOTH_L1_BETA``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            Anchors(config),
            _Head(config.fpn_channels, config.anchors_per_place),
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
        """Give each image's boxes, (n, 4), and in training the losses."""
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
            boxes, logits, levels = finite(boxes[top], logits[top], level[top])
            boxes = clip_boxes_to_image(boxes, shape)
            solid = _is_solid(boxes)
            boxes, logits, levels = boxes[solid], logits[solid], levels[solid]
            keep = batched_nms(boxes, logits, levels, self.nms_thresh)[: self.post_nms_top_n()]
            kept_boxes.append(boxes[keep])
            kept_logits.append(logits[keep])
        return kept_boxes, kept_logits

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Give the losses of objectness and of boxes, both over all anchors that are asked for."""
        positive, negative = (torch.cat(drawn) > 0 for drawn in self.fg_bg_sampler(labels))
        drawn = positive | negative
        truth = torch.cat(regression_targets)[positive]
        apart = F.smooth_l1_loss(
            pred_bbox_deltas[positive].float(), truth, reduction="sum", beta=self.beta
        )
        loss_objectness = F.binary_cross_entropy_with_logits(
            objectness.flatten()[drawn].float(), torch.cat(labels)[drawn], reduction="sum"
        )
        asked = self.fg_bg_sampler.batch_size_per_image * len(labels)
        return loss_objectness / asked, apart / asked


class _Head(RPNHead):
    """Gives float32 in mixed precision too: boxes, and what they are held against, go by its type.

    Of bfloat16's 8 bits, places from 256 pixels on would be even numbers.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in deltas]


class Anchors(AnchorGenerator):
    """Anchors that are not rounded, size by size, on strides that the padding cannot change."""

    def __init__(self, config: ModelConfig) -> None:
        levels = len(config.rpn_levels)
        super().__init__(
            _one_each(config.anchor_sizes, levels), _one_each(config.anchor_ratios, levels)
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
        """Give all anchors, (n, 4), once for each image."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [features.shape[-2:] for features in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [(step, step) for step in self.strides]))
        return [anchors] * len(image_list.image_sizes)


def _one_each(lists: Sequence[Any], levels: int) -> tuple[Any, ...]:
    return tuple(lists) * levels if len(lists) == 1 else tuple(lists)


def finite(boxes: Tensor, scores: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Drop the rows that hold an infinity or no number."""
    good = torch.isfinite(boxes).all(1) & torch.isfinite(scores.unsqueeze(-1).flatten(1)).all(1)
    return tuple(values[good] for values in (boxes, scores, *others))


def _is_solid(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
