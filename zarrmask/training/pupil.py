"""The network while it learns: what is no part of it when it is used."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from zarrmask.detection.config import STRIDES, ModelConfig
from zarrmask.detection.network import build_model
from zarrmask.training.batches import Target
from zarrmask.training.recipe import Recipe

LOSSES = {
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_loc",
    "loss_classifier": "loss_cls",
}
"""torchvision's names of losses, and detectron2's."""


class Pupil(nn.Module):
    """A network that gives its losses.

    Parameters
    ----------
    config : ModelConfig
    recipe : Recipe
        How many samples the losses are taken of, which stages do not learn, and whether there is
        help. From scratch, the few regions that the mask head sees teach the backbone slowly: a
        single convolution on each of two feature maps, thrown away afterwards, says at every place
        how much of it is papyrus.
    """

    levels = ("p2", "p3")

    def __init__(self, config: ModelConfig, recipe: Recipe) -> None:
        super().__init__()
        self.frozen, self.still = recipe.frozen_stages, recipe.still
        self.model = build_model(config)
        self.help = nn.ModuleList(
            nn.Conv2d(config.fpn_channels, 1, 1) for _ in self.levels if recipe.helped
        )
        self._maps: dict[str, Tensor] = {}
        model: Any = self.model
        _set_samples(model, recipe)
        if recipe.helped:
            model.backbone.register_forward_hook(
                lambda _module, _inputs, maps: self._maps.update(maps)
            )
        for stage in self._frozen_stages():
            stage.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        self.train()

    def train(self, mode: bool = True) -> Pupil:
        """Set to learning; norms of stages that do not learn keep their statistics."""
        super().train(mode)
        for part in [self.model] if self.still else self._frozen_stages():
            for module in part.modules():
                if isinstance(module, _NormBase):
                    module.eval()
        return self

    def _frozen_stages(self) -> list[nn.Module]:
        model: Any = self.model
        return list(model.backbone.body.values())[: self.frozen]

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Give the losses by detectron2's names, and `loss_help`."""
        found: dict[str, Tensor] = self.model(images, targets)
        losses = {LOSSES.get(name, name): loss for name, loss in found.items()}
        if len(self.help):
            truth = [target["masks"].any(0, keepdim=True).float() for target in targets]
            losses["loss_help"] = torch.stack(
                [
                    _share_loss(layer(self._maps[level]), truth, STRIDES[level])
                    for level, layer in zip(self.levels, self.help, strict=True)
                ]
            ).mean()
            self._maps.clear()
        return losses


def _share_loss(logits: Tensor, truth: list[Tensor], step: int) -> Tensor:
    """Compare with the share of papyrus in each cell of the map; padding is air."""
    height, width = logits.shape[-2] * step, logits.shape[-1] * step
    padded = [F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in truth]
    share = F.avg_pool2d(torch.stack(padded), step)
    return F.binary_cross_entropy_with_logits(logits.float(), share)


def _set_samples(model: Any, recipe: Recipe) -> None:
    rpn, heads = model.rpn, model.roi_heads
    rpn.fg_bg_sampler.batch_size_per_image = recipe.anchors
    rpn.fg_bg_sampler.positive_fraction = recipe.anchor_share
    rpn._pre_nms_top_n["training"] = recipe.pre_nms
    rpn._post_nms_top_n["training"] = recipe.post_nms
    rpn.beta = recipe.anchor_beta
    heads.fg_bg_sampler.batch_size_per_image = recipe.regions
    heads.fg_bg_sampler.positive_fraction = recipe.region_share
    heads.beta = recipe.region_beta
