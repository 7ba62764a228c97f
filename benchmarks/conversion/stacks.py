"""Stacks to convert: noise that does not compress, as real slices do not, in several formats."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

Shape = tuple[int, int, int]
STRIP = 16  # rows, in files of many strips


@dataclass(frozen=True)
class Format:
    """How slices are stored.

    Attributes
    ----------
    suffix : str
        Of the files.
    bits : int
        Of the noise in a voxel: LZW makes 16 of them longer than they were.
    dtype : type
        Of the voxels.
    write : callable
        Writes a slice.
    pieces : callable
        How many pieces a slice of so many rows has, each to be decoded by itself.
    """

    suffix: str
    bits: int
    dtype: type
    write: Callable[[Path, NDArray[Any]], None]
    pieces: Callable[[int], int]


def _tiff(path: Path, image: NDArray[Any], **options: Any) -> None:
    tifffile.imwrite(path, image, **options)


def _lzw(path: Path, image: NDArray[Any], rows: int | None) -> None:
    tifffile.imwrite(path, image, compression="lzw", rowsperstrip=rows or image.shape[0])


def _jpeg(path: Path, image: NDArray[Any]) -> None:
    path.write_bytes(imagecodecs.jpeg_encode(image, level=90))


def _png(path: Path, image: NDArray[Any]) -> None:
    path.write_bytes(imagecodecs.png_encode(image, level=1))


FORMATS = {
    "uncompressed": Format(".tif", 16, np.uint16, _tiff, lambda rows: 1),
    "LZW, one strip": Format(".tif", 10, np.uint16, partial(_lzw, rows=None), lambda rows: 1),
    "LZW, strips of 16 rows": Format(
        ".tif", 10, np.uint16, partial(_lzw, rows=STRIP), lambda rows: ceil(rows / STRIP)
    ),
    "JPEG": Format(".jpg", 8, np.uint8, _jpeg, lambda rows: 1),
    "PNG": Format(".png", 8, np.uint8, _png, lambda rows: 1),
}


@dataclass(frozen=True)
class Stacks:
    """Makes stacks in a folder when they are asked for, and no slice twice."""

    folder: Path

    def make(self, shape: Shape, kind: str = "uncompressed") -> Path:
        """Give a folder of slices; those that another stack has already are linked to.

        Raises
        ------
        RuntimeError
            Where the disk has too little room for it and what is made of it.
        """
        z, y, x = shape
        form = FORMATS[kind]
        stack = self._place(shape, kind)
        if stack.exists():
            return stack
        others = sorted(self.folder.glob(f"{self._place((0, y, x), kind).name[:-1]}*"))
        there = max((len(list(other.iterdir())) for other in others), default=0)
        self.make_sure((max(z - there, 0), y, x), shape, form)
        making = stack.with_name(f"making-{stack.name}")
        making.mkdir(parents=True)
        for number in range(z):
            slice_name = f"{number:05d}{form.suffix}"
            same = [other / slice_name for other in others if (other / slice_name).exists()]
            if same:
                os.link(same[0], making / slice_name)
            else:
                # Noise of its own: what one slice shares with the next, codecs find.
                noise = np.random.default_rng((number, y, x))
                image = noise.integers(0, 2**form.bits, (y, x), form.dtype)
                form.write(making / slice_name, image)
        return making.rename(stack)

    def _place(self, shape: Shape, kind: str) -> Path:
        z, y, x = shape
        return self.folder / f"{kind.replace(', ', '-').replace(' ', '-')}-{y}-{x}-{z}"

    def keep(self, *shapes: Shape) -> None:
        """Remove all stacks but the uncompressed ones of these shapes."""
        kept = {self._place(shape, "uncompressed") for shape in shapes}
        for other in set(self.folder.iterdir()) - kept:
            shutil.rmtree(other)

    def make_sure(self, new: Shape, whole: Shape, form: Format) -> None:
        """Refuse what would fill the disk: the new slices, and a run's two volumes and mask."""
        itemsize = np.dtype(form.dtype).itemsize
        wanted = (prod(new) + prod(whole) * 2.4) * itemsize
        state = os.statvfs(self.folder)
        free = state.f_bavail * state.f_frsize
        if wanted > free * 0.9:
            raise RuntimeError(
                f"a stack of {whole} takes {wanted / 1e9:.1f} GB with what is made of it, and "
                f"{free / 1e9:.1f} GB are free in {self.folder}: name another --folder, or a "
                "smaller size"
            )


def read_slice(path: Path) -> NDArray[Any]:
    """Decode one slice, by none of zarrmask's code."""
    if path.suffix == ".tif":
        return np.asarray(tifffile.imread(path))
    return np.asarray(imagecodecs.imread(path))
