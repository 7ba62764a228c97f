"""Runs on a cluster whose workers are killed: do they end right, and does memory stay as it is?

    python benchmarks/soak.py [--minutes 30] [--kills 20] [--slices 3000] [--seed 0] [--json FILE]

A scheduler and three workers with nannies, each a process of its own, as on a cluster that zarrmask
is told of. In one client run follows run on thousands of small slices, until the time is over. At
random moments one of two workers is killed (`kill -9`) and started anew by its nanny; the third
lives through all of it. Each run has to leave the same bytes in its three zarrs as one that was not
disturbed, in ten times the time of that at most.

The memory (RSS) of client, scheduler and third worker is fitted by a line, its first third left
out: imports, and what the allocator takes once. Prints Markdown; ends with 1 where bytes differ,
where a line rises by more than a tenth, or where runs hang. The kills come at the same moments for
the same seed, but what they hit is as the machine goes.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
from rich.console import Console

import zarrmask
from zarrmask.phantom import Phantom
from zarrmask.progress import Advance, Reporter

MORTAL = ("first", "second")
SURVIVOR = "survivor"
SLICE = (96, 128)
SETTINGS: dict[str, Any] = {"every": 16, "chunk": 32}
"""Of the runs: many keyframes, and bricks of 64 slices."""
SAMPLED_EVERY = 1.0  # seconds
LEFT_OUT = 1 / 3
MOST_GROWTH = 0.1
MOST_TIMES = 10
"""An undisturbed run's time, or a minute if that is more, that a disturbed one may take."""
HISTORY = {
    "ADMIN__LOW_LEVEL_LOG_LENGTH": "50",  # messages of each connection, events, profiles
    "ADMIN__LOG_LENGTH": "50",
    "ADMIN__SYSTEM_MONITOR__LOG_LENGTH": "50",
    "DIAGNOSTICS__COMPUTATIONS__MAX_HISTORY": "10",
    "SCHEDULER__EVENTS_CLEANUP_DELAY": "1 minute",  # of clients and workers that are gone
}
"""Dask's own history, which it bounds, but so that it fills for an hour and more, and looks like
growth until then. Here it is full before the lines begin; what grows beyond it is a leak."""
ZARRS = ("volume", "mask", "masked")


@dataclass(frozen=True)
class Line:
    """How the memory of a process went.

    Attributes
    ----------
    process : str
    samples : int
    seconds : float
        From the first that counts to the last.
    begins, ends : float
        Bytes, on the line that fits best.
    highest : int
        Bytes.
    """

    process: str
    samples: int
    seconds: float
    begins: float
    ends: float
    highest: int

    @property
    def growth(self) -> float:
        """Part by which it grew."""
        return self.ends / self.begins - 1

    @property
    def grows(self) -> bool:
        return self.growth > MOST_GROWTH


def fit(process: str, samples: Sequence[tuple[float, int]]) -> Line:
    """Fit a line through samples of (seconds, bytes), the first ones left out."""
    times, sizes = np.array(samples, float).T
    counts = times >= times[0] + LEFT_OUT * (times[-1] - times[0])
    times, later = times[counts], sizes[counts]
    slope, first = np.polyfit(times - times[0], later, 1) if len(times) > 1 else (0.0, later[0])
    seconds = float(times[-1] - times[0])
    last = float(first + slope * seconds)
    return Line(process, len(times), seconds, float(first), last, int(sizes.max()))


