"""How slices are read before there are masks: lazily, in runs; and samples of them."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from zarrmask.planning.reading import KeyframeRuns, Patches, sampled_runs
from zarrmask.progress import Reporter
from zarrmask.pyramid import Region, Shape
from zarrmask.running import tasks
from zarrmask.stack import Source
from zarrmask.workers.blocks import results


def sample_greys(
    client: Client,
    source: Source,
    indices: NDArray[np.int64],
    reporter: Reporter,
    *,
    finest: bool = False,
) -> NDArray:
    """Sample the grey values of some of these slices: (n,) of the stack's dtype.

    See `sampled_runs`.
    """
    runs = sampled_runs(source, indices, finest=finest)
    samples = lazy_slices(runs).map_blocks(
        tasks.grey_values, drop_axis=[1, 2], dtype=object, meta=np.empty(0, object)
    )
    with reporter.stage("sampling contrast", len(runs.indices), "slices") as advance:
        return np.concatenate([block[0] for block in results(client, [samples], advance)])


def lazy_slices(runs: KeyframeRuns) -> da.Array:
    """Slices as one lazy array (k, y, x), a run a block."""
    slices = _Slices(runs.source, runs.indices)
    return da.from_array(slices, chunks=(runs.lengths, *slices.shape[1:]), asarray=False)


@dataclass(frozen=True)
class _Slices:
    """Some slices of a stack, as an array that Dask reads by blocks."""

    source: Source | Patches
    indices: NDArray[np.int64]

    @property
    def shape(self) -> Shape:
        return (len(self.indices), *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def ndim(self) -> int:
        return 3

    def __getitem__(self, region: Region) -> NDArray:
        z, y, x = region
        wanted = self.indices[z]
        first, last = int(wanted[0]), int(wanted[-1])
        slices = self.source[first : last + 1, y, x]
        return slices if len(wanted) == 1 else slices[wanted - first]
