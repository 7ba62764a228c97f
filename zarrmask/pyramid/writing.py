"""Writing pyramids brick by brick, two levels a pass, so that level 0 is read once.

A brick is written at levels n and n + 1. Its level n + 2, a 64th of it, goes to a scratch array
from which the next pass takes it: coarser levels never read a finer one again, and nothing of a
volume has to be held in memory or sent between workers.

Within a brick the finer level is written tile by tile, each a row of files, and only the coarser
one, an eighth of it, is kept until it is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from zarrmask.pyramid.downsample import halve
from zarrmask.pyramid.layout import (
    LEVELS_A_PASS,
    BrickGrid,
    Format,
    brick_grid,
    halved_region,
    level_shapes,
    sides,
    step_grid,
    within,
)
from zarrmask.pyramid.metadata import LABEL
from zarrmask.pyramid.store import open_array, open_group
from zarrmask.storage.atomic import replace_file
from zarrmask.storage.buffers import buffer
from zarrmask.storage.files import Region, Shape, by_file, by_place, files_of
from zarrmask.storage.flush import flush_soon
from zarrmask.storage.place import Place, make_folder, names_in, remove

DEFAULT = Format()
_threads = ThreadPoolExecutor(thread_name_prefix="write")
_GROUP = {
    "0.4": (".zgroup", b'{"zarr_format": 2}'),
    "0.5": ("zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'),
}
"""The file that makes a folder a group, by version of NGFF."""
_LEVEL = re.compile("1?[0-9]")  # of 20 at most (`Settings.levels`): more is somebody else's
_GROUP_FILES = (".zmetadata", ".zgroup", ".zattrs", "zarr.json")
"""In the order in which they are removed: the last says whose the folder is."""
_STALE = {"0.4": (".zmetadata", "zarr.json"), "0.5": (".zmetadata", ".zgroup", ".zattrs")}
"""Files of a group that was there before, which readers would believe."""
_FORMAT_2 = {
    "filters": None,
    "order": "C",
    "chunk_key_encoding": {"name": "v2", "separator": "/"},
}


COARSER_BRICK = 2**26
"""Bytes of a brick of the coarser passes, which is read at once."""


@dataclass(frozen=True)
class Pyramid:
    """A pyramid that is being written.

    Attributes
    ----------
    path : Place
        The OME-Zarr group.
    scratch : Place
        Folder for what one pass leaves to the next.
    shape : (z, y, x)
        Level 0, voxels.
    dtype : str
        uint8 or uint16.
    reduce : str
        How a level is made from the one before: "mean" or "max".
    format : Format
        How its arrays are stored.
    links : bool
        Whether it shares files with other pyramids that hold the same, where there are hard links.
    finished : bool
        Whether all of it is there and stays as it is: nothing is written.
    """

    path: Place
    scratch: Place
    shape: Shape
    dtype: str
    reduce: str
    format: Format = DEFAULT
    links: bool = False
    finished: bool = False

    @property
    def levels(self) -> tuple[Shape, ...]:
        """Shapes of the levels."""
        return level_shapes(self.shape, self.format.levels)

    @property
    def shares(self) -> bool:
        """Whether files can be one under several names."""
        return self.links and isinstance(self.path, Path)

    @property
    def passes(self) -> range:
        """First level of each pass."""
        return range(0, len(self.levels), LEVELS_A_PASS)

    def create(self) -> bool:
        """Make the arrays that are not there yet, and tell whether there were any.

        Without metadata no viewer opens them.
        """
        make_folder(self.path)
        for stale in _STALE[self.format.ngff]:
            remove(self.path / stale)
        name, content = _GROUP[self.format.ngff]
        if not (self.path / name).exists():  # zarr would begin with no attributes
            replace_file(self.path / name, content)
        group = open_group(self.path, "r+")
        group.attrs.pop("multiscales" if self.format.ngff == "0.4" else "ome", None)
        if isinstance(self.path, Path):
            for torn in (*self.path.glob("*.partial"), *self.path.glob("*/*.partial")):
                torn.unlink()  # zarr was stopped while it wrote metadata
        made = False
        for level, shape in enumerate(self.levels):
            made |= _create(group, str(level), shape, self.dtype, _stored(self.format))
        scratch = open_group(self.scratch, "a")
        for level in self.passes[1:]:
            storage = {"chunks": self.handed_over_chunk, "compressors": None, **_FORMAT_2}
            made |= _create(scratch, str(level), self.levels[level], self.dtype, storage)
        return made

    @property
    def handed_over_chunk(self) -> Shape:
        """Chunk of what a pass leaves to the next, voxels."""
        z, y, x = (side // 2**LEVELS_A_PASS for side in self.format.step)
        return z, y, x

    def bricks(self, level: int) -> BrickGrid:
        """Bricks of the pass that begins at a coarser level."""
        itemsize, step = np.dtype(self.dtype).itemsize, self.format.step
        return brick_grid(self.levels[level], itemsize, (1, 1, 1), COARSER_BRICK, step)

    def steps(self, level: int) -> BrickGrid:
        """The smallest bricks of the pass that begins at a level."""
        return step_grid(self.levels[level], self.format.step)

    def clear(self, level: int, region: Region) -> None:
        """Remove what a pass wrote of a region of its first level: its levels, what it handed over.

        Parameters
        ----------
        level : int
        region : three slices
            Whole steps.
        """
        for array, place, part in self._written(level, region):
            if isinstance(place, Path):
                for file in files_of(array, place, part):
                    file.unlink(missing_ok=True)
            else:
                array[part] = 0  # what is all zeros is not stored

    def _written(self, level: int, region: Region) -> Iterator[tuple[zarr.Array, Place, Region]]:
        """Arrays that a pass writes a region to, where they lie, and where in them."""
        yield self.array(level), self.path / str(level), region
        if level + 1 < len(self.levels):
            region = halved_region(region)
            yield self.array(level + 1), self.path / str(level + 1), region
        if (coarser := level + LEVELS_A_PASS) < len(self.levels):
            place = self.scratch / str(coarser)
            yield self.handed_over(coarser), place, halved_region(region)

    def recall(self, level: int, region: Region) -> None:
        """Hand over a region of a level once more, from what is written of it.

        Parameters
        ----------
        level : int
            The first of a pass, but of the first pass.
        region : three slices
            Whole steps.
        """
        place = self.scratch / str(level)
        block = np.asarray(self.array(level)[region])
        flush_soon(*_write(self.handed_over(level), place, region, block))

    @lru_cache(maxsize=64)  # noqa: B019  small, and a worker opens each for every tile
    def array(self, level: int) -> zarr.Array:
        """One level, to read or write."""
        direct = self.reduce == "mean"
        return open_array(self.path / str(level), "r+", direct=direct)

    @lru_cache(maxsize=64)  # noqa: B019
    def handed_over(self, level: int) -> zarr.Array:
        """What the pass before left of a level, the first of its own pass."""
        return open_array(self.scratch / str(level), "r+")

    def step(self, level: int, region: Region) -> Step:
        """Begin to write a region of the first level of a pass.

        Parameters
        ----------
        level : int
        region : three slices
            Its sides are at most the format's `step` along z and y, and it starts at multiples of
            them.
        """
        return Step(self, level, region)


class Step:
    """A region of a pyramid that is being written at two levels, and handed over at the third.

    Its tiles are written as they come; the coarser level is kept until all are there. What is all
    zeros is not written: a missing chunk is zeros. Files are written behind, while the next is
    made: a block must stay as it is until the step is settled. As a context it ends settled.
    """

    def __init__(self, pyramid: Pyramid, level: int, region: Region) -> None:
        self._pyramid, self._level = pyramid, level
        self._finer, self._region = region, halved_region(region)
        self._behind: list[Future[list[Path]]] = []
        self._repeats: Step | None = None
        # Places of files of the finer level.
        self._written: set[Shape] = set()
        self._repeated: set[Shape] = set()

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()

    @property
    def file(self) -> int:
        """Side of what one file holds: tiles go by it."""
        return self._pyramid.format.file

    @property
    def _array(self) -> tuple[zarr.Array, Place]:
        """The finer level, and where it lies."""
        return self._pyramid.array(self._level), self._pyramid.path / str(self._level)

    @property
    def _coarse_array(self) -> tuple[zarr.Array, Place]:
        """The coarser level, and where it lies."""
        level = self._level + 1
        return self._pyramid.array(level), self._pyramid.path / str(level)

    def write(self, region: Region, block: NDArray) -> None:
        """Begin to write a tile.

        Parameters
        ----------
        region : three slices
            Where it lies at the pass's first level; starts at multiples of the format's `file`, and
            ends there or at the volume's border.
        block : (z, y, x) array
            The voxels.
        """
        if not (block[0, 0, 0] or block.max()):
            return
        self._begin(_write, *self._array, region, block)
        self._written.update(_places(region, self.file))
        if (coarse := self._coarse_part(region)) is not None:
            halve(block, self._pyramid.reduce, coarse)

    def fill(self, region: Region, value: int) -> None:
        """Begin to write a tile all of whose voxels are one value, other than zero.

        Its files are one under many names, if this pyramid may share them.
        """
        write = _fill_shared if self._pyramid.shares else _fill
        self._begin(write, *self._array, region, value)
        self._written.update(_places(region, self.file))
        if (coarse := self._coarse_part(region)) is not None:
            coarse.fill(value)

    def repeat(self, region: Region, block: NDArray, other: Step) -> None:
        """Write a tile that another pyramid has, which is stored and made coarser alike.

        Parameters
        ----------
        region, block
            As in `write`; the other step has been given the same voxels there.
        other : Step
            Its files are shared, if this pyramid may: at the finer level, and at the coarser where
            all that a file was made of has been repeated. The other has to be finished first.
        """
        places = set(_places(region, self.file))
        if not places <= other._written:
            return  # all zeros
        self._written |= places
        if (coarse := self._coarse_part(region)) is not None:
            coarse[...] = other._coarse_part(region)
        begun = tuple(other._behind)
        if self._pyramid.shares:
            self._begin(_share, *self._array, region, block, other._array, begun)
            self._repeats = other
            self._repeated |= places
        else:
            self._begin(_write, *self._array, region, block)

    def finish(self) -> None:
        """Begin to write the coarser level, and to hand over what comes after it."""
        pyramid, level = self._pyramid, self._level + 1
        if not self._written or pyramid.finished or level == len(pyramid.levels):
            return
        coarse = self._coarse()
        for region in self._left_out():
            coarse[within(halved_region(region), self._region)] = 0
        begun = tuple(self._repeats._behind) if self._repeats else ()
        for repeated, region in self._coarse_runs():
            block = coarse[within(region, self._region)]
            if self._repeats and repeated:
                other = self._repeats._coarse_array
                self._begin(_share, *self._coarse_array, region, block, other, begun)
            else:
                self._begin(_write, *self._coarse_array, region, block)
        if level + 1 < len(pyramid.levels):
            array, place = pyramid.handed_over(level + 1), pyramid.scratch / str(level + 1)
            beyond = halve(coarse, pyramid.reduce)
            self._begin(_write, array, place, halved_region(self._region), beyond)

    def settle(self) -> None:
        """Wait for what has been begun.

        Raises
        ------
        OSError
            Where it could not be written.
        """
        begun, self._behind = self._behind, []
        wait(begun)
        for written in begun:
            flush_soon(*written.result())

    def _begin(self, write: Callable[..., list[Path]], *what: Any) -> None:
        if not self._pyramid.finished:
            self._behind.append(_threads.submit(write, *what))

    def _coarse_runs(self) -> Iterator[tuple[bool, Region]]:
        """Cut the coarser level, a row of files, into runs, and tell whether they are repeats."""
        z, y, x = self._region
        starts = range(x.start, x.stop, self.file)
        files = [(z, y, slice(start, min(start + self.file, x.stop))) for start in starts]
        for repeated, group in groupby(files, self._made_of_repeats):
            run = list(group)
            yield repeated, (z, y, slice(run[0][2].start, run[-1][2].stop))

    def _made_of_repeats(self, region: Region) -> bool:
        """Whether all that a region of the coarser level is made of has been repeated."""
        shape = self._pyramid.levels[self._level]
        z, y, x = (
            slice(2 * part.start, min(2 * part.stop, size))
            for part, size in zip(region, shape, strict=True)
        )
        return self._repeated.issuperset(_places((z, y, x), self.file))

    def _coarse_part(self, region: Region) -> NDArray | None:
        """Where a tile goes in the coarser level; None if there is no such level."""
        if self._level + 1 == len(self._pyramid.levels):
            return None
        return self._coarse()[within(halved_region(region), self._region)]

    def _coarse(self) -> NDArray:
        """The coarser level of the region, as far as it has been written."""
        name = f"coarse-{self._pyramid.path.name}"
        return buffer(name, sides(self._region), self._pyramid.dtype)

    def _left_out(self) -> Iterator[Region]:
        """Files of the finer level that nothing was written to."""
        for place, part in by_place(self._finer, (self.file,) * 3):
            if place not in self._written:
                yield part


def remove_pyramid(path: Place) -> None:
    """Remove a pyramid that zarrmask wrote; what others put into its folder stays."""
    labels = path / "labels"
    for name in names_in(path):
        if _LEVEL.fullmatch(name):
            remove(path / name)
    remove(labels / LABEL)
    for folder in (labels, path):
        if folder.is_symlink() or not folder.is_dir():
            continue
        if names_in(folder) <= set(_GROUP_FILES):
            for name in _GROUP_FILES:
                remove(folder / name)
            if isinstance(folder, Path):
                with suppress(OSError):  # a mount point stays, empty
                    folder.rmdir()
            else:
                remove(folder)


def _stored(form: Format) -> dict[str, Any]:
    """How zarr is told to store an array."""
    chunks = (form.chunk,) * 3
    name: Any = form.compressor.removeprefix("blosc-")  # one of those that zarr's types list
    if form.ngff == "0.4":
        codec = numcodecs.Blosc(name, form.compression) if name != "none" else None
        return {"chunks": chunks, "compressors": codec, **_FORMAT_2}
    blosc = BloscCodec(cname=name, clevel=form.compression) if name != "none" else None
    return {
        "chunks": chunks,
        "shards": (form.file,) * 3,
        "compressors": blosc,
        "dimension_names": ("z", "y", "x"),
    }


def _create(
    group: zarr.Group, name: str, shape: Shape, dtype: str, storage: Mapping[str, Any]
) -> bool:
    if name in group:
        if group.metadata.zarr_format == 2:
            group[name].attrs.put({})  # zarr may have been stopped before it wrote them
        return False
    group.create_array(name, shape=shape, dtype=np.dtype(dtype), fill_value=0, **storage)
    return True


def _places(region: Region, side: int) -> Iterator[Shape]:
    """Places, in the grid of an array's files, of those that hold a region."""
    return (place for place, _ in by_place(region, (side,) * 3))