@dataclass(frozen=True)
class Cluster:
    """A scheduler and workers, each a process with a log.

    Attributes
    ----------
    address : str
    scheduler : psutil.Process
    nannies : dict
        Of the workers, by name.
    """

    address: str
    scheduler: psutil.Process
    nannies: dict[str, psutil.Process]

    def worker(self, name: str) -> psutil.Process | None:
        """The process that a nanny looks after, if there is one now."""
        try:
            children = self.nannies[name].children()
            return next((one for one in children if "spawn_main" in " ".join(one.cmdline())), None)
        except psutil.NoSuchProcess:
            return None

    def kill(self) -> None:
        """End all of it."""
        for process in (*self.nannies.values(), self.scheduler):
            for one in (*process.children(recursive=True), process):
                one.kill()


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """Start a scheduler and workers, which are gone afterwards."""
    file = folder / "scheduler.json"
    history = {f"DASK_DISTRIBUTED__{name}": value for name, value in HISTORY.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **history}

    def start(name: str, *arguments: str) -> psutil.Process:
        # The modules behind `dask scheduler` and `dask worker`, of this Python.
        command = [sys.executable, "-m", *arguments, "--scheduler-file", str(file)]
        command += ["--host", "127.0.0.1", "--no-dashboard"]
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        return psutil.Process(process.pid)

    scheduler = start("scheduler", "distributed.cli.dask_scheduler", "--port", "0")
    options = ["--nthreads", "1", "--memory-limit", "4GB", "--local-directory", str(folder)]
    nannies: dict[str, psutil.Process] = {}
    cluster = Cluster("", scheduler, nannies)
    try:
        while not file.exists():
            if not scheduler.is_running():
                raise RuntimeError((folder / "scheduler.log").read_text())
            time.sleep(0.1)
        for name in (*MORTAL, SURVIVOR):
            worker = ["distributed.cli.dask_worker", "--name", name, *options]
            nannies[name] = start(name, *worker)
        while not all(cluster.worker(name) for name in nannies):
            time.sleep(0.1)
        yield Cluster(json.loads(file.read_text())["address"], scheduler, nannies)
    finally:
        cluster.kill()


@dataclass
class Told(Reporter):
    """Knows what is going on."""

    console: Console = field(default_factory=lambda: Console(quiet=True))
    now: str = "start"

    @contextmanager
    def stage(self, name: str, total: int, unit: str, **of: int) -> Iterator[Advance]:
        self.now = name
        with super().stage(name, total, unit, **of) as advance:
            yield advance
        self.now = f"after {name}"


class Watch:
    """Samples memory and kills workers, until it is stopped.

    Attributes
    ----------
    samples : dict
        (seconds, bytes) by process.
    kills : list
        (seconds, worker, what the run was at), of those that were done.
    reporter : Told
        Of the run that goes on.
    deadline : float
        When that hangs, by `time.monotonic`.
    """

    def __init__(self, cluster: Cluster, moments: Sequence[float], seed: int) -> None:
        self.samples: dict[str, list[tuple[float, int]]] = {}
        self.kills: list[tuple[float, str, str]] = []
        self.reporter = Told()
        self.deadline = np.inf
        self._cluster = cluster
        self._moments = list(moments)
        self._rng = np.random.default_rng(seed)
        self._begun = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def _watch(self) -> None:
        sampled = -SAMPLED_EVERY
        while not self._done.wait(0.05):
            if self._moments and self.seconds >= self._moments[0]:
                self._kill()
            if self.seconds - sampled >= SAMPLED_EVERY:
                sampled = self.seconds
                self._sample()
            if time.monotonic() > self.deadline:
                print(f"HANGS: in {self.reporter.now}, after {self.kills}", file=sys.stderr)
                faulthandler.dump_traceback(all_threads=True)
                self._cluster.kill()
                os._exit(1)

    def _kill(self) -> None:
        """Kill one of those that may be; where its nanny has none now, wait until it has."""
        name = str(self._rng.choice(MORTAL))
        worker = self._cluster.worker(name)
        if worker is not None:
            worker.kill()
            self.kills.append((self.seconds, name, self.reporter.now))
            del self._moments[0]

    def _sample(self) -> None:
        processes = {
            "client": psutil.Process(),
            "scheduler": self._cluster.scheduler,
            SURVIVOR: self._cluster.worker(SURVIVOR),
        }
        for name, process in processes.items():
            if process is not None:
                size = process.memory_info().rss
                self.samples.setdefault(name, []).append((self.seconds, size))


