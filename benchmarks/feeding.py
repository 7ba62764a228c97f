"""Feeding a detector: the share of time that it spends in its network, by how many readers it has.

    python benchmarks/feeding.py [--device auto] [--batch 1] [--precision full] [--readers 1 2 4]

A reader is a process that reads uint16 TIFF slices, makes them 8 bits and shrinks them, as workers
do; the detector is the actor of a run, without Dask between them. The share counts from the first
slice that comes out of the network to the last: what is left is waiting for slices.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from conversion.findings import Findings
from detect import make_stack, prepared

from zarrmask.detection.actors import DetectorActor, DetectorSpec
from zarrmask.detection.devices import find_device
from zarrmask.detection.inputs import NetworkInput
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.stack import Source, open_source

AHEAD = 2
"""Slices that are read ahead by each reader."""
GOAL = 0.95


@dataclass
class Watched:
    """A detector whose time is taken.

    Attributes
    ----------
    detector : Detector
    spans : list of (float, float)
        When it began and ended, seconds.
    """

    detector: Any
    spans: list[tuple[float, float]]

    def detect(self, images: Sequence[Any], sizes: Sequence[Any]) -> Any:
        begun = time.perf_counter()
        found = self.detector.detect(images, sizes)
        self.spans.append((begun, time.perf_counter()))
        return found

    @property
    def network_input(self) -> NetworkInput:
        """The detector's."""
        found: NetworkInput = self.detector.network_input
        return found

    @property
    def share(self) -> float:
        """Of the time since the first was done, what was spent in the network."""
        since, until = self.spans[0][1], self.spans[-1][1]
        return sum(end - begun for begun, end in self.spans[1:]) / (until - since)


async def feed(actor: Any, source: Source, slices: int, readers: int) -> Watched:
    """Detect on so many slices, the stack's over and over."""
    loop, size = asyncio.get_running_loop(), (source.shape[1], source.shape[2])
    room = asyncio.Semaphore(AHEAD * readers)
    actor._detector = watched = Watched(actor._detector, [])
    with ProcessPoolExecutor(readers, get_context("spawn")) as pool:

        async def one(n: int) -> None:
            async with room:
                read = partial(prepared, source, actor.input(), n % source.shape[0])
                await actor.detect(await loop.run_in_executor(pool, read), size)

        await asyncio.gather(*(one(n) for n in range(AHEAD * readers)))  # readers start
        watched.spans.clear()
        await asyncio.gather(*(one(n) for n in range(slices)))
    actor._detector = watched.detector
    return watched


def measure(
    spec: DetectorSpec, device: str, stack: Path, slices: int, readers: Sequence[int]
) -> Findings:
    """Hold the share of time in the network against what it has to be."""
    found, source = Findings(), open_source(stack)
    actor = DetectorActor(spec, device)
    rows, shares = [], []
    for count in readers:
        watched = asyncio.run(feed(actor, source, slices, count))
        seconds = (watched.spans[-1][1] - watched.spans[0][1]) / max(slices - 1, 1)
        shares.append(watched.share)
        rows.append([str(count), f"{seconds:.3f}", f"{watched.share:.1%}"])
    found.table(["readers", "s a slice", "in the network"], rows)
    found.compare(
        "share of time in the network, with enough readers",
        f"at least {GOAL}",
        max(shares),
        lambda share: share >= GOAL,
    )
    found.figures.update(zip(map(str, readers), shares, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    add("--device", default="auto")
    add("--batch", type=int, default=1, help="slices that a GPU takes together")
    add("--precision", choices=("full", "fast"), default="full")
    add("--threads", type=int, default=1, help="of a detector on a processor")
    add("--readers", type=int, nargs="+", default=[1, 2, 4])
    add("--side", type=int, default=2048, help="pixels of the slices that are written")
    add("--slices", type=int, default=60, help="that are detected on, for each number of readers")
    options = parser.parse_args()
    if min(*options.readers, options.slices - 1, options.batch) < 1:
        parser.error("--readers and --batch have to be at least 1, --slices 2")
    device = str(find_device(options.device))
    spec = DetectorSpec(
        options.checkpoint,
        precision=options.precision,
        threads=options.threads,
        batch=options.batch,
    )
    with tempfile.TemporaryDirectory() as name:
        stack = make_stack(Path(name) / "stack", min(options.slices, 8), options.side)
        found = measure(spec, device, stack, options.slices, options.readers)
    print(f"{options.checkpoint.name} on {device}, {options.batch} together, {options.precision}")
    print(*found.lines, sep="\n")
    print(*found.goals, sep="\n")


if __name__ == "__main__":
    main()
