"""A volume of 2-D slices, one a file or one a page: checked from headers, read by region."""

import hashlib
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from zarrmask.errors import StackError

from .header import PIXELS, Header, printable
from .remote import File, Remote, Stamp, shown
from .source import RegionSource

LISTED = 20  # bad files named in one message

AT_ONCE = 16
"""Slices that are asked for at once at a URL."""

ReadSlice = Callable[[File, Header, slice, slice, np.ndarray], None]
"""Reads rows and columns of a slice (file, header, y, x) into an array."""


class SliceSource(RegionSource):
    """Slices of one shape and dtype, with zeros where a number is missing: a `Source`.

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
        Each slice's file in the folder, "" for `place` itself, None where the slice is missing.
    headers : sequence of Header or None
        Each slice's, all of one shape and dtype.
    """

    voxel_size: float | None = None

    def __init__(
        self,
        place: str | Remote,
        kind: str,
        read: ReadSlice,
        first: int,
        names: Sequence[str | None],
        headers: Sequence[Header | None],
    ) -> None:
        there = [header for header in headers if header is not None]
        rows, columns = there[0].shape
        self.path = place if isinstance(place, str) else place.shown
        self.kind = kind
        self.shape = (len(names), rows, columns)
        self.dtype = there[0].dtype
        # What lies as it is can be read in any part, but is asked for by whole rows.
        across = 1 if isinstance(place, str) or there[0].offset < 0 else columns
        block = np.max([(1, *h.block) for h in there], axis=0)
        self.block = (1, int(block[1]), max(int(block[2]), across))
        self.first = first
        self.missing = tuple(first + i for i, name in enumerate(names) if name is None)
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

    def fingerprint(self) -> str:
        """Hash names, numbers, sizes and times (ns) of the files as they are now."""
        digest = hashlib.sha256(repr((self.kind, self.shape, str(self.dtype))).encode())
        files = {name: i for i, name in enumerate(self._names) if name is not None}
        for name, index in files.items():
            digest.update(repr((name, self.first + index, *self._stamp(name))).encode())
        return digest.hexdigest()

    def _stamp(self, name: str) -> Stamp | tuple[int, int]:
        if isinstance(self._place, Remote):
            return self._place.stamp(name)
        path = os.path.join(self._place, name) if name else self._place  # noqa: PTH118
        try:
            found = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise StackError(f"{printable(path)}: {error.strerror}") from None
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
        def fill(region: np.ndarray, index: int) -> None:
            self._slice_region(index, y, x, region)

        if isinstance(self._place, Remote):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(fill, out, wanted))
        else:
            for region, index in zip(out, wanted, strict=True):
                fill(region, index)

    def _slice_region(self, index: int, y: slice, x: slice, out: np.ndarray) -> None:
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
        try:
            self._read_slice(file_in(self._place, name), header, y, x, out)
        except (MemoryError, StackError):
            raise
        except Exception as error:  # decoders raise what they like; a person wants the file
            place = self._place
            path = place.url(name) if isinstance(place, Remote) else file_in(place, name)
            raise StackError(
                f"{printable(str(path))}: slice {self.first + index} cannot be read: "
                f"{error} (damaged, or changed since it was checked?)"
            ) from error


def file_in(place: str | Remote, name: str) -> File:
    """Give a file of a folder, or what is no folder itself where there is no name."""
    if isinstance(place, Remote):
        return place.file(name)
    return os.path.join(place, name) if name else place  # noqa: PTH118


def disagreements(found: dict[str, Header | str]) -> tuple[list[str], str]:
    """Compare slices with each other: all have to be as most are.

    Parameters
    ----------
    found : dict
        For each slice's label its header, or what is wrong with it.

    Returns
    -------
    problems : list of str
        One line for each bad slice; one for all where all are bad in the same way.
    expected : str
        What each was expected to be.
    """
    kinds = Counter((h.shape, h.dtype) for h in found.values() if isinstance(h, Header))
    if not kinds:
        expected = f"greyscale {PIXELS}"
        if len(found) > 1 and len(set(found.values())) == 1:
            return [f"all {len(found):,} slices: {next(iter(found.values()))}"], expected
        return [f"{printable(label)}: {what}" for label, what in found.items()], expected
    (usual, count), *_ = kinds.most_common(1)
    problems = [
        f"{printable(label)}: {header}"
        for label, header in found.items()
        if isinstance(header, str) or (header.shape, header.dtype) != usual
    ]
    (rows, columns), dtype = usual
    return problems, f"{rows} x {columns} {dtype}, as {count:,} of {len(found):,} slices are"


def refusal(place: str | Remote, problems: Sequence[str], expected: str) -> StackError:
    """Make the one error that tells of everything that is wrong with a stack."""
    lines = list(problems[:LISTED])
    if len(problems) > LISTED:
        lines.append(f"... and {len(problems) - LISTED:,} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
    return StackError(
        f"{shown(place)} cannot be read as one volume: {count}\n"
        + "\n".join(f"  {line}" for line in lines)
        + f"\nexpected: {expected}"
    )
