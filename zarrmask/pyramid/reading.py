"""Reading a pyramid back as xarray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from zarrmask.chunks import default_chunks
from zarrmask.errors import ZarrmaskError
from zarrmask.pyramid.metadata import read_metadata
from zarrmask.pyramid.store import open_array
from zarrmask.storage.files import stamps
from zarrmask.storage.place import Place, place_of, printable, reached
from zarrmask.transformations import combined

if TYPE_CHECKING:
    import xarray as xr


def open_pyramid(path: str | Place) -> xr.DataTree:
    """Open an OME-Zarr image as the tree of its levels, without reading a voxel.

    Parameters
    ----------
    path : path, URL or UPath
        An OME-Zarr image (NGFF 0.4 or 0.5) with axes z, y, x.

    Returns
    -------
    xarray.DataTree
        Children "0", "1", ..., or as the image calls its levels, the finest first: datasets with
        the variable `image` (z, y, x), dask inside, and coordinates at the voxels' middles: in
        micrometres where the image states its voxel size, else in voxels of the finest level.
        Attributes hold the multiscale's name, and each level's `scale` (z, y, x).

    Raises
    ------
    ZarrmaskError
        Where there is no OME-Zarr image.

    Examples
    --------
    >>> tree = open_pyramid("out/masked.zarr")  # doctest: +SKIP
    >>> tree["3/image"].mean().compute()  # doctest: +SKIP
    """
    place = place_of(path)
    with reached(place, to_be="read"):
        multiscale = read_metadata(place)
        return _opened(place, multiscale)


def _opened(place: Place, multiscale: Mapping[str, Any]) -> xr.DataTree:
    if multiscale.get("version") in ("0.1", "0.2", "0.3"):
        raise ZarrmaskError(
            f"{printable(place)} is of NGFF {multiscale['version']}, which does not say how large "
            "its levels' voxels are; expected 0.4 or 0.5: convert it (zarrmask convert)"
        )
    try:
        return _tree(place, multiscale)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ZarrmaskError(
            f"the OME-Zarr metadata of {printable(place)} cannot be read: {error!r}"
        ) from None


def _tree(place: Place, multiscale: Mapping[str, Any]) -> xr.DataTree:
    import dask.array as da  # both take their time, and the workers need neither
    import xarray as xr
    from dask.base import tokenize

    state = _state(place)
    whole = multiscale.get("coordinateTransformations", [])
    axes = [axis["name"] for axis in multiscale["axes"]]
    units = {axis["name"]: axis.get("unit") for axis in multiscale["axes"]}
    levels = {}
    paths = [dataset["path"] for dataset in multiscale["datasets"]]
    nested = any("/" in path for path in paths)  # a tree would be cut there, and sorted anew
    for number, dataset in enumerate(multiscale["datasets"]):
        array = open_array(place / dataset["path"], "r", fast=False)
        chunks = default_chunks(array.shape, array.dtype, array.shards or array.chunks)
        name = f"image-{tokenize(place / dataset['path'], state, chunks)}"
        data = da.from_array(array, chunks=chunks, name=name)
        scale, start = combined(dataset["coordinateTransformations"] + whole, len(axes))
        coords = {
            axis: (
                axis,
                start[n] + scale[n] * np.arange(data.shape[n]),
                {"units": units[axis]} if units[axis] else {},
            )
            for n, axis in enumerate(axes)
        }
        image = xr.DataArray(data, coords=coords, dims=axes, attrs={"scale": tuple(scale.tolist())})
        levels[f"/{number if nested else dataset['path']}"] = xr.Dataset({"image": image})
    root = xr.Dataset(attrs={"name": multiscale.get("name"), "ngff": multiscale.get("version")})
    return xr.DataTree.from_dict({"/": root, **levels}, name=str(multiscale.get("name")))


def _state(image: Place) -> Any:
    """What changes with an image: whoever corrects one, or makes it anew, writes its metadata."""
    if not isinstance(image, Path):
        return uuid4().hex  # nobody says cheaply: whoever opens it anew has it read anew
    return stamps(image, (".zattrs", "zarr.json"))
