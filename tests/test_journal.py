"""Whose an output is, and what of it is finished."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from zarrmask.errors import OutputError
from zarrmask.records.journal import Journal
from zarrmask.records.ledger import Ledger

NOW = {"settings": {"every": 10}, "input": {"shape": [1, 2, 3]}}


@pytest.fixture
def journal(tmp_path):
    return Journal.of_run(tmp_path / "out")


def test_an_output_goes_from_new_to_finished(journal):
    assert journal.check(NOW, overwrite=False) == "new"
    journal.start(NOW)
    assert journal.check(NOW, overwrite=False) == "unfinished"
    journal.finish({"state": "finished", "identity": NOW})
    assert journal.check(NOW, overwrite=False) == "finished"
    assert journal.check(NOW, overwrite=True) == "new"


def test_overwriting_goes_on_with_what_is_the_same(journal):
    journal.start(NOW)
    assert journal.check(NOW, overwrite=True) == "unfinished"
    assert journal.check({"settings": {"every": 20}}, overwrite=True) == "new"


def test_every_difference_is_named(journal):
    journal.start(NOW)
    other = {"settings": {"every": 20, "score": 0.5}, "input": {"shape": [1, 2, 4]}}
    with pytest.raises(OutputError) as error:
        journal.check(other, overwrite=False)
    for line in ("--every: 10 then, 20 now", "--score: not given then, 0.5 now", "input.shape"):
        assert line in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "3", '{"state": "finished"}', '{"version": 1}', "{", "\0"]
)
def test_a_record_that_is_none_is_of_another_maker(journal, content):
    journal.out.mkdir()
    (journal.out / "run.json").write_text(content)
    with pytest.raises(OutputError, match="not made by zarrmask"):
        journal.check(NOW, overwrite=True)


@pytest.mark.parametrize(("ngff", "name"), [("0.4", ".zattrs"), ("0.5", "zarr.json")])
def test_a_conversions_record_leaves_the_other_attributes(tmp_path, ngff, name):
    journal = Journal.of_conversion(tmp_path / "a.zarr", ngff)
    journal.start(NOW)
    path = journal.out / name
    attributes = json.loads(path.read_text())
    path.write_text(json.dumps({"mine": 1, **attributes}))
    journal.finish({"state": "finished", "identity": NOW})
    assert json.loads(path.read_text())["mine"] == 1
    assert journal.check(NOW, overwrite=False) == "finished"


def test_another_version_of_ngff_is_another_run(tmp_path):
    Journal.of_conversion(tmp_path / "a.zarr", "0.4").start(NOW)
    journal = Journal.of_conversion(tmp_path / "a.zarr", "0.5")
    other = {"settings": {"ngff": "0.5"}}
    with pytest.raises(OutputError, match="--ngff"):
        journal.check(other, overwrite=False)
    assert journal.check(other, overwrite=True) == "new"
    journal.start(other)
    assert [path.name for path in journal.out.iterdir()] == ["zarr.json"]


def test_a_start_that_is_stopped_begins_anew(journal, monkeypatch):
    journal.start(NOW)
    journal.ledger.stage("writing").enter("0-0-0", 1)

    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("zarrmask.records.journal.remove_pyramid", stop)
        with pytest.raises(KeyboardInterrupt):
            journal.start(NOW)
    assert journal.check(NOW, overwrite=False) == "new"
    journal.start(NOW)
    assert journal.ledger.stage("writing").missing(["0-0-0"]) == [0]


def test_a_conversion_begins_in_a_mount_point(tmp_path, monkeypatch):
    out = tmp_path / "mounted.zarr"
    out.mkdir()

    def rmdir(path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(Path, "rmdir", rmdir)
    journal = Journal.of_conversion(out)
    journal.start(NOW)
    assert journal.check(NOW, overwrite=False) == "unfinished"


def test_what_is_settled_stays_settled(journal):
    journal.start(NOW)
    assert journal.once("window", lambda: [3, 5]) == [3, 5]
    assert journal.once("window", lambda: [7, 9]) == [3, 5]


def test_a_lock_holds_and_is_let_go(journal):
    with journal.lock(), pytest.raises(OutputError, match="in use"), journal.lock():
        pass
    with journal.lock():
        pass
    assert not journal.out.exists()


def _hold(out, ready):
    with Journal.of_run(out).lock():
        ready.set()
        signal.pause()


def test_a_lock_goes_with_its_process(journal):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(journal.out, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match="in use"), journal.lock():
        pass
    holder.kill()
    holder.join()
    with journal.lock():
        pass


def _is_open(file):
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if os.path.samestat(descriptor.stat(), file):
                return True
    return False


@pytest.fixture
def nfs(monkeypatch):
    """As on NFS, a file that is open gets another name where it is removed, until it is closed."""
    unlink, rmdir, left = os.unlink, os.rmdir, []

    def unlink_there(path, *, dir_fd=None):
        file = os.stat(path, dir_fd=dir_fd)
        if not _is_open(file):
            unlink(path, dir_fd=dir_fd)
            return
        hidden = Path(path).with_name(f".nfs{file.st_ino:024x}")
        os.rename(path, hidden, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        folder = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
        left.append((folder / hidden, file))

    def rmdir_there(path, **options):
        for hidden, file in left:
            if not _is_open(file):
                with suppress(FileNotFoundError):
                    unlink(hidden)
        rmdir(path, **options)

    monkeypatch.setattr(os, "unlink", unlink_there)
    monkeypatch.setattr(os, "rmdir", rmdir_there)
    return left


def test_a_lock_on_nfs_leaves_no_folder_and_no_error(journal, nfs):
    with journal.lock():
        pass
    assert not journal.out.exists()
    with journal.lock():
        journal.start(NOW)
        journal.finish({"state": "finished", "identity": NOW})
    assert [path.name for path in journal.out.iterdir()] == ["run.json"]
    assert len(nfs) == 2


def test_a_file_system_without_locks_is_named(journal, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match=r"without locks \(No locks available\)"), journal.lock():
        pass
    assert not journal.out.exists()


def test_a_file_is_no_output(journal):
    journal.out.write_text("mine")
    with pytest.raises(OutputError, match="is a file"), journal.lock():
        pass
    assert journal.out.read_text() == "mine"


def test_a_ledger_knows_what_is_missing(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "finished").stage("writing")
    keys = ["0-0-0", "0-0-1", "0-1-0"]
    assert ledger.missing(keys) == [0, 1, 2]
    ledger.enter("0-0-1", 17)
    (ledger.folder / ".0-1-0.json.99.partial").write_text("{")  # stopped while entering
    assert ledger.missing(keys) == [0, 2]
    assert ledger.results() == {"0-0-1": 17}
    with monkeypatch.context() as stale:  # as a shared file system may
        stale.setattr("zarrmask.storage.place.names_in", lambda _: set())
        assert ledger.results() == {}
        assert ledger.results(["0-0-1"]) == {"0-0-1": 17}
