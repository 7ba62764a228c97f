"""The levels of what a run wrote, and which of them to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from zarrmask.errors import OutputError
from zarrmask.pyramid.store import open_array
from zarrmask.report.words import pick
from zarrmask.stack.ngff import described
from zarrmask.storage.place import Place, place_of, zarr_store

Z, Y, X = range(3)


@dataclass(frozen=True)
class Levels:
    """The levels of an OME-Zarr image, finest first; level n has voxels 2^n wide."""

    levels: tuple[zarr.Array[Any], ...]
    voxel_size_um: float | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of level 0 (z, y, x), voxels."""
        z, y, x = self.levels[0].shape
        return z, y, x

    def level_for(self, pixels: int, axes: tuple[int, int]) -> int:
        """Tell the coarsest level whose longer side along two axes is `pixels` or more, else 0."""
        fine = [
            level
            for level, array in enumerate(self.levels)
            if max(array.shape[axis] for axis in axes) >= pixels
        ]
        return max(fine, default=0)


def volume_place(out: Place, record: Mapping[str, Any]) -> Place | None:
    """Where the unmasked volume is: in the run's folder, or the stack itself; or nowhere."""
    if (out / "volume.zarr").is_dir():
        return out / "volume.zarr"
    referenced = pick(record, "volume")
    return place_of(referenced) if isinstance(referenced, str) else None


def open_levels(path: Place, *, fast: bool = False) -> Levels:
    """Open the levels of an OME-Zarr image.

    Parameters
    ----------
    path : Place
    fast : bool
        Whether it is one that zarrmask wrote; see `zarrmask.pyramid.store.open_array`.

    Raises
    ------
    OutputError
        It is missing or no OME-Zarr image of three axes.
    """
    try:
        group = zarr.open_group(zarr_store(path), mode="r")
        attributes: Any = dict(group.attrs)
        multiscale: Any = attributes.get("ome", attributes)["multiscales"][0]
        names = [dataset["path"] for dataset in multiscale["datasets"]]
        levels = tuple(open_array(path / name, "r", fast=fast) for name in names)
        voxel_size = described(multiscale).voxels.size
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise OutputError(
            f"{path} is not a readable OME-Zarr image ({type(error).__name__}: {error}): expected "
            "what a finished run leaves. Run again with --overwrite."
        ) from error
    if not levels or any(level.ndim != 3 for level in levels):
        raise OutputError(f"{path} does not hold arrays of three axes at each level.")
    return Levels(levels, voxel_size)


def common_level(
    grey: Levels, mask: Levels, pixels: int, axes: tuple[int, int], *, most: int
) -> int:
    """Choose the coarsest level that shows so many pixels, but one of no more than `most` voxels.

    Only levels count of which both pyramids have one of the same size, however it is rounded.
    """
    same = [
        level
        for level, (one, other) in enumerate(zip(grey.levels, mask.levels, strict=False))
        if np.all(np.abs(np.subtract(one.shape, other.shape)) <= 1)
    ]
    wanted = grey.level_for(pixels, axes)
    return next((n for n in same if n >= wanted and grey.levels[n].size <= most), same[-1])
