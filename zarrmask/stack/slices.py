"""A volume of 2-D slices, one a file or one a page: checked from headers, read by region."""

import hashlib
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from zarrmask.errors import StackError, counted, escaped, first_of
from zarrmask.stack.header import PIXELS, Header
from zarrmask.stack.remote import AT_ONCE, File, Remote, Stamp, shown
from zarrmask.stack.source import Source
from zarrmask.stack.unreadable import MOST_AT_ONCE, UnreadableError, reason, try_each
from zarrmask.stack.voxels import UNKNOWN, Voxels

SAMPLED = 3
"""Slices that stand for all of a file."""

Label = TypeVar("Label")
ReadSlice = Callable[[File, Header, slice, slice, np.ndarray], None]
"""Reads rows and columns of a slice (file, header, y, x) into an array."""


class SliceSource(Source):
    """Slices of one shape and dtype, with zeros where a number is missing.

    Parameters
    ----------
    place : str or Remote
        The folder, or the file that holds all slices as pages.
    kind : str
        For people.
    read : callable
        Reads a region of one slice from its file and header.
    first : int
        The first slice's number.
    names : sequence of str or None
        Each slice's file in the folder, "" for `place` itself, None where there is none.
    headers : sequence of Header or None
        Each slice's, all of one shape and dtype; None where it is missing or unreadable.
    unreadable : mapping, optional
        By index, what is wrong with slices that are known to be unreadable.
    voxels : Voxels, optional
        What is known of their sides.
    """

    def __init__(
        self,
        place: str | Remote,
        kind: str,
        read: ReadSlice,
        first: int,
        names: Sequence[str | None],
        headers: Sequence[Header | None],
        unreadable: Mapping[int, str] | None = None,
        voxels: Voxels = UNKNOWN,
    ) -> None:
        there = [header for header in headers if header is not None]
        rows, columns = there[0].shape
        self.path = place if isinstance(place, str) else place.shown
        self.kind = kind
        self.voxel_size, self.oblong, self.unitless = voxels
        self.shape = (len(names), rows, columns)
        self.dtype = there[0].dtype
        # What lies as it is can be read in any part, but is asked for by whole rows.
        across = 1 if isinstance(place, str) or there[0].offset < 0 else columns
        block = np.max([(1, *h.block) for h in there], axis=0)
        self.block = (1, int(block[1]), max(int(block[2]), across))
        self.first = first
        self._unreadable = dict(unreadable or {})
        self.missing = tuple(
            first + i for i, name in enumerate(names) if name is None and i not in self._unreadable
        )
        self._place, self._read_slice = place, read
        self._names = tuple(names)
        # Columns, not objects: 27,000 of them travel to every worker.
        self._ifd = np.array([h.ifd if h else 0 for h in headers], np.int64)
        self._offset = np.array([h.offset if h else 0 for h in headers], np.int64)
        self._big_endian = np.array([h.big_endian if h else False for h in headers])

    def __getstate__(self) -> bytes:
        # Names, numbers and offsets are nearly regular: a tenth of a megabyte for a scroll.
        return zlib.compress(pickle.dumps(self.__dict__), level=1)

    def __setstate__(self, state: bytes) -> None:
        self.__dict__.update(pickle.loads(zlib.decompress(state)))  # noqa: S301  our own state

    @property
    def unreadable(self) -> dict[int, str]:
        """What is wrong with slices that are known to be unreadable, by number."""
        return {self.first + index: why for index, why in self._unreadable.items()}

    def fingerprint(self, without: Collection[int] = ()) -> str:
        """Hash names, numbers, sizes and times (ns) of the files as they are now.

        Of a file with many slices, some of which do not count, a sample of the others: to repair it
        is to write it anew.

        Parameters
        ----------
        without : collection of int
            Numbers of slices whose files do not count.
        """
        digest = hashlib.sha256(repr((self.kind, self.shape, str(self.dtype))).encode())
        files = {name: i for i, name in enumerate(self._names) if name is not None}
        for number in without:
            files.pop(self._names[number - self.first] or "", None)
        for (name, index), stamp in zip(files.items(), self._stamps(files), strict=True):
            digest.update(repr((name, self.first + index, *stamp)).encode())
        if without and "" in self._names:
            bad = {number - self.first for number in without}
            good = [index for index in range(self.shape[0]) if index not in bad]
            for index in good[:: max(1, len(good) // SAMPLED)]:
                digest.update(self[index].tobytes())
        return digest.hexdigest()

    def forget(self) -> None:
        """Look anew, for the next fingerprint, at what is at a URL."""
        if isinstance(self._place, Remote):
            self._place.forget()

    def _stamps(self, names: Collection[str]) -> Iterable[Stamp | tuple[int, int]]:
        if isinstance(self._place, Remote):
            return self._place.stamps(names)
        return map(self._stamp, names)

    def _stamp(self, name: str) -> tuple[int, int]:
        path = str(file_in(self._place, name))
        try:
            found = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise StackError(f"{escaped(path)}: {error.strerror}") from None
        return found.st_size, found.st_mtime_ns

    def _read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        wanted = range(z.start, z.stop, z.step)
        rows, columns = len(range(y.start, y.stop, y.step)), len(range(x.start, x.stop, x.step))
        out = np.empty((len(wanted), rows, columns), self.dtype)
        if y.step == x.step == 1:
            self._fill(out, wanted, y, x)
            return out
        one = np.empty((1, y.stop - y.start, x.stop - x.start), self.dtype)
        for region, index in zip(out, wanted, strict=True):
            self._fill(one, range(index, index + 1), y, x)
            region[...] = one[0, :: y.step, :: x.step]
        return out

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Read a region into an array of its shape."""
        self._fill(out, range(z.start, z.stop), y, x)

    def _fill(self, out: np.ndarray, wanted: range, y: slice, x: slice) -> None:
        def fill(index: int) -> None:
            self._slice_region(index, y, x, out[wanted.index(index)])

        if isinstance(self._place, Remote):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                failed = try_each(fill, wanted, pool.map, hopeless=MOST_AT_ONCE)
                pool.shutdown(cancel_futures=True)
        else:
            failed = try_each(fill, wanted)
        if failed:
            raise self._refusal(failed)

    def _slice_region(self, index: int, y: slice, x: slice, out: np.ndarray) -> None:
        if why := self._unreadable.get(index):
            raise StackError(why)
        if (name := self._names[index]) is None:
            out[...] = 0
            return
        header = Header(
            (self.shape[1], self.shape[2]),
            self.dtype,
            (self.block[1], self.block[2]),
            int(self._ifd[index]),
            int(self._offset[index]),
            bool(self._big_endian[index]),
        )
        self._read_slice(file_in(self._place, name), header, y, x, out)

    def _refusal(self, failed: Mapping[int, Exception]) -> UnreadableError:
        """Name all slices that cannot be read, each with its file."""
        why, lines = {}, []
        for index, error in failed.items():
            number, place, name = self.first + index, self._place, self._names[index] or ""
            why[number] = reason(error)
            line = f"slice {number} cannot be read: {why[number]}"
            if not isinstance(error, StackError):
                line += " (damaged, or changed since it was checked?)"
            path = place.url(name) if isinstance(place, Remote) else str(file_in(place, name))
            lines.append(line if path in line else f"{escaped(path)}: {line}")
        return UnreadableError(self.path, self.shape, why, "\n".join(first_of(lines)))


def file_in(place: str | Remote, name: str) -> File:
    """Give a file of a folder, or what is no folder itself where there is no name."""
    if isinstance(place, Remote):
        return place.file(name)
    return os.path.join(place, name) if name else place  # noqa: PTH118


def disagreements(found: Mapping[Label, Header | str]) -> tuple[dict[Label, str], str]:
    """Compare slices with each other: all have to be as most are.

    Parameters
    ----------
    found : mapping
        For each slice's label its header, or what is wrong with it.

    Returns
    -------
    problems : dict
        For the label of each bad slice what is wrong with it.
    expected : str
        What each was expected to be.
    """
    kinds = Counter((h.shape, h.dtype) for h in found.values() if isinstance(h, Header))
    if not kinds:
        return {label: str(what) for label, what in found.items()}, f"greyscale {PIXELS}"
    (usual, count), *_ = kinds.most_common(1)
    problems = {
        label: str(header)
        for label, header in found.items()
        if isinstance(header, str) or (header.shape, header.dtype) != usual
    }
    (rows, columns), dtype = usual
    return problems, f"{rows} x {columns} {dtype}, as {count:,} of {len(found):,} slices are"


def complaints(problems: Mapping[str, str], total: int) -> list[str]:
    """Write a line for each bad slice; one for all where all are bad in the same way.

    Parameters
    ----------
    problems : mapping
        For the label of each what is wrong with it.
    total : int
        How many slices there are.
    """
    if len(problems) == total > 1 and len(set(problems.values())) == 1:
        return [f"all {total:,} slices: {next(iter(problems.values()))}"]
    return [f"{escaped(label)}: {what}" for label, what in problems.items()]


def refusal(place: str | Remote, problems: Sequence[str], expected: str) -> StackError:
    """Make the one error that tells of everything that is wrong with a stack."""
    return StackError(
        f"{shown(place)} cannot be read as one volume: {counted(len(problems), 'problems')}\n"
        + "\n".join(f"  {line}" for line in first_of(problems))
        + f"\nexpected: {expected}"
    )
