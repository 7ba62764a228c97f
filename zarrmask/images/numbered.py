"""One image a slice, named by its number: what it is called, and how it is stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from zarrmask import __version__
from zarrmask.errors import OutputError, RoomError, SettingsError, sized
from zarrmask.grey import Rescaling
from zarrmask.planning.memory import A_TASK, CLIENT, Memory, at_rest
from zarrmask.planning.room import free_space
from zarrmask.progress import Reporter
from zarrmask.records.journal import SCRATCH, WORK, Journal, RecordFile
from zarrmask.stack.zarr_source import is_zarr
from zarrmask.storage.atomic import replacing
from zarrmask.storage.place import names_in, require_writable
from zarrmask.workers.crew import Crew

ROWS_A_STRIP = 128
MOST_OF_A_JPEG = 65_500
"""Pixels of a side, as libjpeg writes them."""
FORMATS = ("tif", "jpg", "png")
IMAGEJ = "ImageJ=1.54f\nunit=micron\n"
"""Description by which ImageJ takes a TIFF's resolution for pixels a micrometre."""
EXPORTED, PROXIES = "export.json", "proxy.json"
"""Records of folders of images."""
_NUMBERED = re.compile(r"[0-9]{5,}")


@dataclass(frozen=True)
class ImageFormat:
    """How an image is stored.

    Attributes
    ----------
    suffix : str
        "tif" or "png", of 8 or 16 bits; "jpg", of 8.
    lzw : bool
        Whether a TIFF is compressed, without loss.
    quality : int
        Of a JPEG, 1 to 100.
    window : (lo, hi) or None
        Grey values of 16 bits that the 8 of a JPEG span.
    pixel : float or None
        Side of a pixel, micrometres, for a TIFF to state as ImageJ does.
    """

    suffix: str
    lzw: bool = False
    quality: int = 95
    window: tuple[float, float] | None = None
    pixel: float | None = None

    def name(self, number: int) -> str:
        """Name the image of a slice.

        Examples
        --------
        >>> ImageFormat("tif").name(42)
        '00042.tif'
        """
        return f"{number:05d}.{self.suffix}"

    def require_fit(self, shape: tuple[int, int]) -> None:
        """Refuse images (y, x) of a size that the format does not have.

        Raises
        ------
        SettingsError
        """
        if self.suffix == "jpg" and max(shape) > MOST_OF_A_JPEG:
            raise SettingsError(
                f"images of {shape[0]} x {shape[1]} pixels are no JPEGs, which have "
                f"{MOST_OF_A_JPEG} a side at most; write smaller ones, or TIFFs"
            )

    def write(self, path: Path, image: NDArray) -> None:
        """Write an image (y, x) of uint8 or uint16: a file that is whole or not there at all."""
        with replacing(path) as file:
            if self.suffix == "tif":
                options: dict[str, Any] = {}
                if self.lzw:
                    options |= {"compression": "lzw", "predictor": True}
                if self.pixel is not None:
                    options |= {"description": IMAGEJ, "resolution": (1 / self.pixel,) * 2}
                    options["resolutionunit"] = "NONE"
                tifffile.imwrite(
                    file,
                    image,
                    photometric="minisblack",
                    rowsperstrip=ROWS_A_STRIP,
                    metadata=None,
                    maxworkers=1,
                    **options,
                )
                return
            quality = [cv2.IMWRITE_JPEG_QUALITY, self.quality] if self.suffix == "jpg" else []
            file.write(cv2.imencode(f".{self.suffix}", self._shown(image), quality)[1].data)

    def _shown(self, image: NDArray) -> NDArray:
        if self.suffix != "jpg" or image.dtype == np.uint8 or self.window is None:
            return image
        grey = np.empty(image.shape, np.uint8)
        Rescaling(*self.window, "uint8")(np.ascontiguousarray(image), grey)
        return grey


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images that is being written, and the record of whose they are.

    Attributes
    ----------
    path : Path
    record : str
        Name of the record's file in it: no slice to those who read the folder as a stack.
    formats : tuple of str
        Suffixes of the images it may hold. Those of others are somebody's own: masks that were
        painted beside proxies.
    """

    path: Path
    record: str
    formats: tuple[str, ...] = FORMATS

    @property
    def journal(self) -> Journal:
        """Says whose the folder is; images that are there are to be removed by `start`."""
        record = RecordFile(self.record)
        identity = (record.read(self.path) or {}).get("identity") or {}
        formats = (identity["format"],) if "format" in identity else self.formats
        images = [
            name
            for name in sorted(names_in(self.path))
            for number, _, suffix in [name.partition(".")]
            if _NUMBERED.fullmatch(number) and suffix in formats
        ]
        return Journal(
            out=self.path,
            records=(record,),
            work=self.path / WORK,
            pyramids=(),
            others=tuple(self.path / name for name in images),
        )

    @property
    def scratch(self) -> Path:
        """Folder for what is not to stay."""
        return self.path / WORK / SCRATCH

    def keep_apart(self, *stacks: str) -> None:
        """Refuse a folder that is a stack which is read, or lies in one that is a zarr.

        Parameters
        ----------
        *stacks : str
            Paths and URLs.

        Raises
        ------
        OutputError
        """
        here = self.path.resolve()
        for stack in stacks:
            if "://" in stack:
                continue
            place = Path(stack).resolve()
            if here == place or (here.is_relative_to(place) and is_zarr(str(place))):
                raise OutputError(
                    f"{self.path} would overwrite what is read, {stack}; name another folder"
                )

    def fill(
        self,
        numbers: NDArray[np.int64],
        form: ImageFormat,
        identity: Mapping[str, Any],
        write: Callable[[NDArray[np.int64]], None],
        space: Callable[[int], tuple[int, int]],
        told: Mapping[str, Any],
        *,
        overwrite: bool,
        reporter: Reporter,
    ) -> dict[str, Any]:
        """Write the images that are not there, and hold the folder meanwhile.

        Parameters
        ----------
        numbers : (n,) int64
            Of the slices whose images are to be there.
        form : ImageFormat
        identity : mapping
            What makes the folder this one's.
        write : callable
            Writes the images of some slices, given their numbers.
        space : callable
            Bytes that so many images take on the disk, at least and at most.
        told : mapping
            What the record says beside that.
        overwrite : bool
            Whether images that another call left make way.
        reporter : Reporter

        Returns
        -------
        dict
            What the record holds.

        Raises
        ------
        ZarrmaskError
            Where the folder is another's, or in use; where space will not do; what `write` raises.
        """
        with self.journal.lock():
            journal = self.journal
            state = journal.check(identity, overwrite=overwrite)
            there = names_in(self.path) if state != "new" else set()
            missing = numbers[[form.name(number) not in there for number in numbers.tolist()]]
            if len(missing):
                if warning := require_space(self.path, *space(len(missing))):
                    reporter.warn(warning)
                if state == "new":
                    journal.start(identity)
                write(missing)
            else:
                reporter.say(f"{self.path} is finished already; --overwrite would make it anew")
            paths = [self.path / form.name(number) for number in numbers.tolist()]
            record = {
                **(journal.read() or {}),
                "zarrmask": __version__,
                "state": "finished",
                **told,
                "bytes": sum(path.stat().st_size for path in paths),
            }
            journal.finish(record)
        return record


def fitted(crew: Crew, tasks: Mapping[str, tuple[int, int]]) -> Crew:
    """As many workers as the memory is enough for.

    Parameters
    ----------
    crew : Crew
    tasks : mapping
        For each kind of task the bytes that one takes, and how many there are.

    Raises
    ------
    RoomError
        Where it is not enough for one, or for those that were asked for.
    """
    shared, worker = at_rest(crew.imported, detects=False)
    while True:
        hands = crew.workers * crew.threads
        memory = Memory(
            client=CLIENT + A_TASK * max(count for _, count in tasks.values()),
            shared=shared,
            worker=worker,
            tasks={kind: (size, min(hands, count)) for kind, (size, count) in tasks.items()},
            workers=crew.workers,
            threads=crew.threads,
        )
        needed = memory.needed(local=crew.local)
        if crew.memory is None or needed <= crew.memory:
            return crew
        if not crew.local or crew.fixed or crew.workers == 1:
            raise RoomError(
                f"{crew.workers} workers will take {sized(needed)} of memory, but have "
                f"{sized(crew.memory)}: {memory.largest} takes {sized(memory.task)}; use fewer "
                "--workers, or give more --memory"
            )
        crew = replace(crew, workers=crew.workers - 1)


def require_space(folder: Path, least: int, most: int) -> str | None:
    """Refuse to write where the disk certainly will not do; give a warning where it may not.

    Parameters
    ----------
    folder : Path
    least, most : int
        Bytes that will be written at the least and at the most.

    Raises
    ------
    RoomError
    """
    free = free_space(folder) or 0
    if free < least:
        raise RoomError(
            f"{sized(free)} are free at {folder}, but the images will take {sized(least)} at the "
            f"very least, and up to {sized(most)}; make room, or name another folder"
        )
    if free < most:
        return (
            f"{sized(free)} are free at {folder}; the images take up to {sized(most)}, less what "
            "compression saves. Should the disk run full, make room and give the same command "
            "again: it goes on"
        )
    return None


def local_folder(folder: str | Path) -> Path:
    """Give a folder on this machine, absolute.

    Raises
    ------
    OutputError
        If it is a URL, or nothing can be written to it.
    """
    if "://" in str(folder):
        raise OutputError(f"{folder} is a URL; images are written to folders on this machine")
    path = Path(folder).absolute()
    require_writable(path)
    return path
