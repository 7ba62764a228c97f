"""What dies while it works, and that the run ends with the bytes of one in which nothing died.

Real processes, killed by SIGKILL at moments that are drawn anew each time: `ZARRMASK_SEED=...`,
which a failure prints, draws them again. Workers that are killed: 4 while they detect and 4 while
they write (`test_workers_die_at_random_moments`; slow), 1 when it has loaded its detector and 1
when it has detected, 3 that leave nobody behind, 2 of a task that the scheduler gives up, 1 of its
memory, 3 of a task that nothing helps, 1 whose detector another one stands in for, and 1 with the
last GPU; and 2 schedulers.
"""

import io
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import cv2
import numpy as np
import psutil
import pytest
import tifffile
from distributed import Client
from rich.console import Console

import zarrmask
from zarrmask import ZarrmaskError
from zarrmask.progress import Reporter
from zarrmask.pyramid import BrickGrid, Pyramid
from zarrmask.records.ledger import Ledger
from zarrmask.running import tasks

OPTIONS = {"every": 40}
"""So many keyframes and bricks that there is time to die."""
ON_A_COMMAND_LINE = ["--every", "40"]
DETECTED, WRITTEN = "detecting/*.json", "writing/level-0/*/*.json"
LONG = 300
"""Seconds that nothing takes, even on a machine that is busy with other things."""


