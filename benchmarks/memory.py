"""What zarrmask's processes hold, and how its predictions of peak memory compare with the peaks.

    python benchmarks/memory.py [--width 2048] [--depth 128] [--json FILE]
    python benchmarks/memory.py --imported nothing (or detecting) --only-at-rest

The first table has the processes at rest (the constants of `zarrmask.planning.memory`), in
proportional set sizes (PSS: shared pages are split among those that share them); what workers are
forked with, if they are, makes much of it. The client is with all that is neither. The second runs
conversions and a run on simulated noise, and compares the highest sum over all processes with
`zarrmask plan`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
import zarr
from distributed import Client

from zarrmask.detection.actors import DetectorSpec
from zarrmask.progress import Reporter
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import Crew
from zarrmask.workers.detectors import Detectors
from zarrmask.workers.processes import DETECTING, WRITING

IMPORTED: dict[str, tuple[str, ...]] = {"nothing": (), "writing": WRITING, "detecting": DETECTING}


def held(process: psutil.Process) -> int:
    """Bytes of a process, shared pages split."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def workers_hold(client: Client) -> list[int]:
    """Bytes of each worker."""
    pids = client.run(_pid).values()
    return [held(psutil.Process(pid)) for pid in pids]


def _pid() -> int:
    import os

    import zarrmask.running.tasks
    import zarrmask.running.writing  # noqa: F401  what a task imports

    return os.getpid()


def at_rest(workers: int, imported: tuple[str, ...]) -> dict[str, float]:
    """Bytes of client and workers before and after detectors are loaded."""
    import zarrmask.running.pipeline  # noqa: F401

    with connect(Crew(workers, 1, None, imported=imported), [], Reporter()) as client:
        before = workers_hold(client)
        detectors = Detectors(client, DetectorSpec(DEFAULT_CHECKPOINT), Reporter())
        detectors.load()
        after = workers_hold(client)
        me = psutil.Process()
        others = [p for p in me.children(recursive=True) if p.pid not in set(_pids(client))]
        client_bytes = held(me) + sum(map(held, others))
        del detectors
    return {
        "workers": workers,
        "client": client_bytes,
        "a worker": sum(before) / workers,
        "a worker with a detector": sum(after) / workers,
    }


def _pids(client: Client) -> list[int]:
    return list(client.run(_pid).values())


def noise(shape: tuple[int, ...]) -> np.ndarray:
    """A slice that does not compress."""
    return np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)


def tiffs(folder: Path, depth: int, width: int, **options: Any) -> Path:
    """Slices of noise."""
    folder.mkdir()
    image = noise((width, width))
    for z in range(depth):
        tifffile.imwrite(folder / f"{z}.tif", np.roll(image, 37 * z, axis=1), **options)
    return folder


def chunked(folder: Path, depth: int, width: int, chunk: int) -> Path:
    """A zarr of noise."""
    array = zarr.create_array(folder, shape=(depth, width, width), dtype="u2", chunks=(chunk,) * 3)
    image = noise((width, width))
    for z in range(0, depth, chunk):
        block = [np.roll(image, 37 * n, axis=1) for n in range(z, min(z + chunk, depth))]
        array[z : z + chunk] = np.array(block)
    return folder


def zarrmask(*arguments: Any) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "zarrmask", *map(str, arguments)]


def peak(command: list[str]) -> int:
    """The highest sum of what a command's processes hold."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watched, highest = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            processes = [watched, *watched.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        highest = max(highest, sum(map(held, processes)))
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    return highest


def compare(name: str, stack: Path, out: Path, *options: str) -> dict[str, Any]:
    """Predicted and measured peak of a conversion, or of a run."""
    planned = subprocess.run(
        zarrmask("plan", stack, out, *options, "--json"), check=True, capture_output=True
    )
    predicted = json.loads(planned.stdout)["peak_memory_bytes"]
    action = "convert" if "--convert" in options else "run"
    options = tuple(option for option in options if option != "--convert")
    measured = peak(zarrmask(action, stack, out, *options))
    subprocess.run(["rm", "-r", out], check=True)
    row = {"case": name, "predicted": predicted, "measured": measured}
    print(
        f"| {name} | {predicted / 1e6:,.0f} | {measured / 1e6:,.0f} | {measured / predicted:.0%} |"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=2048, help="of a slice, voxels")
    parser.add_argument("--depth", type=int, default=128, help="slices")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument(
        "--imported", choices=IMPORTED, default="writing", help="by what forks share"
    )
    parser.add_argument("--only-at-rest", action="store_true", help="leave the second table out")
    parser.add_argument("--json", type=Path, help="save the figures here too")
    options = parser.parse_args()
    rest = [at_rest(workers, IMPORTED[options.imported]) for workers in (1, 2, 4)]
    print("| workers | client, MB | a worker, MB | with a detector, MB |\n|---|---|---|---|")
    for row in rest:
        print(
            "| " + " | ".join(f"{n / 1e6:,.0f}" if n > 9 else str(n) for n in row.values()) + " |"
        )
    if options.only_at_rest:
        return
    print("\n| case | predicted, MB | measured, MB | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, depth, width = Path(name), options.depth, options.width
        out = folder / "out.zarr"
        plain = tiffs(folder / "plain", depth, width)
        rows = [
            compare("convert", plain, out, "--convert"),
            compare("convert, 1 worker", plain, out, "--convert", "--workers", "1"),
            compare("run", plain, out, "--every", "20"),
            compare(
                "run, every slice a keyframe", plain, out, "--z", f"0:{depth // 8}", "--every", "1"
            ),
        ]
        subprocess.run(["rm", "-r", plain], check=True)
        for label, rowsperstrip in (("strips of 16 rows", 16), ("one strip", width)):
            packed = tiffs(
                folder / "packed", depth // 2, width, compression="lzw", rowsperstrip=rowsperstrip
            )
            rows.append(compare(f"convert, {label}", packed, out, "--convert"))
            rows.append(compare("the same in 1 GB", packed, out, "--convert", "--memory", "1GB"))
            subprocess.run(["rm", "-r", packed], check=True)
        for chunk in (128, 256):
            array = chunked(folder / "array.zarr", depth, width, chunk)
            rows.append(compare(f"convert, zarr of {chunk}^3", array, out, "--convert"))
            subprocess.run(["rm", "-r", array], check=True)
    if options.json:
        options.json.write_text(json.dumps({"rest": rest, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
