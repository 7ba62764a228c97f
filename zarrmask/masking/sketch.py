"""Masks in small, to compare keyframes by: a kilobyte each, whatever the slice's size."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.field import distance_to_zero

SIDE = 256
"""Pixels of a sketch's longer side, at most."""
SPECK = 4
"""Pixels of a sketch that may lie anywhere: a 64th of the longer side each way."""
NOWHERE = float("inf")


@dataclass(frozen=True, eq=False)
class Sketch:
    """A mask in small.

    Attributes
    ----------
    shape : (height, width)
        Pixels.
    bits : (n,) uint8
        Its pixels, eight a byte, as `numpy.packbits` packs them.

    Examples
    --------
    >>> sketch = Sketch.of_mask(np.full((600, 1024), 255, np.uint8))
    >>> sketch.shape, sketch.area
    ((150, 256), 38400)
    """

    shape: tuple[int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of_mask(cls, mask: NDArray[np.uint8]) -> Sketch:
        """Shrink a mask, (h, w) uint8 of 0 and 255; one that is not empty does not become so."""
        height, width = mask.shape
        times = max(1.0, max(height, width) / SIDE)
        small = (max(1, round(width / times)), max(1, round(height / times)))
        share = cv2.resize(mask, small, interpolation=cv2.INTER_AREA)
        inside = share >= 128
        if not inside.any():  # what is too small for that
            y, x = np.nonzero(mask)
            inside[y * inside.shape[0] // height, x * inside.shape[1] // width] = True
        return cls.of_pixels(inside)

    @classmethod
    def of_pixels(cls, inside: NDArray[np.bool_]) -> Sketch:
        """Take pixels as they are, (h, w) bool."""
        height, width = inside.shape
        return cls((height, width), np.packbits(inside))

    @property
    def pixels(self) -> NDArray[np.bool_]:
        """Give its pixels, (h, w) bool."""
        height, width = self.shape
        return np.unpackbits(self.bits, count=height * width).reshape(self.shape).view(bool)

    @property
    def area(self) -> int:
        """Pixels inside."""
        return count(self.bits)

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` takes."""
        packed = base64.b64encode(zlib.compress(self.bits.tobytes())).decode()
        return {"shape": list(self.shape), "bits": packed}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Sketch:
        """Take what `to_json` gave."""
        height, width = entry["shape"]
        bits = zlib.decompress(base64.b64decode(entry["bits"]))
        return cls((height, width), np.frombuffer(bits, np.uint8))


def count(bits: NDArray[np.uint8]) -> int:
    """Number of ones."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def agreement(one: Sketch, other: Sketch) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    either = count(one.bits | other.bits)
    return count(one.bits & other.bits) / either if either else 1.0


def displacement(a: Sketch, b: Sketch) -> float:
    """How far what is in one of two masks lies from the other, at the farthest, specks aside.

    Where an edge moved, that is by how much; where a piece is in one of them only, how far it is
    from the nearest other. `NOWHERE` where one of them is empty.

    Returns
    -------
    float
        Percent of the longer side.

    Examples
    --------
    >>> left, right = np.zeros((2, 200, 200), bool)
    >>> left[50:100, 50:100] = right[50:100, 60:110] = True
    >>> displacement(Sketch.of_pixels(left), Sketch.of_pixels(right))
    5.0
    """
    if not a.area or not b.area:
        return 0.0 if a.area == b.area else NOWHERE
    one, other = a.pixels, b.pixels
    return 100 * max(_farthest(one, other), _farthest(other, one)) / max(a.shape)


def _farthest(these: NDArray[np.bool_], from_: NDArray[np.bool_]) -> float:
    """How far the farthest of some pixels lies from others, but for a speck; pixels."""
    away = distance_to_zero((~from_).view(np.uint8))[these & ~from_]
    return float(np.partition(away, -1 - SPECK)[-1 - SPECK]) if away.size > SPECK else 0.0
