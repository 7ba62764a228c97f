"""Slabs of compressed slices, decoded once into scratch files from which bricks are written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from distributed import Client
from numpy.typing import NDArray

from zarrmask.masking import Masks
from zarrmask.planning.plan import Plan
from zarrmask.planning.reading import SLICES_A_TASK
from zarrmask.progress import Advance
from zarrmask.pyramid import shifted
from zarrmask.stack import SLABS, Source, decode, decoded
from zarrmask.workers.blocks import results

DECODED = "decoded"
"""Folder of the scratch files of slices."""


@dataclass(frozen=True)
class Slabs:
    """Slabs of slices that are decoded into scratch files, to write bricks from.

    Attributes
    ----------
    source : Source
    plan : Plan
    whole : bool
        Whether all slices are wanted; else those on which the object is.
    folder : Path
        For the scratch files; gone at the end.
    """

    source: Source
    plan: Plan
    whole: bool
    folder: Path

    def keep(self, slabs: Iterable[int]) -> None:
        """Remove all but these from the folder: what a run left that was stopped."""
        if self.folder.exists():
            for left in {path.name for path in self.folder.iterdir()} - set(map(str, slabs)):
                shutil.rmtree(self.folder / left)

    def write(
        self,
        client: Client,
        bricks: NDArray[np.int64],
        masks: Masks | None,
        write: Callable[..., da.Array],
        advance: Advance,
    ) -> None:
        """Write bricks slab by slab; the next slab is decoded meanwhile.

        Parameters
        ----------
        bricks : (n, 3) int64
            Those of one slab together.
        masks : Masks or None
        write : callable
            Of some bricks and a lazy source, their writing as a lazy array.
        advance : callable
        """
        lazy = delayed(self.source, traverse=False)
        slabs = np.unique(bricks[:, 0]).tolist()

        def layers() -> Iterator[da.Array]:
            for slab in slabs:
                indices = self._wanted(slab, masks)
                scratch = decoded_into(lazy, indices, self.folder / str(slab))
                yield write(bricks[bricks[:, 0] == slab], source=scratch)

        def remove(place: int) -> None:
            shutil.rmtree(self.folder / str(slabs[place]), ignore_errors=True)

        results(client, layers(), advance, at_once=SLABS, finished=remove)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wanted(self, slab: int, masks: Masks | None) -> list[int]:
        """Indices of the slices of a slab whose voxels any brick wants."""
        z, _, _ = shifted(self.plan.grid.region((slab, 0, 0)), self.plan.origin)
        needed = ~np.isin(self.source.numbers[z], self.source.missing)
        if masks is not None and not self.whole:
            needed &= masks.any_on(z.start, z.stop)
        wanted: list[int] = (np.flatnonzero(needed) + z.start).tolist()
        return wanted


def decoded_into(source: Delayed, indices: Sequence[int], folder: Path) -> Delayed:
    """The stack, to be read from scratch files, once these slices of it are decoded."""
    if not indices:
        return source
    runs = [
        delayed(decode)(source, indices[start : start + SLICES_A_TASK], folder)
        for start in range(0, len(indices), SLICES_A_TASK)
    ]
    return delayed(decoded)(source, runs, folder)
