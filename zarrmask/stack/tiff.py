"""TIFF pages: what their tags say, and their pixels by region."""

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC, TIFF, TiffFile, TiffPage

from zarrmask.stack.header import NOT_GREY, PIXELS, BadSliceError, Header, wrong_dtype
from zarrmask.stack.remote import File, RangeFile
from zarrmask.stack.voxels import MICROMETRES, UNKNOWN, Voxels, stated_voxels
from zarrmask.storage.buffers import buffer

# A bad file is reported once, by us; without a handler Python would print tifffile's log as well.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

UNCOMPRESSED = 1
GAP = 2**14
"""Bytes between wanted parts of rows that are read along: to ask once more costs as much."""
ALONG = 16
"""They are, if this many times as much is wanted: else bricks beside each other, on machines that
do not share what is read, would read a stack many times."""
ROUNDED = 1e-3
"""How far apart sides of a voxel may be that are the same but for rounding."""


def tiff_header(file: File, *, labels: bool = False) -> Header:
    """Read and check the header of a TIFF that is one slice; of labels, or grey values.

    Raises
    ------
    BadSliceError
        If it is not a TIFF, holds more than one image or `page_header` refuses it.
    """
    with open_tiff(file) as tif:
        header = page_header(tif.pages.first, labels=labels)
        if (count := image_count(tif)) > 1:
            raise BadSliceError(
                f"{count:,} images in one file; expected one slice a file "
                "(a multipage TIFF is given by its own path)"
            )
        return header


@contextmanager
def open_tiff(file: File) -> Iterator[TiffFile]:
    """Open a TIFF for reading, with BadSliceError for what is none."""
    try:
        tif = TiffFile(file)
    except tifffile.TiffFileError:
        size = os.path.getsize(file) if isinstance(file, str) else file.size  # noqa: PTH202
        raise BadSliceError("not a TIFF file" if size else "an empty file") from None
    with tif:
        if not tif.pages.is_multipage and not len(tif.pages):
            raise BadSliceError("a TIFF without any image")
        yield tif


def tiff_voxels(file: File) -> Voxels:
    """Tell what a TIFF that is one slice says of its voxels; see `voxels_of`."""
    with open_tiff(file) as tif:
        return voxels_of(tif)


def voxels_of(tif: TiffFile) -> Voxels:
    """Tell the sides of a TIFF's voxels where OME or ImageJ describe them.

    Of one slice, which knows of no others, the distance to the next is taken for that between
    pixels. Dots per inch are nobody's measurement: the resolution of other TIFFs does not count.
    """
    try:
        stated = _ome_sides(tif) if tif.is_ome else _imagej_sides(tif) if tif.is_imagej else None
    except Exception:  # a description may be anything at all
        return UNKNOWN
    if stated is None:
        return UNKNOWN
    sides, units = stated
    known = set(units) <= MICROMETRES.keys() and all(0 < side < math.inf for side in sides)
    return stated_voxels(np.array(sides), units) if known else UNKNOWN


