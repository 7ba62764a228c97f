"""Opening the groups and arrays of a pyramid, wherever it lies."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import zarr

from zarrmask.storage.pipelines import STOCK, bound_encoders, opening
from zarrmask.storage.place import Place, zarr_store

Mode = Literal["r", "r+", "a"]

DIRECT_FILE = 2**20
"""Bytes from which on a file, before it is compressed, goes straight to the disk."""

_FAST = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "array.write_empty_chunks": False}
# Threads of its own put a shard's chunks one after another as they come.
_ORDERED = {**_FAST, "threading.max_workers": 1}


def open_group(place: Place, mode: Mode, *, zarr_format: Literal[2, 3] = 2) -> zarr.Group:
    """Open a group; mode "a" makes one, of this format of zarr, where there is none.

    Metadata that somebody consolidated say what was there then: they are passed over.
    """
    made = zarr_format if mode == "a" else None
    return zarr.open_group(zarr_store(place), mode=mode, zarr_format=made, use_consolidated=False)


def open_array(place: Place, mode: Mode, *, fast: bool = True, direct: bool = True) -> zarr.Array:
    """Open an array so that its empty chunks are left out.

    Parameters
    ----------
    place : Place
        The array.
    mode : str
        As zarr's.
    fast : bool
        Whether zarrs encodes and decodes where it can: in a folder, what zarrmask itself wrote.
        An array keeps the pipeline that it was opened with. Shards hold the same bytes each time,
        but elsewhere their chunks stand in another order than in a folder.
    direct : bool
        Whether large files go straight to the disk, where they can. Masks shrink to next to
        nothing: who writes them so waits for the disk, with nothing saved.
    """
    if not fast or not isinstance(place, Path) or not _is_utf8(place):
        return _open(place, mode, STOCK)
    bound_encoders()
    array = _open(place, mode, _FAST)
    settings = dict(_ORDERED if array.shards else _FAST)
    large = prod(array.shards or array.chunks) * array.dtype.itemsize >= DIRECT_FILE
    if direct and mode != "r" and large and takes_direct_writes(place):
        settings["codec_pipeline.direct_io"] = True
    return array if settings == _FAST else _open(place, mode, settings)


@cache
def takes_direct_writes(folder: Path) -> bool:
    """Whether files in a folder can be written past the memory of the operating system.

    What is written is not read again soon: to copy it there first, into memory that has to be
    cleared and that pushes out what is read, takes as long as all of the rest.
    """
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            file = os.open(folder, os.O_TMPFILE | os.O_DIRECT | os.O_RDWR)  # it has no name
            try:
                return os.write(file, page) == mmap.PAGESIZE
            finally:
                os.close(file)
    except (AttributeError, OSError):  # another operating system, another file system
        return False


def _is_utf8(path: Path) -> bool:
    """Whether a path can be told to zarrs."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _open(place: Place, mode: Mode, settings: Mapping[str, Any]) -> zarr.Array:
    with opening(settings):
        return zarr.open_array(zarr_store(place), mode=mode)
