"""One contrast for all images, whatever window a slice was stored with."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MIDDLE, SPAN = 120.0, 150.0
"""Grey values: what lies midway between dark and bright comes to, and how far apart these come."""
LEAST = 20.0
"""Grey values that dark and bright are taken to lie apart at the least."""
NOISE = 6.0
"""How many standard deviations of the noise they are taken to lie apart at the least."""
_SHARE = 0.02
_CELL = 4


def even(image: Tensor) -> Tensor:
    """Bring an image's dark and bright parts to the same grey values as any other's.

    Dark and bright are the 2nd and the 98th percentile of means over cells of 4 x 4 pixels, after
    a closing and an opening of these by 3 x 3: what is drawn over a slice in lines does not
    count. Noise alone stays faint.

    Parameters
    ----------
    image : Tensor of float32, (channels, h, w)
        Grey values 0 to 255.

    Returns
    -------
    Tensor of float32, (channels, h, w)
        Clipped to 0 to 255.
    """
    cells = F.avg_pool2d(
        image.mean(0, keepdim=True), _CELL, ceil_mode=True, count_include_pad=False
    )
    dark = _ranked(-_spread(-_spread(cells)), _SHARE)
    bright = _ranked(_spread(-_spread(-cells)), 1 - _SHARE)
    apart = (bright - dark).clamp(min=LEAST).maximum(NOISE * _noise(cells))
    return torch.addcmul(image.new_tensor(MIDDLE), image - (dark + bright) / 2, SPAN / apart).clamp(
        0, 255
    )


def _spread(cells: Tensor) -> Tensor:
    """Each cell's greatest neighbour: a dilation by 3 x 3."""
    return F.max_pool2d(cells, 3, stride=1, padding=1)


def _ranked(cells: Tensor, share: float) -> Tensor:
    """Return the cell that a share of them lie below."""
    ordered = cells.flatten().sort().values
    return ordered[round((len(ordered) - 1) * share)]


def _noise(cells: Tensor) -> Tensor:
    """Estimate the standard deviation of cells from the differences of neighbours.

    A normal distribution's median distance from zero is 0.6745 standard deviations, and a
    difference has those of both cells (Rousseeuw and Croux 1993).
    """
    steps = cells.diff().abs().flatten()
    return steps.median() / (0.6745 * 2**0.5) if len(steps) else cells.new_zeros(())
