"""Grey values of what was kept and of what was removed, and slices to leaf through.

One pass over one coarse level, by layers of its chunks: each chunk is decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.report.cuts import Cut, limited

BINS = 1024
"""Of a histogram of the whole range of grey values: 12-bit values in 16 bits still have 64."""
STEPS = 2000
"""Parts of z that are told apart, at most."""
SAMPLED = 2**22
"""Voxels of a slice of the level that are counted, about: of every n-th row and column."""
MOST = 2**30
"""Voxels of the level that are read, at most."""
LAYER = 2**28
"""Voxels that are read at once, at most."""
LEAST = 200
"""Voxels that a part of z keeps, if their shares are to say something."""


@dataclass(frozen=True, eq=False)
class Greys:
    """Histograms of a run.

    Attributes
    ----------
    edges : (b + 1,) float64
        Grey values between which the bins lie.
    kept : (s, b) int64
        Voxels inside the mask, for each part of z.
    removed : (b,) int64
        Voxels outside; none where the volume is not there.
    starts : (s,) int64
        Slice number with which each part of z begins.
    """

    edges: NDArray[np.float64]
    kept: NDArray[np.int64]
    removed: NDArray[np.int64]
    starts: NDArray[np.int64]

    def steps_of(self, z: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tell in which parts of z some slices lie."""
        return np.clip(np.searchsorted(self.starts, z, side="right") - 1, 0, None)

    def percentile(self, share: float, counts: NDArray[np.int64]) -> int:
        """Tell the bin below which this share of some counts lies."""
        total = np.cumsum(counts)
        return int(np.searchsorted(total, share * total[-1])) if total[-1] else 0

    def span(self, *, only_kept: bool) -> tuple[float, float]:
        """Give the grey values between which nearly all of them lie."""
        counts = self.kept.sum(axis=0) + (0 if only_kept else self.removed)
        low, high = (self.percentile(share, counts) for share in (0.01, 0.99))
        return float(self.edges[low]), float(self.edges[high + 1])

    def like(self, kind: str) -> NDArray[np.float64]:
        """Share of what each part of z keeps that looks like the air or the case: (s,).

        Air is darker than halfway between the middle values of what was removed and kept, where
        that is the darker; the case is brighter than nearly all that was kept. NaN where too
        little was kept to tell.
        """
        kept = self.kept.sum(axis=0)
        middle = self.percentile(0.5, kept)
        if kind == "air":
            removed = self.percentile(0.5, self.removed) if self.removed.any() else middle
            chosen = slice(0, (removed + middle + 1) // 2 if removed < middle else 0)
        else:
            chosen = slice(self.percentile(0.995, kept) + 1, None)
        count = self.kept.sum(axis=1)
        shares = self.kept[:, chosen].sum(axis=1) / np.maximum(count, 1)
        return np.where(count >= LEAST, shares, np.nan)


def look_through(
    grey: zarr.Array[Any],
    mask: zarr.Array[Any],
    count: int,
    first_z: int,
    side: int,
    most: int,
    *,
    only_masked: bool,
) -> tuple[Greys, dict[int, Cut]]:
    """Count the grey values of a level inside and outside the mask, and take slices of it.

    Parameters
    ----------
    grey, mask : zarr.Array (z, y, x)
        One level of both; greys are uint8 or uint16.
    count : int
        Slices of the level to take, at most.
    first_z : int
        Number of the stack's slice with which the level begins.
    side : int
        Slices of the stack in one of the level.
    most : int
        Pixels, at most, of the longer side of a slice that is taken: larger ones are shrunk.
    only_masked : bool
        Whether nothing is known of what lies outside the mask.

    Returns
    -------
    greys : Greys
    slices : dict
        Of each index taken the slice.
    """
    depth, height, width = grey.shape
    together = -(-depth // STEPS)
    values = 2 ** (8 * grey.dtype.itemsize)
    wide = max(1, values // BINS)
    kept = np.zeros((-(-depth // together), values // wide), np.int64)
    removed = np.zeros(values // wide, np.int64)
    every = max(1, round((height * width / SAMPLED) ** 0.5))
    taken = {}
    layers = _layers(grey)
    indices = [z for layer in layers for z in layer]
    wanted = {indices[place] for place in spread(len(indices), count)}
    for z, voxels, inside in _slices(grey, mask, layers):
        if z in wanted:
            taken[z] = limited(voxels, inside, most)
        bins, within = voxels[::every, ::every] // wide, inside[::every, ::every]
        kept[z // together] += np.bincount(bins[within], minlength=len(removed))
        if not only_masked:
            removed += np.bincount(bins[~within], minlength=len(removed))
    edges = np.arange(len(removed) + 1, dtype=np.float64) * wide
    starts = first_z + np.arange(len(kept)) * together * side
    return Greys(edges, kept, removed, starts), taken


def _slices(
    grey: zarr.Array[Any], mask: zarr.Array[Any], layers: Sequence[range]
) -> Iterator[tuple[int, NDArray[Any], NDArray[np.bool_]]]:
    """Read layers of a level, and give them slice by slice."""
    for layer in layers:
        part = slice(layer.start, layer.stop)
        voxels, inside = common(np.asarray(grey[part]), np.asarray(mask[part]))
        for z, one, where in zip(layer, voxels, inside, strict=True):
            yield z, one, where != 0


def common(one: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """What two arrays both have: others round down where they halve, zarrmask rounds up."""
    both = tuple(map(slice, np.minimum(one.shape, other.shape)))
    return one[both], other[both]


def _layers(grey: zarr.Array[Any]) -> list[range]:
    """Give the layers of chunks that are read: some of them where the level is too large."""
    depth, height, width = grey.shape
    deep = max(1, min(grey.chunks[0], LAYER // (height * width)))
    layers = [range(start, min(start + deep, depth)) for start in range(0, depth, deep)]
    return layers[:: -(-grey.size // MOST)]


def spread(depth: int, count: int) -> list[int]:
    """Choose up to `count` indices below `depth`, evenly spread and close to both ends.

    Examples
    --------
    >>> spread(300, 6), spread(3, 6), spread(1, 6)
    ([6, 63, 121, 178, 236, 293], [0, 1, 2], [0])
    """
    return sorted({int(place) for place in np.linspace(0.02, 0.98, count) * (depth - 1) + 0.5})
