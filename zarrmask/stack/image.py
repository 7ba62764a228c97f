"""JPEG and PNG slices: their headers, their ends, their pixels."""

import io
import os
import struct

import imagecodecs
import numpy as np

from zarrmask.stack.header import NOT_GREY, BadSliceError, Header
from zarrmask.stack.remote import File, Stream, opened

# Bytes after the end marker (padding, a scanner's own notes) are let pass within this distance.
TAIL = 4096

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what every decoder reads
JPEG_OTHER_FRAMES = set(range(0xC0, 0xD0)) - JPEG_FRAMES - {0xC4, 0xC8, 0xCC}
JPEG_SCAN = 0xDA
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
PNG_COLOURS = {0: "greyscale", 2: "RGB", 3: "a colour palette", 4: "grey and alpha", 6: "RGBA"}


def jpeg_header(file: File) -> Header:
    """Read and check the header of a JPEG (ITU T.81): one greyscale frame of 8 bits, and its end.

    Raises
    ------
    BadSliceError
        If it is not that.
    """
    with opened(file) as stream:
        if (start := stream.read(2)) != JPEG_START:
            raise BadSliceError("not a JPEG file" if start else "an empty file")
        frame = jpeg_frame(stream)
        if JPEG_END not in tail(stream, stream.tell()):
            raise BadSliceError("truncated: no end marker")
    try:
        bits, rows, columns, components = struct.unpack(">BHHB", frame[:6])
    except struct.error:
        raise BadSliceError("a damaged JPEG header") from None
    if components != 1:
        raise BadSliceError(f"{components} samples a pixel (colour?); {NOT_GREY}")
    if bits != 8:
        raise BadSliceError(f"{bits} bits a pixel; expected a JPEG of 8")
    return whole_image(rows, columns, np.dtype(np.uint8))


def jpeg_frame(stream: Stream) -> bytes:
    """Walk the segments up to the first scan and return the frame header's content."""
    frame = b""
    while True:
        marker = stream.read(2)
        while marker == b"\xff\xff":  # fill bytes are allowed before a marker
            marker = b"\xff" + stream.read(1)
        length = stream.read(2)
        if len(marker) < 2 or marker[0] != 0xFF or len(length) < 2:
            raise BadSliceError("truncated or damaged: no pixels after the JPEG header")
        if marker[1] == JPEG_SCAN:
            return frame
        size = int.from_bytes(length, "big") - 2
        if marker[1] in JPEG_OTHER_FRAMES:
            raise BadSliceError(f"JPEG of kind 0x{marker[1]:X}; expected baseline or progressive")
        if marker[1] in JPEG_FRAMES:
            frame = stream.read(size)
        else:
            stream.seek(max(size, 0), os.SEEK_CUR)


def png_header(file: File) -> Header:
    """Read and check the header of a PNG (RFC 2083): greyscale of 8 or 16 bits, and its end.

    Raises
    ------
    BadSliceError
        If it is not that.
    """
    rows, columns, bits, colour = png_kind(file)
    if colour != 0:
        raise BadSliceError(f"{PNG_COLOURS.get(colour, 'unknown colours')}; {NOT_GREY}")
    if bits not in (8, 16):
        raise BadSliceError(f"{bits} bits a pixel; expected 8 or 16")
    return whole_image(rows, columns, np.dtype(np.uint8 if bits == 8 else np.uint16))


def png_labels_header(file: File) -> Header:
    """Read and check the header of a PNG of labels, of whatever colours and bits.

    Raises
    ------
    BadSliceError
        If it is no PNG, or truncated.
    """
    rows, columns, _, _ = png_kind(file)
    return whole_image(rows, columns, np.dtype(np.uint8))


def png_kind(file: File) -> tuple[int, int, int, int]:
    """Read rows, columns, bits and kind of colour of a PNG, and check that it has an end.

    Raises
    ------
    BadSliceError
        If it is no PNG, or truncated.
    """
    with opened(file) as stream:
        start = stream.read(33)
        if start[:8] != PNG_START:
            raise BadSliceError("not a PNG file" if start else "an empty file")
        if len(start) < 33 or start[12:16] != b"IHDR":
            raise BadSliceError("truncated or damaged: no PNG header")
        if PNG_END not in tail(stream, len(start)):
            raise BadSliceError("truncated: no end marker")
    columns, rows, bits, colour = struct.unpack(">IIBB", start[16:26])
    return rows, columns, bits, colour


def tail(stream: Stream, start: int) -> bytes:
    """Return the file's last bytes, but none before `start`."""
    end = stream.seek(0, io.SEEK_END)
    stream.seek(max(start, end - TAIL))
    return stream.read()


def whole_image(rows: int, columns: int, dtype: np.dtype) -> Header:
    """Describe an image that can only be decoded as a whole."""
    if not rows or not columns:
        raise BadSliceError(f"an image of {rows} x {columns} pixels")
    return Header((rows, columns), dtype, block=(rows, columns))


def read_jpeg(file: File, header: Header, y: slice, x: slice, out: np.ndarray) -> None:
    """Decode a JPEG and take a region of it."""
    out[...] = grey(imagecodecs.jpeg_decode(content(file)), header, y, x)


def read_png(file: File, header: Header, y: slice, x: slice, out: np.ndarray) -> None:
    """Decode a PNG and take a region of it."""
    out[...] = grey(imagecodecs.png_decode(content(file)), header, y, x)


def read_png_labels(file: File, header: Header, y: slice, x: slice, out: np.ndarray) -> None:
    """Decode a PNG of labels and take a region of it: 1 where any colour is not 0, and seen."""
    image = imagecodecs.png_decode(content(file))
    if image.shape[:2] != header.shape:
        raise ValueError(f"decoded to {image.shape}; its header said {header}")
    part = image[y.start : y.stop, x.start : x.stop]
    if part.ndim == 2:
        out[...] = part > 0
    elif part.shape[2] == 3:
        out[...] = (part > 0).any(axis=2)
    else:
        out[...] = (part[:, :, :-1] > 0).any(axis=2) & (part[:, :, -1] > 0)


def content(file: File) -> bytes:
    """Return all bytes of a file."""
    with opened(file) as stream:
        return stream.read()


def grey(image: np.ndarray, header: Header, y: slice, x: slice) -> np.ndarray:
    """Take a region of a decoded image, once it is what its header said when it was checked."""
    if image.shape[:2] != header.shape or image.dtype != header.dtype:
        raise ValueError(f"decoded to {image.shape} {image.dtype}; its header said {header}")
    plane = image if image.ndim == 2 else image[:, :, 0]  # a transparent grey decodes as alpha
    return plane[y.start : y.stop, x.start : x.stop]
