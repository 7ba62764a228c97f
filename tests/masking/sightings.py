"""What a detector may see on slices, made of masks."""

import numpy as np

from zarrmask.masking.sighting import Sighting
from zarrmask.masking.sketch import Sketch

DEPTH = 1600
"""Slices of a simulated scroll."""


def seen(mask, score=1.0, contrast=float("nan")):
    """What is said of a slice on which a mask (y, x) is found."""
    scores = np.full(int(mask.any()), score, np.float32)
    boxes = np.zeros((len(scores), 4), np.float32)
    return Sighting(boxes, scores, int(mask.sum()), Sketch.of_pixels(mask), contrast)


def disc(radius, x=50, y=50, side=100):
    """A mask that is a disc."""
    rows, columns = np.ogrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2