class Cluster:
    """A Dask cluster of processes that can be killed.

    Attributes
    ----------
    address : str
    killed : int
        Workers that were killed.
    """

    def __init__(self, folder, **environment):
        self.killed = 0
        self._environment = {
            **os.environ,
            "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "spawn",
            **environment,
        }
        self._hosts = []
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.scheduler = self._start("scheduler", *options, "--scheduler-file", folder / "file")
        end = time.monotonic() + LONG
        while not (folder / "file").exists() or not (folder / "file").read_text().endswith("}"):
            assert time.monotonic() < end
            time.sleep(0.01)
        self.address = json.loads((folder / "file").read_text())["address"]

    def _start(self, kind, *options):
        command = [sys.executable, "-m", "dask", kind, *map(str, options)]
        return subprocess.Popen(
            command, stderr=subprocess.DEVNULL, env=self._environment, start_new_session=True
        )

    def start_workers(self, count, *options):
        """Start some, each with a nanny that starts another one when it dies."""
        own = ["--host", "127.0.0.1", "--no-dashboard", "--nthreads", 1, "--nworkers", count]
        self._hosts.append(self._start("worker", self.address, *own, *options))

    def wait_for_worker(self):
        with Client(self.address) as client:
            client.wait_for_workers(1, timeout=LONG)

    def workers(self):
        """Processes that work; not their nannies."""
        found = []
        for host in self._hosts:
            if host.poll() is None:
                for process in psutil.Process(host.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                        if "spawn_main" in " ".join(process.cmdline()):
                            found.append(process)
        return found

    def kill_one(self, chance):
        """Kill a worker, if need be when there is one."""
        while True:
            with suppress(psutil.NoSuchProcess, IndexError):
                chance.choice(self.workers()).kill()
                self.killed += 1
                return
            time.sleep(0.01)

    def kill_for_good(self, hosts=None):
        """Kill all workers, or those that were started at first, and who would start others."""
        self.killed += len(self.workers())
        for host in self._hosts[:hosts]:
            _kill_group(host)
        del self._hosts[:hosts]

    def close(self):
        for process in (*self._hosts, self.scheduler):
            _kill_group(process)


def _kill_group(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def start_cluster(tmp_path_factory):
    """Starts clusters, which are gone after the test."""
    clusters = []

    def start(**environment):
        clusters.append(Cluster(tmp_path_factory.mktemp("cluster"), **environment))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def chance():
    seed = int(os.environ.get("ZARRMASK_SEED") or secrets.randbelow(2**32))
    print(f"ZARRMASK_SEED={seed}")
    return random.Random(seed)


def voxels(out):
    """Every file of the three zarrs and its bytes."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for name in ("volume", "mask", "masked")
        for path in sorted((out / f"{name}.zarr").rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tall(stack, tmp_path_factory):
    """A stack of eight bricks and twenty keyframes, a scroll with much air beneath it."""
    folder = tmp_path_factory.mktemp("tall")
    for n in range(770):
        scroll = cv2.resize(tifffile.imread(stack / f"{100 + n * 23 // 770:05d}.tif"), (100, 88))
        image = np.pad(scroll, ((0, 172), (0, 0)), constant_values=np.median(scroll[0]))
        tifffile.imwrite(folder / f"{n:05d}.tif", image)
    return folder


@pytest.fixture(scope="module")
def whole(tall, cluster, tmp_path_factory):
    """What a run leaves in which nothing dies."""
    out = tmp_path_factory.mktemp("whole") / "out"
    record = zarrmask.run(tall, out, scheduler=cluster, **OPTIONS)
    assert record["voxels"]["kept"] > 0
    return voxels(out)


class Run:
    """A run in a thread of its own.

    Attributes
    ----------
    out : Path
    """

    def __init__(self, stack, out, scheduler, **options):
        self.out, self._told = out, io.StringIO()
        reporter = Reporter(Console(file=self._told, width=200))
        options = {**OPTIONS, **options, "scheduler": scheduler, "reporter": reporter}
        self._pool = ThreadPoolExecutor(1)
        self._running = self._pool.submit(zarrmask.run, stack, out, **options)
        self._pool.shutdown(wait=False)

    @property
    def told(self):
        return self._told.getvalue()

    def wait_for(self, entries, count):
        """Wait until so many entries are in the ledger; tells whether the run still goes on."""
        return self._wait(lambda: done(self.out, entries) >= count)

    def wait_until_told(self, text, *, forget=False):
        assert self._wait(lambda: text in self.told), self.told
        if forget:
            self._told.truncate(0)

    def _wait(self, reached):
        end = time.monotonic() + LONG
        while not reached():
            assert time.monotonic() < end, self.told
            if self._running.done():
                return False
            time.sleep(0.002)
        return not self._running.done()

    def record(self):
        return self._running.result(LONG)


def done(out, entries):
    return len(list(out.glob(f".zarrmask/finished/{entries}")))


@pytest.mark.slow
def test_workers_die_at_random_moments(tall, whole, start_cluster, chance, tmp_path):
    cluster = start_cluster()
    cluster.start_workers(2)
    run = Run(tall, tmp_path / "out", cluster.address)
    for entries, among in ((DETECTED, range(16)), (WRITTEN, range(6))):
        for count in sorted(chance.sample(among, 4)):
            assert run.wait_for(entries, count + 1)
            time.sleep(chance.random() / 20)
            cluster.kill_one(chance)
    record = run.record()
    assert cluster.killed == 8
    assert record["workers"]["lost"] >= 4  # those that come and go within a second are not seen
    assert voxels(run.out) == whole


class Dying:
    """A stack whose reader dies where it is read for the second time."""

    shape, dtype, block, reads = (4, 4, 4), np.dtype(np.uint8), (1, 4, 4), 0

    def read_into(self, out, *region):
        self.reads += 1
        if self.reads == 2:
            raise KeyboardInterrupt
        out[...] = 1


def test_a_brick_that_is_made_again_is_not_finished_meanwhile(tmp_path):
    """As when its worker is lost before anybody has its result, and who makes it again, too."""
    ledger = Ledger(tmp_path / "ledger")
    pyramid = Pyramid(tmp_path / "volume.zarr", tmp_path / "scratch", (4, 4, 4), "uint8", "mean")
    pyramid.create()
    write = partial(
        tasks.write_brick,
        np.zeros((1, 3), np.int64),
        source=Dying(),
        origin=(0, 0, 0),
        grid=BrickGrid((4, 4, 4), (4, 4, 4)),
        outputs={"volume": pyramid},
        masks=None,
        rescaling=None,
        ledger=ledger,
    )
    write()
    assert ledger.missing(["0-0-0"]) == []
    with pytest.raises(KeyboardInterrupt):
        write()
    assert ledger.missing(["0-0-0"]) == [0]


class Striking(Reporter):
    """Kills the workers of a cluster when a detector has been loaded, and when one has detected.

    Attributes
    ----------
    cluster : Cluster
    loaded : list of int
        Detectors that the scheduler knew of whenever all had been loaded.
    """

    cluster = None
    loaded = ()

    @contextmanager
    def stage(self, name, *arguments, **options):
        def strike(*counts):
            advance(*counts)
            if name == "detecting" and self.cluster.killed == 1:
                self.cluster.kill_one(random)

        with super().stage(name, *arguments, **options) as advance:
            yield strike
        if name == "loading detectors":
            with Client(self.cluster.address, set_as_default=False) as client:
                self.loaded = (*self.loaded, client.run_on_scheduler(_actors))
            if not self.cluster.killed:
                self.cluster.kill_one(random)


def _actors(dask_scheduler):
    return sum(task.actor for task in dask_scheduler.tasks.values())


def test_detectors_die_before_they_detect_and_while(tall, whole, start_cluster, tmp_path):
    reporter = Striking(Console(file=io.StringIO()))
    reporter.cluster = cluster = start_cluster()
    cluster.start_workers(1)
    out = tmp_path / "out"
    zarrmask.run(tall, out, scheduler=cluster.address, reporter=reporter, **OPTIONS)
    assert cluster.killed == 2
    assert reporter.loaded == (1, 1, 1)
    assert voxels(out) == whole


def test_all_workers_are_gone(tall, whole, start_cluster, tmp_path):
    cluster = start_cluster()
    cluster.start_workers(1)
    cluster.wait_for_worker()
    run = Run(tall, tmp_path / "out", cluster.address, patience="1s")
    assert run.wait_for(DETECTED, 3)
    cluster.kill_for_good()
    with pytest.raises(ZarrmaskError, match=r"no worker has come back.* the same command again"):
        run.record()
    assert "no worker is left; waiting up to 0:00:01 for one to come" in run.told

    cluster.start_workers(1)
    run = Run(tall, tmp_path / "out", cluster.address)
    for entries, count in ((DETECTED, 6), (WRITTEN, 2)):
        assert run.wait_for(entries, count)
        cluster.kill_for_good()
        run.wait_until_told("no worker is left; waiting up to 0:10:00 for one to come", forget=True)
        cluster.start_workers(1)
    assert run.record()["resumed"]
    assert voxels(run.out) == whole


@pytest.mark.parametrize("entries", [DETECTED, pytest.param(WRITTEN, marks=pytest.mark.slow)])
def test_the_scheduler_is_gone(tall, whole, start_cluster, tmp_path, entries):
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "zarrmask", "run", tall, out, *ON_A_COMMAND_LINE]
    cluster = start_cluster()
    cluster.start_workers(1)
    command = [*map(str, arguments), "--scheduler", cluster.address]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + LONG
        while done(out, entries) < 2:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.002)
        cluster.scheduler.kill()
        message = process.communicate(timeout=LONG)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    lines = message.splitlines()
    assert lines[-1].startswith("error: the Dask scheduler is gone; start it again, then run")
    assert "Traceback" not in message, message
    cluster.close()

    cluster = start_cluster()
    cluster.start_workers(1)
    assert Run(tall, out, cluster.address).record()["resumed"]
    assert voxels(out) == whole


AILING = """
import os, signal, time
from pathlib import Path
import numpy as np
from zarrmask.running import tasks

folder, deaths, name, place, how = Path({folder!r}), {deaths}, {name!r}, {place}, {how!r}

def made_ill(healthy):
    def ailing(*arguments, **options):
        here = (arguments[1] if name == "detect" else arguments[0]).ravel().tolist()
        if here == place and len(list(folder.iterdir())) < deaths:
            (folder / str(time.monotonic_ns())).touch()
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            eaten = []
            while True:
                eaten.append(np.ones(2**24, np.uint8))
                time.sleep(0.01)
        return healthy(*arguments, **options)
    return ailing

if not hasattr(tasks, "ill"):  # it is run twice
    tasks.ill = True
    setattr(tasks, name, made_ill(getattr(tasks, name)))
"""
"""Run by a worker when it starts: it dies of a task, and so do those after it, so many."""


@pytest.fixture
def start_ailing(start_cluster, tmp_path):
    """Starts a cluster whose workers die, so many, of one task; gives it and counts deaths."""

    def start(deaths, name, place, how, *options, **environment):
        folder = tmp_path / "deaths"
        folder.mkdir()
        preload = tmp_path / "ailing.py"
        text = AILING.format(folder=str(folder), deaths=deaths, name=name, place=place, how=how)
        preload.write_text(text)
        cluster = start_cluster(**environment)
        cluster.start_workers(1, "--preload", preload, *options)
        return cluster, lambda: len(list(folder.iterdir()))

    return start


AT_ONCE = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
"""Lets the scheduler give up a task when one worker has died of it."""
BRICK = [0, 1, 0]


def test_what_the_scheduler_gives_up_is_handed_in_again(tall, whole, start_ailing, tmp_path):
    cluster, deaths = start_ailing(2, "write_brick", BRICK, "killed", **AT_ONCE)
    run = Run(tall, tmp_path / "out", cluster.address)
    run.record()
    assert deaths() == 2
    assert voxels(run.out) == whole


@pytest.mark.parametrize(
    ("name", "place"),
    [pytest.param("detect", [4], marks=pytest.mark.slow), ("write_brick", BRICK)],
)
def test_what_kills_every_worker_is_given_up(tall, start_ailing, name, place, tmp_path):
    cluster, deaths = start_ailing(99, name, place, "killed", **AT_ONCE)
    run = Run(tall, tmp_path / "out", cluster.address)
    with pytest.raises(ZarrmaskError, match=r"(?s)\d .*most likely for want of memory.*goes on"):
        run.record()
    assert 3 <= deaths() <= 20


@pytest.mark.slow
def test_a_worker_dies_of_its_memory(tall, whole, start_ailing, tmp_path):
    cluster, deaths = start_ailing(1, "write_brick", BRICK, "starved", "--memory-limit", "1600MB")
    run = Run(tall, tmp_path / "out", cluster.address)
    record = run.record()
    assert deaths() == 1
    assert record["workers"] == {"most": 1, "lost": 1, "regained": 1}
    assert voxels(run.out) == whole


WATCHED = """
import os, time
from pathlib import Path
from zarrmask.workers import detectors
from zarrmask.detection.actors import DetectorActor, DetectorSpec

folder, gpu, seconds = Path({folder!r}), {gpu}, {seconds}

def note(what):
    with (folder / str(os.getpid())).open("a") as file:
        file.write(what + "\\n")

def noted(load):
    def noted_load(self, device):
        detector = load(self, "cpu" if gpu else device)
        note(device)
        return detector
    return noted_load

def slow(find):
    def slow_find(*arguments):
        end = time.monotonic() + seconds
        while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.02)  # until a second one is loaded
        time.sleep(seconds / 20)
        note("seen")
        return find(*arguments)
    return slow_find

if not hasattr(detectors, "watched"):  # it is run twice
    detectors.watched = True
    DetectorSpec.load, DetectorActor._find = noted(DetectorSpec.load), slow(DetectorActor._find)
    if gpu:
        detectors.accelerators_here = lambda kind: [("card", "cuda:0")]
"""
"""Run by a worker when it starts: it notes what its detector does, takes its time, and may claim
that it has a GPU (a processor, really)."""


@pytest.fixture
def watched(tmp_path):
    """Gives options for workers that note what they do, and what they noted, by process."""
    folder = tmp_path / "notes"
    folder.mkdir()

    def options(*, gpu=False, seconds=0.0):
        preload = tmp_path / f"watched-{gpu}.py"
        preload.write_text(WATCHED.format(folder=str(folder), gpu=gpu, seconds=seconds))
        return "--preload", preload

    return options, lambda: {int(path.name): path.read_text().split() for path in folder.iterdir()}


@pytest.mark.slow
def test_detectors_come_and_go_with_workers(tall, whole, start_cluster, watched, tmp_path):
    """One that joins gets a detector and is asked; one that dies takes no other's along."""
    options, noted = watched
    cluster = start_cluster()
    cluster.start_workers(1, *options(seconds=5))
    run = Run(tall, tmp_path / "out", cluster.address)
    assert run.wait_for(DETECTED, 2)
    (first,) = noted()
    cluster.start_workers(1, *options(seconds=5))
    run.wait_until_told("detectors on workers that came: 2 in all")
    (second,) = noted().keys() - {first}
    assert run._wait(lambda: "seen" in noted()[second])
    psutil.Process(first).kill()
    assert done(run.out, DETECTED) < 20
    record = run.record()
    assert noted()[second].count("cpu") == 1
    assert noted()[first].count("cpu") == 1
    assert record["workers"]["lost"] == 1
    assert voxels(run.out) == whole


@pytest.mark.slow
def test_who_begins_on_gpus_does_not_go_on_elsewhere(tall, whole, start_cluster, watched, tmp_path):
    options, noted = watched
    cluster = start_cluster()
    cluster.start_workers(1, *options(gpu=True, seconds=5))
    cluster.wait_for_worker()
    run = Run(tall, tmp_path / "out", cluster.address, patience="1s")
    assert run.wait_for(DETECTED, 2)
    cluster.start_workers(1, *options())
    with Client(cluster.address) as client:
        client.wait_for_workers(2, timeout=LONG)
    cluster.kill_for_good(hosts=1)
    with pytest.raises(ZarrmaskError, match=r"none of the 1 workers .* has a CUDA GPU.* goes on"):
        run.record()
    assert "no worker has a CUDA GPU, on which this run detects; waiting up to" in run.told
    with pytest.raises(ZarrmaskError, match="device: cuda then, cpu now"):
        Run(tall, run.out, cluster.address, device="cpu").record()

    run = Run(tall, run.out, cluster.address)
    run.wait_until_told("no worker has a CUDA GPU")
    cluster.start_workers(1, *options(gpu=True, seconds=5))
    assert run.record()["identity"]["device"] == "cuda"
    assert {what for process in noted().values() for what in process} == {"cuda:0", "seen"}
    assert voxels(run.out) == whole
