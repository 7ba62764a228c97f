"""One contrast for all images, whatever window a slice was stored with."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MIDDLE, SPAN = 120.0, 150.0
"""Grey values: what lies midway between dark and bright comes to, and how far apart these come."""
LEAST = 20.0
"""Grey values that dark and bright are taken to lie apart at the least: noise stays faint."""
_SHARE = 0.02
_CELL = 4


def even(image: Tensor) -> Tensor:
    """Bring an image's dark and bright parts to the same grey values as any other's.

    Dark and bright are the 2nd and the 98th percentile of means over cells of 4 x 4 pixels: what
    is noise, or drawn over a slice in thin lines, hardly counts.

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
    ordered = cells.flatten().sort().values
    last = len(ordered) - 1
    dark, bright = ordered[round(last * _SHARE)], ordered[round(last * (1 - _SHARE))]
    gain = SPAN / (bright - dark).clamp(min=LEAST)
    return torch.addcmul(image.new_tensor(MIDDLE), image - (dark + bright) / 2, gain).clamp(0, 255)
