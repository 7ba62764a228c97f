"""Run zarrmask with masks given, and say what its writing took, start and report left out.

    python -m conversion.staged convert|run STACK OUT [--covers 0.55] [--no-volume]

Counted is from the start of the first writing stage to the end of a `sync` after the last one.
Prints {"seconds": ..., "kept": part of the voxels inside the mask, or null}.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import zarrmask
from conversion.given import arguments, given_masks
from zarrmask.progress import Advance, Reporter


@dataclass
class WritingReporter(Reporter):
    """Takes the time of the stages that write.

    Attributes
    ----------
    began, ended : float
        Of all writing stages together, by `time.perf_counter`.
    """

    began: float = 0.0
    ended: float = 0.0

    @contextmanager
    def stage(self, name: str, total: int, unit: str, **of: int) -> Iterator[Advance]:
        start = time.perf_counter()
        with super().stage(name, total, unit, **of) as advance:
            yield advance
        if name.startswith("writing"):
            os.sync()
            self.began = self.began or start
            self.ended = time.perf_counter()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--no-volume", action="store_true")
    options = parser.parse_args()
    reporter = WritingReporter()
    kept = None
    if options.what == "convert":
        zarrmask.convert(options.stack, options.out, reporter=reporter)
    else:
        with given_masks(options.covers):
            record = zarrmask.run(
                options.stack,
                options.out,
                every=10,
                volume=not options.no_volume,
                detect_window=(0, 65535),  # else slices are read to choose it
                reporter=reporter,
            )
        kept = record["voxels"]["kept"] / record["voxels"]["total"]
    if not reporter.ended:
        raise SystemExit("no stage's name began with `writing`: what is to be timed?")
    print(json.dumps({"seconds": reporter.ended - reporter.began, "kept": kept}))


if __name__ == "__main__":
    main()
