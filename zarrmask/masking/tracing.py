"""Lines around a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def traced(inside: NDArray[np.bool_]) -> tuple[Sequence[NDArray[np.int32]], Any]:
    """Trace closed lines around a mask, and around its holes.

    Parameters
    ----------
    inside : (y, x) bool

    Returns
    -------
    lines : sequence of (n, 1, 2) int32
        x and y, half pixels from the first one's middle: (line + 0.5) / 2 is in pixels, 0 being the
        edge of the mask's first. They run within the mask, a quarter of a pixel from its edge.
    hierarchy : (1, lines, 4) int32
        As `cv2.findContours` gives it: None where there is no line.
    """
    # OpenCV traces through the middles of pixels: at twice the size a lone pixel has an outline.
    doubled = np.repeat(np.repeat(inside.astype(np.uint8), 2, axis=0), 2, axis=1)
    lines, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return lines, hierarchy
