"""How the processes of a local cluster begin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from zarrmask.progress import Reporter
from zarrmask.workers import processes
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import Crew, CrewRequest, find_crew
from zarrmask.workers.processes import DETECTING, WRITING, make_ready, shared_imports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

FORKS = """
import os
import sys
from multiprocessing import forkserver

import dask
import psutil

from zarrmask.progress import Reporter
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import Crew
from zarrmask.workers.processes import DETECTING, WRITING, make_ready

sys.path.insert(0, {added!r})
import added

def loaded():
    return "torch" in sys.modules, sys.modules["gc"].get_freeze_count() > 10**5

def found():
    import added

    own = {{"PYTHONSAFEPATH", "PYTHONPATH", "ZARRMASK_IMPORTS", "ZARRMASK_NULL"}}
    return added.__file__, os.environ["OMP_NUM_THREADS"], sorted(own & set(os.environ))

if __name__ == "__main__":
    dask.config.set({{"distributed.nanny.pre-spawn-environ.ZARRMASK_NULL": None}})
    make_ready(DETECTING)
    with connect(Crew(1, 1, None, imported=WRITING), [], Reporter()) as client:
        print(*client.run(loaded).values())
        print(*client.run(found).values())
    print(psutil.Process(forkserver._forkserver._forkserver_pid).num_threads())
"""

COMES_BACK = """
import os
import time

import psutil

from zarrmask.progress import Reporter
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import Crew
from zarrmask.workers.processes import WRITING, make_ready

def runs(pid):  # what died stays as a zombie where a container's first process takes no leave of it
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

if __name__ == "__main__":
    with connect(Crew(2, 1, None, imported=WRITING), [], Reporter()) as client:
        before, (parent,) = (set(client.run(what).values()) for what in (os.getpid, os.getppid))
        psutil.Process(parent).kill()
        there, deadline = set(), time.monotonic() + 60
        while (len(there) < 2 or there & before) and time.monotonic() < deadline:
            time.sleep(0.1)
            there = set(client.run(os.getpid, on_error="ignore").values())
        print(len(there - before), "beside those before" if any(map(runs, before)) else "others")
        now = set(client.run(os.getppid).values())
        print("from the same" if now == {parent} else "from another")
    print(make_ready())
