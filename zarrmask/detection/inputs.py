"""From a slice to what the network sees: 8 bits, the network's size (no torch needed)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zarrmask.errors import SettingsError
from zarrmask.grey import Rescaling

Window: TypeAlias = Literal["seed"] | tuple[float, float]
CLOSER = 2.0
"""Times the network's size in which a slice is read where it may be looked at closer."""


@dataclass(frozen=True)
class NetworkInput:
    """The size in which a network sees a slice.

    Parameters
    ----------
    min_size : int
        Pixels that the shorter side gets; 0 leaves every slice as it is.
    max_size : int
        Pixels that the longer side has at most.
    closer : bool
        Whether an object that takes little of its slice is looked at closer; see
        `zarrmask.detection.closer`.
    """

    min_size: int
    max_size: int
    closer: bool = False

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Give the height and width that a slice gets, in pixels.

        Examples
        --------
        >>> NetworkInput(800, 1333).shape(1400, 1400), NetworkInput(800, 1333).shape(500, 2000)
        ((800, 800), (333, 1333))
        """
        if self.min_size == 0:
            return height, width
        scale = self.min_size / min(height, width)
        sides = [side * scale for side in (height, width)]
        # The shorter side is set, not multiplied: rounding must not touch it.
        sides[0 if height < width else 1] = self.min_size
        if max(sides) > self.max_size:
            scale = self.max_size / max(sides)
            sides = [side * scale for side in sides]
        return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))

    def scaled(self, times: float) -> NetworkInput:
        """The same, larger or smaller; where every slice is left as it is, that stays.

        Examples
        --------
        >>> NetworkInput(800, 1333).scaled(0.5)
        NetworkInput(min_size=400, max_size=666, closer=False)
        """
        sides = round(self.min_size * times), round(self.max_size * times)
        return NetworkInput(*sides, self.closer)

    @property
    def read(self) -> NetworkInput:
        """In what size slices are read, at least."""
        return self.scaled(CLOSER) if self.closer else self

    def prepare(
        self, image: NDArray[np.uint8], of: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """Resize a slice as detectron2 does: Pillow's antialiased bilinear filter, on 8 bits.

        Parameters
        ----------
        image : ndarray of uint8, (h, w) or (h, w, 3)
        of : tuple of int, optional
            Height and width of the slice, where the image is a coarser form of it.

        Returns
        -------
        ndarray of uint8, (h', w') or (h', w', 3)
        """
        height, width = self.shape(*(of or image.shape[:2]))
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized)


def to_8bit(image: NDArray, window: Window = "seed") -> NDArray[np.uint8]:
    """Take a slice's grey values to 8 bits.

    Parameters
    ----------
    image : ndarray of uint8, uint16 or, with a window of numbers, int16 or float32
    window : "seed" or (lo, hi)
        "seed" takes the high byte of 16 bits and leaves 8 bits as they are. Else grey values from
        `lo` to `hi` become 0 to 255, rounded; what is beyond is clipped.

    Returns
    -------
    ndarray of uint8, of the image's shape

    Raises
    ------
    SettingsError
        If the high byte of others than uint16 is asked for, or `lo` is not below `hi`.

    Examples
    --------
    >>> to_8bit(np.array([255, 256, 65535], np.uint16)).tolist()
    [0, 1, 255]
    >>> to_8bit(np.array([100, 300, 900], np.uint16), (200, 600)).tolist()
    [0, 64, 255]
    """
    out = np.empty(image.shape, np.uint8)
    if window == "seed":
        if image.dtype not in (np.uint8, np.uint16):
            raise SettingsError(f"a slice is {image.dtype}; give the grey values to see, LO HI")
        np.right_shift(image, 8 * (image.itemsize - 1), out=out, casting="unsafe")
        return out
    low, high = window
    if not low < high:
        raise SettingsError(f"the detector's window {low} to {high} is empty; give LO below HI")
    Rescaling(low, high, "uint8")(image, out)
    return out
