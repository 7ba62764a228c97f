"""Zarr arrays and OME-Zarr images as stacks."""

import hashlib
import os
import platform
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from zarr.buffer.cpu import NDBuffer

from zarrmask.errors import StackError, escaped, first_of, some_of
from zarrmask.stack.header import wrong_dtype
from zarrmask.stack.ngff import Level, coarser_levels, described, no_image
from zarrmask.stack.remote import PatientStore, Remote
from zarrmask.stack.source import Source
from zarrmask.stack.unfinished import UNFINISHED, is_of_unfinished, is_unfinished
from zarrmask.stack.unreadable import MOST_AT_ONCE, UnreadableError, reason, try_each
from zarrmask.stack.voxels import UNKNOWN, Voxels
from zarrmask.storage.files import by_place, stamps
from zarrmask.storage.pipelines import opening
from zarrmask.storage.place import redacted, zarr_store

MARKERS = (".zarray", ".zgroup", "zarr.json")


def is_zarr(place: str | Remote) -> bool:
    """Tell whether a folder is a zarr array or group, format 2 or 3."""
    if isinstance(place, Remote):
        return any(place.has(marker) for marker in MARKERS)
    return any((Path(place) / marker).is_file() for marker in MARKERS)


class ZarrSource(Source):
    """A 3-D zarr array.

    Parameters
    ----------
    place : str or Remote
        What was given: the array, or the OME-Zarr group.
    kind : str
        For people.
    array : zarr.Array
        What is read; leading axes of size 1 are dropped.
    voxels : Voxels
        What is known of their sides.
    coarser : sequence of Level
        The image's other levels, finest first.
    """

    missing: tuple[int, ...] = ()

    def __init__(
        self,
        place: str | Remote,
        kind: str,
        array: zarr.Array,
        voxels: Voxels = UNKNOWN,
        coarser: Sequence[Level] = (),
    ) -> None:
        self.path = place.shown if isinstance(place, Remote) else place
        self.kind = kind
        self.voxel_size, self.oblong, self.unitless = voxels
        self._place, self._coarser = place, tuple(coarser)
        z, y, x = array.shape[-3:]
        self.shape = (z, y, x)
        self.dtype = array.dtype.newbyteorder("=")
        z, y, x = (min(n, c) for n, c in zip(self.shape, array.chunks[-3:], strict=True))
        self.block = (z, y, x)
        self._array = array
        self._leading = (0,) * (array.ndim - 3)

    def numbered(self, first: int) -> Self:
        """Give the same volume, its slices numbered from another number."""
        other = copy(self)
        other.first = first
        z, y, x = self.offset
        other.offset = z + self.first - first, y, x
        return other

    def coarsest(self, rows: int, columns: int) -> tuple[Source, int]:
        """Give the coarsest level with slices of so many rows and columns at least."""
        for array, factors in reversed(self._coarser):
            if array.shape[-2] >= rows and array.shape[-1] >= columns:
                return ZarrSource(self._place, f"{self.kind}, coarser", array), factors[0]
        return self, 1

    def fingerprint(self, without: Collection[int] = ()) -> str:
        """Hash names, sizes and times (ns) of the array's files as they are now.

        At a URL, where listing a million chunks takes long, those of the metadata alone: what
        writes an array anew writes them anew. Of the image's coarser levels, on which keyframes may
        be seen, which there are: their chunks may be repaired.

        Parameters
        ----------
        without : collection of int
            Numbers of slices; chunks that hold any of them do not count.
        """
        digest = hashlib.sha256(repr((self.kind, self.shape, str(self.dtype))).encode())
        for level in self._coarser:
            digest.update(repr((level.array.path, level.array.shape, level.factors)).encode())
        for stamp in self._stamps(without):
            digest.update(repr(stamp).encode())
        return digest.hexdigest()

    def token(self) -> str:
        """Give what lazy arrays of it are named by: not all of its chunks, which may be a million.

        Whoever writes to it while he reads lazily has to open it anew, as with xarray.
        """
        if isinstance(self._place, Remote):
            return self.fingerprint()
        return repr((self.kind, self.shape, str(self.dtype), stamps(self._root(), MARKERS)))

    def forget(self) -> None:
        """Look anew, for the next fingerprint, at what is at a URL."""
        if isinstance(self._place, Remote):
            self._place.forget()

    def _stamps(self, without: Collection[int]) -> Iterator[tuple[Any, ...]]:
        """What changes where the array does."""
        if isinstance(self._place, Remote):
            for marker in MARKERS:
                name = f"{self._array.path}/{marker}".lstrip("/")
                if self._place.has(name):
                    yield name, self._place.stamp(name)
            return
        root, left_out = self._root(), self._chunk_keys(without)
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)  # noqa: PTH118
                if left_out and os.path.relpath(path, root) in left_out:
                    continue
                found = os.stat(path)  # noqa: PTH116
                yield os.path.relpath(folder, root), name, found.st_size, found.st_mtime_ns

    def _chunk_keys(self, numbers: Collection[int]) -> set[str]:
        """Names of the files, below the array's, that hold any of some slices."""
        sides = (self._array.shards or self._array.chunks)[-3:]
        layers = {(number - self.first) // sides[0] for number in numbers}
        rows, columns = (
            range(ceil(size / side)) for size, side in zip(self.shape[1:], sides[1:], strict=True)
        )
        encode = self._array.metadata.encode_chunk_key
        return {encode((*self._leading, *place)) for place in product(layers, rows, columns)}

    def _root(self) -> str:
        if isinstance(self._place, Remote):
            return self._place.url(self._array.path)
        return os.path.join(self.path, self._array.path).rstrip("/")  # noqa: PTH118

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Read a region into an array of its shape; starts and stops are within the shape."""
        self._fill(out, *(slice(part.start, part.stop, 1) for part in (z, y, x)))

    def _read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        sides = [len(range(part.start, part.stop, part.step)) for part in (z, y, x)]
        region = np.empty(sides, self.dtype)
        self._fill(region, z, y, x)
        return region

    def _fill(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        try:
            self._decode(out, z, y, x)
        except MemoryError:
            raise
        except Exception as error:  # codecs raise what they like
            self._require_there()
            self._fill_by_layers(out, z, y, x, error)
        if not isinstance(self._place, Remote) or self._is_empty(out):
            self._require_there()

    def _is_empty(self, region: np.ndarray) -> bool:
        """Whether a region holds nothing but what zarr reads where there is no chunk."""
        fill = self._array.fill_value or 0
        if np.isnan(fill):
            return all(np.isnan(plane).all() for plane in region)
        return all((plane == fill).all() for plane in region)

    def _require_there(self) -> None:
        """Refuse to take for empty what is gone: zarr reads chunks that it does not find as zeros.

        Raises
        ------
        StackError
            If the array's metadata cannot be found where they were.
        """
        name = "zarr.json" if self._array.metadata.zarr_format == 3 else ".zarray"
        key = f"{self._array.path}/{name}".lstrip("/")
        try:
            if isinstance(self._place, Remote):
                self._place.fetch(key)
            else:
                os.stat(os.path.join(self.path, key))  # noqa: PTH116, PTH118
        except (OSError, StackError) as error:
            raise StackError(
                f"{escaped(self._root())} is gone from {platform.node()}, or cannot be reached: "
                f"{reason(error)}. Was a disk unmounted, or a folder moved? What is read of it "
                "would be zeros, so nothing more is; once it is back, the same command goes on"
            ) from None

    def _decode(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Decode chunks into an array, with no copy of the whole region beside it."""
        key: Any = (*self._leading, z, y, x)
        self._array.get_basic_selection(key, out=NDBuffer.from_numpy_array(out))

    def _fill_by_layers(
        self, out: np.ndarray, z: slice, y: slice, x: slice, whole: Exception
    ) -> None:
        """Read a region layer of chunks by layer, and name those that cannot be read.

        Parameters
        ----------
        whole : Exception
            What reading it at once ended with.
        """
        layers: dict[int, list[int]] = defaultdict(list)
        wanted = range(z.start, z.stop, z.step)
        for index in wanted:
            layers[index // self.block[0]].append(index)

        def read(layer: int) -> None:
            first, last = layers[layer][0], layers[layer][-1]
            part = out[wanted.index(first) : wanted.index(last) + 1]
            self._decode(part, slice(first, last + 1, z.step), y, x)

        failed: dict[int, Exception] = {}
        if len(layers) == 1 and isinstance(whole, StackError):  # it has been tried often enough
            failed |= dict.fromkeys(layers, whole)
        else:
            failed |= try_each(read, list(layers), hopeless=MOST_AT_ONCE)
        if not failed:
            return
        why: dict[int, str] = {}
        lines = []
        for layer, error in failed.items():
            start = layer * self.block[0]
            stop = min(start + self.block[0], self.shape[0])
            first, last = self.first + start, self.first + stop - 1
            why |= dict.fromkeys(range(first, last + 1), reason(error))
            hint = ""
            if not isinstance(error, StackError):
                hint = f" ({self._damaged(layers[layer][0], y, x) or 'a damaged chunk?'})"
            lines.append(
                f"{escaped(self._root())}: slices {first} to {last}, rows {y.start} to "
                f"{y.stop - 1} cannot be read: {reason(error)}{hint}"
            )
        raise UnreadableError(self.path, self.shape, why, "\n".join(first_of(lines)))

    def _damaged(self, index: int, y: slice, x: slice) -> str:
        """Name the files of a part of a slice that cannot be read; here, not at URLs."""
        if isinstance(self._place, Remote):
            return ""
        depth, height, width = (self._array.shards or self._array.chunks)[-3:]
        region, sides = (slice(index, index + 1), y, x), (depth, height, width)
        names = []
        for place, part in by_place(region, sides):
            key: Any = (*self._leading, *part)
            try:
                self._array[key]
            except Exception:  # codecs raise what they like
                names.append(self._array.metadata.encode_chunk_key((*self._leading, *place)))
        return f"damaged: {some_of(names)}" if names else ""


def open_zarr(place: str | Remote, *, labels: bool = False) -> ZarrSource:
    """Open a zarr array, or an OME-Zarr image at its level 0.

    Parameters
    ----------
    place : str or Remote
        Folder of the array or of the image's group.
    labels : bool
        Whether it may hold labels of any type.

    Returns
    -------
    ZarrSource
        The volume; slices are numbered from 0.

    Raises
    ------
    StackError
        If it is neither, is no volume, or not uint8, uint16, int16 or float32.
    """
    path = place.shown if isinstance(place, Remote) else escaped(place)
    store: PatientStore | Path
    if isinstance(place, Remote):
        store = PatientStore(zarr_store(place.place).with_read_only(True))
    else:
        store = Path(place)  # zarr takes a text with :: in it for a chain of URLs
    try:
        # The faster zarrs cannot read big-endian or Fortran-ordered arrays, which others may write.
        with opening():
            node = zarr.open(store, mode="r")
    except StackError as error:
        raise StackError(f"{path}: its zarr metadata cannot be read: {error}") from None
    except Exception as error:  # zarr raises many kinds for metadata that it cannot read
        what = redacted(str(error))
        raise StackError(f"{path}: its zarr metadata cannot be read: {what}") from None
    if isinstance(node, zarr.Array):
        if isinstance(place, str) and is_of_unfinished(Path(place).parent):
            raise StackError(f"{path}: {UNFINISHED}")
        return checked(place, "zarr array", node, labels=labels)
    attributes: dict[str, Any] = dict(node.attrs)
    image = attributes.get("ome", attributes)  # NGFF 0.5 has its own namespace
    if not isinstance(image, dict) or not image.get("multiscales"):
        unfinished = is_unfinished(place, attributes)
        raise StackError(f"{path}: {UNFINISHED}" if unfinished else no_image(path, node))
    try:
        said = described(image["multiscales"][0])
        with opening():
            arrays = [node.get(level) for level in said.paths]
    except StackError as error:
        raise StackError(f"{path}: {error}") from None
    except Exception as error:  # metadata may be anything at all
        raise StackError(f"{path}: its OME metadata is damaged: {error!r}") from error
    array, *others = arrays
    if not isinstance(array, zarr.Array):
        raise StackError(f"{path}: its level 0, {escaped(said.paths[0])!r}, is not a zarr array")
    coarser = coarser_levels(array, others, said.scales)
    source = checked(place, "OME-Zarr", array, said.voxels, coarser, axes=said.axes, labels=labels)
    source.offset = said.offset
    return source


def checked(
    place: str | Remote,
    kind: str,
    array: zarr.Array,
    voxels: Voxels = UNKNOWN,
    coarser: Sequence[Level] = (),
    *,
    axes: Sequence[str] = (),
    labels: bool = False,
) -> ZarrSource:
    """Make a source of an array, once it is known to be one volume of grey values or labels."""
    problems = []
    if array.ndim < 3 or any(n != 1 for n in array.shape[:-3]) or 0 in array.shape:
        if len(axes) == array.ndim:
            told = ", ".join(f"{axis}={n}" for axis, n in zip(axes, array.shape, strict=True))
            advice = "one volume (z, y, x): save each channel or time by itself"
            problems.append(f"axes {told}; expected {advice}")
        else:
            shape = " x ".join(map(str, array.shape))
            problems.append(f"an array of {shape}; expected slices x rows x columns (z, y, x)")
    if problem := wrong_dtype(np.dtype(array.dtype), labels=labels):
        problems.append(problem)
    if problems:
        path = place.shown if isinstance(place, Remote) else escaped(place)
        raise StackError(f"{path}: {'; '.join(problems)}")
    if isinstance(place, Remote) and array.shards:
        place.fetch(f"{array.path}/zarr.json".lstrip("/"), 0, 1)  # chunks are parts of files
    return ZarrSource(place, kind, array, voxels, coarser)
