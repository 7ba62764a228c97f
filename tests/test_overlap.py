"""Bricks are written while the detector looks at slices further on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import tifffile
from distributed import Client, LocalCluster

import zarrmask
from zarrmask.masking import KeyframeStore
from zarrmask.masking.field_store import FieldStore
from zarrmask.phantom import Phantom
from zarrmask.progress import Reporter
from zarrmask.pyramid.layout import step_grid
from zarrmask.records.ledger import Ledger
from zarrmask.running.measuring import UsedKeyframes, masks_between
from zarrmask.workers.ahead import ahead, last

DEPTH = 128
OPTIONS = {"every": 2, "chunk": 16, "dilate": 2}
OUTPUTS = ("keyframes", "volume", "mask", "masked")


def small(shape, itemsize, block, budget=None, step=None):
    return step_grid(shape, step)


def contents(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for name in OUTPUTS
        for path in sorted((out / f"{name}.zarr").rglob("*"))
        if path.is_file()
    }


def test_of_keyframes_that_are_all_replaced_nothing_is_settled_yet(tmp_path):
    none = np.empty(0, np.int64)
    plan = SimpleNamespace(propagate="field", side=2)
    store, fields = KeyframeStore(tmp_path / "keyframes.zarr"), FieldStore(tmp_path / "f", (9, 9))
    store.reserve(4, 9, 9)
    ledger = Ledger(tmp_path / "ledger").stage("measuring")
    used = [UsedKeyframes(none, none, none, complete=False)]
    assert not list(masks_between(None, store, used, plan, fields, ledger, Reporter.quiet()))


@pytest.fixture(scope="module")
def deep_stack(tmp_path_factory):
    """A whole small scroll, with a slice that is nearly black."""
    folder = tmp_path_factory.mktemp("deep")
    phantom = Phantom((DEPTH, 48, 64), seed=3)
    for n in range(DEPTH):
        image = phantom.slice(n)[0]
        tifffile.imwrite(folder / f"{n}.tif", image >> 9 if n == 60 else image)
    return folder


@pytest.fixture(scope="module")
def in_pieces():
    """Short stretches and the smallest bricks, so that a small stack has several of both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zarrmask.masking.placing.STRETCH", 8)
        patch.setattr("zarrmask.planning.forecast.brick_grid", small)
        yield


@pytest.fixture(scope="module")
def in_turn(deep_stack, in_pieces, cluster, tmp_path_factory):
    """A run that detects, and then writes: its folder and record."""
    out = tmp_path_factory.mktemp("turn") / "out"
    return out, zarrmask.run(deep_stack, out, scheduler=cluster, overlap=False, **OPTIONS)


SLOWLY = """
import time
import {module} as module

quick = module.{name}


def slow(*arguments, **options):
    time.sleep({seconds})
    return quick(*arguments, **options)


module.{name} = slow
"""


@pytest.fixture
def slow_cluster():
    """Starts a cluster of two workers with two threads each, for which something takes longer."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}))

        def start(module, name, seconds):
            options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": ":0"}
            cluster = stack.enter_context(LocalCluster(**options))
            with Client(cluster, set_as_default=False) as client:
                client.run(exec, SLOWLY.format(module=module, name=name, seconds=seconds), {})
            return cluster.scheduler_address

        yield start


class Noting(Reporter):
    """Notes when what was done, by stage."""

    @contextlib.contextmanager
    def stage(self, name, *arguments, **options):
        with super().stage(name, *arguments, **options) as advance:

            def noted(count, more=0):
                self.times.setdefault(name, []).extend([time.monotonic()] * count)
                advance(count, more)

            yield noted

    times = None


@pytest.fixture
def noting():
    reporter = Noting()
    reporter.times = {}
    return reporter


@pytest.mark.parametrize("propagate", ["field", pytest.param("hold", marks=pytest.mark.slow)])
def test_bricks_are_written_before_all_is_detected(
    deep_stack, in_turn, slow_cluster, noting, tmp_path, propagate
):
    there = slow_cluster("zarrmask.detection.actors", "DetectorActor._find", 0.1)
    options = {**OPTIONS, "propagate": propagate, "scheduler": there, "reporter": noting}
    out = tmp_path / "out"
    record = zarrmask.run(deep_stack, out, overlap=True, **options)
    early = np.array(noting.times["writing"]) < max(noting.times["detecting"])
    assert early.mean() >= 0.25
    seconds = {stage["name"]: stage["seconds"] for stage in record["stages"]}
    assert seconds["detecting"] > max(noting.times["detecting"]) - min(noting.times["detecting"])
    if propagate == "field":
        assert contents(out) == contents(in_turn[0])
        assert record["keyframes"] == in_turn[1]["keyframes"]
        assert record["keyframes"]["redone"]


@pytest.mark.slow
def test_detecting_does_not_wait_for_bricks(deep_stack, in_turn, slow_cluster, noting, tmp_path):
    there = slow_cluster("zarrmask.running.tasks", "reads_by_tile", 1)
    out = tmp_path / "out"
    zarrmask.run(deep_stack, out, scheduler=there, reporter=noting, overlap=True, **OPTIONS)
    detected, written = noting.times["detecting"], noting.times["writing"]
    first = min(written)
    assert any(first - 1 < when < first for when in detected)  # while the first bricks are written
    assert first < max(detected) < max(written)
    assert contents(out) == contents(in_turn[0])


PROGRAM = """
import sys
import zarrmask
from zarrmask.pyramid.layout import step_grid

