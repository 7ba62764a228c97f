"""What a plan will take: tasks, bytes, files, memory. From headers; no pixel is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np

from zarrmask.detection.inputs import NetworkInput
from zarrmask.masking.field import cell_side, cells
from zarrmask.masking.keyframe_store import ROWS_A_CHUNK
from zarrmask.planning.memory import (
    A_TASK,
    CLIENT,
    CUDA,
    Memory,
    at_rest,
    coarser_bytes,
    decoding_bytes,
    detecting_bytes,
    detector_bytes,
    encoding_bytes,
    field_bytes,
    held_bytes,
    writing_bytes,
)
from zarrmask.planning.plan import Plan
from zarrmask.planning.reading import (
    SLICES_A_TASK,
    KeyframeRuns,
    decodes_ahead,
    has_coarser,
    keyframe_runs,
    reads_by_tile,
    sampled_runs,
)
from zarrmask.pyramid import USUAL_BRICK, BrickGrid, Pyramid, Shape, brick_grid
from zarrmask.stack import Source, decoded_bytes
from zarrmask.storage.place import is_local
from zarrmask.workers.crew import Crew

LEAST_SHARE = {"volume": 0.1, "masked": 0.01}
"""What of an output's level 0 is written at the least: noise alone keeps a scan above a third, a
tenth leaves room for one that is mostly empty. A mask takes next to nothing, and leaves of the
masked volume what it likes."""

# https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
SHARD_INDEX_ENTRY, SHARD_INDEX_CHECKSUM = 16, 4
MEASURED = 3
"""Times its pixels that a mask takes, in bytes, while its fields are measured."""
LARGEST_BRICK, SMALLEST_BRICK = 2**40, 2**20
"""Bytes between which bricks are chosen by the memory there is, by halving."""


@dataclass(frozen=True)
class Network:
    """What of a detector there is to know before it is loaded.

    Attributes
    ----------
    weights : int
        Bytes of its checkpoint.
    input : NetworkInput
        The size in which it sees a slice.
    mirrored : bool
        Whether it looks at a slice's mirror images too.
    """

    weights: int
    input: NetworkInput
    mirrored: bool = False


@dataclass(frozen=True)
class Copying:
    """What there is to do with masks that are given.

    Attributes
    ----------
    bytes : int
        That a task takes which copies some of them.
    copies, looks : int
        Tasks that copy, and that look at what was copied.
    """

    bytes: int
    copies: int
    looks: int


@dataclass(frozen=True)
class Forecast:
    """What the work on a stack will take.

    Attributes
    ----------
    source : Source
        What is read.
    plan : Plan
        What is done.
    pyramids : mapping
        What is written, by name.
    crew : Crew
        Who does it.
    network : Network or None
        The detector of a run; a conversion has none.
    samples : tuple of bool
        Of each sample of grey values that is taken first, whether it is of the finest level.
    rescales : bool
        Whether they become others.
    overlaps : bool
        Whether bricks are written while detecting goes on.
    held : int
        Masks of whole slices that a brick is cut by, beside those of the plan's keyframes.
    copying : Copying or None
        Of masks that are given.
    """

    source: Source
    plan: Plan
    pyramids: Mapping[str, Pyramid]
    crew: Crew
    network: Network | None = None
    samples: tuple[bool, ...] = ()
    rescales: bool = False
    overlaps: bool = False
    held: int = 0
    copying: Copying | None = None

    @property
    def detects(self) -> bool:
        """Whether keyframes are detected on."""
        return self.network is not None

    @cached_property
    def detecting(self) -> list[KeyframeRuns]:
        """How keyframes are read for the detector, round by round, if all are seen."""
        if self.network is None:
            return []
        seen = self.network.input.read.shape(*self.source.shape[1:])
        rounds = (self.plan.keyframes[positions] for positions in self.plan.placing.rounds())
        return [keyframe_runs(self.source, one, seen, self.crew.workers) for one in rounds]

    @cached_property
    def sampling(self) -> list[KeyframeRuns]:
        """How slices are read for samples of grey values."""
        coarser = has_coarser(self.source)
        levels = {finest and coarser for finest in self.samples}
        return [
            sampled_runs(self.source, self.plan.keyframes, finest=finest)
            for finest in sorted(levels)
        ]

    @property
    def masks(self) -> bool:
        """Whether anything is masked, be it by masks that are given."""
        return "mask" in self.pyramids

    @property
    def keyframes(self) -> int:
        """Slices that have a mask of their own, at most."""
        return len(self.plan.keyframes) if self.masks else 0

    @property
    def keyframes_at_least(self) -> int:
        """Slices that the detector sees in any case."""
        return len(self.plan.placing.first) if self.detects else 0

    @cached_property
    def tasks(self) -> dict[str, int]:
        """Number of tasks of each stage, at most."""
        rounds = {"sampling contrast": self.sampling, "detecting": self.detecting}
        detecting = {n: sum(len(runs.lengths) for runs in each) for n, each in rounds.items()}
        coarser: dict[str, int] = {}
        for pyramid in self.pyramids.values():
            for level in pyramid.passes[1:]:
                stage = f"writing from level {level}"
                coarser[stage] = coarser.get(stage, 0) + len(pyramid.bricks(level))
        ahead = ceil(self.plan.shape[0] / SLICES_A_TASK) if self.decodes_ahead else 0
        given: dict[str, int] = {}
        if self.copying:
            given = {"copying masks": self.copying.copies, "looking at masks": self.copying.looks}
        stages = {
            **detecting,
            **given,
            "decoding": ahead,
            "writing": len(self.plan.grid),
            **coarser,
        }
        return {stage: count for stage, count in stages.items() if count}

    @property
    def bytes_read(self) -> dict[str, int]:
        """Bytes of voxels that are read, at most: as if none were compressed or left out.

        What is stored in blocks is read in whole blocks, by each brick anew.
        """
        block, itemsize, shape = self.source.block, self.source.dtype.itemsize, self.source.shape
        read: dict[str, int] = {}
        for name, rounds in (("sample", self.sampling), ("keyframes", self.detecting)):
            for runs in rounds:
                depth, height, width = runs.source.shape
                slices = covered(runs.spans(), runs.source.block[0], depth)
                read[name] = read.get(name, 0) + slices * height * width * itemsize
        if self.decodes_ahead:
            read["slices"] = self.plan.shape[0] * shape[1] * shape[2] * itemsize
        if self.decodes_ahead or block[:2] == (1, 1):
            block = (1, 1, 1)  # rows as they lie
        sides = (
            covered(parts, edge, size)
            for parts, edge, size in zip(
                cuts(self.plan.grid, self.plan.origin), block, shape, strict=True
            )
        )
        read["bricks"] = prod(sides) * itemsize
        read["scratch"] = self._handed_over_bytes
        return read

    @property
    def files(self) -> dict[str, int]:
        """Files of voxels that are written, at most: chunks or shards of all levels."""
        files = {
            name: sum(stored(pyramid, level)[0] for level in range(len(pyramid.levels)))
            for name, pyramid in self.pyramids.items()
        }
        if self.masks:
            files["keyframes"] = self.keyframes * ceil(self.source.shape[1] / ROWS_A_CHUNK)
        return files

    @property
    def bytes_written(self) -> dict[str, int]:
        """Bytes of voxels that are written, at most: as if none compressed, or were left out."""
        return {
            name: sum(stored(pyramid, level)[1] for level in range(len(pyramid.levels)))
            for name, pyramid in self.pyramids.items()
        }

    @property
    def decodes_ahead(self) -> bool:
        """Whether slices are decoded first, into scratch files that all workers see."""
        place = next(iter(self.pyramids.values())).path
        return (is_local(place) or self.crew.local) and decodes_ahead(self.source, self.plan)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the scratch files of slices that are decoded ahead."""
        _, height, width = self.source.shape
        itemsize = self.source.dtype.itemsize
        slabs = decoded_bytes(self.plan.grid.brick[0], height, width, itemsize)
        return slabs if self.decodes_ahead else 0

    @property
    def scratch_bytes(self) -> int:
        """Bytes, at most, of what passes hand on, of fields, and of slices decoded ahead."""
        return self._handed_over_bytes + self._field_bytes + self.decoded_bytes

    @property
    def _field_bytes(self) -> int:
        if not self.masks or self.plan.propagate == "hold":
            return 0
        _, height, width = self.source.shape
        return 4 * self.keyframes * prod(cells((height, width), cell_side(height, width)))

    @property
    def _handed_over_bytes(self) -> int:
        total = 0
        for pyramid in self.pyramids.values():
            chunk = pyramid.handed_over_chunk
            for level in pyramid.passes[1:]:
                sides = zip(pyramid.levels[level], chunk, strict=True)
                chunks = prod(ceil(size / edge) for size, edge in sides)
                total += chunks * prod(chunk) * np.dtype(pyramid.dtype).itemsize
        return total

    @cached_property
    def memory(self) -> Memory:
        """Peak memory."""
        _, height, width = self.source.shape
        itemsize, block = self.source.dtype.itemsize, self.source.block
        grid, form = self.plan.grid, next(iter(self.pyramids.values())).format
        outputs = {n: (p.format, np.dtype(p.dtype).itemsize) for n, p in self.pyramids.items()}
        masks = self._mask_bytes(grid.brick) if self.masks else 0
        reading, whole = block, not reads_by_tile(self.source, self.plan.origin, form.file)
        each: dict[str, tuple[int, int]] = {}
        shared, worker = at_rest(self.crew.imported, detects=self.network is not None)
        if self.network is not None:
            seen = prod(self.network.input.shape(height, width))
            worker += detector_bytes(self.network.weights, seen, self.network.mirrored)
            worker += CUDA if self.crew.gpus else 0
            sizes = {
                detecting_bytes(
                    (span.stop - span.start, *runs.source.shape[1:]),
                    length,
                    height * width,
                    runs.source.block,
                    itemsize,
                )
                for runs in self.detecting
                for span, length in zip(runs.spans(), runs.lengths, strict=True)
            }
            each["detecting on a slice"] = max(sizes), self.tasks["detecting"]
        hands = self.crew.workers * self.crew.threads
        if self.copying:
            each["copying masks"] = self.copying.bytes, self.copying.copies
        if self.masks and self.plan.propagate != "hold":
            each["measuring masks"] = MEASURED * height * width, hands
        if self.decodes_ahead:
            reading, whole = (1, 1, 1), False
            decoding = decoding_bytes((1, height, width), block, itemsize)
            each["decoding a slice"] = height * width * itemsize + decoding, self.tasks["decoding"]
        writing = writing_bytes(grid.brick, itemsize, reading, outputs, masks, whole, self.rescales)
        writing += self._encoding_bytes(len(outputs), grid.brick[2])
        each["writing a brick"] = writing, len(grid)
        if self.overlaps:  # whoever has written a brick keeps its buffers while detecting
            detecting, slices = each["detecting on a slice"]
            each["writing a brick"] = writing + detecting, len(grid) + slices
        for pyramid in self.pyramids.values():
            for level in pyramid.passes[1:2]:  # the others are smaller
                bricks, size = pyramid.bricks(level), np.dtype(pyramid.dtype).itemsize
                taken = coarser_bytes(bricks.brick, form, size)
                taken += self._encoding_bytes(1, bricks.brick[2])
                each[f"writing from a level of {pyramid.path.name}"] = taken, len(bricks)
        return Memory(
            client=CLIENT + A_TASK * max(self.tasks.values()),
            shared=shared,
            worker=worker,
            tasks={kind: (size, min(hands, count)) for kind, (size, count) in each.items()},
            workers=self.crew.workers,
            threads=self.crew.threads,
        )

    def _encoding_bytes(self, outputs: int, width: int) -> int:
        """Bytes that are taken by what encodes rows of files, of so many outputs at once."""
        form = next(iter(self.pyramids.values())).format
        files = outputs * ceil(width / form.file)
        itemsize = max(np.dtype(pyramid.dtype).itemsize for pyramid in self.pyramids.values())
        encoders = max(1, self.crew.encoders // self.crew.threads)
        return min(encoders, files) * encoding_bytes(form, itemsize)

    def _mask_bytes(self, brick: Shape) -> int:
        """Bytes that a brick's masks are made of."""
        if self.plan.propagate == "hold":
            return held_bytes(self._keyframes_a_brick() + self.held, *brick[1:])
        _, height, width = self.source.shape
        fields = field_bytes(self._keyframes_a_brick() + 1, brick[1], (height, width))
        return fields + (held_bytes(self.held, *brick[1:]) if self.held else 0)

    def _keyframes_a_brick(self) -> int:
        """Most keyframes that a brick's masks are made of."""
        counts = [
            np.searchsorted(self.plan.keyframes, part.stop)
            - np.searchsorted(self.plan.keyframes, part.start, "right")
            for part in cuts(self.plan.grid, self.plan.origin)[0]
        ]
        return int(max(counts)) + 1  # the one before holds on

    @property
    def fits(self) -> bool:
        """Whether the memory will do."""
        if self.crew.memory is None:
            return True
        return self.memory.needed(local=self.crew.local) <= self.crew.memory

    def with_bricks(self, grid: BrickGrid) -> Forecast:
        """The same with other bricks."""
        return replace(self, plan=replace(self.plan, grid=grid))

    def staffed(self) -> Forecast:
        """The same with as many workers as fit; where not even one does, with one."""
        fewer = self
        for crew in smaller_crews(self.crew):
            if fewer.fits:
                break
            fewer = replace(self, crew=crew)
        return fewer

    def fitted(self) -> Forecast:
        """The same with as many workers, and then as large bricks of whole blocks, as fit.

        Small bricks are many tasks, which the client keeps: the smallest do not take least. Where
        nothing fits, it is with one worker and the bricks that do.
        """
        form = next(iter(self.pyramids.values())).format
        shape, itemsize = self.plan.shape, self.source.dtype.itemsize
        # Everybody is to have one at least, though slices may have to be decoded ahead for it.
        share = prod(shape) * itemsize // (self.crew.workers * self.crew.threads)
        largest = max(SMALLEST_BRICK, min(share, LARGEST_BRICK))

        def cut(forecast: Forecast, budget: int) -> Forecast:
            grid = brick_grid(shape, itemsize, self.source.block, budget, form.step)
            return forecast.with_bricks(grid)

        if self.crew.memory is None:
            return cut(self, min(USUAL_BRICK, largest))
        budgets = [largest]
        while budgets[-1] > SMALLEST_BRICK:
            budgets.append(budgets[-1] // 2)
        for budget in budgets:
            if (all_of_them := cut(self, budget)).fits:
                return all_of_them
        crews = list(smaller_crews(self.crew))
        fitting: Forecast | None = None
        for budget in budgets:
            while crews and (more := cut(replace(self, crew=crews[-1]), budget)).fits:
                fitting = more
                crews.pop()
        if fitting:
            return fitting
        least = replace(self, crew=crews[-1]) if crews else self
        return min((cut(least, budget) for budget in budgets), key=lambda one: one.memory.total)

    @property
    def least_bytes(self) -> int:
        """Bytes that the outputs take on a disk at the very least.

        See `LEAST_SHARE`. The masked volume counts where it is all that is written of the stack.
        """
        name = "volume" if "volume" in self.pyramids else "masked"
        itemsize = np.dtype(self.pyramids[name].dtype).itemsize
        return int(LEAST_SHARE[name] * prod(self.plan.shape) * itemsize)

    def record(self) -> dict[str, Any]:
        """What a finished run keeps of it, and `zarrmask plan --json` prints."""
        memory, grid, crew = self.memory, self.plan.grid, self.crew
        return {
            "slices": self.plan.shape[0],
            "shape": list(self.plan.shape),
            "dtype": str(self.source.dtype),
            "keyframes": self.keyframes,
            "keyframes_at_least": self.keyframes_at_least,
            "bricks": {"count": len(grid), "grid": list(grid.counts), "voxels": list(grid.brick)},
            "tasks": self.tasks,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "files": self.files,
            "scratch_bytes": self.scratch_bytes,
            "workers": crew.workers,
            "threads": crew.threads,
            "memory_bytes": crew.memory,
            "peak_memory_bytes_a_worker": memory.a_worker,
            "peak_memory_bytes": memory.total,
        }


def smaller_crews(crew: Crew) -> Iterator[Crew]:
    """Go through crews that are smaller by a worker each time."""
    while smaller := crew.fewer():
        crew = smaller
        yield crew


def cuts(grid: BrickGrid, origin: Shape) -> tuple[list[slice], ...]:
    """Where bricks lie in the stack along each axis."""
    return tuple(
        [slice(start + at, start + min(at + edge, size)) for at in range(0, size, edge)]
        for size, edge, start in zip(grid.shape, grid.brick, origin, strict=True)
    )


def covered(parts: Iterable[slice], block: int, size: int) -> int:
    """Voxels along an axis that are read for some parts of it, each in whole blocks.

    Examples
    --------
    >>> covered([slice(0, 5), slice(5, 10)], block=4, size=10)
    14
    """
    return sum(
        min(ceil(part.stop / block) * block, size) - part.start // block * block for part in parts
    )


def stored(pyramid: Pyramid, level: int) -> tuple[int, int]:
    """Files of a level of a pyramid, and their bytes if nothing is compressed."""
    form, itemsize = pyramid.format, np.dtype(pyramid.dtype).itemsize
    files, chunks = (
        prod(ceil(size / side) for size in pyramid.levels[level])
        for side in (form.file, form.chunk)
    )
    inner = (form.file // form.chunk) ** 3
    index = 0 if form.file == form.chunk else SHARD_INDEX_ENTRY * inner + SHARD_INDEX_CHECKSUM
    return files, chunks * form.chunk**3 * itemsize + files * index
