"""What runs on the workers: each function is one task, and takes and gives little.

They are called with a block's place in a grid (`dask.array.map_blocks`) and read and write what
belongs to that place themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.detections import union_mask
from zarrmask.detection.inputs import NetworkInput, to_8bit
from zarrmask.masking import HeldMasks, KeyframeStore, Sighting
from zarrmask.pyramid import STEP, BrickGrid, Pyramid, tiles

if TYPE_CHECKING:
    from zarrmask.stack import Source

Window = Literal["seed"] | tuple[float, float]


def grey_values(keyframe: NDArray) -> NDArray[np.object_]:
    """Histogram of a keyframe: (1, y, x) to one object, (grey values,) int64."""
    return _boxed(np.bincount(keyframe.ravel(), minlength=2 ** (8 * keyframe.dtype.itemsize)))


def detect(
    keyframe: NDArray,
    *,
    detectors: Sequence[Any],
    network_input: NetworkInput,
    window: Window,
    store: KeyframeStore,
    block_id: tuple[int, ...],
) -> NDArray[np.object_]:
    """Find the object on one keyframe, (1, y, x), and keep its mask.

    The slice is read and shrunk here; only the network's small image goes to the detector's actor,
    and only boxes and patches come back.

    Returns
    -------
    (1,) object
        A `Sighting`.
    """
    from zarrmask.detection.actors import nearest

    (position, *_), (image,) = block_id, keyframe
    prepared = network_input.prepare(to_8bit(image, window))
    detector = nearest(detectors, position)
    (found,) = detector.detect([prepared], [image.shape]).result()
    mask = union_mask(found, image.shape)
    store.write_mask(position, mask)
    return _boxed(Sighting(found.boxes, found.scores, int(np.count_nonzero(mask))))


def write_brick(
    *,
    source: Source,
    offset: int,
    grid: BrickGrid,
    volume: Pyramid | None,
    masked: Pyramid | None,
    mask: Pyramid | None,
    masks: HeldMasks | None,
    block_id: tuple[int, int, int],
) -> NDArray[np.object_]:
    """Read a brick of the stack once and write it to every output, at levels 0 and 1.

    Where the mask is empty and the volume is not wanted, nothing is read.

    Parameters
    ----------
    source : Source
        The stack.
    offset : int
        Index in the stack of the outputs' first slice.
    grid : BrickGrid
        The outputs' bricks.
    volume, masked, mask : Pyramid or None
        The outputs; those that are None are not written.
    masks : HeldMasks or None
        Where the object is, in slice indices of the stack.
    block_id : (z, y, x)
        Which brick.

    Returns
    -------
    (1, 1, 1) object
        Number of voxels inside the mask.
    """
    region = grid.region(block_id)
    block: NDArray | None = None
    kept = 0
    for z, y, x in tiles(region, STEP[2]):
        stack_z = slice(z.start + offset, z.stop + offset)
        inside = masks.block(stack_z, y, x) if masks is not None else None
        if volume is None and (inside is None or not inside.any()):
            continue
        if block is None:  # the whole width at once: rows lie together on disk
            block = source[stack_z, region[1], region[2]]
        # Contiguous: halving and encoding are several times slower on a strided view.
        voxels = np.ascontiguousarray(
            block[:, :, x.start - region[2].start : x.stop - region[2].start]
        )
        if volume is not None:
            volume.write(0, (z, y, x), voxels)
        if inside is not None:
            kept += int(np.count_nonzero(inside))
            if mask is not None:
                mask.write(0, (z, y, x), inside)
            if masked is not None:
                masked.write(0, (z, y, x), voxels * (inside != 0))
    return _boxed(kept, ndim=3)


def write_coarser(
    *, pyramid: Pyramid, level: int, grid: BrickGrid, block_id: tuple[int, int, int]
) -> NDArray[np.object_]:
    """Write a brick of the level that the pass before handed over, and of the next."""
    for region in tiles(grid.region(block_id), STEP[2]):
        pyramid.write(level, region, np.asarray(pyramid.handed_over(level)[region]))
    return _boxed(0, ndim=3)


def _boxed(value: object, ndim: int = 1) -> NDArray[np.object_]:
    """One object as the block of an array."""
    out = np.empty((1,) * ndim, object)
    out[(0,) * ndim] = value
    return out
