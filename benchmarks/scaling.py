"""How far zarrmask scales over workers, and where their time goes.

    python benchmarks/scaling.py OUT [--part real] [--workers 1 2] [--rounds 3] [--threads 1 2 64]

Real: conversions and runs of a simulated scroll on 1 and 2 worker processes with as many cores,
which client and scheduler share; the same stack for all (strong), and a stack so many times as deep
(weak). Efficiency is of the time between the first task and the last: strong T(1) / (n T(n)), weak
T(1) / T(n). Simulated: tasks that sleep as long as a keyframe and a brick of a large scroll take,
on 4 processes of threads, through the same lines of `zarrmask.running.writing` as a run, on one
machine: what scheduler and client lose. Medians of the rounds.

Where the time goes: of all workers, from the start of the cluster to the end of the program,

    start      processes, imports, detectors loaded, contrast sampled: until the first task
    detecting  in tasks that read slices, detect, and measure masks
    writing    in tasks that decode, mask, halve, encode and write; benchmarks/convert.py --part
               where tells these apart
    waiting    for other tasks, for the scheduler, or for the client
    end        the report, and metadata

Prints Markdown, and leaves `scaling.json` and `scaling.png` in OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tifffile
from distributed import Client, LocalCluster, get_task_stream
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter
from numpy.typing import NDArray
from rich.console import Console

import zarrmask
from zarrmask.phantom import Phantom
from zarrmask.progress import Reporter
from zarrmask.pyramid import Shape
from zarrmask.records.ledger import Ledger
from zarrmask.workers.blocks import one_task_each, results
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import CrewRequest, find_crew

SETTINGS: dict[str, dict[str, Any]] = {"convert": {}, "run": {"every": 8}}
DETECTING = {"detect", "detect_anew", "measure_fields"}
WRITING = {"write_brick", "write_coarser", "decode", "decoded"}
PARTS = ("start", "detecting", "writing", "waiting", "end")
COLOURS = ("#9a9a9a", "#e08a2c", "#2c6fbb", "#d8d8d8", "#6d6d6d")
PROCESSES = 4
"""Of the simulated workers, at most; their threads stand for workers."""


@dataclass(frozen=True)
class Timing:
    """What a piece of work took.

    Attributes
    ----------
    what : str
        "convert", "run" or "simulated".
    mode : str
        "strong" or "weak".
    workers : int
    wall : float
        Seconds, from the start of the cluster to the end.
    work : float
        Of these, from the first task to the last.
    parts : dict
        Seconds of all workers together, by `PARTS`.
    """

    what: str
    mode: str
    workers: int
    wall: float
    work: float
    parts: dict[str, float]


def kind(key: str | tuple[str, ...]) -> str | None:
    """Which of the parts a task is of, by its key; None where it is of the start."""
    names = set((key if isinstance(key, str) else key[0]).split("-"))  # of tasks that are fused
    return "detecting" if names & DETECTING else "writing" if names & WRITING else None


def timing(
    what: str, mode: str, workers: int, begun: float, ended: float, stream: Sequence[Any]
) -> Timing:
    """Tell where the time of a piece of work went.

    Parameters
    ----------
    begun, ended : float
        By `time.time`.
    stream : sequence
        Of Dask's tasks, as `get_task_stream` collects them.
    """
    busy: Counter[str] = Counter()
    firsts, lasts = [], []
    for task in stream:
        if (part := kind(task["key"])) is not None:
            spans = [one for one in task["startstops"] if one["action"] == "compute"]
            busy[part] += sum(one["stop"] - one["start"] for one in spans)
            firsts += [one["start"] for one in spans]
            lasts += [one["stop"] for one in spans]
    first, last = min(firsts), max(lasts)
    parts = {
        "start": workers * (first - begun),
        **{part: busy[part] for part in ("detecting", "writing")},
        "waiting": workers * (last - first) - busy.total(),
        "end": workers * (ended - last),
    }
    return Timing(what, mode, workers, ended - begun, last - first, parts)


def make_stack(folder: Path, shape: Shape) -> Path:
    """The middle of a simulated scroll."""
    folder.mkdir(parents=True)
    depth, height, width = shape
    phantom = Phantom((2 * depth, height, width), seed=4)
    for z in range(depth):
        tifffile.imwrite(folder / f"{z:05d}.tif", phantom.slice(depth // 2 + z)[0])
    return folder


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Let this process, and all that it starts, use so many cores of those that it may.

    A worker's codecs have threads of their own, and would take what another has not.
    """
    there = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(there)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, there)


