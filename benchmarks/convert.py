"""Conversions against `cp -r` and others: what zarrmask has to reach in speed and memory.

    python benchmarks/convert.py [--part table] [--shape 256 2048 2048] [--rounds 5] [--json FILE]

Contestants take turns on the same stack of noisy uint16 TIFF slices, round by round, after a round
that warms up, watches memory ten times a second and checks what was written. The parts are tables
of their own; what is printed says how to read them. A contestant or a part that fails is told of,
and the others go on. All of it takes about 40 minutes and 30 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from conversion.contest import tell
from conversion.dask_stack import RECIPES
from conversion.findings import GB, Findings
from conversion.parts import PARTS, SMALL, Bench
from conversion.stacks import Stacks

BUSY = 0.5  # processors
PACKAGES = ("zarrmask", "zarr", "zarrs", "dask", "ome-zarr", "ngff-zarr", "tifffile")


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that stacks are removed
    findings: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        machine = describe_machine(folder)
        print_head(machine, options.cold)
        stacks = Stacks(folder / "stacks")
        stacks.folder.mkdir()
        bench = Bench(
            folder=folder,
            stacks=stacks,
            shape=tuple(options.shape),
            rounds=options.rounds,
            few=options.few or min(options.rounds, 3),
            only=tuple(options.only or ()),
            cold=options.cold,
            ngff_python=options.ngff_python,
            recipe=options.recipe,
            compressed=tuple(options.compressed_shape),
            slices=tuple(options.slices),
            memory_slices=tuple(options.memory_slices),
            memory_plane=tuple(options.memory_plane),
        )
        for part in options.part or PARTS:
            tell(f"part {part}")
            found = findings[part] = attempt(part, bench)
            stacks.keep(bench.shape, SMALL)
            print(f"\n## {part}\n", *found.lines, sep="\n")
            for doubt in found.doubts:
                print(f"DOUBTFUL: {doubt}")
            for failure in found.failures:
                print(f"FAILED: {failure}")
            sys.stdout.flush()
            if options.json:
                save(options.json, machine, vars(options), findings)
    print_goals(findings)
    sys.exit(any(found.failures for found in findings.values()))


def print_head(machine: Mapping[str, Any], cold: bool) -> None:
    """Say where figures come from and how to read them."""
    memory = f"{machine['memory_bytes'] / GB:.0f} GB memory"
    print(f"{machine['cpu']}, {machine['cores']} cores, {memory}, disk: {machine['disk']}")
    print(", ".join(f"{name} {number}" for name, number in machine["versions"].items()))
    cache = (
        "The page cache forgets a stack before each turn."
        if cold
        else "Stacks have just been written, and are read from the page cache (but see --cold)."
    )
    print(
        "\nContestants take turns. Each time ends with a `sync`. start: median time of the same",
        "command on 128 x 128 x 128; s less start: median time, less that, with its quartiles and",
        "the least; times: ratio of such medians, with the quartiles of the rounds' own ratios.",
        "cores busy: processor time a second; peak: memory of all processes together (PSS).",
        cache,
        sep="\n",
    )
    if (load := machine["load_before"][0]) > BUSY:
        print(f"DOUBTFUL: others kept {load:.1f} processors busy in the last minute")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--part", action="append", choices=PARTS, help="may be given again; default: all")
    add("--only", action="append", metavar="NAME", help="contestants; may be given again")
    add("--shape", type=int, nargs=3, default=(256, 2048, 2048), metavar="N")
    add("--rounds", type=int, default=5, help="after one to warm up")
    add("--few", type=int, help="rounds of `compressed`, `sizes` and `where`; default: 3 at most")
    add("--compressed-shape", type=int, nargs=3, default=(128, 2048, 2048), metavar="N")
    add("--slices", type=int, nargs="+", default=(128, 256, 512, 1024), help="of `sizes`")
    add("--memory-slices", type=int, nargs="+", default=(256, 2048), help="of `memory`")
    add("--memory-plane", type=int, nargs=2, default=(1024, 1024), metavar="N")
    add("--cold", action="store_true", help="let the page cache forget stacks before each turn")
    add("--recipe", choices=RECIPES, default="delayed", help="how dask reads slices")
    add("--ngff-python", default=sys.executable, help="a Python with ngff-zarr and tifffile")
    add("--folder", type=Path, help="where to work: the disk that is measured")
    add("--json", type=Path, help="save the figures here too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds has to be at least 1")
    return options


def attempt(part: str, bench: Bench) -> Findings:
    """Do a part; where it fails, that is what was found."""
    try:
        return PARTS[part](bench)
    except Exception as error:  # the other parts go on
        traceback.print_exc()
        return Findings(failures=[str(error)])


def print_goals(findings: Mapping[str, Findings]) -> None:
    words = {True: "yes", False: "NO", None: "?"}
    rows = [
        [goal.what, goal.limit, goal.measured, words[goal.reached], "doubtful" * bool(found.doubts)]
        for found in findings.values()
        for goal in found.goals
    ]
    if rows:
        summary = Findings()
        summary.table(["what it must reach", "limit", "measured", "reached", "noise"], rows)
        print("\n## goals", *summary.lines, sep="\n")


def describe_machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on besides zarrmask."""
    names = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (names.read_text().splitlines() if names.exists() else [])
        if line.startswith("model name")
    ]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "disk": file_system(folder),
        "load_before": os.getloadavg(),
        "versions": versions,
    }


def file_system(folder: Path) -> str:
    """Type of the file system that a folder is on."""
    mounts = psutil.disk_partitions(all=True)
    inside = [part for part in mounts if folder.resolve().is_relative_to(part.mountpoint)]
    return max(inside, key=lambda part: len(part.mountpoint)).fstype if inside else "?"


def save(
    path: Path,
    machine: Mapping[str, Any],
    options: Mapping[str, Any],
    findings: Mapping[str, Findings],
) -> None:
    content = {
        "machine": machine,
        "options": {name: value for name, value in options.items() if name != "json"},
        "parts": {part: asdict(found) for part, found in findings.items()},
    }
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
