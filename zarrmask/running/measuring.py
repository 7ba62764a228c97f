"""From keyframes' masks to those of all slices: their fields are measured as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from zarrmask.masking import (
    KEYFRAMES_A_CHUNK,
    FieldStore,
    HeldMasks,
    InterpolatedMasks,
    KeyframeStore,
    Masks,
    SettledMasks,
)
from zarrmask.planning.plan import Plan
from zarrmask.progress import Reporter
from zarrmask.records.ledger import Ledger
from zarrmask.running import tasks
from zarrmask.workers.blocks import one_task_each, results


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
        total = max(0, total - 1) // chunk * chunk
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
