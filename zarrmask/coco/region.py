"""Pixels of an image, kept as small as COCO keeps them: by run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarrmask.errors import ZarrmaskError

try:
    from pycocotools import mask as codec
except ImportError:
    raise ZarrmaskError(
        "COCO annotations are read by pycocotools, which is not installed: "
        "pip install 'zarrmask[train]'"
    ) from None


@dataclass(frozen=True)
class Region:
    """Some pixels of an image.

    Attributes
    ----------
    height, width : int
        Of the image, pixels.
    counts : bytes
        COCO's compressed run lengths, column by column.
    """

    height: int
    width: int
    counts: bytes

    @classmethod
    def of_mask(cls, mask: NDArray) -> Region:
        """Take the pixels of a mask (y, x) that are not 0."""
        height, width = mask.shape
        return cls._of(codec.encode(np.asfortranarray(mask != 0, np.uint8)), height, width)

    @classmethod
    def of_polygon(cls, polygon: Sequence[float], height: int, width: int) -> Region:
        """Take the pixels that a polygon covers.

        Parameters
        ----------
        polygon : sequence of float
            x and y in turn, of 3 points at least, pixels; the image's first pixel spans 0 to 1.
        height, width : int
            Of the image.
        """
        (coded,) = codec.frPyObjects([list(polygon)], height, width)
        return cls._of(coded, height, width)

    @classmethod
    def of_counts(cls, counts: Sequence[int] | str | bytes, height: int, width: int) -> Region:
        """Take the pixels of every second run.

        Parameters
        ----------
        counts : (n,) of int, str or bytes
            Lengths of runs of pixels, column by column: outside, inside, outside, ...; or these
            compressed.
        height, width : int
            Of the image.

        Raises
        ------
        ValueError
            If they are no run lengths, or do not come to the image's pixels: the library would
            read and write beyond its memory.
        """
        lengths = decompressed(counts) if isinstance(counts, str | bytes) else list(counts)
        if not all(isinstance(length, int) and length >= 0 for length in lengths):
            raise ValueError("its counts are not run lengths")
        if sum(lengths) != height * width:
            raise ValueError(
                f"its counts come to {sum(lengths):,} pixels; the image has {height * width:,}"
            )
        coded = codec.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
        return cls._of(coded, height, width)

    @classmethod
    def of_union(cls, regions: Sequence[Region], height: int, width: int) -> Region:
        """Take the pixels of any of some regions of one image."""
        if not regions:
            return cls.of_counts([height * width], height, width)
        return cls._of(codec.merge([region.coded() for region in regions]), height, width)

    @classmethod
    def _of(cls, coded: dict[str, Any], height: int, width: int) -> Region:
        return cls(height, width, coded["counts"])

    def coded(self) -> dict[str, Any]:
        """Give the region as pycocotools has it."""
        return {"size": [self.height, self.width], "counts": self.counts}

    def mask(self) -> NDArray[np.bool_]:
        """Give the region as a mask, (y, x)."""
        return np.ascontiguousarray(codec.decode(self.coded())).view(np.bool_)

    @property
    def area(self) -> int:
        """How many pixels it has."""
        return int(codec.area(self.coded()))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1: the edges of its outermost pixels."""
        x, y, width, height = (float(side) for side in codec.toBbox(self.coded()))
        return x, y, x + width, y + height


def decompressed(text: str | bytes) -> list[int]:
    """Give the run lengths behind COCO's compressed ones.

    Each is written in digits of 5 bits, the lowest first; from the fourth on as the difference to
    the last but one.

    Raises
    ------
    ValueError
        If they are no such text.

    Examples
    --------
    >>> decompressed("52203")
    [5, 2, 2, 2, 5]
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text.encode() if isinstance(text, str) else text:
        digit = character - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError("its counts are not run lengths")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its counts break off")
    return lengths