if __name__ == "__main__":
    import zarrmask.planning.forecast
    import zarrmask.masking.placing

    zarrmask.masking.placing.STRETCH = 8
    zarrmask.planning.forecast.brick_grid = lambda *given: step_grid(given[0], given[-1])
    zarrmask.run(*sys.argv[1:], workers=2, overlap=True, every=2, chunk=16, dilate=2)
"""


@pytest.mark.slow
def test_a_run_killed_while_both_go_on_ends_with_the_same_bytes(deep_stack, in_turn, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "run.py").write_text(PROGRAM)
    both = 0
    for moment in ("detecting/20.json", "writing/level-0/*/*.json"):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "run.py", deep_stack, out],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not any(out.glob(f".zarrmask/finished/{moment}")):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
        finished = out / ".zarrmask/finished"
        written, seen = (
            len(list(finished.glob(what))) for what in ("writing/*/*/*", "detecting/*")
        )
        both += bool(written) and seen < 64
    assert both
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "unfinished"
    subprocess.run([sys.executable, tmp_path / "run.py", deep_stack, out], check=True, timeout=120)
    assert contents(out) == contents(in_turn[0])
    assert json.loads((out / "run.json").read_text())["keyframes"] == in_turn[1]["keyframes"]


def test_what_runs_ahead_gives_the_newest():
    given, taken = threading.Event(), threading.Event()

    def items():
        yield 1
        taken.wait(10)
        yield from (2, 3)
        given.set()
        yield 4

    with ahead(items(), lambda: None) as newest:
        assert next(newest) == 1
        taken.set()
        assert given.wait(10)
        assert list(newest)[-1] == 4
    with last(iter("abc")) as newest:
        assert list(newest) == ["c"]


def test_what_runs_ahead_has_the_annotations_of_who_reads():
    with dask.annotate(of="here"), ahead((dask.get_annotations() for _ in "1"), print) as newest:
        assert list(newest) == [{"of": "here"}]


def test_what_runs_ahead_and_fails_stops_who_reads():
    stopped = threading.Event()

    def items():
        yield 1
        raise ZeroDivisionError

    def use():
        with ahead(items(), stopped.set) as newest:
            next(newest)
            assert stopped.wait(10)
            raise OSError  # what waits for the cluster fails

    with pytest.raises(ZeroDivisionError):
        use()


def test_who_fails_stops_what_runs_ahead():
    stopped = threading.Event()

    def items():
        yield 1
        assert stopped.wait(10)

    with pytest.raises(KeyError), ahead(items(), stopped.set):
        raise KeyError
    assert stopped.is_set()


def test_who_ends_does_not_wait_for_imports_for_ever():
    """Ctrl-C in the midst of an import may leave Python's lock of imports taken."""
    code = """
import _imp
from zarrmask.workers import ahead
ahead.LAST = 0.2
_imp.acquire_lock()
ahead.import_ahead("wave")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
