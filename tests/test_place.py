"""Which paths and URLs are places, and what of them is told to people."""

import errno
import pickle
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from zarrmask.errors import OutputError, ZarrmaskError, no_space
from zarrmask.images.numbered import local_folder
from zarrmask.records.ledger import Ledger
from zarrmask.storage.atomic import replace_file, replacing, require_replaceable
from zarrmask.storage.place import (
    names_in,
    output_place,
    place_of,
    printable,
    reached,
    read_files,
    redacted,
    remove,
    written_command,
)


@pytest.fixture
def memory():
    """A folder in this process's memory, as one at any URL."""
    place = UPath("memory://places")
    yield place
    remove(place)


@pytest.mark.parametrize("kind", ["{}", "file://{}", "local://{}"])
def test_a_folder_is_a_path(tmp_path, kind):
    place = place_of(kind.format(tmp_path))
    assert type(place) is type(Path())
    assert place == tmp_path
    assert type(place_of(UPath(kind.format(tmp_path)))) is type(Path())


def test_a_folder_is_absolute_and_an_output_without_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert place_of("link/out") == tmp_path / "link" / "out"
    assert output_place("link/out") == tmp_path / "disk" / "out"
    assert output_place("link") == tmp_path / "disk"
    (tmp_path / "to_be_made").symlink_to("disk/out")
    assert output_place("to_be_made") == tmp_path / "disk" / "out"
    (tmp_path / "unmounted").symlink_to("gone/disk")
    for place in ("unmounted", "unmounted/a/b", "to_be_made/a"):
        for named in (output_place, local_folder):
            with pytest.raises(OutputError, match=r"is a link to \S+, which is not there"):
                named(place)


def test_a_full_disk_is_told_of_once():
    """Also by a process that was told so by another."""
    told = no_space(OSError(errno.ENOSPC, "No space left on device"))
    assert "there is no space left" in told
    assert no_space(ZarrmaskError(told)) == told


def test_a_folder_that_may_not_be_written_to_is_told_of_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)
    with pytest.raises(OutputError, match=f"no permission to write into {tmp_path}; name another"):
        output_place(tmp_path / "a" / "b")
    with pytest.raises(OutputError, match="no permission"):
        require_replaceable(tmp_path / "a")
    with pytest.raises(OutputError, match="no permission"):
        local_folder(tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "not_mine")
    with pytest.raises(OutputError, match=f"no permission to write into {tmp_path}; name another"):
        output_place(tmp_path / "mine" / "link")
    assert output_place(tmp_path / "mine" / "out") == tmp_path / "mine" / "out"


def test_no_folder_can_be_made_in_a_file(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        for named in (output_place, local_folder):
            with pytest.raises(OutputError, match=f"{tmp_path / 'file'} is a file; name another"):
                named(place)
    with pytest.raises(OutputError, match="is a file"):
        require_replaceable(tmp_path / "file" / "a")


def test_a_name_may_hold_what_chains_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_place("scan::1") == tmp_path / "scan::1"


def test_a_place_in_a_bucket_goes_to_other_processes_with_its_options():
    place = output_place(UPath("s3://bucket/out", key="me", secret="hidden")) / "a.zarr"
    assert output_place("s3://bucket/out/") == output_place("s3://bucket/out")
    there = pickle.loads(pickle.dumps(place))
    assert there == place
    assert there.storage_options["secret"] == "hidden"
    assert "hidden" not in f"{place} {place!r} {printable(place)}"


@pytest.mark.parametrize(
    "url",
    [
        "https://host/my scan/?token=hidden",
        "https://host/it's/a.zarr?sig=hidden",
        "https://me:it's hidden@host/a",
        "s3://me:hidden@host/a",
    ],
)
def test_what_is_printed_of_a_place_is_no_secret(url):
    assert "hidden" not in printable(place_of(url))


def test_a_name_in_a_bucket_is_printed_whole():
    assert printable(place_of("s3://bucket/a@b#1")) == "s3://bucket/a@b#1"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("memory://out", "own memory"),
        ("http://127.0.0.1/out", "not written to"),
        ("simplecache::s3://bucket/out", "chain"),
        ("s3://bucket", "names no folder"),
        ("s3://bucket/a/../out", "names no folder"),
        ("s3://me:hidden@bucket/out", "login or a query"),
        ("s3://bucket/out?signature=hidden", "login or a query"),
        ("s3://bucket/my out?signature=hidden", "login or a query"),
        ("https://host/my out/?signature=hidden", "login or a query"),
        ("s3:/bucket/out", "lost a slash"),
        ("nowhere://bucket/out", "cannot be opened"),
    ],
)
def test_what_is_no_output_is_said_to_be_none(url, problem):
    with pytest.raises(ZarrmaskError, match=problem) as error:
        output_place(url)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sftp://me:hidden@host/a b", "sftp://...@host/a b"),
        ("GET http://hidden@host/a?X-Amz-Signature=hidden&b, 403", "GET http://...@host/a?... 403"),
        ("('s3://k:hidden@b/x', 's3://k:hidden@b/y')", "('s3://...@b/x', 's3://...@b/y')"),
        ("abfs://container@account.example/a", "abfs://container@account.example/a"),
        ("is a/b? no: me@host", "is a/b? no: me@host"),
    ],
)
def test_secrets_are_taken_out_of_texts(text, told):
    assert redacted(text) == told


@given(st.text(), st.text(), st.text())
def test_no_secret_gets_into_a_written_command(login, query, other):
    urls = [f"https://{login}hidden@host/a?{query}hidden", f"--x=s3://me:hidden/{login}@b#hidden"]
    written = written_command(["zarrmask", "run", *urls, other.replace("hidden", "")])
    assert "hidden" not in written
    assert len(shlex.split(written)) == 5


def test_files_at_a_url_are_like_files_in_a_folder(memory, tmp_path):
    for folder in (memory, tmp_path / "here"):
        assert names_in(folder) == set()
        assert read_files(folder, ".json") == {}
        ledger = Ledger(folder).stage("writing")
        for key in range(3):
            ledger.enter(key, {"n": key})
        replace_file(folder / "note", b"1")
        replace_file(folder / "note", b"2")
        assert ledger.missing(range(5)) == [3, 4]
        assert ledger.results() == {str(n): {"n": n} for n in range(3)}
        assert names_in(folder) == {"writing", "note"}
        assert (folder / "note").read_bytes() == b"2"
        ledger.forget()
        remove(folder / "nothing")
        assert names_in(folder) == {"note"}


def test_an_error_of_a_store_is_told_and_any_other_is_let_be(tmp_path):
    place = UPath("s3://bucket/out", key="", secret="")
    with pytest.raises(OutputError, match="denied") as error, reached(place):
        raise PermissionError("http://me:hidden@host/a?b=hidden is forbidden")
    assert "hidden" not in str(error.value)
    with pytest.raises(FileNotFoundError), reached(place):
        (tmp_path / "slice.tif").read_bytes()
    with pytest.raises(TypeError), reached(place):
        raise TypeError
    with pytest.raises(PermissionError), reached(tmp_path):
        raise PermissionError


def test_two_who_write_one_file_at_once_leave_it_whole(tmp_path):
    """Processes of one id, as in two containers, that a task was given to both."""
    with replacing(tmp_path / "entry") as file:
        file.write(b"who")
        replace_file(tmp_path / "entry", b"whole")
        file.write(b"le")
    assert (tmp_path / "entry").read_bytes() == b"whole"
    assert names_in(tmp_path) == {"entry"}
