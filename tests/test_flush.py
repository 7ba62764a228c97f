"""What is finished is on the disk."""

import os

import pytest

from zarrmask.flush import flush_all, flush_soon


def test_files_are_brought_onto_the_disk_before_they_count(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(os.fstat(file).st_ino), fsync(file)))
    files = [tmp_path / str(n) for n in range(5)]
    for file in files:
        file.write_bytes(b"x")
        flush_soon(file)
    flush_soon(tmp_path / "an empty chunk has no file")
    flush_all()
    assert sorted(seen) == sorted(file.stat().st_ino for file in files)


def test_a_disk_that_fails_is_told_of_once(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    (tmp_path / "file").write_bytes(b"x")
    flush_soon(tmp_path / "file")
    with pytest.raises(OSError, match="Input/output error"):
        flush_all()
    flush_all()