def real(what: str, mode: str, workers: int, stack: Path, depth: int) -> Timing:
    """Convert so many slices of a stack, or run on them, with so many workers and cores."""
    out = stack.with_name("out.zarr")
    os.sync()
    begun = time.time()
    quiet = Reporter(Console(quiet=True))
    with (
        cores(workers),
        connect(find_crew(CrewRequest(workers=workers), quiet), [], quiet) as client,
        get_task_stream(client) as stream,
    ):
        program = zarrmask.run if what == "run" else zarrmask.convert
        program(
            stack,
            out,
            scheduler=client.scheduler.address,
            reporter=quiet,
            z=f"0:{depth}",
            **SETTINGS[what],
        )
    ended = time.time()
    shutil.rmtree(out)
    return timing(what, mode, workers, begun, ended, stream.data)


def asleep(place: NDArray[np.int64], *, ledger: Ledger, seconds: float) -> NDArray[np.bool_]:
    """A task that takes its time, and enters itself in the ledger as real ones do."""
    time.sleep(seconds)
    ledger.enter(int(place[0]), 0)
    return np.ones(1, bool)


def simulated(mode: str, workers: int, scale: int, options: argparse.Namespace) -> Timing:
    """Detect on keyframes and write bricks, asleep, with so many threads; so many times as much."""
    processes = min(PROCESSES, workers)
    begun = time.time()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=processes,
            threads_per_worker=workers // processes,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
        get_task_stream(client) as stream,
    ):
        for task, count, seconds in (
            ("detect", options.keyframes, options.keyframe_seconds),
            ("write_brick", options.bricks, options.brick_seconds),
        ):
            layer = one_task_each(
                np.arange(scale * count),
                asleep,
                token=task,
                ledger=Ledger(Path(folder, task)),
                seconds=seconds,
            )
            results(client, [layer], lambda done: None)
    return timing("simulated", mode, workers, begun, time.time(), stream.data)


