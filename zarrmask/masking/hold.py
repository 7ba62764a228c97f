"""The mask of every voxel by the rule of the scripts that zarrmask replaces.

A keyframe's mask, dilated, is held until the next keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.dilation import dilated_part
from zarrmask.masking.keyframe_store import KeyframeStore
from zarrmask.masking.keyframes import held_by


@dataclass(frozen=True)
class HeldMasks:
    """Masks of a stack's slices.

    Attributes
    ----------
    store : KeyframeStore
        The keyframes' undilated masks.
    keyframes : (k,) int64
        Their slice indices, ascending.
    shape : (height, width)
        Of a slice, pixels.
    side : int
        Side of the dilation's square kernel, pixels.
    """

    store: KeyframeStore
    keyframes: NDArray[np.int64]
    shape: tuple[int, int]
    side: int

    def block(self, z: slice, y: slice, x: slice) -> NDArray[np.uint8]:
        """Mask of a region: (z, y, x) uint8, 255 where the object is, else 0."""
        out = np.zeros((z.stop - z.start, y.stop - y.start, x.stop - x.start), np.uint8)
        for position, start, stop in held_by(z.start, z.stop, self.keyframes):
            out[start - z.start : stop - z.start] = dilated_part(
                lambda rows, columns, position=position: self.store.read_mask(  # type: ignore[misc]
                    position, rows, columns
                ),
                y,
                x,
                self.shape,
                self.side,
            )
        return out
