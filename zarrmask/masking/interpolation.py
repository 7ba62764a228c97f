"""The mask of every voxel from signed distances at keyframes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.field import NOWHERE, between, cells_around, enlarged, threshold
from zarrmask.masking.field_store import FieldStore
from zarrmask.masking.keyframes import Span, spans_between
from zarrmask.masking.runs import whole_files


@dataclass(frozen=True)
class InterpolatedMasks:
    """Masks of a stack's slices: interpolated along z, enlarged and grown in one step.

    Slices before the first keyframe have its mask, those after the last that one's. What a
    keyframe shows and a neighbour does not, is kept on all slices between them.

    Attributes
    ----------
    store : FieldStore
        The keyframes' fields.
    keyframes : (k,) int64
        Their slice indices, ascending.
    areas : (k,) int64
        Pixels of their masks.
    growth : float
        By which masks are grown, pixels; below zero they shrink.
    """

    store: FieldStore
    keyframes: NDArray[np.int64]
    areas: NDArray[np.int64]
    growth: float

    def region(self, z: slice, y: slice, x: slice) -> InterpolatedRegion:
        """Masks of a region of the stack; see `Masks`."""
        spans = spans_between(z.start, z.stop, self.keyframes)
        first, stop, side = spans[0].one, spans[-1].other + 1, self.store.side
        rows = cells_around(y.start, y.stop, side, ceil(self.store.shape[0] / side))
        distance, kept = self.store.read(first, stop, rows)
        return InterpolatedRegion(
            distance,
            kept if kept.max() > NOWHERE else None,
            [
                replace(s, one=s.one - first, other=s.other - first, start=s.start - z.start)
                for s in spans
            ],
            rows.start,
            y,
            x,
            side,
            threshold(self.growth, side),
        )

    def any_on(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which slices the object may be on; see `Masks`."""
        out = np.zeros(stop - start, bool)
        for span in spans_between(start, stop, self.keyframes):
            seen = self.areas[span.one] > 0 or self.areas[span.other] > 0
            out[span.start - start :][: len(span.places)] = seen
        return out


@dataclass(frozen=True)
class InterpolatedRegion:
    """Masks of a region's slices.

    Attributes
    ----------
    distance : (k, y', x') int16
        Fields of the keyframes around it, in cells around its rows.
    kept : (k, y', x') int16, optional
        Fields of what is kept after each of them.
    spans : list of Span
        Its slices, counted from the region's first, between these keyframes.
    first_row : int
        Which row of cells theirs begin with.
    y, x : slice
        Its rows and columns, pixels.
    side : int
        Of a cell, pixels.
    threshold : int
        Inside is what lies above this.
    """

    distance: NDArray[np.int16]
    kept: NDArray[np.int16] | None
    spans: list[Span]
    first_row: int
    y: slice
    x: slice
    side: int
    threshold: int

    def part(self, z: slice, y: slice) -> InterpolatedRegion:
        """Masks of some of the region's slices and rows."""
        rows = slice(self.y.start + y.start, self.y.start + y.stop)
        return replace(self, spans=[s for span in self.spans for s in span.part(z)], y=rows)

    def columns(self, side: int, most: int) -> list[tuple[slice, bool]]:
        """Cut the columns that the masks reach into runs of whole files; see `RegionMasks`."""
        width = self.x.stop - self.x.start
        files = [slice(at, min(at + side, width)) for at in range(0, width, side)]
        least, most_far = self._bounds(self.distance, files)
        kept = None if self.kept is None else self._bounds(self.kept, files)[1]
        reached, full = np.zeros(len(files), bool), np.ones(len(files), bool)
        for span in self.spans:
            for place in {span.places[0], span.places[-1]}:
                # Rounding may be off by one.
                low = least[span.one] * (1 - place) + least[span.other] * place - 1
                high = most_far[span.one] * (1 - place) + most_far[span.other] * place + 1
                reached |= high > self.threshold
                full &= low > self.threshold
            if kept is not None:
                reached |= kept[span.one] > self.threshold
        return whole_files(reached.tolist(), full.tolist(), width, side, most)

    def fill(self, out: NDArray[np.uint8], columns: slice) -> None:
        """Write the masks of some of the region's columns; see `RegionMasks`."""
        rows, across = self._rows(), self._across(columns)
        top = self.y.start - (rows.start + self.first_row) * self.side
        left = self.x.start + columns.start - across.start * self.side
        for span in self.spans:
            one, other = (
                self.distance[span.one, rows, across],
                self.distance[span.other, rows, across],
            )
            kept = None if self.kept is None else self.kept[span.one, rows, across]
            if kept is not None and kept.max() == NOWHERE:
                kept = None
            for n, place in enumerate(span.places, span.start):
                field = between(one, other, place, kept)
                enlarged(field, self.threshold, self.side, (top, left), out[n])

    def _bounds(self, fields: NDArray[np.int16], files: list[slice]) -> NDArray[np.float32]:
        """Least and greatest of each keyframe's cells around each file's columns: (2, k, n)."""
        # Of each pair of indices that `reduceat` takes, it is to end before the second.
        pairs = [
            edge for file in files for edge in (self._across(file).start, self._across(file).stop)
        ]
        rows = fields[:, self._rows()]
        bounds = []
        for reduce in (np.minimum, np.maximum):
            cells = reduce.reduce(rows, axis=1)
            cells = np.append(cells, cells[:, -1:], axis=1)  # the last pair may end behind the last
            bounds.append(reduce.reduceat(cells, pairs, axis=1)[:, ::2])
        return np.array(bounds, np.float32)

    def _rows(self) -> slice:
        """Rows of the fields that its rows are made of."""
        rows = cells_around(
            self.y.start, self.y.stop, self.side, self.first_row + self.distance.shape[1]
        )
        return slice(rows.start - self.first_row, rows.stop - self.first_row)

    def _across(self, columns: slice) -> slice:
        """Columns of the fields that some of its columns are made of."""
        start, stop = self.x.start + columns.start, self.x.start + columns.stop
        return cells_around(start, stop, self.side, self.distance.shape[2])
