"""What an image's OME-Zarr (NGFF) metadata say of it: its axes, its levels, where it lies."""

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import zarr

from zarrmask.errors import StackError, escaped, some_of
from zarrmask.stack.voxels import Voxels, stated_voxels
from zarrmask.transformations import combined

LISTED = 20  # members of a group named in a message


class Level(NamedTuple):
    """A coarser level of an image: its array, and how many voxels one of its stands for."""

    array: zarr.Array
    factors: tuple[int, int, int]


class Description(NamedTuple):
    """What an image's metadata says of its levels.

    Attributes
    ----------
    axes : list of str
        Their names; none where the version gives none.
    paths : list of str
        Of the levels' arrays in the group, finest first.
    scales : list of numpy.ndarray, shape (3,)
        The levels', along z, y, x: ones where the version gives none.
    voxels : Voxels
        Of the finest.
    offset
        See `Source`.
    """

    axes: list[str]
    paths: list[str]
    scales: list[np.ndarray]
    voxels: Voxels
    offset: tuple[float, float, float]


def described(multiscale: dict[str, Any]) -> Description:
    """Read one entry of `multiscales`, of any NGFF version.

    Raises
    ------
    StackError
        If its axes are named, and others than z, y, x come last.
    """
    datasets = multiscale["datasets"]
    axes = [
        axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes") or []
    ]
    names = [str(axis["name"]) for axis in axes]
    if names and names[-3:] != ["z", "y", "x"]:
        raise StackError(f"axes {', '.join(names)}; expected z, y, x last")
    units = [axis.get("unit") for axis in axes[-3:]] or [None] * 3
    # Levels and image may both scale, and the scales multiply.
    placed = [combined(_steps(dataset) + _steps(multiscale), 3) for dataset in datasets]
    scales = [scale for scale, _ in placed]
    return Description(
        names,
        [str(dataset["path"]) for dataset in datasets],
        scales,
        stated_voxels(scales[0], units),
        offset_of(*placed[0]),
    )


def _steps(holder: dict[str, Any]) -> list[dict[str, Any]]:
    return list(holder.get("coordinateTransformations") or [])


def offset_of(scale: np.ndarray, start: np.ndarray) -> tuple[float, float, float]:
    """Say where an image's first voxel lies, in voxels; at 0 where that cannot be told."""
    if not (np.isfinite(start).all() and np.isfinite(scale).all() and (scale > 0).all()):
        return 0.0, 0.0, 0.0
    z, y, x = np.round(start / scale, 6).tolist()
    return z, y, x


def coarser_levels(
    finest: zarr.Array, others: Sequence[Any], scales: Sequence[np.ndarray]
) -> list[Level]:
    """Pick the levels whose voxels stand for whole numbers of the finest one's.

    Parameters
    ----------
    finest : zarr.Array
        Level 0.
    others : sequence
        What there is under the names of the other levels.
    scales : sequence of numpy.ndarray, shape (3,)
        All levels'; if they say nothing, each level is half as fine as the one before.
    """
    levels = []
    for number, array in enumerate(others, start=1):
        ratio = scales[number] / scales[0]
        ratio = np.full(3, 2.0**number) if np.all(ratio == 1) else ratio
        z, y, x = (max(1, round(float(side))) for side in ratio)
        if (
            isinstance(array, zarr.Array)
            and array.ndim == finest.ndim
            and array.dtype == finest.dtype
            and np.allclose(ratio, (z, y, x))
            and all(
                size in (fine // factor, ceil(fine / factor))
                for fine, factor, size in zip(
                    finest.shape[-3:], (z, y, x), array.shape[-3:], strict=True
                )
            )
        ):
            levels.append(Level(array, (z, y, x)))
    return levels


def no_image(path: str, group: zarr.Group) -> str:
    """Say what a group holds that is no OME-Zarr image, and what to give instead."""
    try:
        found = sorted(group.members())
    except Exception:  # not every server lists what it has
        found = []
    members = [
        f"{escaped(name)} ({' x '.join(map(str, m.shape))} array)"
        if isinstance(m, zarr.Array)
        else f"{escaped(name)} (group)"
        for name, m in found
    ]
    return (
        f"{path} is a zarr group, but no OME-Zarr image (it has no multiscales); "
        f"it holds: {some_of(members, LISTED) or 'nothing'}. "
        "Give the path of an array or image inside it"
    )
