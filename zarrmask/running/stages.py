"""The stages of a run that are Dask graphs: sampling, measuring masks, writing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from distributed import Client
from numpy.typing import NDArray

from zarrmask.grey import Rescaling
from zarrmask.masking import (
    KEYFRAMES_A_CHUNK,
    FieldStore,
    HeldMasks,
    InterpolatedMasks,
    KeyframeStore,
    Masks,
    SettledMasks,
    read_together,
)
from zarrmask.planning.plan import Plan
from zarrmask.progress import Advance, Reporter
from zarrmask.pyramid import BrickGrid, Pyramid, Region, Shape, brick_key, shifted, touched
from zarrmask.records.ledger import Ledger
from zarrmask.running import tasks
from zarrmask.stack import SLABS, Source, cuts_blocks, decode, decoded, forget_decoded
from zarrmask.storage.place import Place
from zarrmask.workers.blocks import results

SAMPLED_SLICES = 8
SAMPLED_SIDE = 1024
"""Pixels: grey values are sampled from the coarsest level whose slices are no smaller."""
READ_TOGETHER = 2**28
"""Bytes of coarse slices that are read at once, since they share chunks."""
RUNS_A_WORKER = 4
DECODED = "decoded"
"""Folder of the scratch files of slices."""
SLICES_A_TASK = 8
"""Decoded by one task: so few that all workers are busy from the start."""


def sample_greys(
    client: Client, source: Source, indices: NDArray[np.int64], reporter: Reporter
) -> NDArray:
    """Sample the grey values of some of these slices: (n,) of the stack's dtype."""
    chosen = sampled_slices(indices)
    slices = lazy_slices(keyframe_runs(source, chosen, (SAMPLED_SIDE, SAMPLED_SIDE)))
    samples = slices.map_blocks(
        tasks.grey_values, drop_axis=[1, 2], dtype=object, meta=np.empty(0, object)
    )
    with reporter.stage("sampling contrast", len(chosen), "slices") as advance:
        return np.concatenate([block[0] for block in results(client, [samples], advance)])


