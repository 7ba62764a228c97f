"""Blocks of lazy arrays, computed by workers that may die meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.base import clone_key
from dask.core import flatten
from dask.delayed import Delayed
from dask.utils import key_split
from distributed import Client, Future, as_completed, futures_of
from distributed.client import ClosedClientError
from distributed.scheduler import KilledWorker
from numpy.typing import NDArray

from zarrmask.errors import ZarrmaskError, no_space, system_number

HAND_INS = 3
"""How often a block is handed in; the scheduler itself tries each of them several times."""


@dataclass
class _Layer:
    """An array whose blocks are under way.

    Attributes
    ----------
    array : Array
    left : int
        Blocks that are still to come.
    """

    array: da.Array
    left: int

    def again(self, place: int) -> Delayed:
        """One of its blocks, in tasks of other names: none depends on what was given up."""
        block = self.array.blocks[np.unravel_index(place, self.array.numblocks)]
        (whole,) = dask.optimize(block.to_delayed().ravel().item())
        graph, seed = dict(whole.dask), uuid4().hex
        names = {key: clone_key(key, seed) for key in graph}
        tasks = {names[key]: task.substitute(names, names[key]) for key, task in graph.items()}
        return Delayed(names[whole.key], tasks)


def results(
    client: Client,
    layers: Iterable[da.Array],
    advance: Callable[[int], None],
    *,
    at_once: int = 1,
    finished: Callable[[int], None] = lambda place: None,
) -> list[NDArray]:
    """Compute every block of some arrays, and tell of each as it comes; see `computed`.

    Parameters
    ----------
    layers : iterable of Array
        Asked for when they are begun.
    advance : callable
        Called for each block with the number of its elements.
    at_once : int
        Layers that are under way at a time.
    finished : callable
        Called with a layer's place when all of it is done.

    Returns
    -------
    list of ndarray
        In the order of layers and blocks.
    """
    waiting = iter(layers)
    found: dict[tuple[int, int], NDArray] = {}
    for layer, n, result in computed(
        client, lambda: next(waiting, None), at_once=lambda: at_once, finished=finished
    ):
        found[layer, n] = result
        advance(result.size)
    return [found[place] for place in sorted(found)]


def one_task_each(
    places: NDArray[np.int64], task: Any, *, of: int = 1, **arguments: Any
) -> da.Array:
    """A task for each of some places, (n,) or (n, m) int64, or for a few at once; a lazy array.

    Parameters
    ----------
    task : callable
        Takes its places as an array, (k,) or (k, m) with k up to `of`, and gives an array of truth
        values, one for each.
    of : int
        Places that a task takes at most.
    **arguments
        Of all tasks alike.
    """
    return da.from_array(places, chunks=(of, *places.shape[1:])).map_blocks(
        task,
        drop_axis=list(range(1, places.ndim)),
        dtype=bool,
        meta=np.empty(0, bool),
        **arguments,
    )


def computed(
    client: Client,
    begin: Callable[[], da.Array | None],
    *,
    at_once: Callable[[], int],
    finished: Callable[[int], None] = lambda place: None,
    priority: int = 0,
) -> Iterator[tuple[int, int, NDArray]]:
    """Compute arrays, as long as there is one to begin.

    A block whose worker dies is computed elsewhere. One that the scheduler gives up, since several
    workers died of it, is handed in again, ahead of all others.

    Parameters
    ----------
    begin : callable
        Gives an array to begin, or None; asked again whenever one is done.
    at_once : callable
        Gives how many arrays are to be under way at a time; asked then, too.
    finished : callable
        Called with an array's place when all of it is done.
    priority : int
        What is higher is done first.

    Yields
    ------
    (int, int, ndarray)
        Place of the array, place of the block in it, and the block, as they come.

    Raises
    ------
    ZarrmaskError
        Where workers die of the same block whenever it is handed in, or the disk gave out. Whatever
        else a task raises is raised here.
    """
    begun = itertools.count()
    under_way: dict[int, _Layer] = {}
    places: dict[str, tuple[int, int]] = {}
    given_up: dict[tuple[int, int], int] = {}
    coming = as_completed()  # not with results: one that is lost and then fails would never come

    def go_on() -> None:
        while len(under_way) < at_once() and (array := begin()) is not None:
            if not array.size:
                continue
            layer = next(begun)
            keys = flatten(array.__dask_keys__())
            places.update({key: (layer, n) for n, key in enumerate(keys)})
            under_way[layer] = _Layer(array, array.npartitions)
            # Not a collection a block: of each the scheduler keeps a note for as long as it lives.
            coming.update(futures_of(client.persist(array, priority=priority)))

    def hand_in_again(layer: int, n: int, error: KilledWorker) -> None:
        given_up[layer, n] = times = given_up.get((layer, n), 0) + 1
        if times == HAND_INS:
            deaths = times * (error.allowed_failures + 1)
            raise ZarrmaskError(
                f"{deaths} workers died, one after another, of the same task "
                f"({key_split(error.task)}), which was handed in {times} times, most likely for "
                "want of memory; use fewer --workers, or workers with more memory, then run the "
                "same command again: it goes on"
            )
        future = client.compute(under_way[layer].again(n), priority=priority + times)
        places[future.key] = layer, n
        coming.add(future)

    try:
        go_on()
        for batch in coming.batches():
            for future, result in zip(batch, outcomes(client, batch), strict=True):
                layer, n = places.pop(future.key)
                # A future that is let go of is not computed again when its worker dies.
                future.release()
                if isinstance(result, KilledWorker):
                    hand_in_again(layer, n, result)
                    continue
                if isinstance(result, Exception):
                    raise result
                yield layer, n, result
                under_way[layer].left -= 1
                if not under_way[layer].left:
                    del under_way[layer]
                    finished(layer)
                    go_on()
    except (OSError, RuntimeError) as error:
        if told := no_space(error):
            raise ZarrmaskError(told) from None
        # A connection that is lost is a worker's, or the scheduler's, of which others tell.
        if system_number(error) is not None and not isinstance(error, ConnectionError):
            raise ZarrmaskError(
                f"{error}: see to that, then run the same command again: it goes on"
            ) from error
        raise
    finally:
        with suppress(ClosedClientError):
            client.cancel(list(coming.futures))


def outcomes(client: Client, futures: Sequence[Future]) -> Sequence[NDArray | Exception]:
    """What came of some futures that are done, or what went wrong."""
    try:
        gathered: Sequence[NDArray] = client.gather(futures)
        return gathered
    except Exception as error:
        if len(futures) == 1:
            return [error]
    return [outcome for future in futures for outcome in outcomes(client, [future])]


def let_go(client: Client) -> None:
    """End whatever waits for something that a client handed in."""
    with suppress(ClosedClientError):
        client.cancel([Future(key, client) for key in list(client.futures)])
