"""What the detector said on each keyframe, measured: place, pieces, likeness to its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.errors import OutputError
from zarrmask.masking import KeyframeStore
from zarrmask.masking.sighting import REPLACED
from zarrmask.masking.sketch import SPECK, Sketch, agreement
from zarrmask.storage.place import Place


def pieces(sketch: Sketch) -> int:
    """Count the parts of a mask that do not touch, specks aside."""
    _, _, found, _ = cv2.connectedComponentsWithStats(sketch.pixels.view(np.uint8))
    return int(np.count_nonzero(found[1:, cv2.CC_STAT_AREA] > SPECK))


def centre(sketch: Sketch) -> tuple[float, float]:
    """Centre of mass, y and x in pixels of the sketch; NaN where it is empty."""
    y, x = np.nonzero(sketch.pixels)
    return (float(y.mean()) + 0.5, float(x.mean()) + 0.5) if y.size else (float("nan"),) * 2


def at_border(sketch: Sketch) -> float:
    """Share of the slice's border that a mask covers."""
    inside = sketch.pixels
    border = np.concatenate([inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1]])
    return float(border.mean())


@dataclass(frozen=True, eq=False)
class KeyframeTable:
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
        Undilated masks in small; none where they were not kept.
    pixel : float
        Side of a sketch's pixel, pixels of the slice.
    """

    z: NDArray[np.int64]
    count: NDArray[np.int64]
    best_score: NDArray[np.float64]
    area: NDArray[np.float64]
    used: NDArray[np.bool_]
    sketches: tuple[Sketch, ...] = field(repr=False, default=())
    pixel: float = 1.0

    def only(self, places: NDArray[np.int64]) -> KeyframeTable:
        """Some of them."""
        return KeyframeTable(
            self.z[places],
            self.count[places],
            self.best_score[places],
            self.area[places],
            self.used[places],
            tuple(self.sketches[place] for place in places) if self.sketches else (),
            self.pixel,
        )

    @property
    def empty_z(self) -> list[int]:
        """Slice numbers of the keyframes without a detection that are used."""
        return [int(z) for z in self.z[(self.count == 0) & self.used]]

    @cached_property
    def pieces(self) -> NDArray[np.float64]:
        """How many parts each mask has, NaN where that is not known: (k,)."""
        return self._measured([pieces(sketch) for sketch in self.sketches])

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """Centre of each mask, y and x in pixels of the slice: (k, 2)."""
        if not self.sketches:
            return np.full((len(self.z), 2), np.nan)
        return np.array([centre(sketch) for sketch in self.sketches]) * self.pixel

    @cached_property
    def at_border(self) -> NDArray[np.float64]:
        """Share of the slice's border that each mask covers: (k,)."""
        return self._measured([at_border(sketch) for sketch in self.sketches])

    @cached_property
    def agreement(self) -> NDArray[np.float64]:
        """Intersection over union of each mask with the next one: (k - 1,), NaN if not known."""
        values = [agreement(one, other) for one, other in pairwise(self.sketches)]
        return self._measured(values) if values else np.full(max(0, len(self.z) - 1), np.nan)

    def _measured(self, values: Sequence[float]) -> NDArray[np.float64]:
        return np.array(values, np.float64) if values else np.full(len(self.z), np.nan)


def read_keyframes(path: Place, side: int) -> KeyframeTable:
    """Read what the detector said on each keyframe; nothing if it was not kept.

    Parameters
    ----------
    path : Place
        The run's `keyframes.zarr`.
    side : int
        Pixels of a slice's longer side.

    Raises
    ------
    OutputError
        Where the keyframes are there, but cannot be read.
    """
    if not path.is_dir():
        none = np.zeros(0, np.int64)
        return KeyframeTable(none, none, none.astype(float), none.astype(float), none.astype(bool))
    store = KeyframeStore(path)
    try:
        order, numbers, states = store.seen(), store.numbers(), store.states()
        counts, best_scores, areas = store.counts(), store.best_scores(), store.areas()
        stored = store.sketches()
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # the last, of a spoiled chunk
        raise OutputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): expected what a finished "
            "run leaves. Run again with --overwrite."
        ) from error
    sketches = tuple(stored[place] for place in order)
    return KeyframeTable(
        np.array(numbers, np.int64)[order],
        counts[order].astype(np.int64),
        best_scores[order].astype(np.float64),
        areas[order].astype(np.float64),
        states[order] != REPLACED,
        sketches,
        side / max(sketches[0].shape) if sketches else 1.0,
    )
