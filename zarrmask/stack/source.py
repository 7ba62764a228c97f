"""What every input is read through: a lazy volume that travels well between processes.

dask.array and xarray are imported where they are used: the workers need neither, and each takes as
long to import as all of the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrmask.chunks import default_chunks
from zarrmask.errors import escaped

if TYPE_CHECKING:
    import xarray as xr

Progress = Callable[[int, int], None]


class Source(ABC):
    """A volume that is read by region; small when pickled, safe to read from many threads.

    Attributes
    ----------
    path : str
        Where it lies, absolute.
    kind : str
        What it is, for people: "TIFF slices", "multipage TIFF", "OME-Zarr", ...
    shape : tuple of int
        Slices, rows, columns.
    dtype : numpy.dtype
        uint8, uint16, int16 or float32, native byte order.
    first : int
        Number of the first slice; the others' rise by one.
    missing : tuple of int
        Numbers of the slices that are not there and read as zeros.
    voxel_size : float or None
        Micrometres, if the input says so and it is the same along all axes.
    block : tuple of int
        The smallest region that is cheap to read at once: whatever is read, whole blocks are.
    offset : tuple of float
        Where its first voxel lies, by what the input says, less its number: voxels along z, y, x.
    oblong : str
        Sides of a voxel, for people, where the input says that they differ, or are of a unit that
        nobody knows; else nothing.
    unitless : bool
        Whether it states the size without a unit, so that micrometres are taken.

    Raises
    ------
    UnreadableError
        From whatever reads, with all slices of a region that cannot be read, after some tries.
    """

    path: str
    kind: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    ndim = 3
    first = 0
    missing: tuple[int, ...]
    voxel_size: float | None
    block: tuple[int, int, int]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    oblong = ""
    unitless = False

    def __repr__(self) -> str:
        return f"<{self.kind} {self.shape} {self.dtype} from {escaped(self.path)}>"

    @property
    def numbers(self) -> np.ndarray:
        """The slices' numbers, rising by one: (z,) int64."""
        return np.arange(self.first, self.first + self.shape[0], dtype=np.int64)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read a region, given by indices (not numbers): integers and slices, as NumPy's."""
        ranges, dropped = index_ranges(key, self.shape)
        if all(ranges):
            rising = [r if r.step > 0 else r[::-1] for r in ranges]
            z, y, x = (slice(r[0], r[-1] + 1, r.step) for r in rising)
            region = self._read(z, y, x)[tuple(slice(None, None, _sign(r.step)) for r in ranges)]
        else:
            region = np.empty([len(r) for r in ranges], self.dtype)
        return region.squeeze(dropped)

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Read a region into an array of its shape; starts and stops are within the shape."""
        out[...] = self._read(*(slice(part.start, part.stop, 1) for part in (z, y, x)))

    def coarsest(self, rows: int, columns: int) -> tuple[Source, int]:
        """Give the coarsest form of the volume whose slices have so many rows and columns at least.

        Returns
        -------
        source : Source
            This one, where the volume has no other form, or all others are too coarse.
        depth : int
            How many slices of this one a slice of it stands for.
        """
        return self, 1

    @property
    def unreadable(self) -> Mapping[int, str]:
        """What is wrong with slices that are known to be unreadable, by number."""
        return {}

    @abstractmethod
    def fingerprint(self, without: Collection[int] = ()) -> str:
        """Hash what would change if the input did: names, sizes, times, shape, dtype.

        Parameters
        ----------
        without : collection of int
            Numbers of slices whose files do not count.
        """

    def token(self) -> str:
        """Give what lazy arrays of it are named by: its fingerprint, or what is told sooner."""
        return self.fingerprint()

    @abstractmethod
    def forget(self) -> None:
        """Look anew, for the next fingerprint, at what is only asked for once otherwise."""

    @abstractmethod
    def _read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Read a region that is not empty; starts, stops and steps are within the shape."""


def index_ranges(key: Any, shape: tuple[int, ...]) -> tuple[list[range], tuple[int, ...]]:
    """Say which indices of each axis a NumPy index of integers and slices means.

    Parameters
    ----------
    key : int, slice, Ellipsis or a tuple of them
        The index.
    shape : tuple of int
        Of what is indexed.

    Returns
    -------
    ranges : list of range
        One for each axis.
    dropped : tuple of int
        The axes that were given an integer.

    Raises
    ------
    IndexError
        As NumPy does, and for indices other than integers and slices.

    Examples
    --------
    >>> index_ranges((5, slice(-2, None)), (10, 20, 30))
    ([range(5, 6), range(18, 20), range(0, 30)], (0,))
    """
    keys = key if isinstance(key, tuple) else (key,)
    gaps = [i for i, entry in enumerate(keys) if entry is Ellipsis]
    if not gaps:
        gaps, keys = [len(keys)], (*keys, Ellipsis)
    gap, given = gaps[0], len(keys) - 1
    if given > len(shape) or len(gaps) > 1:
        raise IndexError(f"index {key!r} has more entries than the {len(shape)} axes")
    full = (*keys[:gap], *[slice(None)] * (len(shape) - given), *keys[gap + 1 :])
    ranges, dropped = [], []
    for axis, (entry, size) in enumerate(zip(full, shape, strict=True)):
        if isinstance(entry, slice):
            ranges.append(range(size)[entry])
        elif isinstance(entry, int | np.integer):
            at = range(size)[entry]
            ranges.append(range(at, at + 1))
            dropped.append(axis)
        else:
            raise IndexError(f"a stack is indexed by integers and slices; got {entry!r}")
    return ranges, tuple(dropped)


def _sign(step: int) -> int:
    return 1 if step > 0 else -1


def as_xarray(source: Source, chunks: Any = None) -> xr.DataArray:
    """Wrap a source as a lazy array with slice numbers, voxel size and what is missing.

    Parameters
    ----------
    source : Source
        What is read when the array is computed.
    chunks : optional
        As `dask.array.from_array` takes it; by default `default_chunks`.

    Returns
    -------
    xarray.DataArray
        Dims z, y, x; coordinate z the slice numbers.
    """
    import dask.array as da
    import xarray as xr
    from dask.base import tokenize

    if chunks is None:
        chunks = default_chunks(source.shape, source.dtype, source.block)
    data = da.from_array(
        source,
        chunks=chunks,
        name="stack-" + tokenize(source.path, source.token(), chunks),
        fancy=False,
        meta=np.empty((0, 0, 0), source.dtype),
    )
    attrs: dict[str, Any] = {"missing": list(source.missing), "source": source.path}
    if source.voxel_size is not None:
        attrs["voxel_size_um"] = source.voxel_size
    return xr.DataArray(data, {"z": source.numbers}, ("z", "y", "x"), name="stack", attrs=attrs)
