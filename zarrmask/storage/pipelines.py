"""Which of zarr's codec pipelines an array gets, which it keeps.

zarr's settings are one for all threads of a process, and are put back as they were: who opens
arrays under some of its own holds them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import zarr
from distributed import get_worker

STOCK = {
    "codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "array.write_empty_chunks": False,
}
"""zarr's own, which reads and writes whatever there is."""

ENCODERS = 4
"""Threads of zarrs, for each core that a process has: most of them wait for the disk."""
ENCODERS_IN_ALL = "RAYON_NUM_THREADS"
"""Variable that says how many a process has; zarrs reads it as it begins its first."""

_setting = threading.Lock()


@contextmanager
def opening(settings: Mapping[str, Any] = STOCK) -> Iterator[None]:
    """Let arrays be opened under these settings of zarr's."""
    with _setting, zarr.config.set(settings):
        yield


@cache
def bound_encoders() -> None:
    """Settle how many threads zarrs has in a worker that nobody settled it for.

    Each worker of a named cluster would have one for every core of its machine, which takes more
    memory than is foreseen.
    """
    with suppress(ValueError):  # this is no worker
        os.environ.setdefault(ENCODERS_IN_ALL, str(ENCODERS * get_worker().state.nthreads))
