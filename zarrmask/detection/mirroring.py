"""Looking at a slice and at its mirror images: what is said of the same region is averaged.

Averages over mirrored inputs are as old as AlexNet (Krizhevsky et al. 2012). detectron2 has
`GeneralizedRCNNWithTTA`, which takes the boxes of all views and averages masks alone: what is found
by mistake in one view stays. Here all views are asked about the same proposals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels."""


class Look(Protocol):
    """What the heads of a network say of regions of one image."""

    def boxes(self, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Judge proposals, (n, 4): probabilities (n, classes + 1) and boxes (n, classes', 4).

        classes' is the number of classes, or classes + 1 with the background first.
        """
        ...

    def masks(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """Give the masks of boxes, (n, 4), of classes, (n,): probabilities (n, 1, m, m)."""
        ...


@dataclass(frozen=True)
class View:
    """An image as it is, or mirrored top to bottom, left to right, or both."""

    vertical: bool = False
    horizontal: bool = False

    def image(self, image: Tensor) -> Tensor:
        """Mirror an image or a mask, (..., h, w); mirrored again it is as before."""
        axes = [axis for axis, here in ((-2, self.vertical), (-1, self.horizontal)) if here]
        return image.flip(axes) if axes else image

    def boxes(self, boxes: Tensor, size: Size) -> Tensor:
        """Mirror boxes, (..., 4), in an image of this size; mirrored again they are as before."""
        x0, y0, x1, y1 = boxes.unbind(-1)
        if self.vertical:
            y0, y1 = size[0] - y1, size[0] - y0
        if self.horizontal:
            x0, x1 = size[1] - x1, size[1] - x0
        return torch.stack([x0, y0, x1, y1], -1)


ALONE = (View(),)
MIRRORED = (View(), View(horizontal=True), View(vertical=True), View(True, True))


def views_of(mirrored: bool) -> tuple[View, ...]:
    """Give the views of a slice that a network takes; the first is the slice as it is."""
    return MIRRORED if mirrored else ALONE


@dataclass(frozen=True)
class MeanLook:
    """What looks at several views of one image say on average, in places of the image; a `Look`.

    Attributes
    ----------
    looks : sequence of (View, Look)
    size : (int, int)
        Of the image, height and width, without padding.
    """

    looks: Sequence[tuple[View, Look]]
    size: Size

    def boxes(self, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """See `Look.boxes`."""
        scores, boxes = [], []
        for view, look in self.looks:
            said = look.boxes(view.boxes(proposals, self.size))
            scores.append(said[0])
            boxes.append(view.boxes(said[1], self.size))
        return _mean(scores), _mean(boxes)

    def masks(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """See `Look.masks`."""
        return _mean(
            view.image(look.masks(view.boxes(boxes, self.size), labels))
            for view, look in self.looks
        )


def _mean(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)