def _write(array: zarr.Array, place: Place, region: Region, block: NDArray) -> list[Path]:
    """Write whole files of an array, and give those that are yet to be brought onto the disk.

    A run that was stopped may have left torn ones. A file at the border counts as written in part,
    and would be read first: so what is there goes. At a URL a file is there whole and for good, or
    not at all.
    """
    files = files_of(array, place, region)
    for file in files:
        file.unlink(missing_ok=True)
    array[region] = block
    return files


def _fill(array: zarr.Array, place: Place, region: Region, value: int) -> list[Path]:
    """Write whole files of one value; see `_write`."""
    return _write(array, place, region, np.full(sides(region), value, array.dtype))


def _fill_shared(array: zarr.Array, place: Path, region: Region, value: int) -> list[Path]:
    """Write whole files of one value: those alike are one under several names, where that goes."""
    written: dict[Shape, Path] = {}
    for file, part in by_file(array, place, region):
        alike = written.setdefault(sides(part), file)
        if alike is file or not _linked(file, alike):
            _fill(array, place, part, value)
    return files_of(array, place, region)


def _share(
    array: zarr.Array,
    place: Place,
    region: Region,
    block: NDArray,
    other: tuple[zarr.Array, Place],
    begun: Sequence[Future[list[Path]]],
) -> list[Path]:
    """Let whole files of an array be another's, once that has them; else write them."""
    wait(begun)  # they were handed in before this was: none waits for a thread that this one holds
    mine, others = files_of(array, place, region), files_of(*other, region)
    if others and all(map(_linked, mine, others)):
        return mine
    return _write(array, place, region, block)


def _linked(file: Path, there: Path) -> bool:
    """Put another file, or none where there is none, in a file's place; tell if that goes."""
    try:
        try:
            os.link(there, file)
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.link(there, file)
        except FileExistsError:
            file.unlink()
            os.link(there, file)
    except FileNotFoundError:
        file.unlink(missing_ok=True)  # all zeros
    except OSError:  # another disk, or one without links, or with too many
        return False
    return True
