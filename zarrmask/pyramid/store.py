"""Opening the groups and arrays of a pyramid, wherever it lies."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal

import zarr

from zarrmask.place import Place, is_local, zarr_store

Mode = Literal["r", "r+", "a"]

_FAST = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "array.write_empty_chunks": False}
# Threads of its own put a shard's chunks one after another as they come.
_ORDERED = {**_FAST, "threading.max_workers": 1}
_STOCK = {"array.write_empty_chunks": False}
_setting = threading.Lock()  # zarr's settings are one for all threads, and put back as they were


def open_group(place: Place, mode: Mode, *, zarr_format: Literal[2, 3] = 2) -> zarr.Group:
    """Open a group; mode "a" makes one, of this format of zarr, where there is none."""
    made = zarr_format if mode == "a" else None
    return zarr.open_group(zarr_store(place), mode=mode, zarr_format=made)


def open_array(place: Place, mode: Mode, *, fast: bool = True) -> zarr.Array:
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
    """
    fast = fast and is_local(place)
    array = _open(place, mode, _FAST if fast else _STOCK)
    return _open(place, mode, _ORDERED) if fast and array.shards else array


def _open(place: Place, mode: Mode, settings: Mapping[str, Any]) -> zarr.Array:
    with _setting, zarr.config.set(settings):
        return zarr.open_array(zarr_store(place), mode=mode)
