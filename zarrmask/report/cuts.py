"""Cuts through a volume, small enough for a picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class Cut(NamedTuple):
    """A cut, and how many of its level's pixels each of its own is wide.

    Attributes
    ----------
    image : (h, w)
        Grey values.
    inside : (h, w) bool
        Where the mask is.
    shrunk : float
    """

    image: NDArray[Any]
    inside: NDArray[np.bool_]
    shrunk: float


def limited(image: NDArray[Any], inside: NDArray[np.bool_], most: int) -> Cut:
    """Shrink a cut whose longer side has more pixels than that; it is no view of what it is of."""
    factor = max(image.shape) / most
    if factor <= 1:
        return Cut(image.copy(), inside.copy(), 1.0)
    size = [max(1, round(side / factor)) for side in reversed(image.shape)]
    small, share = (
        np.asarray(cv2.resize(one, size, interpolation=cv2.INTER_AREA))
        for one in (image, inside.astype(np.float32))
    )
    return Cut(small, share >= 0.5, factor)