def make_stack(folder: Path, slices: int) -> Path:
    """A simulated scroll, small and long."""
    folder.mkdir()
    phantom = Phantom((slices, *SLICE), seed=4)
    for z in range(slices):
        tifffile.imwrite(folder / f"{z:05d}.tif", phantom.slice(z)[0])
    return folder


def digest(out: Path) -> dict[str, str]:
    """A hash of every file of a run's zarrs."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in ZARRS
        for path in sorted((out / f"{name}.zarr").rglob("*"))
        if path.is_file()
    }


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run for so long, and give what was seen."""
    stack, out = make_stack(folder / "stack", options.slices), folder / "out"
    rng = np.random.default_rng(options.seed)
    with started(folder) as cluster:
        begun = time.monotonic()
        zarrmask.run(stack, out, scheduler=cluster.address, reporter=Told(), **SETTINGS)
        undisturbed = time.monotonic() - begun
        expected = digest(out)
        shutil.rmtree(out)
        moments = np.sort(rng.uniform(0, 60 * options.minutes, options.kills)).tolist()
        watch = Watch(cluster, moments, options.seed)
        runs: list[dict[str, Any]] = []
        try:
            while watch.seconds < 60 * options.minutes or len(watch.kills) < options.kills:
                watch.reporter = Told()
                watch.deadline = time.monotonic() + MOST_TIMES * max(undisturbed, 60)
                before, begun = len(watch.kills), time.monotonic()
                record = zarrmask.run(
                    stack, out, scheduler=cluster.address, reporter=watch.reporter, **SETTINGS
                )
                found = digest(out)
                wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
                shutil.rmtree(out)
                runs.append(
                    {
                        "seconds": time.monotonic() - begun,
                        "kills": len(watch.kills) - before,
                        "workers": record["workers"],
                        "wrong": wrong,
                    }
                )
                if wrong:
                    break
        finally:
            watch.deadline = np.inf
            watch.stop()
    return {
        "slices": options.slices,
        "files": len(expected),
        "minutes": watch.seconds / 60,
        "undisturbed_seconds": undisturbed,
        "runs": runs,
        "kills": watch.kills,
        "memory": [asdict(fit(name, samples)) for name, samples in watch.samples.items()],
    }


def told(seen: dict[str, Any]) -> tuple[list[str], bool]:
    """What was seen, as Markdown, and whether all is as it should be."""
    runs, lines = seen["runs"], [Line(**line) for line in seen["memory"]]
    wrong = [name for run in runs for name in run["wrong"]]
    said = [
        f"{len(runs)} runs of {seen['slices']:,} slices in {seen['minutes']:.0f} minutes, "
        f"{seen['undisturbed_seconds']:.0f} s each undisturbed, "
        f"{max((run['seconds'] for run in runs), default=0):.0f} s the longest.",
        f"{len(seen['kills'])} workers killed: "
        + ", ".join(f"{name} in {now} at {at:.0f} s" for at, name, now in seen["kills"]),
        f"{seen['files']:,} files of three zarrs a run: "
        + (f"DIFFERENT: {', '.join(wrong[:5])}" if wrong else "all as of the undisturbed run."),
        "",
        "| process | minutes | begins, MB | ends, MB | growth | MB an hour | highest, MB | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        hourly = (line.ends - line.begins) / max(line.seconds, 1) * 3600 / 1e6
        said.append(
            f"| {line.process} | {line.seconds / 60:.0f} | {line.begins / 1e6:.0f} | "
            f"{line.ends / 1e6:.0f} | {line.growth:+.1%} | {hourly:+.1f} | "
            f"{line.highest / 1e6:.0f} | {'GROWS' if line.grows else 'stays'} |"
        )
    return said, not (wrong or any(line.grows for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--slices", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="save what was seen here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        seen = soak(options, Path(name))
    said, right = told(seen)
    print("\n".join(said))
    if options.json:
        options.json.write_text(json.dumps(seen, indent=1) + "\n")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
