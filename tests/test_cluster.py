"""The cluster that zarrmask starts, and those it is told of."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster, span
from distributed.comm import CommClosedError
from upath import UPath

import zarrmask
from zarrmask import ZarrmaskError
from zarrmask.errors import SettingsError
from zarrmask.progress import Reporter
from zarrmask.workers.cluster import come_to_rest, connect, require_sight, started
from zarrmask.workers.crew import Crew, CrewRequest, find_crew
from zarrmask.workers.processes import WRITING
from zarrmask.workers.vitals import at_work, has_lost


def test_every_server_listens_on_loopback_only(cluster):
    listening = {
        connection.laddr.ip
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_the_dashboards_address_is_loopback(cluster):
    with Client(cluster) as client:
        assert client.dashboard_link.startswith("http://127.0.0.1:")


def test_workers_are_processes_of_one_thread(cluster):
    with Client(cluster) as client:
        assert list(client.nthreads().values()) == [1, 1]
        assert len(set(client.run(lambda: __import__("os").getpid()).values())) == 2


def _held(dask_scheduler):
    """How many there are of what a scheduler holds until somebody takes it away."""
    names = ("tasks", "task_groups", "task_prefixes", "clients", "plugins", "erred_tasks")
    lent = {
        "publish": "datasets",
        "queues": "queues",
        "variables": "variables",
        "events": "_events",
    }
    extensions = dask_scheduler.extensions
    return {name: len(getattr(dask_scheduler, name)) for name in names} | {
        name: len(getattr(extensions[name], held)) for name, held in lent.items()
    }


def _noted(dask_scheduler):
    """How many notes a scheduler has that nobody can take away: spans, and what was handed in."""
    spans = dask_scheduler.extensions["spans"].spans.values()
    noted = [span.metadata for span in spans if span.metadata]  # others' may have none yet
    return len(spans), sum(len(metadata["collections"]) for metadata in noted)


def test_runs_leave_next_to_nothing_on_a_scheduler_that_lives_on(stack, cluster, tmp_path):
    with Client(cluster) as client:
        held, noted = [], [client.run_on_scheduler(_noted)]
        for every in (1, 2):
            options = {"every": every, "dilate": every, "chunk": 16}
            zarrmask.run(stack, tmp_path / f"{every}", scheduler=cluster, **options)
            held.append(client.run_on_scheduler(_held))
            noted.append(client.run_on_scheduler(_noted))
    assert held[0] == held[1]
    assert held[1]["tasks"] == held[1]["task_groups"] == 0
    spans, handed_in = zip(*noted, strict=True)
    assert np.diff(spans).tolist() == [1, 1]
    assert handed_in[1] - handed_in[0] < 12  # of 23 keyframes


def test_workers_of_a_named_cluster_are_not_counted_here(cluster):
    with pytest.raises(SettingsError, match="leave --workers out"):
        find_crew(CrewRequest(cluster, workers=2), Reporter())


@contextmanager
def scheduler(**environment):
    """A scheduler without workers: its address."""
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    command = [sys.executable, "-m", "dask", "scheduler", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        yield next(line.split()[-1] for line in process.stderr if "Scheduler at:" in line)
    finally:
        process.kill()
        process.communicate()


def test_a_scheduler_without_workers_is_waited_for_and_named(capsys):
    with scheduler() as address:
        with pytest.raises(ZarrmaskError, match=f"at {address} has no worker; start some with"):
            find_crew(CrewRequest(address, patience="500ms"), Reporter())
        assert f"{address} has no worker; waiting up to 0:00:00.5" in capsys.readouterr().err


LACKING = """
import sys

