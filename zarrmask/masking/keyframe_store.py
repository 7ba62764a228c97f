"""What the detector said on each keyframe, as a zarr group beside the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.place import Place, zarr_store

ROWS_A_CHUNK = 512
"""A brick reads 256 rows and those by which its mask is dilated; whole chunks are decoded."""


@dataclass(frozen=True)
class Sighting:
    """What was found on one keyframe.

    Attributes
    ----------
    boxes : (n, 4) float32
        x0, y0, x1, y1 in pixels of the slice, of the detections above the score.
    scores : (n,) float32
        Descending.
    area : int
        Pixels in the union of their masks, not dilated.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    area: int

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` takes."""
        return {"boxes": self.boxes.tolist(), "scores": self.scores.tolist(), "area": self.area}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Sighting:
        """Take what `to_json` gave."""
        boxes = np.array(entry["boxes"], np.float32).reshape(-1, 4)
        return cls(boxes, np.array(entry["scores"], np.float32), entry["area"])


def _dimensions(ndim: int, *others: str) -> dict[str, Any]:
    """Name an array's dimensions as `xarray.open_zarr` reads them."""
    return {"_ARRAY_DIMENSIONS": ["z", *others][:ndim]}


@dataclass(frozen=True)
class KeyframeStore:
    """The group `keyframes.zarr`.

    Arrays: `z` (k,) slice numbers; `mask` (k, y, x) uint8 0/255, the union of the detections'
    masks, not dilated; `count`, `area` and `best_score` (k,); `boxes` (k, n, 4) and `scores`
    (k, n), padded with NaN.
    """

    path: Place

    def create(self, numbers: NDArray[np.int64], height: int, width: int) -> bool:
        """Make the group with no masks in it, unless it is there; tell whether it was made."""
        group = zarr.open_group(zarr_store(self.path), mode="a", zarr_format=2)
        if isinstance(self.path, Path):
            for torn in self.path.glob("**/*.partial"):
                torn.unlink()  # zarr was stopped while it wrote
        group.attrs.put({})
        group.create_array("z", data=numbers, overwrite=True, attributes=_dimensions(1))
        dimensions = _dimensions(3, "y", "x")
        if "mask" in group:
            group["mask"].attrs.put(dimensions)  # zarr may have been stopped before it wrote them
            return False
        group.create_array(
            "mask",
            shape=(len(numbers), height, width),
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

    def write_sightings(self, sightings: Sequence[Sighting]) -> None:
        """Keep what was found on all keyframes, in their order."""
        group = zarr.open_group(zarr_store(self.path), mode="r+")
        most = max((len(s.scores) for s in sightings), default=0)
        boxes = np.full((len(sightings), max(most, 1), 4), np.nan, np.float32)
        scores = np.full((len(sightings), max(most, 1)), np.nan, np.float32)
        for n, sighting in enumerate(sightings):
            boxes[n, : len(sighting.scores)] = sighting.boxes
            scores[n, : len(sighting.scores)] = sighting.scores
        columns: dict[str, NDArray] = {
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

    def masks(self) -> zarr.Array:
        """The keyframes' undilated masks, (k, y, x) uint8, to read parts of."""
        return self._array("mask", "r")

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
        """Numbers of the keyframes on which nothing was found."""
        counts = np.asarray(self._array("count", "r")[:])
        return [z for z, count in zip(self.numbers(), counts, strict=True) if not count]

    def _array(self, name: str, mode: Literal["r", "r+"]) -> zarr.Array:
        return zarr.open_array(zarr_store(self.path / name), mode=mode)
