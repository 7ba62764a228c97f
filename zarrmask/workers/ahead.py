"""Work that goes on while what has come of it so far is used."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from importlib import import_module
from typing import TypeVar

from zarrmask.workers.processes import uninterrupted

Item = TypeVar("Item")

LAST = 5.0
"""Seconds that work may take to end when it is not wanted any more."""


@contextmanager
def last(items: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """Run through an iterable before anything else; gives its last item alone."""
    yield iter(deque(items, maxlen=1))


@contextmanager
def ahead(items: Iterable[Item], stop: Callable[[], None]) -> Iterator[Iterator[Item]]:
    """Run through an iterable in a thread of its own, which waits for nobody.

    Parameters
    ----------
    items : iterable
        Each makes those before it superfluous.
    stop : callable
        Makes both sides fail in what they wait for; called where one of them has failed.

    Yields
    ------
    iterator
        Whenever it is asked, the newest item; waits if that has been given. What the thread fails
        with is raised there, and wherever else the context is.
    """
    news = threading.Condition()
    newest: list[Item] = []
    failure: list[BaseException] = []
    running = True

    def work() -> None:
        nonlocal running
        try:
            for item in items:
                with news:
                    newest[:] = [item]
                    news.notify()
        except BaseException as error:  # whose it is raises it
            failure.append(error)
        with news:
            running = False
            news.notify()
        if failure:
            stop()

    def read() -> Iterator[Item]:
        while True:
            with news:
                news.wait_for(lambda: newest or not running)
                if failure:
                    raise failure[0]
                if not newest:
                    return
                item = newest.pop()
            yield item

    within = copy_context().run  # Dask's annotations are of a context
    thread = threading.Thread(target=within, args=(work,), name="ahead", daemon=True)
    thread.start()
    try:
        yield read()
    except BaseException as error:
        if failure and isinstance(error, Exception):
            raise failure[0] from None
        if thread.is_alive():
            stop()
        raise
    finally:
        thread.join(LAST)


def import_ahead(*modules: str) -> None:
    """Import what is wanted later, while there is something to wait for.

    Whoever wants it imports it himself: then what is wrong with it is told. A process that ends
    before waits for it: a thread that is cut off while a library begins may take the process along.
    But not for ever: Ctrl-C in the midst of an import may leave Python's lock of imports taken.
    """

    def work() -> None:
        with suppress(Exception):
            for name in modules:
                import_module(name)
        atexit.unregister(thread.join)

    thread = threading.Thread(target=work, name="imports", daemon=True)
    atexit.register(thread.join, LAST)
    with uninterrupted():
        thread.start()
