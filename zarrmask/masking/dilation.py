"""Growing a keyframe's mask by a square kernel, at full size. Arithmetic only."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.errors import SettingsError


def kernel_side(
    height: int, width: int, dilate: float | str, voxel_size: float | None = None
) -> int:
    """Side of the square kernel in pixels.

    Parameters
    ----------
    height, width : int
        Of a slice, pixels.
    dilate : float or str
        In percent of its longer side; or as "150um", in micrometres.
    voxel_size : float, optional
        Micrometres.

    Raises
    ------
    SettingsError
        Where it is in micrometres and the voxel size is not known.

    Examples
    --------
    >>> kernel_side(720, 1280, 3), kernel_side(720, 1280, "150um", 7.91)
    (38, 18)
    """
    longer = max(height, width)
    if not isinstance(dilate, str):
        return int(longer * dilate / 100)
    if voxel_size is None:
        raise SettingsError(
            f"a dilation of {dilate} needs the size of a voxel, which the stack does not state; "
            "give it with --voxel-size, or the dilation in percent of the slice's longer side"
        )
    return int(min(float(dilate.removesuffix("um")) / voxel_size, longer))


def dilate(mask: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Dilate once by a square kernel, or erode where its side is negative.

    Sides from -1 to 1 change nothing. The slice's border is no edge: nothing is eroded from there.

    As OpenCV does: the kernel's anchor is `side // 2`, so an even kernel takes a mask one pixel
    further down and right than up and left.

    Parameters
    ----------
    mask : (y, x) uint8
    side : int
        Pixels.
    """
    if abs(side) < 2:
        return mask
    if side < 0:
        kernel = np.ones((-side, -side), np.uint8)
        return np.asarray(cv2.erode(mask, kernel), np.uint8)
    return np.asarray(cv2.dilate(mask, np.ones((side, side), np.uint8)), np.uint8)


def dilated_part(
    read: Callable[[slice, slice], NDArray[np.uint8]],
    y: slice,
    x: slice,
    shape: tuple[int, int],
    side: int,
) -> NDArray[np.uint8]:
    """Part of a dilated mask, from no more of the mask than it depends on.

    Parameters
    ----------
    read : callable
        Gives a part of the mask, (y, x) uint8.
    y, x : slice
        The part wanted, pixels.
    shape : (height, width)
        Of the whole mask.
    side : int
        Side of the kernel, pixels.

    Returns
    -------
    (y, x) uint8
        Equal to `dilate(whole, side)[y, x]`.
    """
    reach = abs(side) // 2
    rows, columns = (
        slice(max(0, part.start - reach), min(size, part.stop + reach))
        for part, size in zip((y, x), shape, strict=True)
    )
    mask = read(rows, columns)
    grown = dilate(mask, side) if mask.any() else mask
    # A copy: a view of it would keep its margins in memory as long as the part is kept.
    return grown[
        y.start - rows.start : y.stop - rows.start, x.start - columns.start : x.stop - columns.start
    ].copy()
