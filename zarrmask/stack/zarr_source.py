"""Zarr arrays and OME-Zarr images as stacks."""

import hashlib
import os
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
        return os.path.join(self.path, self._array.path)  # noqa: PTH118

    def _read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        key: Any = (*self._leading, z, y, x)
        try:
            region = np.asarray(self._array[key])
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
        If it is neither, is no volume, or not uint8 or uint16.
    """
    try:
        node = zarr.open(path, mode="r")
    except Exception as error:  # zarr raises many kinds for metadata that it cannot read
        raise StackError(f"{printable(path)}: its zarr metadata cannot be read: {error}") from error
    if isinstance(node, zarr.Array):
        return checked(path, "zarr array", node, None)
    attributes: dict[str, Any] = dict(node.attrs)
    image = attributes.get("ome", attributes)  # NGFF 0.5 has its own namespace
    try:
        multiscale = image["multiscales"][0]
        dataset = multiscale["datasets"][0]
        level = dataset["path"]
    except (KeyError, IndexError, TypeError):
        raise StackError(no_image(path, node)) from None
    array = node.get(level)
    if not isinstance(array, zarr.Array):
        raise StackError(f"{printable(path)}: level 0 ({printable(str(level))}) is no zarr array")
    try:
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale["axes"]]
    except (KeyError, TypeError):
        axes = []  # NGFF 0.1 and 0.2 name no axes: t, c, z, y, x
    names = [str(axis.get("name")) for axis in axes]
    if axes and names[-3:] != ["z", "y", "x"]:
        raise StackError(f"{printable(path)}: axes {', '.join(names)}; expected z, y, x last")
    return checked(path, "OME-Zarr", array, voxel_size(multiscale, dataset, axes))


def checked(path: str, kind: str, array: zarr.Array, voxel_size: float | None) -> ZarrSource:
    """Make a source of an array, once it is known to be one volume of whole numbers."""
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


def voxel_size(
    multiscale: dict[str, Any], dataset: dict[str, Any], axes: list[dict[str, Any]]
) -> float | None:
    """Return an image's voxel size from its metadata, if it is told and the same on all axes.

    Parameters
    ----------
    multiscale, dataset : dict
        The image's and its level 0's metadata; both may scale, and the scales multiply.
    axes : list of dict
        The axes; those without a unit are taken as micrometres if there is a scale.

    Returns
    -------
    float or None
        Micrometres.
    """
    scale = np.ones(3)
    for holder in (dataset, multiscale):
        for transform in holder.get("coordinateTransformations", []):
            if transform.get("type") == "scale":
                scale *= np.asarray(transform["scale"], float)[-3:]
    units = [axis.get("unit") for axis in axes[-3:]] or [None] * 3
    if not any(units) and np.all(scale == 1):
        return None
    factors = [1.0 if unit is None else MICROMETRES.get(unit, np.nan) for unit in units]
    sizes = scale * factors
    isotropic = np.all(sizes > 0) and np.ptp(sizes) <= 1e-6 * sizes.max()
    return float(sizes[0]) if isotropic else None
