"""A stack to a six-level pyramid: zarrmask against `cp -r`.

    python benchmarks/convert.py [--shape 256 2048 2048] [--rounds 5]

All contestants take turns on the same stack of noisy uint16 TIFF slices; each ends in `sync`. What
is compared is the time less that of the same command on a stack of 128^3 (its start). Peak memory
is the highest sum, over all processes of a contestant, of their proportional set sizes. The last
table says where the time of zarrmask's tasks goes, measured in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile

SMALL = (128, 128, 128)


def make_stack(folder: Path, shape: tuple[int, ...]) -> Path:
    """Noisy slices that do not compress, as real ones do not."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 2**16, shape[1:], np.uint16)
    for z in range(shape[0]):
        tifffile.imwrite(folder / f"{z:05d}.tif", np.roll(noise, 37 * z, axis=1))
    return folder


def commands() -> dict[str, list[str]]:
    """Command line of each contestant, to be followed by a stack and an output."""
    return {"cp": ["cp", "-r"], "zarrmask": [sys.executable, "-m", "zarrmask", "convert"]}


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds of a command and the `sync` behind it, and the peak memory of its processes."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.1)
    os.sync()
    seconds = time.perf_counter() - start
    if process.returncode:
        message = process.stderr.read().decode() if process.stderr else ""
        raise SystemExit(f"{command[:4]} failed:\n{message}")
    return seconds, peak


def tree_memory(pid: int) -> int:
    """Bytes held by a process and all it started."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


@contextmanager
def timed(parts: dict[str, float], name: str, owner: Any, attribute: str) -> Iterator[None]:
    """Add up the seconds of a function while it is watched."""
    function = getattr(owner, attribute)

    def watched(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            parts[name] = parts.get(name, 0.0) + time.perf_counter() - start

    setattr(owner, attribute, watched)
    try:
        yield
    finally:
        setattr(owner, attribute, function)


def where_time_goes(stack: Path, out: Path) -> dict[str, float]:
    """Seconds that one process spends reading, halving, and compressing with writing."""
    import zarr

    from zarrmask.ledger import Ledger
    from zarrmask.pyramid import Pyramid, brick_grid, writing
    from zarrmask.stack import open_source
    from zarrmask.stack.slices import SliceSource
    from zarrmask.tasks import write_brick

    source = open_source(stack)
    grid = brick_grid(source.shape, source.dtype.itemsize, source.block)
    pyramid = Pyramid(out / "volume.zarr", out / "scratch", source.shape, str(source.dtype), "mean")
    pyramid.create()
    parts: dict[str, float] = {}
    start = time.perf_counter()
    with (
        timed(parts, "reading", SliceSource, "__getitem__"),
        timed(parts, "halving", writing, "halve"),
        timed(parts, "compressing and writing", zarr.Array, "__setitem__"),
    ):
        for index in grid.indices():
            write_brick(
                np.array([index]), source=source, offset=0, grid=grid, volume=pyramid,
                masked=None, mask=None, masks=None, ledger=Ledger(out / "finished"),
            )  # fmt: skip
    parts["the rest"] = time.perf_counter() - start - sum(parts.values())
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 2048, 2048), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up")
    parser.add_argument("--folder", type=Path, help="where to work; a disk with ten times the room")
    parser.add_argument("--json", type=Path, help="save the figures here too")
    options = parser.parse_args()
    contestants = commands()

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        stacks = {
            "whole": make_stack(folder / "stack", tuple(options.shape)),
            "start": make_stack(folder / "small", SMALL),
        }
        figures: dict[str, dict[str, list[float]]] = {
            name: {"whole": [], "start": [], "peak": []} for name in contestants
        }
        for turn in range(options.rounds + 1):
            for name in contestants:
                for size, stack in stacks.items():
                    out = folder / "out.zarr"
                    seconds, peak = measure([*contestants[name], str(stack), str(out)])
                    shutil.rmtree(out)
                    if turn:
                        figures[name][size].append(seconds)
                        if size == "whole":
                            figures[name]["peak"].append(peak)
            print(f"round {turn} of {options.rounds}", file=sys.stderr)
        parts = where_time_goes(stacks["whole"], folder / "parts")

    z, y, x = options.shape
    gigabytes = z * y * x * 2 / 1e9
    medians = {
        name: {what: statistics.median(values) for what, values in measured.items()}
        for name, measured in figures.items()
    }
    print(f"\n{z} x {y} x {x} uint16, {gigabytes:.2f} GB, {psutil.cpu_count()} cores, medians of")
    print(f"{options.rounds} rounds\n")
    print("| | seconds | of them start | seconds less start | times cp | peak memory, GB |")
    print("|---|---|---|---|---|---|")
    base = medians["cp"]["whole"] - medians["cp"]["start"]
    for name, median in medians.items():
        net = median["whole"] - median["start"]
        print(
            f"| {name} | {median['whole']:.1f} | {median['start']:.1f} | {net:.1f} "
            f"| {net / base:.2f} | {median['peak'] / 1e9:.2f} |"
        )
    print("\n| zarrmask's tasks, one process | seconds | share |\n|---|---|---|")
    for part, seconds in parts.items():
        print(f"| {part} | {seconds:.2f} | {seconds / sum(parts.values()):.0%} |")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "parts": parts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
