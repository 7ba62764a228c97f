"""Where files lie: a folder here, or one at a URL.

A local place is a `pathlib.Path`, any other a `upath.UPath`; both are used alike. What differs is
in this module.
"""

from __future__ import annotations

from pathlib import Path

from upath import UPath
from zarr.storage import FsspecStore, LocalStore

Place = Path | UPath


def is_local(place: Place) -> bool:
    """Whether a place is in this machine's file system, where there are links and locks."""
    return isinstance(place, Path)


def zarr_store(place: Place) -> LocalStore | FsspecStore:
    """Give what zarr reads and writes at a place; to be opened with the mode that is wanted."""
    if isinstance(place, Path):
        return LocalStore(place)
    return FsspecStore.from_url(str(place), storage_options=dict(place.storage_options))
