"""A TIFF that holds a whole volume: a page a slice, or one page and the others' pixels after it."""

from dataclasses import replace
from functools import partial

from tifffile import TiffFile

from zarrmask.errors import StackError
from zarrmask.stack.header import BadSliceError, Header, header_or_problem
from zarrmask.stack.remote import Remote, shown
from zarrmask.stack.slices import SliceSource, complaints, disagreements, file_in, refusal
from zarrmask.stack.tiff import (
    declared_images,
    full_pages,
    open_tiff,
    page_header,
    read_tiff,
    voxels_of,
)
from zarrmask.stack.voxels import UNKNOWN, Voxels


def open_multipage(place: str | Remote, *, labels: bool = False) -> SliceSource:
    """Open a multipage TIFF, every page's header checked.

    Parameters
    ----------
    place : str or Remote
        The file. A TIFF of one page is a stack of one slice.
    labels : bool
        Whether it may hold labels of any type.

    Returns
    -------
    SliceSource
        The volume; slices are numbered from 0.

    Raises
    ------
    StackError
        If it is no TIFF, its pages differ or are no slices, or it has channels or times.
    """

    def headers(place: str | Remote) -> tuple[list[Header | str], Voxels]:
        with open_tiff(file_in(place, "")) as tif:
            read = partial(page_header, labels=labels)
            pages = [header_or_problem(read, page) for page in full_pages(tif)]
            return arranged(tif, pages), UNKNOWN if labels else voxels_of(tif)

    found = header_or_problem(headers, place)
    if isinstance(found, str):
        raise StackError(f"{shown(place)}: {found}")
    pages, voxels = found
    bad, expected = disagreements({f"page {i}": header for i, header in enumerate(pages)})
    if bad:
        raise refusal(place, complaints(bad, len(pages)), expected)
    slices = [header for header in pages if isinstance(header, Header)]
    names = [""] * len(slices)
    kind = "multipage TIFF" if len(slices) > 1 else "TIFF of one slice"
    return SliceSource(place, kind, read_tiff, 0, names, slices, voxels=voxels)


def arranged(tif: TiffFile, found: list[Header | str]) -> list[Header | str]:
    """Put pages in the order of z that the file's description gives, and add those it implies.

    ImageJ (beyond 4 GB), tifffile and MetaMorph may write one page and let the pixels of all
    other slices follow the first one's.

    Raises
    ------
    BadSliceError
        If the description tells of more than one volume, or of more slices than there are.
    """
    if any(isinstance(header, str) for header in found):
        return found
    headers = [header for header in found if isinstance(header, Header)]
    count = declared_images(tif)
    if count > len(headers):
        found = [*following(tif, headers[0], count)]
    if not (tif.is_ome or tif.is_imagej or tif.is_shaped or tif.is_stk or tif.is_lsm):
        return found
    series = tif.series[0]
    # ImageJ calls a stack's axis what it likes; elsewhere channels and times are what they say.
    depth = "ZIQCT" if tif.is_imagej else "ZIQ"
    sizes = [(axis, n) for axis, n in zip(series.axes, series.shape, strict=True) if n > 1]
    others = [axis for axis, _ in sizes if axis not in "YX"]
    if len(others) > 1 or not set(others) <= set(depth):
        axes = ", ".join(f"{axis}={n}" for axis, n in sizes)
        raise BadSliceError(
            f"axes {axes}; expected one volume (Z, Y, X): save each channel or time by itself"
        )
    if tif.is_ome:
        if len(tif.series) > 1 or series.is_multifile or None in list(series):
            raise BadSliceError("an OME-TIFF of several images or files; expected one volume")
        by_directory = {header.ifd: header for header in headers}
        return [by_directory[page.offset] for page in series if page is not None]
    return found


def following(tif: TiffFile, first: Header, count: int) -> list[Header]:
    """Describe slices whose pixels follow the first one's without pages of their own."""
    size = first.shape[0] * first.shape[1] * first.dtype.itemsize
    if first.offset < 0 or first.offset + count * size > tif.filehandle.size:
        raise BadSliceError(
            f"truncated: its description tells of {count:,} slices of {first}, which a file of "
            f"{tif.filehandle.size:,} bytes cannot hold uncompressed"
        )
    return [replace(first, offset=first.offset + i * size) for i in range(count)]
