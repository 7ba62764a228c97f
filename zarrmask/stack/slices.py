"""A volume of 2-D slices, one a file or one a page: checked from headers, read by region."""

import hashlib
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from zarrmask.errors import StackError

from .header import PIXELS, Header, printable
from .source import RegionSource

LISTED = 20  # bad files named in one message

ReadSlice = Callable[[str, Header, slice, slice, np.ndarray], None]
"""Reads rows and columns of a slice (file, header, y, x) into an array."""


class SliceSource(RegionSource):
    """Slices of one shape and dtype, with zeros where a number is missing: a `Source`.

    Parameters
    ----------
    path : str
        The folder, or the file that holds all slices as pages.
    kind : str
        For people.
    read : callable
        Reads a region of one slice from its file and header.
    first : int
        The first slice's number.
    names : sequence of str or None
        Each slice's file in the folder, "" for `path` itself, None where the slice is missing.
    headers : sequence of Header or None
        Each slice's, all of one shape and dtype.
    """

    voxel_size: float | None = None

    def __init__(
        self,
        path: str,
        kind: str,
        read: ReadSlice,
        first: int,
        names: Sequence[str | None],
        headers: Sequence[Header | None],
    ) -> None:
        there = [header for header in headers if header is not None]
        rows, columns = there[0].shape
        self.path, self.kind = path, kind
        self.shape = (len(names), rows, columns)
        self.dtype = there[0].dtype
        self.block = (1, max(h.block[0] for h in there), max(h.block[1] for h in there))
        self.first = first
        self.missing = tuple(first + i for i, name in enumerate(names) if name is None)
        self._read_slice = read
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
            try:
                found = os.stat(self._file(name))  # noqa: PTH116
            except OSError as error:
                raise StackError(f"{printable(self._file(name))}: {error.strerror}") from None
            entry = (name, self.first + index, found.st_size, found.st_mtime_ns)
            digest.update(repr(entry).encode())
        return digest.hexdigest()

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name) if name else self.path  # noqa: PTH118

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
        for region, index in zip(out, wanted, strict=True):
            name = self._names[index]
            if name is None:
                region[...] = 0
            else:
                self._slice_region(index, name, y, x, region)

    def _slice_region(self, index: int, name: str, y: slice, x: slice, out: np.ndarray) -> None:
        header = Header(
            (self.shape[1], self.shape[2]),
            self.dtype,
            (self.block[1], self.block[2]),
            int(self._ifd[index]),
            int(self._offset[index]),
            bool(self._big_endian[index]),
        )
        try:
            self._read_slice(self._file(name), header, y, x, out)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise what they like; a person wants the file
            raise StackError(
                f"{printable(self._file(name))}: slice {self.first + index} cannot be read: "
                f"{error} (damaged, or changed since it was checked?)"
            ) from error


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


def refusal(path: str, problems: Sequence[str], expected: str) -> StackError:
    """Make the one error that tells of everything that is wrong with a stack."""
    lines = list(problems[:LISTED])
    if len(problems) > LISTED:
        lines.append(f"... and {len(problems) - LISTED:,} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
    return StackError(
        f"{printable(path)} cannot be read as one volume: {count}\n"
        + "\n".join(f"  {line}" for line in lines)
        + f"\nexpected: {expected}"
    )
