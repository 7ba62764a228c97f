"""What runs on the workers: each function is one task, and takes and gives little.

They are mapped over small arrays that say which keyframe or brick is theirs; they read and write
what belongs to it themselves, and enter it in the ledger when all of it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.detections import union_mask
from zarrmask.detection.inputs import NetworkInput, to_8bit
from zarrmask.ledger import Ledger
from zarrmask.masking import HeldMasks, KeyframeStore, Sighting
from zarrmask.pyramid import STEP, BrickGrid, Pyramid, brick_key, tiles

if TYPE_CHECKING:
    from zarrmask.stack import Source

Window = Literal["seed"] | tuple[float, float]


def grey_values(keyframe: NDArray) -> NDArray[np.object_]:
    """Histogram of a keyframe: (1, y, x) to one object, (grey values,) int64."""
    levels = 2 ** (8 * keyframe.dtype.itemsize)
    out = np.empty(1, object)
    # By rows: bincount makes eight bytes of every voxel.
    out[0] = sum(np.bincount(row, minlength=levels) for row in keyframe[0])
    return out


def detect(
    keyframe: NDArray,
    position: NDArray[np.int64],
    *,
    detectors: Sequence[Any],
    network_input: NetworkInput,
    window: Window,
    store: KeyframeStore,
    ledger: Ledger,
) -> NDArray[np.bool_]:
    """Find the object on one keyframe, and keep its mask.

    The slice is read and shrunk here; only the network's small image goes to the detector's actor,
    and only boxes and patches come back. The `Sighting` goes to the ledger.

    Parameters
    ----------
    keyframe : (1, y, x) uint8 or uint16
    position : (1, 1, 1) int64
        Which of the keyframes it is.
    """
    from zarrmask.detection.actors import nearest

    place = int(position.item())
    (image,) = keyframe
    prepared = network_input.prepare(to_8bit(image, window))
    detector = nearest(detectors, place)
    (found,) = detector.detect([prepared], [image.shape]).result()
    mask = union_mask(found, image.shape)
    store.write_mask(place, mask)
    sighting = Sighting(found.boxes, found.scores, int(np.count_nonzero(mask)))
    ledger.enter(place, sighting.to_json())
    return np.ones(1, bool)


def write_brick(
    index: NDArray[np.int64],
    *,
    source: Source,
    offset: int,
    grid: BrickGrid,
    volume: Pyramid | None,
    masked: Pyramid | None,
    mask: Pyramid | None,
    masks: HeldMasks | None,
    ledger: Ledger,
) -> NDArray[np.bool_]:
    """Read a brick of the stack once and write it to every output, at levels 0 and 1.

    Where the mask is empty and the volume is not wanted, nothing is read. The number of voxels
    inside the mask goes to the ledger.

    Parameters
    ----------
    index : (1, 3) int64
        Place of the brick in the grid.
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
    ledger : Ledger
    """
    brick = _brick(index)
    region = grid.region(brick)
    stack_z = slice(region[0].start + offset, region[0].stop + offset)
    held = masks.held(stack_z, region[1], region[2]) if masks is not None else None
    whole: NDArray | None = None
    kept = 0
    for z, y, x in tiles(region, STEP[2]):
        columns = slice(x.start - region[2].start, x.stop - region[2].start)
        inside = held.block(columns) if held is not None else None
        if volume is None and (inside is None or not inside.any()):
            continue
        if _reads_by_tile(source):
            voxels = source[stack_z, y, x]
        else:
            whole = source[stack_z, y, region[2]] if whole is None else whole
            # Contiguous: halving and encoding are several times slower on a strided view.
            voxels = np.ascontiguousarray(whole[:, :, columns])
        if volume is not None:
            volume.write(0, (z, y, x), voxels)
        if inside is not None:
            kept += int(np.count_nonzero(inside))
            if mask is not None:
                mask.write(0, (z, y, x), inside)
            if masked is not None:
                masked.write(0, (z, y, x), voxels * (inside != 0))
    ledger.enter(brick_key(brick), kept)
    return np.ones(1, bool)


def write_coarser(
    index: NDArray[np.int64], *, pyramid: Pyramid, level: int, grid: BrickGrid, ledger: Ledger
) -> NDArray[np.bool_]:
    """Write a brick of the level that the pass before handed over, and of the next.

    Parameters
    ----------
    index : (1, 3) int64
        Place of the brick in the grid.
    """
    brick = _brick(index)
    for region in tiles(grid.region(brick), STEP[2]):
        pyramid.write(level, region, np.asarray(pyramid.handed_over(level)[region]))
    ledger.enter(brick_key(brick), None)
    return np.ones(1, bool)


def _reads_by_tile(source: Source) -> bool:
    """Whether reading a brick in tiles decodes nothing twice: mapped slices, small chunks."""
    return STEP[2] % source.block[2] == 0


def _brick(index: NDArray[np.int64]) -> tuple[int, int, int]:
    z, y, x = index[0].tolist()
    return z, y, x