def _ome_sides(tif: TiffFile) -> tuple[list[float], list[str]] | None:
    """Sides and units along z, y, x; https://www.openmicroscopy.org/Schemas/OME/2016-06."""
    images = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]
    pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
    alone = int(pixels.get("SizeZ", 1)) == 1
    if "PhysicalSizeX" not in pixels or not (alone or "PhysicalSizeZ" in pixels):
        return None
    axes = [axis if f"PhysicalSize{axis}" in pixels else "X" for axis in "ZYX"]
    sides = [float(pixels[f"PhysicalSize{axis}"]) for axis in axes]
    return sides, [str(pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in axes]


def _imagej_sides(tif: TiffFile) -> tuple[list[float], list[str]] | None:
    """Sides and units along z, y, x; ImageJ states pixels a unit, to six decimal places.

    A distance of 1 between the slices of one file it leaves out (`ij.io.FileInfo.pixelDepth`).
    """
    said, tags = tif.imagej_metadata or {}, tif.pages.first.tags
    unit = str(said.get("unit", "")).replace(r"\u00B5", "\u00b5")
    if not {"XResolution", "YResolution"} <= {tag.name for tag in tags}:
        return None
    y, x = (parts / whole for whole, parts in (tags[f"{axis}Resolution"].value for axis in "YX"))
    z = float(said.get("spacing", x if said.get("images", 1) == 1 else 1.0))
    same = max(z, y, x) - min(z, y, x) <= ROUNDED * max(z, y, x)
    sides = [float(f"{z:.5g}")] * 3 if same else [z, y, x]
    return sides, [unit] * 3


def image_count(tif: TiffFile) -> int:
    """Count a TIFF's images, thumbnails and pyramid levels left out."""
    if tif.pages.is_multipage:
        return sum(1 for _ in full_pages(tif))
    # A stack that was split into files may keep its description in each: only what fits counts.
    page, declared = tif.pages.first, declared_images(tif)
    fits = page.is_final and page.dataoffsets[0] + declared * page.nbytes <= tif.filehandle.size
    return declared if fits else 1


def full_pages(tif: TiffFile) -> Iterator[TiffPage]:
    """Go through a TIFF's pages, thumbnails and pyramid levels left out.

    Raises
    ------
    BadSliceError
        If the pages form a circle.
    """
    seen = set()
    for page in tif.pages:
        if page.offset in seen:
            raise BadSliceError("damaged: its pages refer to each other in a circle")
        seen.add(page.offset)
        if not page.aspage().is_reduced:
            yield page.aspage()


def declared_images(tif: TiffFile) -> int:
    """Return how many images a TIFF's description speaks of: there may be one page for all."""
    if tif.is_imagej and tif.imagej_metadata:
        return int(tif.imagej_metadata.get("images", 1))
    if tif.is_shaped or tif.is_stk:
        return int(tif.series[0].size // tif.pages.first.size)
    return 1


def page_header(page: TiffPage, *, labels: bool = False) -> Header:
    """Check one page, of labels or of grey values, from its tags alone.

    Raises
    ------
    BadSliceError
        If it is not one greyscale image of an accepted dtype, cannot be decoded, or its pixels are
        not all inside the file.
    """
    if problem := wrong_pixels(page, labels=labels) or wrong_codec(page) or truncation(page):
        raise BadSliceError(problem)
    assert page.dtype is not None  # wrong_pixels has seen to it
    rows, columns = page.shape
    block = min(rows, page.chunks[-2]), min(columns, page.chunks[-1])
    return Header(
        shape=(rows, columns),
        dtype=page.dtype,
        block=(1, 1) if page.is_final else block,
        ifd=page.offset,
        offset=page.dataoffsets[0] if page.is_final else -1,
        big_endian=page.parent.byteorder == ">",
    )


def wrong_pixels(page: TiffPage, *, labels: bool = False) -> str | None:
    """Say why the page is no greyscale image of an accepted dtype, or None."""
    if page.samplesperpixel > 1:
        return f"{page.samplesperpixel} samples a pixel (colour?); {NOT_GREY}"
    if page.dtype is None or page.bitspersample not in (8, 16, 32, 64):
        return f"{page.bitspersample} bits a pixel; expected {PIXELS}: save it as uint8 or uint16"
    if page.photometric == PHOTOMETRIC.PALETTE:
        return f"a colour palette; {NOT_GREY}"
    if page.photometric == PHOTOMETRIC.MINISWHITE and 262 in page.tags:
        return "zero is white (MINISWHITE); expected zero to be black: invert it first"
    if len(page.shape) != 2 or 0 in page.shape:
        return f"an image of shape {page.shape}; expected rows x columns"
    return wrong_dtype(page.dtype, labels=labels)


def wrong_codec(page: TiffPage) -> str | None:
    """Say why the page cannot be decoded, or None."""
    for number, codecs, what in (
        (page.compression, TIFF.DECOMPRESSORS, "compression"),
        (page.predictor, TIFF.UNPREDICTORS, "predictor"),
    ):
        if number not in codecs:
            return f"{what} {getattr(number, 'name', number)} is not supported: save it as LZW"
    return None


def truncation(page: TiffPage) -> str | None:
    """Say how the page's pixels are not all inside the file, or None."""
    offsets, counts = page.dataoffsets, page.databytecounts
    expected = math.prod(page.chunked)
    if not len(offsets) == len(counts) == expected:
        return f"wrong tags: {len(offsets)} strips or tiles; expected {expected}"
    if min(offsets) <= 0 or min(counts) <= 0:
        return "wrong tags or not written to its end: a strip or tile has no bytes"
    end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
    if page.compression == UNCOMPRESSED:
        if sum(counts) < page.nbytes:
            return f"wrong tags: {sum(counts):,} bytes of pixels; expected {page.nbytes:,}"
        if page.is_final:
            end = max(end if len(offsets) > 1 else 0, offsets[0] + page.nbytes)
    if end > (size := page.parent.filehandle.size):
        return f"truncated: {size:,} bytes; its pixels would end at {end:,}"
    return None


def read_tiff(file: File, header: Header, y: slice, x: slice, out: np.ndarray) -> None:
    """Read a region of one page: the rows as they lie, or the strips or tiles it touches.

    Parameters
    ----------
    file : str or RangeFile
    header : Header
        What `page_header` gave for the page.
    y, x : slice
        Rows and columns: start and stop, within the page.
    out : (rows, columns) array
        Where they go; contiguous along x.

    Raises
    ------
    ValueError
        If the file ends before it.
    """
    if header.offset < 0:
        decode_region(file, header, y, x, out)
    elif isinstance(file, str):
        read_rows(file, header, y, x, out)
    else:
        fetch_rows(file, header, y, x, out)


def fetch_rows(file: RangeFile, header: Header, y: slice, x: slice, out: np.ndarray) -> None:
    """Ask for a region of a page whose pixels lie row after row as they are: for its whole rows."""
    dtype = header.dtype.newbyteorder(">" if header.big_endian else "<")
    row = header.shape[1] * dtype.itemsize
    start, stop = header.offset + y.start * row, header.offset + y.stop * row
    if len(content := file.read_range(start, stop)) < stop - start:
        raise ValueError(f"it ends at byte {start + len(content):,}, within its pixels")
    out[...] = np.frombuffer(content, dtype).reshape(-1, header.shape[1])[:, x.start : x.stop]


def read_rows(path: str, header: Header, y: slice, x: slice, out: np.ndarray) -> None:
    """Read a region of a page whose pixels lie row after row as they are.

    A memory map would have to be made and torn down for each region: four times slower.
    """
    columns, item = header.shape[1], header.dtype.itemsize
    wanted = (x.stop - x.start) * item
    left_out = columns * item - wanted
    together = out
    if 0 < left_out <= min(GAP, wanted // ALONG):
        together = buffer("rows", (y.stop - y.start, columns), header.dtype)
    # Rows that are whole are one piece.
    whole = together.shape[1] == columns and together.flags.c_contiguous
    pieces, left = ([together], 0) if whole else (out, x.start)
    file = os.open(path, os.O_RDONLY)
    try:
        for row, piece in zip(range(y.start, y.stop), pieces, strict=False):
            place = header.offset + (row * columns + left) * item
            view, done = memoryview(piece).cast("B"), 0
            while done < len(view):
                if not (got := os.preadv(file, [view[done:]], place + done)):
                    raise ValueError(f"it ends at byte {place + done:,}, within its pixels")
                done += got
    finally:
        os.close(file)
    if together is not out:
        out[...] = together[:, x.start : x.stop]
    if header.big_endian != (sys.byteorder == "big"):
        out.byteswap(inplace=True)


def decode_region(file: File, header: Header, y: slice, x: slice, out: np.ndarray) -> None:
    """Decode the strips or tiles that a region touches, and no others."""
    with TiffFile(file) as tif:
        tif.filehandle.seek(header.ifd)
        page = TiffPage(tif, 0)
        rows, columns = page.chunks
        across = page.chunked[1]
        touched = [
            row * across + column
            for row in range(y.start // rows, -(-y.stop // rows))
            for column in range(x.start // columns, -(-x.stop // columns))
        ]
        segments = tif.filehandle.read_segments(
            [page.dataoffsets[i] for i in touched],
            [page.databytecounts[i] for i in touched],
        )
        for data, place in segments:  # told others' numbers, older tifffiles fail where it is one
            index = touched[place]
            decoded, (_, _, top, left, _), _ = page.decode(
                data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
            )
            if decoded is None:
                raise ValueError(f"strip or tile {index} is empty")
            tile = decoded[0, :, :, 0]
            y0, y1 = max(top, y.start), min(top + tile.shape[0], y.stop)
            x0, x1 = max(left, x.start), min(left + tile.shape[1], x.stop)
            out[y0 - y.start : y1 - y.start, x0 - x.start : x1 - x.start] = tile[
                y0 - top : y1 - top, x0 - left : x1 - left
            ]
