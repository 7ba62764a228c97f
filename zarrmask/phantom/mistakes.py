"""Mistakes that a detector makes, made on purpose: to see whether they are noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Mistake = Callable[[Mask, np.random.Generator], Mask]

LEAST_SHIFT, MOST_SHIFT = 0.1, 0.3
"""Shares of a slice's width."""


def blanked(mask: Mask, rng: np.random.Generator) -> Mask:
    """Find nothing."""
    return np.zeros_like(mask)


def inverted(mask: Mask, rng: np.random.Generator) -> Mask:
    """Take all but the scroll."""
    return ~mask


def doubled(mask: Mask, rng: np.random.Generator) -> Mask:
    """See the scroll twice, half of its size apart."""
    y, x = np.nonzero(mask)
    size = max(np.ptp(y), np.ptp(x)) if len(y) else 0
    return mask | _moved(mask, size / 2, rng)


def shifted(mask: Mask, rng: np.random.Generator) -> Mask:
    """See the scroll where it is not."""
    return _moved(mask, rng.uniform(LEAST_SHIFT, MOST_SHIFT) * mask.shape[1], rng)


def with_case(mask: Mask, rng: np.random.Generator) -> Mask:
    """Take the case for the scroll too."""
    height, width = mask.shape
    case = np.zeros(mask.shape, np.uint8)
    for size, value in ((0.95, 1), (0.8, 0)):
        box = ((width / 2, height / 2), (size * width, size * height), 0.0)
        cv2.ellipse(case, box, value, cv2.FILLED)
    return mask | (case > 0)


def _moved(mask: Mask, pixels: float, rng: np.random.Generator) -> Mask:
    """Move a mask anywhere, by so many pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    way = np.array([[1, 0, pixels * np.cos(angle)], [0, 1, pixels * np.sin(angle)]])
    height, width = mask.shape
    return np.asarray(cv2.warpAffine(mask.view(np.uint8), way, (width, height))) > 0


MISTAKES: Mapping[str, Mistake] = {
    "blanked": blanked,
    "inverted": inverted,
    "doubled": doubled,
    "shifted": shifted,
    "case added": with_case,
}
