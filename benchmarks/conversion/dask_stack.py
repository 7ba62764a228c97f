"""A folder of TIFF slices as a dask array, by the usual recipes: a slice a chunk, rechunked."""

from collections.abc import Callable
from pathlib import Path

import dask
import dask.array as da
import tifffile
from dask.array.image import imread

CHUNKS = (128, 128, 128)
LEVELS = 6


def delayed(folder: Path) -> da.Array:
    """`tifffile.imread`, delayed, stacked."""
    files = sorted(folder.iterdir())
    first = tifffile.imread(files[0])
    read = dask.delayed(tifffile.imread, pure=True)
    return da.stack([da.from_delayed(read(path), first.shape, first.dtype) for path in files])


def image(folder: Path) -> da.Array:
    """`dask.array.image.imread` with tifffile's reader."""
    return imread(f"{folder}/*.tif", imread=tifffile.imread)


def zarr(folder: Path) -> da.Array:
    """The zarr that tifffile shows a sequence of files as."""
    files = [str(path) for path in sorted(folder.iterdir())]
    return da.from_zarr(tifffile.imread(files, aszarr=True), zarr_format=2)


RECIPES: dict[str, Callable[[Path], da.Array]] = {"delayed": delayed, "image": image, "zarr": zarr}
"""As fast as each other, as far as noise lets tell; `dask_image.imread` is slower."""


def open_slices(stack: str, recipe: str) -> da.Array:
    """Give the slices as a lazy array (z, y, x) in the output's chunks."""
    return RECIPES[recipe](Path(stack)).rechunk(CHUNKS)
