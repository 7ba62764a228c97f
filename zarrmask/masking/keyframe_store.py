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

from zarrmask.masking.sighting import AS_SEEN, REPLACED, UNSEEN, Sighting
from zarrmask.masking.sketch import Sketch
from zarrmask.storage.files import files_of
from zarrmask.storage.flush import flush_all, flush_soon
from zarrmask.storage.pipelines import opening
from zarrmask.storage.place import Place, zarr_store

TOGETHER = 64
"""Sketches that are stored in a chunk."""
ROWS_A_CHUNK = 512
"""A brick reads 256 rows and those by which its mask is dilated; whole chunks are decoded."""


def _dimensions(ndim: int, *others: str) -> dict[str, Any]:
    """Name an array's dimensions as `xarray.open_zarr` reads them."""
    return {"_ARRAY_DIMENSIONS": ["z", *others][:ndim]}


@dataclass(frozen=True)
class KeyframeStore:
    """The group `keyframes.zarr`: an entry for each slice that may be a keyframe, ascending in z.

    Arrays: `z` (k,) slice numbers; `state` (k,) int8, see `zarrmask.masking.sighting`: entries that
    nobody looked at are empty; `mask` (k, y, x) uint8 0/255, the union of the detections' masks,
    not dilated; `sketch` (k, h, w) uint8 0/255, the same in small; `count`, `area` and `best_score`
    (k,); `boxes` (k, n, 4) and `scores` (k, n), padded with NaN. All but `mask` come when all
    keyframes have been seen.
    """

    path: Place

    def reserve(self, count: int, height: int, width: int) -> bool:
        """Make room for so many masks, unless it is there; tell whether it had to be made."""
        group = zarr.open_group(zarr_store(self.path), mode="a", zarr_format=2)
        self._remove_torn()
        group.attrs.put({})
        dimensions = _dimensions(3, "y", "x")
        if "mask" in group and self._array("mask", "r").shape == (count, height, width):
            # zarr may have been stopped before it wrote them
            self._array("mask", "r+").attrs.put(dimensions)
            return False
        group.create_array(
            "mask",
            shape=(count, height, width),
            chunks=(1, min(height, ROWS_A_CHUNK), width),
            dtype=np.uint8,
            compressors=numcodecs.Blosc(cname="zstd", clevel=3),
            fill_value=0,
            attributes=dimensions,
            overwrite=True,
        )
        return True

    def write_mask(self, position: int, mask: NDArray[np.uint8]) -> None:
        """Keep the undilated mask (y, x) of the keyframe at `position`; see `write_rows`."""
        self.write_rows(position, 0, mask)

    def write_rows(self, position: int, top: int, rows: NDArray[np.uint8]) -> None:
        """Keep rows (y, x) of the undilated mask at `position`, from `top` on: whole chunks.

        They are on the disk after `zarrmask.storage.flush.flush_all`.
        """
        array = self._array("mask", "r+")
        height, width = rows.shape
        region = slice(position, position + 1), slice(top, top + height), slice(0, width)
        array[region] = rows[np.newaxis]
        flush_soon(*files_of(array, self.path / "mask", region))

    def write_sightings(
        self,
        numbers: NDArray[np.int64],
        sightings: Sequence[Sighting],
        states: NDArray[np.int8] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> None:
        """Keep what was seen.

        Parameters
        ----------
        numbers : (k,) int64
            Slice numbers of all entries.
        sightings : sequence of Sighting
            What was seen on keyframes.
        states : (n,) int8, optional
            What became of these; by default all are used as they were seen.
        positions : (n,) int64, optional
            Which entries they are; by default all.
        """
        if positions is None:
            positions = np.arange(len(numbers))
        state = np.full(len(numbers), UNSEEN, np.int8)
        state[positions] = AS_SEEN if states is None else states
        seen = dict(zip(positions.tolist(), sightings, strict=True))
        nothing = Sighting.nothing(sightings[0].sketch.shape)
        sightings = [seen.get(n, nothing) for n in range(len(numbers))]
        group = zarr.open_group(zarr_store(self.path), mode="r+")
        most = max(len(s.scores) for s in sightings)
        boxes = np.full((len(sightings), max(most, 1), 4), np.nan, np.float32)
        scores = np.full((len(sightings), max(most, 1)), np.nan, np.float32)
        for n, sighting in enumerate(sightings):
            boxes[n, : len(sighting.scores)] = sighting.boxes
            scores[n, : len(sighting.scores)] = sighting.scores
        columns: dict[str, NDArray] = {
            "z": numbers,
            "state": state,
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
        self._remove_torn()
        self._flush()

    def _flush(self) -> None:
        """Bring all but the masks, which are there, onto the disk: records come to rely on it."""
        if isinstance(self.path, Path):
            for column in self.path.iterdir():
                if column.name != "mask":
                    flush_soon(*(file for file in column.rglob("*") if file.is_file()))
            flush_all()

    def _remove_torn(self) -> None:
        """Remove what zarr was writing when it, or a worker, was stopped."""
        if isinstance(self.path, Path):
            for torn in self.path.glob("**/*.partial"):
                torn.unlink()

    def _write_sketches(self, group: zarr.Group, sketches: Sequence[Sketch]) -> None:
        height, width = sketches[0].shape
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
        """The undilated masks of all entries in small."""
        stored = self._array("sketch", "r")
        return [
            Sketch.of_pixels(pixels > 0)
            for start in range(0, stored.shape[0], TOGETHER)
            for pixels in np.asarray(stored[start : start + TOGETHER])
        ]

    def masks(self) -> zarr.Array:
        """The undilated masks, (k, y, x) uint8, to read parts of."""
        return self._array("mask", "r")

    def seen(self) -> NDArray[np.int64]:
        """Places of the keyframes, ascending in z: (s,)."""
        order = np.argsort(self.numbers())  # earlier versions had them in the order of detection
        seen: NDArray[np.int64] = order[self.states()[order] != UNSEEN]
        return seen

    def used(self) -> NDArray[np.int64]:
        """Places of those that make the masks, ascending in z: (u,)."""
        seen = self.seen()
        used: NDArray[np.int64] = seen[self.states()[seen] != REPLACED]
        return used

    def states(self) -> NDArray[np.int8]:
        """What became of each entry: (k,)."""
        return np.asarray(self._array("state", "r")[:])

    def numbers(self) -> list[int]:
        """Slice numbers of all entries."""
        return [int(z) for z in np.asarray(self._array("z", "r")[:])]

    def counts(self) -> NDArray[np.int64]:
        """How many detections are on each: (k,)."""
        return np.asarray(self._array("count", "r")[:])

    def areas(self) -> NDArray[np.int64]:
        """Pixels in each mask, not dilated: (k,)."""
        return np.asarray(self._array("area", "r")[:])

    def best_scores(self) -> NDArray[np.float32]:
        """Best score of each, NaN where nothing was found: (k,)."""
        return np.asarray(self._array("best_score", "r")[:])

    def without_detection(self) -> list[int]:
        """Numbers of the used keyframes on which nothing was found, ascending."""
        numbers, counts = self.numbers(), self.counts()
        return [numbers[place] for place in self.used().tolist() if not counts[place]]

    def _array(self, name: str, mode: Literal["r", "r+"]) -> zarr.Array:
        with opening():
            return zarr.open_array(zarr_store(self.path / name), mode=mode)
