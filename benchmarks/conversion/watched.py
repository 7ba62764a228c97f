"""Run zarrmask in one process with one thread, and say which part of it took how long.

    python -m conversion.watched convert|run STACK OUT [--covers 0.55]

While the writing stages go on, each moment of their tasks counts for the room of zarrmask whose
function is the innermost on the stack: reading in `stack/`, masking in `masking/` and so on. Files
are written at once, not behind the work as otherwise. What is written is synced afterwards, apart;
then every chunk is encoded again in memory, to tell what of the time was compressing. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from unittest import mock

import numpy as np

T = TypeVar("T")
WRITING = "compressing and writing"
ROOMS = (
    ("stack/", "", "reading"),
    ("masking/", "", "masking"),
    ("pyramid/downsample", "", "downsampling"),
    ("pyramid/", "", WRITING),
    ("running/tasks", "_reader", "reading"),
    ("running/tasks", "_write_inside", "masking"),
    ("running/tasks", "", "the rest of the tasks"),
    ("records/ledger", "", "the rest of the tasks"),
)
"""How files of zarrmask and functions in them begin, and what they do; the first that fits."""
DECODERS = ("lzw_decode", "jpeg_decode", "png_decode")


@cache
def room(file: str, function: str) -> str | None:
    """Part that a function of zarrmask stands for; None for those of others."""
    _, package, inside = file.replace(os.sep, "/").rpartition("/zarrmask/")
    for start, name, part in ROOMS:
        if package and inside.startswith(start) and function.startswith(name):
            return part
    return None


class Watch:
    """Counts the seconds of every part, in all threads that start after it.

    Attributes
    ----------
    on : bool
        Whether it counts.
    seconds : Counter
        By part.
    """

    def __init__(self) -> None:
        self.on = False
        self.seconds: Counter[str] = Counter()
        self._mine = threading.local()
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """What Python calls when a function begins or ends."""
        if event == "call":
            here = room(frame.f_code.co_filename, frame.f_code.co_qualname)
        elif event != "return":
            return
        stack: list[str | None] = self._mine.__dict__.setdefault("stack", [None])
        now = time.perf_counter()
        part = stack[-1]
        if part is not None and self.on:
            with self._lock:
                self.seconds[part] += now - self._mine.since
        self._mine.since = now
        if event == "call":
            stack.append(part if here is None else here)
        elif len(stack) > 1:
            stack.pop()


@contextmanager
def counted(counts: Counter[str]) -> Iterator[None]:
    """Count calls of the decoders of compressed slices."""
    import imagecodecs

    def counting(name: str, decode: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(decode)  # tifffile takes none but imagecodecs' own
        def decoder(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1  # one thread decodes
            return decode(*args, **kwargs)

        return decoder

    with ExitStack() as patches:
        for name in DECODERS:
            decoder = counting(name, getattr(imagecodecs, name))
            patches.enter_context(mock.patch.object(imagecodecs, name, decoder))
        yield


class AtOnce(Executor):
    """Does what it is given before it goes on."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call a function now."""
        done: Future[T] = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def main() -> None:
    os.environ["RAYON_NUM_THREADS"] = "1"  # of zarrs, before it is imported
    from conversion.given import arguments

    options = arguments(__doc__).parse_args()
    counts: Counter[str] = Counter()
    with counted(counts):
        seconds = run(options, watch := Watch())
    start = time.perf_counter()
    os.sync()
    sync = time.perf_counter() - start
    parts = {**watch.seconds, "Dask and the rest": seconds - watch.seconds.total(), "sync": sync}
    if WRITING in parts and (compressing := encode_again(options.out)) is not None:
        parts["compressing"] = compressing
        parts["writing"] = parts.pop(WRITING) - compressing
    print(json.dumps({"parts": parts, "decoded": counts.total()}))


def encode_again(out: Path) -> float | None:
    """Seconds that the codec takes to encode every chunk of some pyramids, with one thread.

    What pyramids share was encoded once. None where there is no pyramid of chunks by themselves,
    but of shards.
    """
    import numcodecs.blosc
    import zarr

    numcodecs.blosc.set_nthreads(1)
    seconds = 0.0
    seen = set()
    pyramids = [path for path in out.glob("*.zarr") if path.name != "keyframes.zarr"] or [out]
    for level in (level for path in pyramids for level in path.glob("[0-9]")):
        if not (level / ".zarray").exists():
            return None
        array = zarr.open_array(level, mode="r")
        for codec in array.compressors:
            for file in level.glob("*/*/*"):
                if (number := file.stat().st_ino) in seen:
                    continue
                seen.add(number)
                chunk = np.zeros(array.chunks, array.dtype)
                place = tuple(int(number) for number in file.relative_to(level).parts)
                part = np.asarray(array.get_block_selection(place))
                chunk[tuple(slice(side) for side in part.shape)] = part
                start = time.perf_counter()
                codec.encode(chunk)
                seconds += time.perf_counter() - start
    return seconds


def run(options: argparse.Namespace, watch: Watch) -> float:
    """Convert or run on a cluster of one thread of this process; seconds of the writing stages."""
    import cv2
    from distributed import LocalCluster

    import zarrmask
    from conversion.given import given_masks
    from zarrmask.progress import Advance, Reporter
    from zarrmask.pyramid import writing

    class WatchingReporter(Reporter):
        seconds = 0.0

        @contextmanager
        def stage(self, name: str, total: int, unit: str, **of: int) -> Iterator[Advance]:
            watch.on = name.startswith("writing")
            start = time.perf_counter()
            with super().stage(name, total, unit, **of) as advance:
                yield advance
            if watch.on:
                self.seconds += time.perf_counter() - start
            watch.on = False

    cv2.setNumThreads(1)
    reporter = WatchingReporter()
    threading.setprofile(watch)
    with (
        mock.patch.object(writing, "_threads", AtOnce()),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
    ):
        settings: dict[str, Any] = {
            "scheduler": cluster.scheduler_address,
            "reporter": reporter,
        }
        if options.what == "convert":
            zarrmask.convert(options.stack, options.out, **settings)
        else:
            with given_masks(options.covers):
                zarrmask.run(options.stack, options.out, detect_window=(0, 65535), **settings)
    threading.setprofile(None)
    if not reporter.seconds:
        raise SystemExit("no stage's name began with `writing`: what is to be watched?")
    return reporter.seconds


if __name__ == "__main__":
    main()
