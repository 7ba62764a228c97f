"""Which bricks a correction changes, and what has to be there before they are written anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from dask.delayed import delayed
from distributed import Client
from numpy.typing import NDArray

from zarrmask.masking import Masks
from zarrmask.planning.plan import Plan
from zarrmask.progress import Reporter
from zarrmask.pyramid import BrickGrid, Pyramid, Shape, brick_key, shifted, step_grid, tiles
from zarrmask.records.ledger import Ledger
from zarrmask.running.tasks import brick_at
from zarrmask.running.writing import compute_bricks, made_of, missing_bricks
from zarrmask.storage.buffers import buffer
from zarrmask.storage.flush import flush_all
from zarrmask.workers.blocks import one_task_each

COMPARED = 16, 128
"""Slices and rows that are compared at a time: what a core's cache holds."""


def in_steps(plan: Plan) -> Plan:
    """The same with the smallest bricks there are, so that few are written anew."""
    return replace(plan, grid=step_grid(plan.shape, plan.grid.step))


def find_changes(
    client: Client,
    plan: Plan,
    slices: slice,
    before: Masks,
    after: Masks,
    ledger: Ledger,
    reporter: Reporter,
) -> tuple[list[Shape], int]:
    """Find the bricks whose masks are not as they were.

    Parameters
    ----------
    plan : Plan
        See `in_steps`.
    slices : slice
        Of the output, in which masks may differ.
    before, after : Masks
    ledger : Ledger

    Returns
    -------
    bricks : list of (z, y, x)
        Their places.
    kept : int
        How many voxels more are inside.
    """
    grid = plan.grid
    near = [
        place
        for place in grid.indices()
        if grid.region(place)[0].start < slices.stop and grid.region(place)[0].stop > slices.start
    ]
    compared = one_task_each(
        missing_bricks(near, ledger),
        compare_masks,
        grid=grid,
        origin=plan.origin,
        slices=slices,
        before=delayed(before, traverse=False),
        after=delayed(after, traverse=False),
        ledger=ledger,
    )
    compute_bricks(client, [compared], "comparing masks", len(near), 0, reporter)
    found: Mapping[str, Any] = ledger.results(map(brick_key, near))
    changed = [place for place in near if found[brick_key(place)]["changed"]]
    return changed, sum(found[brick_key(place)]["kept"] for place in near)


def compare_masks(
    index: NDArray[np.int64],
    *,
    grid: BrickGrid,
    origin: Shape,
    slices: slice,
    before: Masks,
    after: Masks,
    ledger: Ledger,
) -> NDArray[np.bool_]:
    """Say whether a brick's masks, (1, 3) its place, have changed, and by how many voxels."""
    brick = brick_at(index)
    deep, rows, columns = grid.region(brick)
    deep = slice(max(deep.start, slices.start), min(deep.stop, slices.stop))
    region = deep, rows, columns
    old, new = (masks.region(*shifted(region, origin)) for masks in (before, after))
    changed, kept = False, 0
    for z_part, y_part, _ in tiles(region, COMPARED):
        part = (
            slice(z_part.start - deep.start, z_part.stop - deep.start),
            slice(y_part.start - rows.start, y_part.stop - rows.start),
        )
        shape = (z_part.stop - z_part.start, y_part.stop - y_part.start, columns.stop)
        was, becomes = (buffer(name, shape, np.uint8) for name in ("was", "becomes"))
        old.part(*part).fill(was, slice(0, columns.stop))
        new.part(*part).fill(becomes, slice(0, columns.stop))
        if not np.array_equal(was, becomes):
            changed = True
            kept += int(np.count_nonzero(becomes)) - int(np.count_nonzero(was))
    ledger.enter(brick_key(brick), {"changed": changed, "kept": kept})
    return np.ones(1, bool)


def recall(
    client: Client,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    changed: list[Shape],
    ledger: Ledger,
    reporter: Reporter,
) -> None:
    """Hand over once more, to each coarser pass, what it reads beside what is written anew.

    A finished run keeps none of it. Of a level, what was handed over is what is written.
    """
    layers, total = [], 0
    for name, pyramid in pyramids.items():
        for level in pyramid.passes[1:]:
            grid = pyramid.steps(level)
            entries = ledger.stage(f"{name}-{level}")
            places = made_of(changed, plan, level, grid)
            total += len(places)
            layers.append(
                one_task_each(
                    missing_bricks(places, entries),
                    recall_step,
                    pyramid=pyramid,
                    level=level,
                    ledger=entries,
                )
            )
    compute_bricks(client, layers, "recalling levels", total, 0, reporter)


def recall_step(
    index: NDArray[np.int64], *, pyramid: Pyramid, level: int, ledger: Ledger
) -> NDArray[np.bool_]:
    """Hand over one of the smallest bricks of a level, (1, 3) its place, once more."""
    brick = brick_at(index)
    ledger.take_back([brick_key(brick)])
    pyramid.recall(level, pyramid.steps(level).region(brick))
    flush_all()
    ledger.enter(brick_key(brick), None)
    return np.ones(1, bool)