"""


@pytest.fixture(autouse=True)
def _path_as_it_was(monkeypatch):
    """Whatever the tests before have added: else workers would be spawned."""
    if processes._origin is not None:
        monkeypatch.setattr(sys, "path", list(processes._origin.path))


def _parent():
    return os.getppid()


def test_workers_are_forked_from_one_process_without_threads():
    with connect(Crew(2, 1, None, imported=WRITING), [], Reporter()) as client:
        (parent,) = set(client.run(_parent).values())
        forked_from = psutil.Process(parent)
        assert forked_from.ppid() == os.getpid()
        assert forked_from.num_threads() == 1


def test_what_a_detector_needs_is_imported_once_and_begins_no_thread(tmp_path, monkeypatch):
    """And from where the client would: not from the folder of the data, whatever lies there."""
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    data, added = tmp_path / "data", tmp_path / "added"
    data.mkdir()
    added.mkdir()
    (added / "added.py").touch()
    for name in ("random", "numpy", "torch", "zarrmask"):
        (data / f"{name}.py").write_text(
            "raise RuntimeError('a file beside the data was executed')"
        )
    (tmp_path / "script.py").write_text(FORKS.format(added=str(added)))
    command = [sys.executable, tmp_path / "script.py"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=data, check=False)
    lines = ran.stdout.splitlines()
    assert lines == ["(True, True)", f"({str(added / 'added.py')!r}, '1', [])", "1"], ran.stderr


def test_a_command_that_stops_early_leaves_no_process_behind(tmp_path):
    """It would hold what the command wrote to open."""
    command = [sys.executable, "-m", "zarrmask", "run", tmp_path / "none", tmp_path / "out"]
    with (tmp_path / "told").open("w") as told:
        process = subprocess.Popen(command, stderr=told, start_new_session=True)
    assert process.wait(timeout=300) == 1
    assert "none" in (tmp_path / "told").read_text()
    deadline = time.monotonic() + 1
    while there := [pid for pid in psutil.pids() if _forks_for(pid) == process.pid]:
        assert time.monotonic() < deadline, there
        time.sleep(0.05)


def _forks_for(pid):
    """Session of a process that workers are forked from; None of others, and of what is gone."""
    try:
        running = psutil.Process(pid)
        if running.status() == psutil.STATUS_ZOMBIE or "forkserver" not in str(running.cmdline()):
            return None
        return os.getsid(pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def test_workers_see_the_environment_as_it_is_now(monkeypatch):
    def value():
        return os.environ.get("ZARRMASK_TOLD"), os.environ.get("ZARRMASK_FORGOTTEN")

    make_ready()
    forgets = replace(processes._origin, environment=frozenset({"ZARRMASK_FORGOTTEN"}))
    monkeypatch.setattr(processes, "_origin", forgets)
    for told in ("one", "two"):
        monkeypatch.setenv("ZARRMASK_TOLD", told)
        with connect(Crew(1, 1, None, imported=WRITING), [], Reporter()) as client:
            assert list(client.run(value).values()) == [(told, None)]
            assert make_ready() == "forkserver"  # though Dask looks for modules in its own folders


def test_there_are_workers_without_forks(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_origin", None)
        patch.setattr(processes, "_process_id", lambda: None)
        patch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
        assert shared_imports(DETECTING) == ()
        assert make_ready() == "spawn"
        assert find_crew(CrewRequest(), Reporter(), detects=True).imported == ()
    monkeypatch.setattr(processes, "_possible", False)
    assert find_crew(CrewRequest(workers=1), Reporter()).imported == ()
    monkeypatch.undo()
    with connect(Crew(1, 1, None), [], Reporter()) as client:
        assert set(client.run(_parent).values()) == {os.getpid()}


def test_nothing_is_forked_from_what_another_process_began_or_imported_elsewhere(monkeypatch):
    make_ready()
    assert shared_imports()
    with monkeypatch.context() as patch:
        patch.syspath_prepend("somewhere")
        assert shared_imports() == ()
    with monkeypatch.context() as patch:  # as in a fork of this process
        patch.setattr(processes, "_origin", replace(processes._origin, client=os.getppid()))
        assert make_ready() == "spawn"
    with monkeypatch.context() as patch:  # as where the user's own program had begun it
        patch.setattr(processes, "_origin", None)
        assert make_ready() == "spawn"
    assert make_ready() == "forkserver"


def test_workers_are_spawned_where_there_are_no_sockets(monkeypatch):
    def refuses():
        raise OSError("no sockets here")

    monkeypatch.setattr(processes, "_origin", None)
    monkeypatch.setattr(processes, "_process_id", lambda: None)
    monkeypatch.setattr(processes, "_possible", True)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refuses)
    before = dict(os.environ)
    assert make_ready() == "spawn"
    assert shared_imports() == ()
    assert dict(os.environ) == before


def test_workers_end_with_the_process_that_they_were_forked_from_and_come_back(tmp_path):
    """Else two would do the same: those that are taken for dead, and those that replace them."""
    (tmp_path / "script.py").write_text(COMES_BACK)
    command = [sys.executable, tmp_path / "script.py"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == ["2 others", "from another", "spawn"], ran.stderr


def test_what_workers_share_is_settled_by_the_first():
    make_ready()
    began = find_crew(CrewRequest(), Reporter()).imported
    assert set(WRITING) <= set(began)
    assert find_crew(CrewRequest(), Reporter(), detects=True).imported == began


def test_a_socket_has_room_in_the_longest_folder():
    """Python puts it into a folder of its own; sun_path of unix(7) has 108 bytes with the end."""
    from zarrmask.workers.processes import LONGEST_FOLDER

    own = Path("x" * LONGEST_FOLDER) / "pymp-xxxxxxxx" / "listener-xxxxxxxx"
    assert len(os.fsencode(own)) < 108
