"""What a whole scroll asks of Dask's scheduler: its plan, its graph, its bricks.

    python benchmarks/graph.py [--slabs 106] [--seconds 1] [--json FILE]

The first table builds the plan and the graph of stacks up to 27,000 x 8,096 x 8,096, sends it to a
scheduler without workers, and takes the time until that knows all tasks. For the second, each brick
of the largest stack is a task that sleeps and enters itself in the ledger, as a real one does, on a
local cluster of 4 processes with 16 threads, through the same lines of `zarrmask.running.writing`
as a real run. The shares are of the threads' time from the first line to the last: what the workers
say that tasks took (the ledger's entry is in it), and what was spent asleep alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from distributed import Client, Future, LocalCluster, futures_of, get_task_stream
from distributed.protocol import dumps
from numpy.typing import NDArray
from rich.console import Console

from zarrmask.planning.plan import Plan, make_plan
from zarrmask.progress import Reporter
from zarrmask.pyramid import BrickGrid, Shape, brick_key
from zarrmask.records.ledger import Ledger
from zarrmask.running.writing import compute_bricks, missing_bricks
from zarrmask.settings import read_settings
from zarrmask.stack.header import Header
from zarrmask.stack.slices import SliceSource
from zarrmask.stack.tiff import read_tiff
from zarrmask.workers.blocks import one_task_each

SHAPES: tuple[Shape, ...] = (
    (1_000, 1_024, 1_024),
    (3_000, 2_048, 2_048),
    (9_000, 4_096, 4_096),
    (27_000, 8_096, 8_096),
)
PROCESSES, THREADS = 4, 16


def stack(shape: Shape) -> SliceSource:
    """A stack of slices that are nowhere: names and headers as real ones have."""
    header = Header(shape[1:], np.dtype(np.uint16), (1, shape[2]), 8, 512, False)
    names = [f"slice_{z:05d}.tif" for z in range(shape[0])]
    return SliceSource("/scroll", "TIFF slices", read_tiff, 0, names, [header] * shape[0])


def sleep(
    index: NDArray[np.int64],
    *,
    grid: BrickGrid,
    ledger: Ledger,
    source: SliceSource,
    seconds: float,
) -> NDArray[np.bool_]:
    """A brick that takes its time."""
    time.sleep(seconds)
    z, y, x = index[0].tolist()
    ledger.enter(brick_key((z, y, x)), 0)
    return np.ones(1, bool)


def bricks(source: SliceSource, plan: Plan, folder: Path, seconds: float) -> da.Array:
    """The bricks of a plan as `write_pyramids` maps them, each a sleep."""
    ledger, shared = Ledger(folder), delayed(source, traverse=False)
    missing = missing_bricks(plan.grid.indices(), ledger)
    return one_task_each(
        missing, sleep, grid=plan.grid, ledger=ledger, source=shared, seconds=seconds
    )


def persisted(client: Client, source: SliceSource, plan: Plan, folder: Path) -> list[Future]:
    """Hand the bricks to the scheduler as one collection, as `zarrmask.workers.blocks` does."""
    futures: list[Future] = futures_of(client.persist(bricks(source, plan, folder, 0)))
    return futures


def known_tasks(client: Client, submit: Callable[[], list[Future]]) -> tuple[int, float]:
    """Submit tasks and forget them; gives their number and when the scheduler knew them all."""
    futures = submit()
    while (tasks := client.run_on_scheduler(_tasks)) < len(futures):
        time.sleep(0.01)
    known = time.perf_counter()
    client.cancel(futures)
    while client.run_on_scheduler(_tasks):
        time.sleep(0.01)
    return tasks, known


@contextmanager
def watched(client: Any, sizes: list[int]) -> Iterator[None]:
    """Note the bytes of the graphs that go to the scheduler meanwhile."""
    send = client._send_to_scheduler

    def noting(message: dict[str, Any]) -> None:
        if message["op"] == "update-graph":
            sizes.append(sum(len(frame) for frame in dumps(message)))
        send(message)

    client._send_to_scheduler = noting
    try:
        yield
    finally:
        client._send_to_scheduler = send


def build(client: Client, shape: Shape, folder: Path) -> dict[str, Any]:
    """Build a stack's plan and graph, and wait until the scheduler knows all of it."""
    source = stack(shape)
    start = time.perf_counter()
    plan = make_plan(source, read_settings())
    planned = time.perf_counter()
    tasks, known = known_tasks(client, lambda: persisted(client, source, plan, folder))
    sizes: list[int] = []
    with watched(client, sizes):
        known_tasks(client, lambda: persisted(client, source, plan, folder))
    return {
        "shape": shape,
        "bricks": len(plan.grid),
        "plan_seconds": planned - start,
        "graph_seconds": known - planned,
        "tasks": tasks,
        "graph_bytes": sum(sizes),
    }


def _tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def sleep_through(client: Client, slabs: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Write bricks of the largest stack, asleep."""
    z, y, x = SHAPES[-1]
    source = stack((min(256 * slabs, z), y, x))
    plan = make_plan(source, read_settings())
    reporter = Reporter(Console(quiet=True))
    with get_task_stream(client) as stream:
        start = time.perf_counter()
        compute_bricks(
            client, [bricks(source, plan, folder, seconds)], "sleeping", len(plan.grid), 0, reporter
        )
        wall = time.perf_counter() - start
    inside = sum(
        part["stop"] - part["start"]
        for task in stream.data
        for part in task["startstops"]
        if part["action"] == "compute"
    )
    time_there = PROCESSES * THREADS * wall
    return {
        "bricks": len(plan.grid),
        "brick_seconds": seconds,
        "threads": PROCESSES * THREADS,
        "wall_seconds": wall,
        "share_inside": inside / time_there,
        "share_asleep": len(plan.grid) * seconds / time_there,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slabs", type=int, default=106, help="of 32 bricks; 106 are the scroll")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a brick sleeps")
    parser.add_argument("--json", type=Path, help="save the figures here too")
    options = parser.parse_args()

    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with tempfile.TemporaryDirectory() as name:
        with LocalCluster(n_workers=0, **local) as cluster, Client(cluster) as client:
            rows = [build(client, shape, Path(name, "built")) for shape in SHAPES]
        print("| stack | bricks | plan, s | graph, s | tasks | graph, MB |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            z, y, x = row["shape"]
            print(
                f"| {z:,} x {y:,} x {x:,} | {row['bricks']:,} | {row['plan_seconds']:.2f} | "
                f"{row['graph_seconds']:.2f} | {row['tasks']:,} | {row['graph_bytes'] / 1e6:.2f} |"
            )
        with (
            LocalCluster(n_workers=PROCESSES, threads_per_worker=THREADS, **local) as cluster,
            Client(cluster) as client,
        ):
            asleep = sleep_through(client, options.slabs, options.seconds, Path(name, "asleep"))
    print("\n| bricks | s a brick | threads | wall, s | inside tasks | asleep |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {asleep['bricks']:,} | {asleep['brick_seconds']:g} | {asleep['threads']} "
        f"| {asleep['wall_seconds']:.1f} | {asleep['share_inside']:.1%} "
        f"| {asleep['share_asleep']:.1%} |"
    )
    if options.json:
        options.json.write_text(json.dumps({"built": rows, "asleep": asleep}, indent=2) + "\n")


if __name__ == "__main__":
    main()