sys.modules["zarrmask"] = None  # as if it were not installed
"""


def test_a_scheduler_that_lacks_zarrmask_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LACKING)
    with (
        scheduler(PYTHONPATH=str(tmp_path)) as address,
        Client(address) as client,
        pytest.raises(ZarrmaskError, match="scheduler of the cluster lacks the module zarrmask"),
    ):
        require_sight(client, [])


@pytest.mark.parametrize(
    "patience", [0, -1, "0s", "-3m", "ten minutes", "10 bananas", "", "nan", "1e9h"]
)
def test_a_patience_that_is_no_time_is_refused(patience):
    with pytest.raises(SettingsError, match=f"--patience {patience} is not a time to wait"):
        find_crew(CrewRequest(patience=patience), Reporter())


class Losing:
    """A client that learns of a loss a moment after those who ask."""

    looks = 0

    @property
    def status(self):
        self.looks += 1
        return "running" if self.looks < 4 else "connecting"


def test_a_lost_scheduler_is_told_from_a_lost_worker():
    assert has_lost(Losing(), CommClosedError("reset by peer"))
    assert not has_lost(Losing(), OSError("no such file"))


@pytest.mark.parametrize("workers", [0, -2])
def test_no_workers_at_all_are_refused(workers):
    with pytest.raises(SettingsError, match=f"{workers} workers; give 1 at least"):
        find_crew(CrewRequest(workers=workers), Reporter())


@pytest.mark.parametrize(
    ("patience", "seconds"), [(None, 600), (90, 90), ("90", 90), ("12h", 43200)]
)
def test_patience_is_read_as_dask_reads_times(patience, seconds):
    assert find_crew(CrewRequest(patience=patience), Reporter()).patience == seconds


def test_workers_that_do_not_see_the_output_are_named(stack, tmp_path):
    """A worker on what might be another machine: another disk lies under the output's path."""
    hidden = tmp_path / "shared"
    hidden.mkdir()
    elsewhere = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs none {hidden} && exec $0 $*"]
    if shutil.which("unshare") is None or subprocess.run([*elsewhere, "true"]).returncode:
        pytest.skip("nothing can be mounted here")
    with scheduler() as address:
        options = [address, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny"]
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", *options]
        process = subprocess.Popen([*elsewhere, *worker], stderr=subprocess.DEVNULL)
        try:
            with pytest.raises(ZarrmaskError, match=rf"1 of .* 1 workers(.|\n)*{hidden}/"):
                zarrmask.convert(stack, hidden / "out.zarr", scheduler=address)
            assert not [path for path in hidden.rglob("*") if path.is_file()]
        finally:
            process.terminate()
            process.wait()


@pytest.mark.parametrize("name", ["cv2", "torch", "zarr", "zarrs"])
def test_a_worker_that_lacks_a_module_is_named(monkeypatch, tmp_path, name):
    (tmp_path / "sitecustomize.py").write_text(LACKING.replace('"zarrmask"', f'"{name}"'))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # workers inherit it
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
        LocalCluster(1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        pytest.raises(
            ZarrmaskError, match=f"the worker tcp://.* lacks the module {name}.*; install"
        ),
    ):
        require_sight(client, [])


@pytest.mark.parametrize("what", ["_equipment", "_version"])
def test_another_version_of_zarrmask_is_refused(monkeypatch, what):
    def other(*_):
        return ("9.9.9", []) if what == "_equipment" else "9.9.9"

    monkeypatch.setattr(f"zarrmask.workers.cluster.{what}", other)
    with (
        connect(Crew(1, 1, None, imported=WRITING), [], Reporter()) as client,
        pytest.raises(ZarrmaskError, match=r"has zarrmask 9\.9\.9, this is"),
    ):
        require_sight(client, [])


def test_a_worker_that_dies_when_it_is_asked_is_not_blind(monkeypatch, tmp_path):
    def dying(paths, dask_worker):
        if dask_worker.name == 0:
            os._exit(1)
        return zarrmask.__version__, paths

    monkeypatch.setattr("zarrmask.workers.cluster._equipment", dying)
    with connect(Crew(2, 1, None, imported=WRITING), [], Reporter()) as client:
        require_sight(client, [])
        with pytest.raises(ZarrmaskError, match=r"1 of the cluster's 1 workers do not see(.|\n)*x"):
            require_sight(client, [tmp_path / "x"])


def _take_time(folder, seconds):
    (folder / "begun").touch()
    time.sleep(seconds)
    (folder / "done").touch()


def _begin(client, folder, seconds):
    """Let a worker be busy for a while."""
    begun = client.submit(_take_time, folder, seconds)
    while not (folder / "begun").exists():
        time.sleep(0.01)
    return begun


def test_what_others_do_on_a_cluster_is_not_waited_for(cluster, tmp_path):
    with Client(cluster) as client, Client(cluster, set_as_default=False) as other:
        with span("other"):
            begun = _begin(other, tmp_path, 2.0)
        with span("mine"):
            come_to_rest(client, Reporter(), seconds=1.5)
        assert not (tmp_path / "done").exists()
        begun.result()


def test_what_a_session_left_that_was_stopped_is_done_before_another_begins(
    cluster, tmp_path, capsys
):
    at = find_crew(CrewRequest(cluster), Reporter()), tmp_path / "out", [], Reporter()
    with at_work(*at) as (client, *_):
        _begin(client, tmp_path, 1.0)
    assert not (tmp_path / "done").exists()
    with at_work(*at):
        assert (tmp_path / "done").exists()
    assert "still at what was cancelled" in capsys.readouterr().err


def test_workers_of_a_named_cluster_encode_with_as_many_threads_as_are_foreseen(stack, tmp_path):
    how = {
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.nanny.environ.RAYON_NUM_THREADS": None,
    }
    with (
        dask.config.set(how),
        LocalCluster(1, threads_per_worker=16, dashboard_address=None) as own,
        Client(own) as client,
    ):
        address = own.scheduler_address
        zarrmask.convert(stack, tmp_path / "out.zarr", chunk=16, scheduler=address)
        crew = find_crew(CrewRequest(address), Reporter())
        (there,) = client.run(lambda: psutil.Process().num_threads()).values()
    assert crew.encoders == 4 * 16
    assert there >= crew.encoders + 16


def test_no_login_of_an_output_is_shown_on_the_dashboard(cluster):
    out = UPath("http://me:hidden@localhost/out")
    with at_work(find_crew(CrewRequest(cluster), Reporter()), out, [], Reporter()):
        (name,) = dask.get_annotations()["span"]["name"]
    assert name == "zarrmask http://...@localhost/out"


def test_workers_that_die_as_they_begin_are_started_again():
    failed = []

    def starting(fails):
        def start(**how):
            if len(failed) < fails:
                failed.append(how)
                raise RuntimeError("Nanny failed to start.")
            return how

        return start

    assert started(starting(2), n_workers=4) == {"n_workers": 4}
    assert len(failed) == 2
    with pytest.raises(ZarrmaskError, match="4 workers were started 3 times, and each time one"):
        started(starting(99), n_workers=4)
    with pytest.raises(RuntimeError, match="another"):
        started(lambda **_: (_ for _ in ()).throw(RuntimeError("another")), n_workers=4)
