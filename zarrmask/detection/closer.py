"""Looking closer: an object that takes little of its slice is seen in more of its pixels.

A network sees a slice shrunk to its own size, all of it. Once it is known where the object is, it
is shown that part alone. Arithmetic, but for who is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.detections import Detections
from zarrmask.detection.inputs import NetworkInput

Detect: TypeAlias = Callable[[NDArray[np.uint8], tuple[int, int]], Detections]
"""Detects in what the network sees, made of an image of this height and width; boxes in its pixels.
"""

MARGIN = 0.2
"""What is shown around the object, as part of its longer side."""
GAIN = 1.25
"""Times as large as before each pixel has to be shown, or nobody looks again."""
SURE = 0.5
"""Only what scores more is looked at again, and only an answer that does counts: a mistake, seen
closer, would be surer."""


def look_closer(
    found: Detections,
    image: NDArray[np.uint8],
    shape: tuple[int, int],
    network_input: NetworkInput,
    detect: Detect,
) -> Detections:
    """Look once more, at what is around that which is sure, where the network gains by it.

    Parameters
    ----------
    found : Detections
        On the whole slice.
    image : ndarray of uint8, (h', w') or (h', w', 3)
        The slice, or a coarser form of it.
    shape : (int, int)
        Height and width of the slice, pixels.
    network_input : NetworkInput
    detect : callable

    Returns
    -------
    Detections
        In pixels of the slice: those of the second look, if there is one, and those of the first
        that it does not replace. What scores above a threshold, up to `SURE`, is what there would
        be had all that scores less never been found.
    """
    sure = found.above(SURE)
    if not (network_input.closer and len(sure)):
        return found
    size = (image.shape[0], image.shape[1])
    scale = np.array([shape[1] / size[1], shape[0] / size[0]] * 2, np.float32)
    part = part_to_see(sure.boxes / scale, size, network_input)
    if part is None:
        return found
    seen = image[part]
    again = detect(network_input.prepare(seen), (seen.shape[0], seen.shape[1]))
    if not len(again.above(SURE)):
        return found
    rows, columns = part
    corner = np.array([columns.start, rows.start] * 2, np.float32)
    again = replace(again, boxes=(again.boxes + corner) * scale)
    return again.joined(found.kept(~replaced(found, again)))


def part_to_see(
    boxes: NDArray[np.float32], size: tuple[int, int], network_input: NetworkInput
) -> tuple[slice, slice] | None:
    """Rows and columns of an image to look at again, or None.

    None where that would show no more, or where what is seen of the object is not the whole.

    Parameters
    ----------
    boxes : (n, 4) float32
        In pixels of the image, one at least.
    size : (int, int)
        Height and width of the image, pixels.
    network_input : NetworkInput

    Examples
    --------
    >>> small = np.array([[3000, 3400, 5000, 4400]], np.float32)
    >>> part_to_see(small, (8000, 8000), NetworkInput(448, 689))
    (slice(3000, 4800, None), slice(2600, 5400, None))
    >>> large = np.array([[500, 500, 7500, 7500]], np.float32)
    >>> part_to_see(large, (8000, 8000), NetworkInput(448, 689))  # None
    >>> part_to_see(small / 20, (400, 400), NetworkInput(448, 689))  # there are no more pixels
    """
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    if (low < 1).any() or (high > np.array(size[::-1]) - 1).any():
        return None
    margin = MARGIN * float((high - low).max())
    (x0, y0), (x1, y1) = (low - margin).tolist(), (high + margin).tolist()
    rows = slice(max(0, int(y0)), min(size[0], int(np.ceil(y1))))
    columns = slice(max(0, int(x0)), min(size[1], int(np.ceil(x1))))
    part = rows.stop - rows.start, columns.stop - columns.start
    before = network_input.shape(*size)[0] / size[0]
    after = min(1.0, network_input.shape(*part)[0] / part[0])  # an image has no more than its own
    return (rows, columns) if after >= GAIN * before else None


def replaced(found: Detections, again: Detections) -> NDArray[np.bool_]:
    """Which of what was found, (n,), shares area with something as sure of another look."""
    one, other = found.boxes[:, None], again.boxes[None]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shares = np.all(high > low, axis=2)
    as_sure = again.scores[None] > np.minimum(found.scores, SURE)[:, None]
    return np.asarray((shares & as_sure).any(axis=1))
