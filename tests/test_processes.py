"""How the processes of a local cluster begin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zarrmask.workers.cluster import connect, find_crew
from zarrmask.workers.processes import DETECTING, WRITING, make_ready, shared_imports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

FORKS = """
import sys
from multiprocessing import forkserver

import psutil

from zarrmask.workers.cluster import connect
from zarrmask.workers.processes import DETECTING, make_ready

def loaded():
    return "torch" in sys.modules, sys.modules["gc"].get_freeze_count() > 10**5

if __name__ == "__main__":
    make_ready(DETECTING)
    with connect(workers=1) as client:
        print(*client.run(loaded).values())
    print(psutil.Process(forkserver._forkserver._forkserver_pid).num_threads())
"""


def _parent():
    return os.getppid()


def _runs(pid):
    """What died stays as a zombie where the first process of a container takes no leave of it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_are_forked_from_one_process_without_threads():
    with connect(workers=2) as client:
        (parent,) = set(client.run(_parent).values())
        forked_from = psutil.Process(parent)
        assert forked_from.ppid() == os.getpid()
        assert forked_from.num_threads() == 1


def test_what_a_detector_needs_is_imported_once_and_begins_no_thread(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FORKS)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["(True, True)", "1"]


def test_workers_see_the_environment_as_it_is_now(monkeypatch):
    def value():
        return os.environ.get("ZARRMASK_TOLD")

    make_ready()
    for told in ("one", "two"):
        monkeypatch.setenv("ZARRMASK_TOLD", told)
        with connect(workers=1) as client:
            assert list(client.run(value).values()) == [told]


def test_there_are_workers_without_forks(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
    assert shared_imports(DETECTING) == ()
    assert make_ready() == "spawn"
    assert find_crew(detects=True).imported == ()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_crew(workers=1).imported == ()
    monkeypatch.undo()
    with connect(workers=1, imported=()) as client:
        assert set(client.run(_parent).values()) == {os.getpid()}


def test_workers_end_with_the_process_that_they_were_forked_from_and_come_back():
    """Else two would do the same: those that are taken for dead, and those that replace them."""
    with connect(workers=2) as client:
        pids, (parent,) = set(client.run(os.getpid).values()), set(client.run(_parent).values())
        psutil.Process(parent).kill()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            there = set(client.run(os.getpid, on_error="ignore").values())
            if len(there) == 2 and not there & pids:
                break
            time.sleep(0.1)
        assert len(there) == 2
        assert not there & pids
        assert not any(_runs(pid) for pid in pids)
        (other,) = set(client.run(_parent).values())
        assert other != parent


def test_what_workers_share_is_settled_by_the_first():
    make_ready()
    began = find_crew().imported
    assert set(WRITING) <= set(began)
    assert find_crew(detects=True).imported == began


def test_a_socket_has_room_in_the_longest_folder():
    """Python puts it into a folder of its own; sun_path of unix(7) has 108 bytes with the end."""
    from zarrmask.workers.processes import LONGEST_FOLDER

    own = Path("x" * LONGEST_FOLDER) / "pymp-xxxxxxxx" / "listener-xxxxxxxx"
    assert len(os.fsencode(own)) < 108
