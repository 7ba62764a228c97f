"""What of a run's masks a person has corrected, as its record keeps it, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from zarrmask.masking import HeldMasks, InterpolatedMasks, KeyframeStore, Masks
from zarrmask.masking.layers import Layer, LayeredMasks
from zarrmask.storage.place import Place

FOLDER = "corrections"
"""In a run's folder: a keyframe store for each correction that has masks of its own."""


@dataclass(frozen=True)
class Correction:
    """Other masks for some slices.

    Attributes
    ----------
    z : (int, int)
        Slice numbers, the second excluded.
    how : mapping
        What was asked for (JSON): "from", "dilate", "erode", "masks" or "detect", and its
        value; "undo" takes back the one before, and is not kept.
    grown : int
        Side of the square kernel by which the masks that it keeps had been dilated, pixels.
    bricks : int
        How many of the smallest bricks were written anew.
    voxels : int
        How many voxels more are inside.
    detected : mapping
        What came of detecting anew (`zarrmask.running.looking.record_of`); empty of other
        corrections.
    """

    z: tuple[int, int]
    how: Mapping[str, Any]
    grown: int = 0
    bricks: int = 0
    voxels: int = 0
    detected: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` takes."""
        entry = {**asdict(self), "z": list(self.z), "how": dict(self.how)}
        if not self.detected:
            del entry["detected"]
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Correction:
        """Take what `to_json` gave."""
        first, stop = entry["z"]
        counts = entry["grown"], entry["bricks"], entry["voxels"]
        return cls((first, stop), entry["how"], *counts, entry.get("detected", {}))

    def same_as(self, other: Correction) -> bool:
        """Whether the same was asked for."""
        return (self.z, dict(self.how)) == (other.z, dict(other.how))

    @property
    def arguments(self) -> list[str]:
        """What asks for it on a command line, behind the run's folder."""
        how = dict(self.how)
        if "undo" in how:
            return ["--undo"]
        asked = {"z": f"{self.z[0]}:{self.z[1]}", **how.pop("detect", {}), **how}
        asked |= {"first": how["masks"].get("first")} if "masks" in how else {}
        return [
            part
            for name, value in asked.items()
            if value is not None
            for part in _option(name, value)
        ]


def _option(name: str, value: Any) -> list[str]:
    """An option as it is typed."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value["path"] if isinstance(value, Mapping) else value)]


def store_of(run: Place, number: int) -> KeyframeStore:
    """Where the masks of a run's n-th correction are, from 0."""
    return KeyframeStore(run / FOLDER / f"{number:04d}.zarr")


def side_of(layer: Layer) -> int:
    """Side of the square kernel by which a layer's masks are dilated in all, pixels."""
    return layer.grown + _live(layer.masks)


def dilated(layer: Layer, side: int) -> Layer:
    """The same layer, its masks dilated by another kernel in all; see `side_of`.

    What they had been dilated by when they were kept is taken off again by erosion.
    """
    masks, live = layer.masks, side - layer.grown
    if isinstance(masks, HeldMasks):
        return replace(layer, masks=replace(masks, side=live))
    if isinstance(masks, InterpolatedMasks):
        return replace(layer, masks=replace(masks, growth=live / 2))
    raise TypeError(f"{type(masks).__name__} cannot be dilated otherwise")


def _live(masks: Masks) -> int:
    if isinstance(masks, HeldMasks):
        return masks.side
    if isinstance(masks, InterpolatedMasks):
        return round(2 * masks.growth)
    raise TypeError(f"{type(masks).__name__} says no dilation")


def kept(correction: Correction, store: KeyframeStore, first: int, shape: tuple[int, int]) -> Layer:
    """Masks that a correction has of its own, each held until the next.

    Parameters
    ----------
    correction : Correction
        Of its slices, those before the first mask are left out.
    store : KeyframeStore
        Its masks.
    first : int
        Number of the stack's first slice.
    shape : (height, width)
        Of a slice, pixels.
    """
    used = store.used()
    indices = np.array(store.numbers(), np.int64)[used] - first
    start = max(correction.z[0] - first, int(indices[0]))
    masks = HeldMasks(store, indices, used, store.areas()[used], shape, 0)
    return Layer(start, correction.z[1] - first, masks, correction.grown)


def redilated(
    masks: LayeredMasks, start: int, stop: int, side: int | None, less: int
) -> list[Layer]:
    """Layers of some slices, dilated by another kernel.

    Parameters
    ----------
    start, stop : int
        Indices of the slices.
    side : int or None
        The kernel's, pixels; None leaves each layer's.
    less : int
        By how much smaller it is then.
    """
    return [
        dilated(layer, (side_of(layer) if side is None else side) - less)
        for layer in masks.among(start, stop)
    ]
