"""What the detector said on each keyframe, as a zarr group beside the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.masking.sighting import AS_SEEN, REPLACED, Sighting
from zarrmask.masking.sketch import Sketch
from zarrmask.place import Place, zarr_store

TOGETHER = 64
"""Sketches that are stored in a chunk."""
ROWS_A_CHUNK = 512
"""A brick reads 256 rows and those by which its mask is dilated; whole chunks are decoded."""


def _dimensions(ndim: int, *others: str) -> dict[str, Any]:
    """Name an array's dimensions as `xarray.open_zarr` reads them."""
    return {"_ARRAY_DIMENSIONS": ["z", *others][:ndim]}


@dataclass(frozen=True)
class KeyframeStore:
    """The group `keyframes.zarr`: an entry a keyframe, in the order in which they were seen.

    Arrays: `z` (k,) slice numbers, ascending only where keyframes stand at a fixed interval; `mask`
    (k, y, x) uint8 0/255, the union of the detections' masks, not dilated; `sketch` (k, h, w) uint8
    0/255, the same in small; `count`, `area` and `best_score` (k,); `state` (k,) int8, see
    `zarrmask.masking.sighting`; `boxes` (k, n, 4) and `scores` (k, n), padded with NaN. All but
    `mask` come when all keyframes have been seen.
    """

    path: Place

    def reserve(self, count: int, height: int, width: int) -> bool:
        """Make room for the masks of so many keyframes; tell whether the group had to be made."""
        group = zarr.open_group(zarr_store(self.path), mode="a", zarr_format=2)
        if isinstance(self.path, Path):
            for torn in self.path.glob("**/*.partial"):
                torn.unlink()  # zarr was stopped while it wrote
        group.attrs.put({})
        dimensions = _dimensions(3, "y", "x")
        if "mask" in group:
            mask = self._array("mask", "r+")
            mask.attrs.put(dimensions)  # zarr may have been stopped before it wrote them
            if mask.shape[0] < count:
                mask.resize((count, height, width))
            return False
        group.create_array(
            "mask",
            shape=(count, height, width),
            chunks=(1, min(height, ROWS_A_CHUNK), width),
            dtype=np.uint8,
            compressors=numcodecs.Blosc(cname="zstd", clevel=3),
            fill_value=0,
            attributes=dimensions,
        )
        return True

    def write_mask(self, position: int, mask: NDArray[np.uint8]) -> None:
        """Keep the undilated mask (y, x) of the keyframe at `position`."""
        self._array("mask", "r+")[position] = mask

    def write_rows(self, position: int, top: int, rows: NDArray[np.uint8]) -> None:
        """Keep rows (y, x) of the undilated mask at `position`, from `top` on: whole chunks."""
        self._array("mask", "r+")[position, top : top + len(rows)] = rows

    def write_sightings(
        self,
        numbers: NDArray[np.int64],
        sightings: Sequence[Sighting],
        states: NDArray[np.int8] | None = None,
    ) -> None:
        """Keep what was seen on all keyframes, in their order.

        Parameters
        ----------
        numbers : (k,) int64
            Their slice numbers.
        sightings : sequence of Sighting
        states : (k,) int8, optional
            By default all are used as they were seen.
        """
        if states is None:
            states = np.full(len(numbers), AS_SEEN, np.int8)
        group = zarr.open_group(zarr_store(self.path), mode="r+")
        most = max((len(s.scores) for s in sightings), default=0)
        boxes = np.full((len(sightings), max(most, 1), 4), np.nan, np.float32)
        scores = np.full((len(sightings), max(most, 1)), np.nan, np.float32)
        for n, sighting in enumerate(sightings):
            boxes[n, : len(sighting.scores)] = sighting.boxes
            scores[n, : len(sighting.scores)] = sighting.scores
        columns: dict[str, NDArray] = {
            "z": numbers,
            "state": states,
            "boxes": boxes,
            "scores": scores,
            "best_score": scores[:, 0],
            "count": np.array([len(s.scores) for s in sightings], np.int64),
            "area": np.array([s.area for s in sightings], np.int64),
        }
        for name, column in columns.items():
            group.create_array(
                name, data=column, overwrite=True, attributes=_dimensions(column.ndim, "n", "box")
            )
        self._write_sketches(group, [sighting.sketch for sighting in sightings])

    def _write_sketches(self, group: zarr.Group, sketches: Sequence[Sketch]) -> None:
        height, width = sketches[0].shape if sketches else (1, 1)
        stored = group.create_array(
            "sketch",
            shape=(len(sketches), height, width),
            chunks=(TOGETHER, height, width),
            dtype=np.uint8,
            overwrite=True,
            attributes=_dimensions(3, "h", "w"),
        )
        for start in range(0, len(sketches), TOGETHER):
            some = sketches[start : start + TOGETHER]
            stored[start : start + len(some)] = [sketch.pixels * np.uint8(255) for sketch in some]

    def sketches(self) -> list[Sketch]:
        """The keyframes' undilated masks in small."""
        stored = self._array("sketch", "r")
        return [
            Sketch.of_pixels(pixels > 0)
            for start in range(0, stored.shape[0], TOGETHER)
            for pixels in np.asarray(stored[start : start + TOGETHER])
        ]

    def masks(self) -> zarr.Array:
        """The keyframes' undilated masks, (k, y, x) uint8, to read parts of."""
        return self._array("mask", "r")

    def used(self) -> NDArray[np.int64]:
        """Places of the keyframes that make the masks, ascending in z: (u,)."""
        order = np.argsort(self.numbers())
        states = np.asarray(self._array("state", "r")[:])
        used: NDArray[np.int64] = order[states[order] != REPLACED]
        return used

    def numbers(self) -> list[int]:
        """Slice numbers of the keyframes."""
        return [int(z) for z in np.asarray(self._array("z", "r")[:])]

    def areas(self) -> NDArray[np.int64]:
        """Pixels in each keyframe's mask, not dilated: (k,)."""
        return np.asarray(self._array("area", "r")[:])

    def best_scores(self) -> NDArray[np.float32]:
        """Each keyframe's best score, NaN where nothing was found: (k,)."""
        return np.asarray(self._array("best_score", "r")[:])

    def without_detection(self) -> list[int]:
        """Numbers of the used keyframes on which nothing was found, ascending."""
        numbers, counts = self.numbers(), np.asarray(self._array("count", "r")[:])
        return [numbers[place] for place in self.used().tolist() if not counts[place]]

    def _array(self, name: str, mode: Literal["r", "r+"]) -> zarr.Array:
        return zarr.open_array(zarr_store(self.path / name), mode=mode)
