"""How much memory a run takes, as predicted; as measured, see `zarrmask.workers.peak_memory`.

What is counted is the sum over its processes with shared pages counted once (PSS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod

from zarrmask.masking import field_store, keyframe_store
from zarrmask.masking.field import cell_side, cells
from zarrmask.planning.reading import PIECE
from zarrmask.pyramid import Format, Shape
from zarrmask.workers.processes import DETECTOR

# Of a process before it does anything, bytes; measured by `python benchmarks/memory.py`.
CLIENT = 290_000_000
"""Client with the scheduler."""
A_TASK = 12_000
"""What they keep of a task."""
WORKER = 165_000_000
"""A worker that writes."""
FORKED, FORKED_ONCE = 60_000_000, 150_000_000
"""The same if it is forked, and what is there once, for all that are."""
TORCH, TORCH_ONCE = 330_000_000, 300_000_000
"""What torch adds to a worker, and once: its libraries, which workers of one machine share."""
TORCH_FORKED, TORCH_FORKED_ONCE = 60_000_000, 500_000_000
"""The same if they are forked from a process that has imported it."""
CUDA = 1_800_000_000
"""What it adds to a worker with a GPU. Not measured here: its first convolution took others as much
with the CUDA of 2018, https://github.com/pytorch/pytorch/issues/12873"""
LOADING, LOADED = 2.4, 1.4
"""Times a checkpoint's bytes that its detector takes while it is loaded, and then."""
A_PIXEL = 600
"""Bytes that the network takes a pixel that it sees."""
MORE_VIEWS = 3 * 90
"""Bytes that mirror images add a pixel: feature maps of the others, 256 channels wide."""
ENCODING = {7: 14_000_000, 8: 14_000_000, 9: 36_000_000}
"""What zstd's tables take of an encoder, by Blosc's level; at lower ones a few megabytes."""
MARGIN = 1.1
"""For what the allocator keeps for itself."""
AT_ONCE = 10
"""Chunks of a zarr that are decoded at once (zarr's `async.concurrency`)."""


@dataclass(frozen=True)
class Memory:
    """Predicted peak memory, bytes: no less than what will be measured, and no more than twice it.

    Attributes
    ----------
    client : int
        Of this process, with the scheduler if that is its own.
    shared : int
        What workers have in common.
    worker : int
        Of a worker at rest, after its imports.
    tasks : mapping
        For each kind of task what one adds to that, and how many there are at once in all workers.
    workers, threads : int
        Processes, and tasks at once in each.
    """

    client: int
    shared: int
    worker: int
    tasks: Mapping[str, tuple[int, int]]
    workers: int
    threads: int

    @property
    def largest(self) -> str:
        """The kind of task that takes most."""
        return max(self.tasks, key=lambda kind: self.tasks[kind][0])

    @property
    def task(self) -> int:
        """What it takes."""
        return self.tasks[self.largest][0]

    @property
    def a_worker(self) -> int:
        """Peak of one worker."""
        return self.shared + self.worker + int(MARGIN * self.threads * self.task)

    def needed(self, *, local: bool) -> int:
        """What has to be there: for all on this machine, or for the workers of a cluster."""
        return self.total if local else self.workers * self.a_worker

    @property
    def total(self) -> int:
        """Peak of all processes together."""
        working = int(MARGIN * max(size * count for size, count in self.tasks.values()))
        return self.client + self.shared + self.workers * self.worker + working


def at_rest(imported: tuple[str, ...], *, detects: bool) -> tuple[int, int]:
    """Bytes that workers have in common, and that each of them takes before it does anything.

    Parameters
    ----------
    imported : tuple of str
        Modules that they share, since they are forked.
    detects : bool
        Whether they have detectors.
    """
    once, each = (FORKED_ONCE, FORKED) if imported else (0, WORKER)
    if DETECTOR in imported:
        return once + TORCH_FORKED_ONCE, each + (TORCH_FORKED if detects else 0)
    return (once + TORCH_ONCE, each + TORCH) if detects else (once, each)


def detector_bytes(weights: int, pixels: int, mirrored: bool) -> int:
    """Bytes that a detector takes of a worker, without what it imports.

    Parameters
    ----------
    weights : int
        Of its checkpoint.
    pixels : int
        That the network sees at once.
    mirrored : bool
        Whether it looks at mirror images too.
    """
    a_pixel = A_PIXEL + (MORE_VIEWS if mirrored else 0)
    return int(max(LOADING * weights, LOADED * weights + a_pixel * pixels))


