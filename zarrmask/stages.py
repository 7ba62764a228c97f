"""The stages of a run that are Dask graphs: sampling, detecting, writing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from distributed import Client
from numpy.typing import NDArray

from zarrmask import tasks
from zarrmask.blocks import results
from zarrmask.grey import Rescaling
from zarrmask.ledger import Ledger
from zarrmask.masking import (
    KEYFRAMES_A_CHUNK,
    FieldStore,
    HeldMasks,
    InterpolatedMasks,
    KeyframeStore,
    Masks,
    read_together,
)
from zarrmask.place import Place
from zarrmask.plan import Plan
from zarrmask.progress import Reporter
from zarrmask.pyramid import BrickGrid, Pyramid, Region, Shape, brick_key, touched
from zarrmask.stack import SLABS, Source, cuts_blocks, decode, decoded, forget_decoded

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


def measure_fields(
    client: Client,
    store: KeyframeStore,
    positions: NDArray[np.int64],
    fields: FieldStore,
    ledger: Ledger,
    reporter: Reporter,
) -> None:
    """Measure the signed distances by which masks are interpolated.

    Parameters
    ----------
    positions : (k,) int64
        Where in the store the keyframes' masks are that are used, in the order of their slices.
    fields : FieldStore
        Where they go.
    """
    if fields.create(len(positions)):
        ledger.forget()  # somebody removed what it speaks of
    firsts = np.arange(0, len(positions), KEYFRAMES_A_CHUNK)
    missing = firsts[ledger.missing(firsts.tolist())]
    if not len(missing):
        return
    measured = one_task_each(
        missing,
        tasks.measure_fields,
        store=store,
        positions=positions,
        fields=fields,
        ledger=ledger,
    )
    total = len(positions)
    before = total - int(np.minimum(KEYFRAMES_A_CHUNK, total - missing).sum())
    with reporter.stage("measuring masks", total, "keyframes", before=before) as advance:
        results(client, [measured], advance)


def masks_between(
    client: Client,
    store: KeyframeStore,
    places: NDArray[np.int64],
    indices: NDArray[np.int64],
    plan: Plan,
    fields: FieldStore,
    ledger: Ledger,
    reporter: Reporter,
) -> Masks:
    """The masks of all slices, from those of keyframes, by the plan's rule.

    Parameters
    ----------
    places : (k,) int64
        Where in the store the keyframes are.
    indices : (k,) int64
        Their slice indices, ascending.
    fields : FieldStore
        For their fields, where masks are interpolated.
    """
    if plan.propagate == "hold":
        return HeldMasks(store, indices, places, fields.shape, plan.side)
    measure_fields(client, store, places, fields, ledger, reporter)
    return InterpolatedMasks(fields, indices, store.areas()[places], plan.side / 2)


def write_pyramids(
    client: Client,
    source: Source,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    masks: Masks | None,
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
    write = partial(
        _bricks,
        grid=plan.grid,
        ledger=first,
        task=tasks.write_brick,
        origin=plan.origin,
        outputs=dict(pyramids),
        rescaling=rescaling,
        masks=delayed(masks, traverse=False),  # its keyframes once, not with every task
        anew=changed is not None,
    )
    bricks = plan.grid.indices() if changed is None else changed
    missing = _missing(bricks, first)
    if scratch is not None and decodes_ahead(source, plan):
        first_slice, depth = plan.origin[0], plan.shape[0]
        needed = ~np.isin(source.numbers, source.missing)[first_slice:][:depth]
        if masks is not None and "volume" not in pyramids:
            needed &= masks.any_on(first_slice, first_slice + depth)
        folder = scratch / DECODED
        _write_slabs(client, source, plan, needed, len(bricks), missing, write, folder, reporter)
    else:
        size = _read(source, plan, len(bricks))
        layer = write(missing, source=delayed(source, traverse=False))
        _compute(client, [layer], "writing", len(bricks), size, reporter)
    for level in next(iter(written.values())).passes[1:]:
        layers, total, size = [], 0, 0
        for name, pyramid in written.items():
            grid = pyramid.bricks(level) if changed is None else pyramid.steps(level)
            coarser = grid.indices() if changed is None else made_of(changed, plan, level, grid)
            entries = _entries(ledger, f"level-{level}-{name}", grid)
            arguments = {"pyramid": pyramid, "level": level, "anew": changed is not None}
            missing = _missing(coarser, entries)
            layers.append(_bricks(missing, grid, entries, tasks.write_coarser, **arguments))
            total += len(coarser)
            voxels = prod(grid.shape) * len(coarser) // len(grid)
            size += voxels * np.dtype(pyramid.dtype).itemsize
        _compute(client, layers, f"writing from level {level}", total, size, reporter)
    return sum(first.results().values())


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
    missing = _missing(plan.grid.indices(), _entries(ledger, "level-0", plan.grid))
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


def _write_slabs(
    client: Client,
    source: Source,
    plan: Plan,
    needed: NDArray[np.bool_],
    total: int,
    missing: NDArray[np.int64],
    write: Callable[..., da.Array],
    folder: Path,
    reporter: Reporter,
) -> None:
    """Write bricks slab by slab from scratch files; the next slab is decoded meanwhile.

    Parameters
    ----------
    needed : (z,) bool
        Slices of the output whose voxels any brick wants.
    total : int
        Bricks in all, those that are written already too.
    missing : (n, 3) int64
        Bricks to write, those of one slab together.
    write : callable
        Of some bricks and a lazy source, their writing as a lazy array.
    folder : Path
        For the scratch files; gone at the end.
    """
    lazy = delayed(source, traverse=False)
    slabs = np.unique(missing[:, 0]).tolist()
    if folder.exists():
        for left in {path.name for path in folder.iterdir()} - {str(slab) for slab in slabs}:
            shutil.rmtree(folder / left)  # the run was stopped before it did so

    def layers() -> Iterator[da.Array]:
        for slab in slabs:
            z, _, _ = plan.grid.region((slab, 0, 0))
            indices = (np.flatnonzero(needed[z]) + z.start + plan.origin[0]).tolist()
            bricks = missing[missing[:, 0] == slab]
            yield write(bricks, source=_decoded(lazy, indices, folder / str(slab)))

    def remove(place: int) -> None:
        shutil.rmtree(folder / str(slabs[place]), ignore_errors=True)

    if slabs:
        before, size = total - len(missing), _read(source, plan, total)
        with reporter.stage("writing", total, "bricks", before=before, size=size) as advance:
            results(client, layers(), advance, at_once=SLABS, finished=remove)
    shutil.rmtree(folder, ignore_errors=True)


def _decoded(source: Delayed, indices: Sequence[int], folder: Path) -> Delayed:
    """The stack, to be read from scratch files, once these slices of it are decoded."""
    if not indices:
        return source
    runs = [
        delayed(decode)(source, indices[start : start + SLICES_A_TASK], folder)
        for start in range(0, len(indices), SLICES_A_TASK)
    ]
    return delayed(decoded)(source, runs, folder)


def _missing(bricks: Sequence[Shape], ledger: Ledger) -> NDArray[np.int64]:
    """Of some bricks, the places of those that the ledger lacks: (n, 3)."""
    indices = np.array(bricks, np.int64).reshape(-1, 3)
    return indices[ledger.missing(brick_key(index) for index in bricks)]


def _bricks(
    bricks: NDArray[np.int64], grid: BrickGrid, ledger: Ledger, task: Any, **arguments: Any
) -> da.Array:
    """One task a brick, as a lazy array with an element a brick."""
    return one_task_each(bricks, task, grid=grid, ledger=ledger, **arguments)


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


def _compute(
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
