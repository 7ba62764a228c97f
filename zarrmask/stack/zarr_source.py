"""Zarr arrays and OME-Zarr images as stacks."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from zarrmask.errors import StackError

from .header import printable, wrong_dtype
from .source import RegionSource

MARKERS = (".zarray", ".zgroup", "zarr.json")
MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
# An array keeps the pipeline that it was opened with, also when pickled. The faster zarrs cannot
# read big-endian or Fortran-ordered arrays, so it is not used for what others wrote.
STOCK_PIPELINE = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
LISTED = 20  # members of a group named in a message


def is_zarr(path: str) -> bool:
    """Tell whether a folder is a zarr array or group, format 2 or 3."""
    return any((Path(path) / marker).is_file() for marker in MARKERS)


class ZarrSource(RegionSource):
    """A 3-D zarr array on disk: a `Source`.

    Parameters
    ----------
    path : str
        What was given: the array, or the OME-Zarr group.
    kind : str
        For people.
    array : zarr.Array
        What is read; leading axes of size 1 are dropped.
    voxel_size : float or None
        Micrometres.
    """

    missing: tuple[int, ...] = ()

    def __init__(self, path: str, kind: str, array: zarr.Array, voxel_size: float | None) -> None:
        self.path, self.kind, self.voxel_size = path, kind, voxel_size
        z, y, x = array.shape[-3:]
        self.shape = (z, y, x)
        self.dtype = array.dtype.newbyteorder("=")
        z, y, x = (min(n, c) for n, c in zip(self.shape, array.chunks[-3:], strict=True))
        self.block = (z, y, x)
        self._array = array
        self._leading = (0,) * (array.ndim - 3)

    def fingerprint(self) -> str:
        """Hash names, sizes and times (ns) of the array's files as they are now."""
        root = self._root()
        digest = hashlib.sha256(repr((self.kind, self.shape, str(self.dtype))).encode())
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                found = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
                entry = (os.path.relpath(folder, root), name, found.st_size, found.st_mtime_ns)
                digest.update(repr(entry).encode())
        return digest.hexdigest()

    def _root(self) -> str:
        return os.path.join(self.path, self._array.path).rstrip("/")  # noqa: PTH118

    def _read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        key: Any = (*self._leading, z, y, x)
        try:
            region = np.asarray(self._array[key])
        except MemoryError:
            raise
        except Exception as error:  # codecs raise what they like; a person wants the place
            raise StackError(
                f"{printable(self._root())}: slices {z.start} to {z.stop - 1}, rows {y.start} to "
                f"{y.stop - 1} cannot be read: {error} (a damaged chunk?)"
            ) from error
        return region.astype(self.dtype, copy=False)


def open_zarr(path: str) -> ZarrSource:
    """Open a zarr array, or level 0 of an OME-Zarr image.

    Parameters
    ----------
    path : str
        Folder of the array or of the image's group.

    Returns
    -------
    ZarrSource
        The volume; slices are numbered from 0.

    Raises
    ------
    StackError
        If it is neither, is no volume, or not uint8, uint16 or float32.
    """
    try:
        with zarr.config.set(STOCK_PIPELINE):
            node = zarr.open(path, mode="r")
    except Exception as error:  # zarr raises many kinds for metadata that it cannot read
        raise StackError(f"{printable(path)}: its zarr metadata cannot be read: {error}") from error
    if isinstance(node, zarr.Array):
        return checked(path, "zarr array", node, None)
    attributes: dict[str, Any] = dict(node.attrs)
    image = attributes.get("ome", attributes)  # NGFF 0.5 has its own namespace
    if not isinstance(image, dict) or not image.get("multiscales"):
        raise StackError(no_image(path, node))
    try:
        level, names, size = finest(image["multiscales"][0])
        with zarr.config.set(STOCK_PIPELINE):
            array = node.get(level)
    except Exception as error:  # metadata may be anything at all
        raise StackError(f"{printable(path)}: its OME metadata is damaged: {error!r}") from error
    if not isinstance(array, zarr.Array):
        raise StackError(f"{printable(path)}: its level 0, {printable(level)!r}, is no zarr array")
    if names and names[-3:] != ["z", "y", "x"]:
        raise StackError(f"{printable(path)}: axes {', '.join(names)}; expected z, y, x last")
    return checked(path, "OME-Zarr", array, size)


def finest(multiscale: dict[str, Any]) -> tuple[str, list[str], float | None]:
    """Read what an image's metadata says of its finest level.

    Parameters
    ----------
    multiscale : dict
        One entry of `multiscales`, of any NGFF version.

    Returns
    -------
    path : str
        Of the level's array in the group.
    names : list of str
        The axes'; none where the version names no axes (they are t, c, z, y, x then).
    voxel_size : float or None
        Micrometres.
    """
    dataset = multiscale["datasets"][0]
    axes = [
        axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes") or []
    ]
    transforms = [
        transform
        for holder in (dataset, multiscale)  # both may scale, and the scales multiply
        for transform in holder.get("coordinateTransformations") or []
    ]
    scales = [t["scale"][-3:] for t in transforms if t["type"] == "scale"]
    units = [axis.get("unit") for axis in axes[-3:]] or [None] * 3
    size = voxel_size(np.prod([np.ones(3), *scales], axis=0), units)
    return str(dataset["path"]), [str(axis["name"]) for axis in axes], size


def checked(path: str, kind: str, array: zarr.Array, voxel_size: float | None) -> ZarrSource:
    """Make a source of an array, once it is known to be one volume of grey values."""
    problems = []
    if array.ndim < 3 or any(n != 1 for n in array.shape[:-3]) or 0 in array.shape:
        shape = " x ".join(map(str, array.shape))
        problems.append(f"an array of {shape}; expected slices x rows x columns (z, y, x)")
    if problem := wrong_dtype(np.dtype(array.dtype)):
        problems.append(problem)
    if problems:
        raise StackError(f"{printable(path)}: {'; '.join(problems)}")
    return ZarrSource(path, kind, array, voxel_size)


def no_image(path: str, group: zarr.Group) -> str:
    """Say what a group holds that is no OME-Zarr image, and what to give instead."""
    members = [
        f"{printable(name)} ({' x '.join(map(str, m.shape))} array)"
        if isinstance(m, zarr.Array)
        else f"{printable(name)} (group)"
        for name, m in sorted(group.members())
    ]
    more = f", ... and {len(members) - LISTED:,} more" if len(members) > LISTED else ""
    return (
        f"{printable(path)} is a zarr group, but no OME-Zarr image (it has no multiscales); "
        f"it holds: {', '.join(members[:LISTED]) + more or 'nothing'}. "
        "Give the path of an array or image inside it"
    )


def voxel_size(scale: np.ndarray, units: Sequence[str | None]) -> float | None:
    """Return the side of a voxel, if it is told and the same on all axes.

    Parameters
    ----------
    scale : numpy.ndarray, shape (3,)
        Along z, y, x.
    units : sequence of str or None
        Likewise; a scale without a unit is taken as micrometres, unless it is 1.

    Returns
    -------
    float or None
        Micrometres.

    Examples
    --------
    >>> voxel_size(np.full(3, 7910.0), ["nanometer"] * 3)
    7.91
    """
    if not any(units) and np.all(scale == 1):
        return None
    sizes = scale * [1.0 if unit is None else MICROMETRES.get(unit, np.nan) for unit in units]
    isotropic = np.all(sizes > 0) and np.ptp(sizes) <= 1e-6 * sizes.max()
    return round(float(sizes[0]), 9) if isotropic else None
