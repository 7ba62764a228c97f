"""Seconds and peak memory of each stage of a whole run on a simulated scroll.

    python benchmarks/first_light.py [--shape 260 720 1280] [--every 10] [--workers N] [--stack DIR]

Peak memory is the highest sum, over all processes of the run, of their proportional set sizes,
sampled five times a second. With --stack an existing stack is masked instead of a simulated one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import zarrmask
from zarrmask.phantom import write_phantom
from zarrmask.progress import Advance, Reporter
from zarrmask.workers.peak_memory import PeakMemory


@dataclass
class MeasuringReporter(Reporter):
    """Keeps the peak memory of each stage beside its seconds."""

    peaks: list[int] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int, unit: str, **of: int) -> Iterator[Advance]:
        with PeakMemory(interval=0.2) as memory, super().stage(name, total, unit, **of) as advance:
            yield advance
        self.peaks.append(memory.peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(260, 720, 1280), metavar="N")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--stack", type=Path)
    parser.add_argument("--json", type=Path, help="save the figures here too")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        stack = options.stack or Path(folder) / "stack"
        if options.stack is None:
            write_phantom(stack, tuple(options.shape))
        reporter = MeasuringReporter()
        start = time.perf_counter()
        with PeakMemory(interval=0.2) as memory:
            record = zarrmask.run(
                stack,
                Path(folder) / "out",
                every=options.every,
                workers=options.workers,
                reporter=reporter,
            )
        seconds = time.perf_counter() - start

    rows: list[dict[str, Any]] = [
        {"stage": s.name, "items": f"{s.items} {s.unit}", "seconds": s.seconds, "peak": peak}
        for s, peak in zip(reporter.stages, reporter.peaks, strict=True)
    ]
    rows.append(
        {
            "stage": "all, with start and end",
            "items": "",
            "seconds": seconds,
            "peak": max(memory.peak, *reporter.peaks),  # each looks at moments of its own
        }
    )
    z, y, x = record["shape"]
    print(f"\n{z} x {y} x {x} {record['input']['dtype']}, {psutil.cpu_count()} cores\n")
    print("| stage | | seconds | peak memory, GB |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['stage']} | {row['items']} | {row['seconds']:.1f} | {row['peak'] / 1e9:.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