def measured(options: argparse.Namespace, tell: Callable[[Timing], None]) -> None:
    """Take the times of conversions and runs, round by round."""
    fewest, most = min(options.workers), max(options.workers)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        depth, height, width = options.shape
        stack = make_stack(Path(name, "stack"), (most * depth // fewest, height, width))
        real("convert", "strong", most, stack, depth)  # the first of all is slower
        for _ in range(options.rounds):
            for what in SETTINGS:
                for workers in options.workers:
                    tell(one := real(what, "strong", workers, stack, depth))
                    if workers > fewest:
                        one = real(what, "weak", workers, stack, workers * depth // fewest)
                    tell(replace(one, mode="weak"))


def slept(options: argparse.Namespace, tell: Callable[[Timing], None]) -> None:
    """Take the times of tasks that sleep; for the weak ones the least number has a share of all."""
    most = max(options.threads)
    for threads in options.threads:
        tell(simulated("strong", threads, most, options))
        tell(simulated("weak", threads, threads, options))


MEASURED = {"real": measured, "simulated": slept}


def medians(timings: Sequence[Timing]) -> list[Timing]:
    """One of each kind."""
    kinds = dict.fromkeys((one.what, one.mode, one.workers) for one in timings)
    found = []
    for place in kinds:
        same = [one for one in timings if (one.what, one.mode, one.workers) == place]
        wall, work = (median(getattr(one, name) for one in same) for name in ("wall", "work"))
        parts = {part: median(one.parts[part] for one in same) for part in PARTS}
        found.append(Timing(*place, wall, work, parts))
    return found


def efficiency(one: Timing, timings: Sequence[Timing]) -> float:
    """How well workers are used, compared with the fewest: 1 is perfectly."""
    alike = [other for other in timings if (other.what, other.mode) == (one.what, one.mode)]
    base = min(alike, key=lambda other: other.workers)
    more = one.workers / base.workers if one.mode == "strong" else 1
    return base.work / (one.work * more)


def table(timings: Sequence[Timing]) -> str:
    """Write timings as Markdown."""
    lines = [
        "| | | workers | seconds | of them work | efficiency | " + " | ".join(PARTS) + " |",
        "|" + "---|" * (6 + len(PARTS)),
    ]
    for one in timings:
        shares = " | ".join(f"{one.parts[part] / (one.workers * one.wall):.0%}" for part in PARTS)
        lines.append(
            f"| {one.what} | {one.mode} | {one.workers} | {one.wall:.1f} | {one.work:.1f} | "
            f"{efficiency(one, timings):.0%} | {shares} |"
        )
    return "\n".join(lines)


def draw(timings: Sequence[Timing], path: Path) -> None:
    """Draw efficiency over workers, strong and weak, and below where the time goes."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    mosaic = [["strong", "weak"], ["parts", "parts"]]
    axes: dict[str, Any] = figure.subplot_mosaic(mosaic, height_ratios=(1, 1.1))
    for mode in ("strong", "weak"):
        plot = axes[mode]
        for what, marker in zip((*SETTINGS, "simulated"), "osD", strict=True):
            chosen = [one for one in timings if (one.what, one.mode) == (what, mode)]
            chosen.sort(key=lambda one: one.workers)
            values = [efficiency(one, timings) for one in chosen]
            plot.plot([one.workers for one in chosen], values, marker, ls="-", label=what)
        counts = sorted({one.workers for one in timings})
        plot.set_xscale("log", base=2)
        plot.set_xticks(counts)
        plot.xaxis.set_major_formatter(ScalarFormatter())
        plot.xaxis.set_minor_locator(NullLocator())
        plot.yaxis.set_major_formatter(PercentFormatter(1))
        plot.set_ylim(0, 1.15)
        plot.axhline(1, color="black", lw=0.7)
        plot.grid(alpha=0.3)
        plot.set_xlabel("workers")
        plot.set_title({"strong": "the same work", "weak": "so many times the work"}[mode])
    axes["strong"].set_ylabel("efficiency")
    axes["strong"].legend(loc="lower left")
    bars = [one for one in timings if one.mode == "strong"]
    plot = axes["parts"]
    names = [f"{one.what}, {one.workers}" for one in bars]
    left = np.zeros(len(bars))
    for part, colour in zip(PARTS, COLOURS, strict=True):
        shares = np.array([one.parts[part] / (one.workers * one.wall) for one in bars])
        plot.barh(names, shares, left=left, color=colour, label=part)
        left += shares
    plot.invert_yaxis()
    plot.set_xlim(0, 1)
    plot.xaxis.set_major_formatter(PercentFormatter(1))
    plot.set_title("where the time of all workers goes (the same work)")
    plot.legend(ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path)
    add("--part", action="append", choices=MEASURED, help="the other stays as it was; default: all")
    add("--workers", type=int, nargs="+", default=[1, 2], help="real ones")
    add("--rounds", type=int, default=3)
    add("--shape", type=int, nargs=3, default=[512, 1024, 1280], metavar="N")
    add("--folder", type=Path, help="where to work: the disk that is measured")
    add("--threads", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="simulated ones")
    add("--keyframes", type=int, default=4, help="of each simulated worker")
    add("--keyframe-seconds", type=float, default=0.1)
    add("--bricks", type=int, default=3, help="of each simulated worker")
    add("--brick-seconds", type=float, default=1.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "scaling.json"
    kept: dict[str, list[dict[str, Any]]] = json.loads(file.read_text()) if file.exists() else {}
    for part in options.part or MEASURED:
        kept[part] = []

        def tell(one: Timing, part: str = part) -> None:
            kept[part].append(asdict(one))
            print(one, file=sys.stderr)

        MEASURED[part](options, tell)
        file.write_text(json.dumps(kept, indent=1) + "\n")
    timings = medians([Timing(**one) for part in MEASURED for one in kept.get(part, [])])
    print(table(timings))
    draw(timings, options.out / "scaling.png")


if __name__ == "__main__":
    main()
