"""A mask of a slice made smaller, at the slice's own size. Arithmetic only."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.field import signed_distance


def enlarged_mask(mask: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Give a mask another size by its smooth edge.

    The distance to the edge is what is enlarged, bilinearly. To repeat pixels would leave teeth as
    wide as the scale, which cut papyrus at every step of the edge and show in sections.

    Parameters
    ----------
    mask : (y', x') uint8
        255 inside, else 0.
    shape : (height, width)
        Pixels.

    Returns
    -------
    (y, x) uint8
        255 inside, else 0.

    Examples
    --------
    >>> enlarged_mask(np.array([[255, 255, 0, 0]], np.uint8), (2, 8))[0]
    array([255, 255, 255, 255,   0,   0,   0,   0], dtype=uint8)
    """
    if mask.shape == shape:
        return mask
    field = signed_distance(mask > 0)
    large = np.asarray(cv2.resize(field, shape[::-1], interpolation=cv2.INTER_LINEAR))
    return (large > 0).view(np.uint8) * np.uint8(255)
