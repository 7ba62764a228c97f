"""What the detector said on each keyframe, measured: place, pieces, likeness to its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.errors import OutputError
from zarrmask.masking.overlap import Overlap
from zarrmask.place import Place, zarr_store

SIDE = 256
"""Pixels of a mask's longer side, at most, when it is measured."""
SPECK = 4
"""Pixels of such a mask that are no piece."""
AT_ONCE = 4
"""Masks that are read at once: some 70 MB each where slices are largest."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """A keyframe's undilated mask in small, eight pixels a byte.

    Attributes
    ----------
    shape : (height, width)
        Pixels of the sketch.
    bits : (n,) uint8
    pixel : float
        Side of one of its pixels, pixels of the slice.
    """

    shape: tuple[int, int]
    bits: NDArray[np.uint8]
    pixel: float

    @classmethod
    def of_mask(cls, mask: NDArray[np.uint8]) -> Sketch:
        """Shrink a mask (h, w) of 0 and 255."""
        height, width = mask.shape
        pixel = max(1.0, max(height, width) / SIDE)
        small = max(1, round(width / pixel)), max(1, round(height / pixel))
        every = max(1, int(pixel / 4))  # sixteen pixels for one are enough
        inside = cv2.resize(mask[::every, ::every], small, interpolation=cv2.INTER_AREA) >= 128
        return cls((small[1], small[0]), np.packbits(inside), pixel)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Its pixels, (h, w)."""
        height, width = self.shape
        return np.unpackbits(self.bits, count=height * width).reshape(self.shape) > 0

    @property
    def pieces(self) -> int:
        """Parts that do not touch, specks aside."""
        _, _, found, _ = cv2.connectedComponentsWithStats(self.inside.astype(np.uint8))
        return int(np.count_nonzero(found[1:, cv2.CC_STAT_AREA] > SPECK))

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of mass, y and x in pixels of the slice; NaN where it is empty."""
        y, x = np.nonzero(self.inside)
        if not y.size:
            return float("nan"), float("nan")
        return float(y.mean() + 0.5) * self.pixel, float(x.mean() + 0.5) * self.pixel

    @property
    def at_border(self) -> float:
        """Share of the slice's border that it covers."""
        inside = self.inside
        border = np.concatenate([inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1]])
        return float(border.mean())

    def agreement(self, other: Sketch) -> float:
        """Intersection over union; 1 where both are empty."""
        return Overlap.of_masks(self.inside, other.inside).iou


@dataclass(frozen=True, eq=False)
class Keyframes:
    """What was found on the keyframes, ascending in z: (k,) arrays.

    Attributes
    ----------
    z, count : int64
        Slice number, and how many detections.
    best_score, area : float64
        Score of the best; pixels of all their masks, not dilated.
    used : bool
        Whether its mask is used; what contradicts its neighbours is not.
    sketches : tuple of Sketch
        Undilated masks; none where they were not kept.
    """

    z: NDArray[np.int64]
    count: NDArray[np.int64]
    best_score: NDArray[np.float64]
    area: NDArray[np.float64]
    used: NDArray[np.bool_]
    sketches: tuple[Sketch, ...] = field(repr=False, default=())

    def only(self, places: NDArray[np.int64]) -> Keyframes:
        """Some of them."""
        return Keyframes(
            self.z[places],
            self.count[places],
            self.best_score[places],
            self.area[places],
            self.used[places],
            tuple(self.sketches[place] for place in places) if self.sketches else (),
        )

    @property
    def empty_z(self) -> list[int]:
        """Slice numbers of the keyframes without a detection that are used."""
        return [int(z) for z in self.z[(self.count == 0) & self.used]]

    @cached_property
    def pieces(self) -> NDArray[np.float64]:
        """How many parts each mask has, NaN where that is not known: (k,)."""
        return self._measured([sketch.pieces for sketch in self.sketches])

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """Centre of each mask, y and x in pixels of the slice: (k, 2)."""
        if not self.sketches:
            return np.full((len(self.z), 2), np.nan)
        return np.array([sketch.centre for sketch in self.sketches])

    @cached_property
    def at_border(self) -> NDArray[np.float64]:
        """Share of the slice's border that each mask covers: (k,)."""
        return self._measured([sketch.at_border for sketch in self.sketches])

    @cached_property
    def agreement(self) -> NDArray[np.float64]:
        """Intersection over union of each mask with the next one: (k - 1,), NaN if not known."""
        values = [one.agreement(other) for one, other in pairwise(self.sketches)]
        return self._measured(values) if values else np.full(max(0, len(self.z) - 1), np.nan)

    def _measured(self, values: list[Any]) -> NDArray[np.float64]:
        return np.array(values, np.float64) if values else np.full(len(self.z), np.nan)


def read_keyframes(path: Place) -> Keyframes:
    """Read what the detector said on each keyframe; nothing if it was not kept.

    Every mask is read once, some at a time, and only a sketch of it kept.

    Raises
    ------
    OutputError
        Where the keyframes are there, but cannot be read.
    """
    if not path.is_dir():
        none = np.zeros(0, np.int64)
        return Keyframes(none, none, none.astype(float), none.astype(float), none.astype(bool))
    try:
        group = zarr.open_group(zarr_store(path), mode="r", zarr_format=2)
        z, count, score, area = (
            np.asarray(group[name][...])  # type: ignore[index]
            for name in ("z", "count", "best_score", "area")
        )
        used = np.asarray(group["state"][...]) > 0 if "state" in group else np.ones(len(z), bool)  # type: ignore[index]
        order = np.argsort(z)
        sketches = tuple(_sketches(group["mask"], order)) if "mask" in group else ()
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): expected what a finished "
            "run leaves. Run again with --overwrite."
        ) from error
    return Keyframes(
        z[order].astype(np.int64),
        count[order].astype(np.int64),
        score[order].astype(np.float64),
        area[order].astype(np.float64),
        used[order],
        sketches,
    )


def _sketches(masks: Any, order: NDArray[np.int64]) -> Iterator[Sketch]:
    def sketch(position: int) -> Sketch:
        return Sketch.of_mask(np.asarray(masks[position], np.uint8))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(sketch, order.tolist())
