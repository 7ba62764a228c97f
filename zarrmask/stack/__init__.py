"""What a stack is and how it is read: slices, multipage TIFFs and zarrs as one lazy volume."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from upath import UPath

from zarrmask.errors import StackError, escaped
from zarrmask.stack.bridged import MOST_IN_A_ROW, anchors, bridged, too_many
from zarrmask.stack.decoded import (
    SLABS,
    cuts_blocks,
    decode,
    decoded,
    decoded_bytes,
    forget_decoded,
)
from zarrmask.stack.folder import FORMATS, LABELS, open_folder
from zarrmask.stack.multipage import open_multipage
from zarrmask.stack.remote import Remote
from zarrmask.stack.source import Progress, Source, as_xarray
from zarrmask.stack.unreadable import UnreadableError
from zarrmask.stack.zarr_source import is_zarr, open_zarr
from zarrmask.storage.place import place_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "MOST_IN_A_ROW",
    "SLABS",
    "Source",
    "UnreadableError",
    "anchors",
    "bridged",
    "cuts_blocks",
    "decode",
    "decoded",
    "decoded_bytes",
    "forget_decoded",
    "open_source",
    "open_stack",
    "too_many",
]

TIFFS = (".tif", ".tiff")
OF_A_RUN = ("run.json", "mask.zarr")
"""What lies in the folder of a run, beside `overview.png`, which is not a slice."""


def open_stack(
    path: str | os.PathLike[str] | UPath, *, allow_missing: bool = False, chunks: Any = None
) -> xr.DataArray:
    """Open a stack as one lazy volume.

    Reads a header a file at most, never a pixel.

    Parameters
    ----------
    path : path-like, URL or UPath
        A folder of numbered 2-D slices (TIFF, JPEG or PNG; the last digits in a file's name are
        its z), a multipage TIFF, a zarr array or an OME-Zarr (level 0 is taken); here, or at a URL
        that fsspec reads (http, https, s3, ...). A folder at http is what its index page links to.
    allow_missing : bool
        Let slice numbers that are missing from a folder read as zeros.
    chunks : optional
        As `dask.array.from_array` takes it; by default whole slices, bands of rows or runs of
        chunks, whichever the input is read by best.

    Returns
    -------
    xarray.DataArray
        Dims z, y, x; uint8, uint16, int16 or float32; coordinate z the slice numbers (int64); attrs
        `missing` (numbers read as zeros), `source` (the path) and, if known, `voxel_size_um`.

    Raises
    ------
    StackError
        If it cannot be read as one volume; every bad file is named.
    """
    return as_xarray(open_source(path, allow_missing=allow_missing), chunks)


def open_source(
    path: str | os.PathLike[str] | UPath,
    *,
    allow_missing: bool = False,
    progress: Progress | None = None,
    labels: bool = False,
    allow_unreadable: bool = False,
) -> Source:
    """Open a stack for reading by region, in this process or, pickled, in others.

    Parameters
    ----------
    path, allow_missing
        As for `open_stack`.
    progress : callable, optional
        Called with (headers checked, headers in all) from the calling thread, for a folder.
    labels : bool
        Whether it may hold labels instead of grey values: whole numbers of any type, in PNGs of any
        colours (1 where any is not 0); no JPEGs.
    allow_unreadable : bool
        Let a few files of a folder be gone, or bad: see `Source.unreadable`.

    Returns
    -------
    Source
        The volume.

    Raises
    ------
    StackError
        If it cannot be read as one volume; every bad file is named.
    """
    given = place_of(path)
    place = str(given) if isinstance(given, Path) else Remote(given)
    if is_tiff(place):
        return open_multipage(place, labels=labels)
    if is_zarr(place):
        return open_zarr(place, labels=labels)
    if isinstance(place, str) and all((Path(place) / name).exists() for name in OF_A_RUN):
        raise StackError(
            f"{escaped(place)} is what a run of zarrmask left; name what is in it: "
            f"{escaped(place)}/volume.zarr"
        )
    formats = LABELS if labels else FORMATS
    return open_folder(place, allow_missing, progress, formats, allow_unreadable=allow_unreadable)


def is_tiff(place: str | Remote) -> bool:
    """Tell whether a stack is one TIFF, by its name; if not, it is a folder.

    Raises
    ------
    StackError
        If it is here, and neither.
    """
    if isinstance(place, Remote):
        return PurePath(place.place.path).suffix.lower() in TIFFS
    if os.path.isdir(place):  # noqa: PTH112
        return False
    if not os.path.isfile(place):  # noqa: PTH113
        there = "is not a file or folder" if os.path.lexists(place) else "does not exist"
        raise StackError(f"{escaped(place)} {there}; expected slices or a volume")
    if PurePath(place).suffix.lower() not in TIFFS:
        raise StackError(
            f"{escaped(place)} is a file, but not a TIFF; expected a folder of numbered slices "
            f"({', '.join(FORMATS)}), a multipage TIFF or a zarr"
        )
    return True
