"""Writing pyramids: one pass over the stack, then one for every two coarser levels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path

import dask.array as da
import numpy as np
from dask.delayed import delayed
from distributed import Client
from numpy.typing import NDArray

from zarrmask.grey import Rescaling
from zarrmask.masking import Masks, SettledMasks
from zarrmask.planning.plan import Plan
from zarrmask.planning.reading import decodes_ahead
from zarrmask.progress import Advance, Reporter
from zarrmask.pyramid import BrickGrid, Pyramid, Shape, brick_key, touched
from zarrmask.records.ledger import Ledger
from zarrmask.running import tasks
from zarrmask.running.slabs import DECODED, Slabs
from zarrmask.stack import Source, forget_decoded
from zarrmask.storage.place import Place
from zarrmask.workers.blocks import one_task_each, results


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
    written = make_pyramids(pyramids, ledger)
    first = _entries(ledger, plan.grid)
    bricks = plan.grid.indices() if changed is None else changed
    missing = missing_bricks(bricks, first)
    slabs = None
    if scratch is not None and decodes_ahead(source, plan):
        slabs = Slabs(source, plan, "volume" in pyramids, scratch / DECODED)
        slabs.keep(missing[:, 0].tolist())
    size, before = _read(source, plan, len(bricks)), len(bricks) - len(missing)
    slices = plan.shape[0] * len(bricks) // len(plan.grid)
    with ExitStack() as shown:
        advance: Advance | None = None
        for masks, ready in _ready(missing, plan, settled):
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
        _write_coarser(client, plan, written, level, ledger, reporter, changed)
    return sum(first.results(map(brick_key, bricks)).values())


def make_pyramids(pyramids: Mapping[str, Pyramid], ledger: Ledger) -> dict[str, Pyramid]:
    """Make those that are to be written, by name, and give them.

    Where one was not there, the ledger forgets: somebody removed what it speaks of.
    """
    written = {name: pyramid for name, pyramid in pyramids.items() if not pyramid.finished}
    made = [pyramid.create() for pyramid in written.values()]
    if any(made):
        ledger.forget()
    return written


def _ready(
    missing: NDArray[np.int64], plan: Plan, settled: Iterable[SettledMasks] | None
) -> Iterator[tuple[Masks | None, NDArray[np.int64]]]:
    """Give bricks that are missing, (n, 3), as soon as their masks are settled, with these."""
    if settled is None:
        if len(missing):
            yield None, missing
        return
    ends = np.minimum((missing[:, 0] + 1) * plan.grid.brick[0], plan.shape[0]) + plan.origin[0]
    for part in settled:
        now = ends <= part.stop
        if now.any():
            yield part.masks, missing[now]
        missing, ends = missing[~now], ends[~now]


def _write_coarser(
    client: Client,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    level: int,
    ledger: Ledger,
    reporter: Reporter,
    changed: Sequence[Shape] | None,
) -> None:
    """Write the levels that a pass from this one makes, of all pyramids; see `write_pyramids`."""
    layers, total, size = [], 0, 0
    for name, pyramid in pyramids.items():
        grid = pyramid.bricks(level) if changed is None else pyramid.steps(level)
        bricks = grid.indices() if changed is None else made_of(changed, plan, level, grid)
        entries = _entries(ledger, grid, level, name)
        layers.append(
            one_task_each(
                missing_bricks(bricks, entries),
                tasks.write_coarser,
                grid=grid,
                ledger=entries,
                pyramid=pyramid,
                level=level,
                anew=changed is not None,
            )
        )
        total += len(bricks)
        voxels = prod(grid.shape) * len(bricks) // len(grid)
        size += voxels * np.dtype(pyramid.dtype).itemsize
    compute_bricks(client, layers, f"writing from level {level}", total, size, reporter)


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
            entries = _entries(ledger, grid, level, name)
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
    missing = missing_bricks(plan.grid.indices(), _entries(ledger, plan.grid))
    return len(missing) / len(plan.grid)


def _entries(ledger: Ledger, grid: BrickGrid, level: int = 0, name: str = "") -> Ledger:
    """Entries of a pass's bricks: from level 0 on for all pyramids together, then for each alone.

    Those of another grid say nothing of this one's.
    """
    return ledger.stage(f"level-{level}-{name}" if level else "level-0").stage(
        brick_key(grid.brick)
    )


def missing_bricks(bricks: Sequence[Shape], ledger: Ledger) -> NDArray[np.int64]:
    """Give the places of those of some bricks that the ledger lacks, (n, 3)."""
    indices = np.array(bricks, np.int64).reshape(-1, 3)
    return indices[ledger.missing(brick_key(index) for index in bricks)]


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
