"""What a detector found in one slice, and the masks that follow from it (NumPy only)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detections:
    """The instances found in one slice, the surest first.

    Parameters
    ----------
    boxes : ndarray of float32, (n, 4)
        x0, y0, x1, y1 in pixels of the slice; a pixel's centre lies at its index + 0.5.
    scores : ndarray of float32, (n,)
        From 0 to 1, descending.
    classes : ndarray of int64, (n,)
        Counted from 0.
    patches : ndarray of float32, (n, m, m)
        The probability of being the object, on a grid that fills the box.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    patches: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Self:
        """Keep what scores more than `score`.

        Detecting with that threshold gives the same: suppression and the limit on their number go
        from the highest score down.
        """
        return self.kept(self.scores > score)

    def of_classes(self, chosen: Collection[int]) -> Self:
        """Keep what is of one of these classes."""
        return self.kept(np.isin(self.classes, list(chosen)))

    def kept(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Keep those of a mask, (n,), or of some places, in their order."""
        return type(self)(*(one[which] for one in self._fields()))

    def joined(self, others: Self) -> Self:
        """Put both together, the surest first."""
        both = zip(self._fields(), others._fields(), strict=True)
        together = type(self)(*(np.concatenate(pair) for pair in both))
        return together.kept(np.argsort(-together.scores, kind="stable"))

    def _fields(self) -> tuple[NDArray, ...]:
        return self.boxes, self.scores, self.classes, self.patches


def on_slice(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    patches: NDArray[np.float32],
    *,
    seen: tuple[int, int],
    size: tuple[int, int],
) -> Detections:
    """Bring what a network found to the slice's size; what lies outside is cut off or dropped.

    Parameters
    ----------
    boxes, scores, classes, patches : ndarray
        As in `Detections`, the boxes in pixels of what the network saw.
    seen, size : (int, int)
        Height and width of what the network saw, and of the slice, in pixels.
    """
    height, width = size
    scale = np.array([width / seen[1], height / seen[0]] * 2, np.float32)
    boxes = np.clip(boxes * scale, 0, np.array([width, height] * 2, np.float32))
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(boxes[solid], scores[solid], classes[solid], patches[solid])


def union_mask(detections: Detections, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Mark what any instance covers.

    Parameters
    ----------
    detections : Detections
    shape : (int, int)
        Height and width of the slice, in pixels.

    Returns
    -------
    ndarray of uint8, (h, w)
        255 where a patch, spread over its box, is at least 0.5 at the pixel's centre; else 0.
    """
    mask = np.zeros(shape, np.uint8)
    for box, patch in zip(detections.boxes, detections.patches, strict=True):
        _paste(mask, box, patch)
    return mask


def instance_mask(
    box: NDArray[np.float32], patch: NDArray[np.float32], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Mark what one instance covers, by the rule of `union_mask`."""
    mask = np.zeros(shape, np.uint8)
    _paste(mask, box, patch)
    return mask


def _paste(mask: NDArray[np.uint8], box: NDArray[np.float32], patch: NDArray[np.float32]) -> None:
    """Add a patch to a mask; no array of floats is ever as large as the slice.

    As detectron2 pastes masks: the patch is interpolated linearly between the centres of its cells
    and is zero outside. Between two rows of cells it is interpolated only where one of them is
    inside and the other is not: elsewhere both say the same.
    """
    x0, y0, x1, y1 = (float(side) for side in box)
    rows = _covered(y0, y1, mask.shape[0])
    columns = _covered(x0, x1, mask.shape[1])
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    left, weight = _neighbours(columns, x0, x1, patch.shape[1])
    around = np.pad(patch, 1)
    first, second = (np.take(around, cells, axis=1) for cells in (left, left + 1))
    across = first * (1 - weight) + second * weight
    inside = across >= 0.5
    solid = (inside[:-1] & inside[1:]) * np.uint8(255)
    differs = inside[:-1] != inside[1:]
    below, share = _neighbours(rows, y0, y1, len(patch))
    part = mask[rows, columns]
    starts = np.searchsorted(below, np.arange(len(across)))
    for row in range(below[0], below[-1] + 1):
        band = slice(starts[row], starts[row + 1])
        part[band] |= solid[row]
        edge = np.flatnonzero(differs[row])
        lower, upper = across[row, edge], across[row + 1, edge]
        part[band, edge] |= (lower + share[band, None] * (upper - lower) >= 0.5) * np.uint8(255)


def _covered(low: float, high: float, size: int) -> slice:
    """Pixels whose centres lie between `low` and `high`."""
    return slice(max(0, int(np.ceil(low - 0.5))), min(size, int(np.floor(high - 0.5)) + 1))


def _neighbours(
    pixels: slice, low: float, high: float, cells: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Between which of the cells from `low` to `high` each pixel's centre lies, and how far.

    Returns
    -------
    first : (pixels,) ndarray
        Of each pair of neighbours; 0 is the one before the first cell.
    share : (pixels,) ndarray of float32
        Of the second one.
    """
    centres = np.arange(pixels.start, pixels.stop) + 0.5
    place = (centres - low) / (high - low) * cells + 0.5
    first = np.floor(place).astype(np.intp)
    return first, (place - first).astype(np.float32)
