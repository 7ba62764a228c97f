"""An image with two outlines on it: what is true, and what was found."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

TRUE, FOUND, IGNORED = (255, 143, 100), (0, 176, 255), (127, 38, 220)
"""Blue, orange and magenta (BGR), from IBM's colour-blind safe palette."""
SMALLEST, LARGEST = 800, 1600
"""Pixels of a picture's longer side."""
STRIP = 34
"""Pixels above the image, for the words."""


def picture(
    grey: NDArray[np.uint8],
    true: NDArray[np.bool_],
    found: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    words: str,
) -> bytes:
    """Draw a PNG: the image, what is true in blue, what was found in orange on top of it.

    Parameters
    ----------
    grey : (y, x) uint8
    true, found, ignored : (y, x) bool
        What is ignored is outlined in magenta.
    words : str
        What is said above the image, ASCII.
    """
    longer = max(grey.shape)
    scale = LARGEST / longer if longer > LARGEST else -(-SMALLEST // longer)
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = cv2.cvtColor(cv2.resize(grey, size, interpolation=how), cv2.COLOR_GRAY2BGR)
    outlines = [("true", true, TRUE, 4), ("found", found, FOUND, 2)]
    if ignored.any():
        outlines.insert(0, ("ignored", ignored, IGNORED, 2))
    for _, mask, colour, width in outlines:
        shown = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        lines, _ = cv2.findContours(shown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, lines, -1, colour, width, cv2.LINE_AA)
    strip = np.zeros((STRIP, image.shape[1], 3), np.uint8)
    left = 8
    legend = [(name, colour) for name, _, colour, _ in outlines]
    for text, colour in (*legend, (words, (255, 255, 255))):
        cv2.putText(strip, text, (left, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)[0][0] + 16
    _, png = cv2.imencode(".png", np.concatenate([strip, image]))
    return bytes(png)