def encoding_bytes(form: Format, itemsize: int) -> int:
    """Bytes that an encoder takes: its tables, a file's voxels put together, and these encoded."""
    tables = ENCODING.get(form.compression, 0) if form.compressor == "blosc-zstd" else 0
    return tables + 2 * form.file**3 * itemsize


def detecting_bytes(region: Shape, kept: int, pixels: int, block: Shape, itemsize: int) -> int:
    """Bytes that detecting takes beside the detector's own.

    Slices are read, their 8 bits taken and shrunk; masks are pasted at full size and encoded.

    Parameters
    ----------
    region : (z, y, x)
        What is read at once, voxels.
    kept : int
        How many of its slices are keyframes.
    pixels : int
        Of a mask.
    block, itemsize
        Of what is read.
    """
    depth, height, width = region
    copied = kept * height * width * itemsize if kept > 1 else 0
    working = max(decoding_bytes(region, block, itemsize), copied + height * width + 2 * pixels)
    return depth * height * width * itemsize + working


def decoding_bytes(region: Shape, block: Shape, itemsize: int) -> int:
    """Bytes that reading a region takes beside what is read: blocks as stored, and decoded."""
    if block[:2] == (1, 1):
        return 0  # rows are read as they lie
    blocks = prod(ceil(side / edge) + 1 for side, edge in zip(region, block, strict=True))
    at_once = 1 if block[0] == 1 else min(AT_ONCE, blocks)
    return 2 * at_once * prod(block) * itemsize


def writing_bytes(
    brick: Shape,
    itemsize: int,
    block: Shape,
    outputs: Mapping[str, tuple[Format, int]],
    masks: int,
    whole: bool,
    rescales: bool,
) -> int:
    """Bytes that writing a brick takes.

    Parameters
    ----------
    brick : (z, y, x)
        Voxels.
    itemsize : int
        Bytes a voxel of the stack.
    block : (z, y, x)
        What is read of it at once.
    outputs : mapping
        Format, and bytes a voxel, of each output.
    masks : int
        Bytes that its masks are made of.
    whole : bool
        Whether the brick is read at once, not tile by tile.
    rescales : bool
        Whether grey values become others.
    """
    depth, height, width = brick
    form = next(iter(outputs.values()))[0]
    tile = (min(form.file, depth), min(form.file, height), width)
    step = (min(form.step[0], depth), min(form.step[1], height), width)
    bytes_ = prod(tile) * itemsize + decoding_bytes(brick if whole else tile, block, itemsize)
    if whole:
        bytes_ += prod(brick) * itemsize
    if rescales:
        bytes_ += prod(tile) * max(size for _, size in outputs.values())
    for _, size in outputs.values():
        bytes_ += prod(step) * size // 8 + prod(step) * size // 64  # the two coarser levels
    if "mask" in outputs:
        bytes_ += tile[0] * tile[1] * min(PIECE, width) * (1 + itemsize)
        bytes_ += tile[1] * width * itemsize  # whole rows, of which some columns are wanted
    return bytes_ + masks


def held_bytes(keyframes: int, height: int, width: int) -> int:
    """Bytes of the masks that a brick is cut by, and of the last while it is read and dilated."""
    return keyframes * height * width + 3 * max(height, keyframe_store.ROWS_A_CHUNK) * width


def field_bytes(keyframes: int, height: int, shape: tuple[int, int]) -> int:
    """Bytes of the fields that a brick's masks are interpolated from, and of chunks of them.

    Parameters
    ----------
    keyframes : int
        How many.
    height : int
        Rows of the brick.
    shape : (height, width)
        Of a slice, pixels.
    """
    side = cell_side(*shape)
    rows, columns = cells(shape, side)
    mine, chunk = min(rows, height // side + 3), min(rows, field_store.ROWS_A_CHUNK)
    decoded = AT_ONCE * field_store.KEYFRAMES_A_CHUNK * chunk
    return 2 * (2 * keyframes * mine + decoded) * columns


def coarser_bytes(brick: Shape, form: Format, itemsize: int) -> int:
    """Bytes that writing a brick from a coarser level takes: a step of it is read, halved twice."""
    depth, height, width = brick
    return 3 * min(form.step[0], depth) * min(form.step[1], height) * width * itemsize