def sampled_slices(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose some of these slices, evenly spread."""
    places = np.linspace(0, len(indices) - 1, SAMPLED_SLICES).round().astype(int)
    chosen: NDArray[np.int64] = indices[np.unique(places)]
    return chosen


@dataclass(frozen=True)
class KeyframeRuns:
    """How keyframes are read.

    Attributes
    ----------
    source : Source
        The stack, or a coarser form of it.
    indices : (k,) int64
        The keyframes' slices in it.
    lengths : tuple of int
        How many are read by one task.
    """

    source: Source
    indices: NDArray[np.int64]
    lengths: tuple[int, ...]

    def spans(self) -> list[slice]:
        """The slices that are read for each run: from its first to its last keyframe."""
        ends = np.cumsum(self.lengths).tolist()
        return [
            slice(int(self.indices[end - length]), int(self.indices[end - 1]) + 1)
            for end, length in zip(ends, self.lengths, strict=True)
        ]

    def first(self) -> KeyframeRuns:
        """The first run alone."""
        return KeyframeRuns(self.source, self.indices[: self.lengths[0]], self.lengths[:1])


def keyframe_runs(
    source: Source, indices: NDArray[np.int64], shape: tuple[int, int], workers: int | None = None
) -> KeyframeRuns:
    """Choose how some slices are read: no smaller than `shape`, but as coarse as may be.

    One at a time; or, for so many workers, in runs of slices that share what is read.
    """
    coarse, depth = source.coarsest(*np.minimum(source.shape[1:], shape).tolist())
    slices = np.minimum(indices // depth, coarse.shape[0] - 1)
    _, height, width = coarse.shape
    runs = [1] * len(slices)
    if workers is not None:
        span = max(1, READ_TOGETHER // (height * width * coarse.dtype.itemsize))
        most = max(1, len(slices) // (RUNS_A_WORKER * workers))
        runs = read_together(slices, coarse.block[0], span, most)
    return KeyframeRuns(coarse, slices, tuple(runs))


def lazy_slices(runs: KeyframeRuns) -> da.Array:
    """Slices as one lazy array (k, y, x), a run a block."""
    slices = _Slices(runs.source, runs.indices)
    return da.from_array(slices, chunks=(runs.lengths, *slices.shape[1:]), asarray=False)


@dataclass(frozen=True)
class _Slices:
    """Some slices of a stack, as an array that Dask reads by blocks."""

    source: Source
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


@dataclass(frozen=True)
class UsedKeyframes:
    """Keyframes that make the masks, from the first on.

    Attributes
    ----------
    places : (k,) int64
        Where in the store they are.
    indices : (k,) int64
        Their slice indices, ascending.
    areas : (k,) int64
        Pixels of their masks.
    complete : bool
        Whether there are no more.
    """

    places: NDArray[np.int64]
    indices: NDArray[np.int64]
    areas: NDArray[np.int64]
    complete: bool = True


def masks_between(
    client: Client,
    store: KeyframeStore,
    found: Iterable[UsedKeyframes],
    plan: Plan,
    fields: FieldStore,
    ledger: Ledger,
    reporter: Reporter,
) -> Iterator[SettledMasks]:
    """The masks of all slices, from those of keyframes, by the plan's rule.

    Parameters
    ----------
    store : KeyframeStore
        Holds the keyframes' masks.
    found : iterable of UsedKeyframes
        More of them each time; at last all.
    fields : FieldStore
        For their fields, where masks are interpolated.
    ledger : Ledger
        Of the measuring of fields.

    Yields
    ------
    SettledMasks
        Of more slices each time; at last of all.
    """
    measures = plan.propagate != "hold"
    if measures and fields.create(store.masks().shape[0]):
        ledger.forget()  # somebody removed what it speaks of
    for used in found:
        count = len(used.places)
        if measures:
            count = _measure_fields(client, store, used, fields, ledger, reporter)
        if not count:
            continue
        indices, areas = used.indices[:count], used.areas[:count]
        stop = sys.maxsize if used.complete else int(indices[-1])
        masks: Masks = (
            InterpolatedMasks(fields, indices, areas, plan.side / 2)
            if measures
            else HeldMasks(store, indices, used.places, areas, fields.shape, plan.side)
        )
        yield SettledMasks(masks, stop)


def _measure_fields(
    client: Client,
    store: KeyframeStore,
    used: UsedKeyframes,
    fields: FieldStore,
    ledger: Ledger,
    reporter: Reporter,
) -> int:
    """Measure the signed distances by which masks are interpolated.

    Those of a chunk at once, and only if the keyframe after it is known, for which pieces are kept.
    Gives of how many keyframes they are there.
    """
    chunk, total = KEYFRAMES_A_CHUNK, len(used.places)
    if not used.complete:
        total = (total - 1) // chunk * chunk
    firsts = np.arange(0, total, chunk)
    missing = firsts[ledger.missing(firsts.tolist())]
    if len(missing):
        measured = one_task_each(
            missing,
            tasks.measure_fields,
            store=store,
            positions=used.places,
            fields=fields,
            ledger=ledger,
        )
        before = total - int(np.minimum(chunk, total - missing).sum())
        with reporter.stage("measuring masks", total, "keyframes", before=before) as advance:
            results(client, [measured], advance)
    return total


def write_pyramids(
    client: Client,
    source: Source,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    settled: Iterable[SettledMasks] | None,
    rescaling: Rescaling | None,
    scratch: Path | None,
    ledger: Ledger,
    reporter: Reporter,
    changed: Sequence[Shape] | None = None,
) -> int:
    """Write what is missing of every pyramid.

    One pass goes over the stack, then one over what it handed on for every two coarser levels.
    Slices that bricks would decode more than once are decoded into `scratch` first, slab by slab,
    if there is such a folder that all workers see.

    Parameters
    ----------
    settled : iterable of SettledMasks or None
        Of more slices each time; what lies in these is written before more is asked for. None where
        nothing is masked.
    changed : sequence of (z, y, x), optional
        Places of the bricks that are to be written anew, with what is made of them at coarser
        levels; what was handed over beside them has been recalled. By default all are written.

    Returns
    -------
    int
        Voxels inside the mask, of the bricks that were written.
    """
    written = {name: pyramid for name, pyramid in pyramids.items() if not pyramid.finished}
    made = [pyramid.create() for pyramid in written.values()]
    if any(made):
        ledger.forget()  # somebody removed what it speaks of
    first = _entries(ledger, "level-0", plan.grid)
    bricks = plan.grid.indices() if changed is None else changed
    missing = missing_bricks(bricks, first)
    ends = np.minimum((missing[:, 0] + 1) * plan.grid.brick[0], plan.shape[0]) + plan.origin[0]
    slabs = None
    if scratch is not None and decodes_ahead(source, plan):
        slabs = _Slabs(source, plan, "volume" in pyramids, scratch / DECODED, missing)
    size, before = _read(source, plan, len(bricks)), len(bricks) - len(missing)
    slices = plan.shape[0] * len(bricks) // len(plan.grid)
    parts: Iterable[tuple[Masks | None, int]] = [(None, sys.maxsize)]
    if settled is not None:
        parts = ((part.masks, part.stop) for part in settled)
    with ExitStack() as shown:
        advance: Advance | None = None
        for masks, stop in parts:
            ready, missing = missing[ends <= stop], missing[ends > stop]
            ends = ends[ends > stop]
            if not len(ready):
                continue
            advance = advance or shown.enter_context(
                reporter.stage(
                    "writing", len(bricks), "bricks", before=before, size=size, slices=slices
                )
            )
            write = partial(
                one_task_each,
                task=tasks.write_brick,
                grid=plan.grid,
                ledger=first,
                origin=plan.origin,
                outputs=dict(pyramids),
                rescaling=rescaling,
                masks=delayed(masks, traverse=False),  # its keyframes once, not by the task
                anew=changed is not None,
            )
            if slabs is not None:
                slabs.write(client, ready, masks, write, advance)
            else:
                layer = write(ready, source=delayed(source, traverse=False))
                results(client, [layer], advance)
    if slabs is not None:
        slabs.remove()
    for level in next(iter(written.values())).passes[1:]:
        layers, total, size = [], 0, 0
        for name, pyramid in written.items():
            grid = pyramid.bricks(level) if changed is None else pyramid.steps(level)
            coarser = grid.indices() if changed is None else made_of(changed, plan, level, grid)
            entries = _entries(ledger, f"level-{level}-{name}", grid)
            arguments = {"pyramid": pyramid, "level": level, "anew": changed is not None}
            missing = missing_bricks(coarser, entries)
            layers.append(
                one_task_each(missing, tasks.write_coarser, grid=grid, ledger=entries, **arguments)
            )
            total += len(coarser)
            voxels = prod(grid.shape) * len(coarser) // len(grid)
            size += voxels * np.dtype(pyramid.dtype).itemsize
        compute_bricks(client, layers, f"writing from level {level}", total, size, reporter)
    return sum(first.results(map(brick_key, bricks)).values())


def forget_slices(
    indices: Sequence[int],
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    scratch: Place,
    ledger: Ledger,
) -> None:
    """Take nothing for written that was made of some slices, and remove it.

    Parameters
    ----------
    indices : sequence of int
        In the stack.
    scratch, ledger
        As of `write_pyramids`.
    """
    places = np.array(indices) - plan.origin[0]
    regions = [
        region
        for region in map(plan.grid.region, plan.grid.indices())
        if np.any((places >= region[0].start) & (places < region[0].stop))
    ]
    for name, pyramid in pyramids.items():
        if pyramid.finished or not (pyramid.path / "0").exists():
            continue
        for level in pyramid.passes:
            grid = pyramid.bricks(level) if level else plan.grid
            entries = _entries(ledger, f"level-{level}-{name}" if level else "level-0", grid)
            for brick in touched(regions, 2**level, grid):
                entries.take_back([brick_key(brick)])
                pyramid.clear(level, grid.region(brick))
    if isinstance(scratch, Path):
        for slab in (scratch / DECODED).glob("*"):
            forget_decoded(slab, indices)


def made_of(bricks: Sequence[Shape], plan: Plan, level: int, grid: BrickGrid) -> list[Shape]:
    """Places of the bricks of a coarser level, cut by a grid, that are made of some of a plan's."""
    return touched((plan.grid.region(brick) for brick in bricks), 2**level, grid)


def bricks_left(ledger: Ledger, plan: Plan) -> float:
    """Share of the bricks that are still to be written, of the pass over the stack."""
    missing = missing_bricks(plan.grid.indices(), _entries(ledger, "level-0", plan.grid))
    return len(missing) / len(plan.grid)


def _entries(ledger: Ledger, name: str, grid: BrickGrid) -> Ledger:
    """Entries of a stage's bricks; those of another grid say nothing of this one's."""
    return ledger.stage(name).stage(brick_key(grid.brick))


def decodes_ahead(source: Source, plan: Plan) -> bool:
    """Whether slices are decoded into scratch files, since bricks would decode parts of them twice.

    No voxel is decoded more than once: where bricks hold whole strips, tiles or files, each is
    decoded by the brick that it lies in.
    """
    edges = (
        [*range(start, start + size, side), start + size]
        for start, size, side in zip(plan.origin, plan.grid.shape, plan.grid.brick, strict=True)
    )
    return cuts_blocks(source.block, edges)


@dataclass(frozen=True)
class _Slabs:
    """Slabs of slices that are decoded into scratch files, to write bricks from.

    Attributes
    ----------
    source : Source
    plan : Plan
    whole : bool
        Whether all slices are wanted; else those on which the object is.
    folder : Path
        For the scratch files; gone at the end.
    missing : (n, 3) int64
        Bricks that are to be written: what else is in the folder goes at once.
    """

    source: Source
    plan: Plan
    whole: bool
    folder: Path
    missing: InitVar[NDArray[np.int64]]

    def __post_init__(self, missing: NDArray[np.int64]) -> None:
        """Remove what a run left that was stopped before it did so."""
        if self.folder.exists():
            slabs = {str(slab) for slab in missing[:, 0].tolist()}
            for left in {path.name for path in self.folder.iterdir()} - slabs:
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
                scratch = _decoded(lazy, indices, self.folder / str(slab))
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


def _decoded(source: Delayed, indices: Sequence[int], folder: Path) -> Delayed:
    """The stack, to be read from scratch files, once these slices of it are decoded."""
    if not indices:
        return source
    runs = [
        delayed(decode)(source, indices[start : start + SLICES_A_TASK], folder)
        for start in range(0, len(indices), SLICES_A_TASK)
    ]
    return delayed(decoded)(source, runs, folder)


def missing_bricks(bricks: Sequence[Shape], ledger: Ledger) -> NDArray[np.int64]:
    """Give the places of those of some bricks that the ledger lacks, (n, 3)."""
    indices = np.array(bricks, np.int64).reshape(-1, 3)
    return indices[ledger.missing(brick_key(index) for index in bricks)]


def one_task_each(places: NDArray[np.int64], task: Any, **arguments: Any) -> da.Array:
    """A task for each of some places, (n,) or (n, m) int64, as a lazy array.

    Parameters
    ----------
    task : callable
        Takes a place as an array of one, (1,) or (1, m), and gives an array of truth values.
    **arguments
        Of all tasks alike.
    """
    return da.from_array(places, chunks=(1, *places.shape[1:])).map_blocks(
        task,
        drop_axis=list(range(1, places.ndim)),
        dtype=bool,
        meta=np.empty(0, bool),
        **arguments,
    )


def _read(source: Source, plan: Plan, bricks: int) -> int:
    """Bytes of the stack that the pass over it works on, in so many bricks."""
    return prod(plan.grid.shape) * source.dtype.itemsize * bricks // len(plan.grid)


def compute_bricks(
    client: Client,
    layers: Sequence[da.Array],
    name: str,
    total: int,
    size: int,
    reporter: Reporter,
) -> None:
    """Compute every element of some lazy arrays of bricks as one stage, of so many and bytes."""
    if count := sum(layer.shape[0] for layer in layers):
        with reporter.stage(name, total, "bricks", before=total - count, size=size) as advance:
            results(client, layers, advance)
