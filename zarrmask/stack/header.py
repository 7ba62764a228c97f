"""What the header of a slice says: enough to check it and to find its pixels later."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from zarrmask.errors import StackError

Item = TypeVar("Item")
Result = TypeVar("Result")

ACCEPTED = tuple(map(np.dtype, (np.uint8, np.uint16, np.int16, np.float32)))
PIXELS = "uint8, uint16, int16 or float32"
NOT_GREY = "expected greyscale: convert it first (ImageMagick: mogrify -colorspace Gray)"
"""What to say of colours: a scan has none, so what they show is for a person to decide."""


class BadSliceError(Exception):
    """Why one file (or page) cannot be a slice; gathered into one `StackError` by `refusal`."""


class NotThereError(StackError):
    """There is nothing under a name at a URL, or nothing that may be read."""


@dataclass(frozen=True, slots=True)
class Header:
    """A slice as its header describes it.

    Attributes
    ----------
    shape : tuple of int
        Rows, columns.
    dtype : numpy.dtype
        uint8, uint16, int16 or float32, native byte order.
    block : tuple of int
        Rows and columns that have to be decoded together.
    ifd : int
        Where the slice's directory stands in its TIFF, bytes.
    offset : int
        Where its pixels start in the file, if they lie there row after row as they are; else -1.
    big_endian : bool
        How those pixels are stored.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    block: tuple[int, int]
    ifd: int = 0
    offset: int = -1
    big_endian: bool = False

    def __str__(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]} {self.dtype}"


def wrong_dtype(dtype: np.dtype, *, labels: bool = False) -> str | None:
    """Say what is wrong with pixels of this type, or None if they can be read.

    Labels may be of any kind of whole numbers, or truth values.
    """
    if dtype.newbyteorder("=") in ACCEPTED or (labels and dtype.kind in "biu"):
        return None
    hints = {"f": "convert it to float32 first", "i": "shift or rescale it to uint16 first"}
    hint = hints.get(dtype.kind.replace("u", "i"), "save it as uint8 or uint16")
    return f"{dtype.newbyteorder('=')} pixels; expected {PIXELS}: {hint}"


def header_or_problem(read: Callable[[Item], Result], item: Item) -> Result | str:
    """Read a header, or say what is wrong: no file, however odd, stops the check of the rest.

    Raises
    ------
    StackError
        If a server gave out: the rest would fare no better.
    """
    try:
        return read(item)
    except (BadSliceError, NotThereError) as error:
        return str(error)
    except StackError:
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Exception as error:  # a parser lost in garbage may raise anything
        return f"damaged: {error or type(error).__name__}"
