"""Which of zarr's codec pipelines an array gets, which it keeps.

zarr's settings are one for all threads of a process, and are put back as they were: who opens
arrays under some of its own holds them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import zarr

STOCK = {
    "codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "array.write_empty_chunks": False,
}
"""zarr's own, which reads and writes whatever there is."""

_setting = threading.Lock()


@contextmanager
def opening(settings: Mapping[str, Any] = STOCK) -> Iterator[None]:
    """Let arrays be opened under these settings of zarr's."""
    with _setting, zarr.config.set(settings):
        yield
