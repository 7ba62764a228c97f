"""Outputs in a bucket of a real S3 server: as in a folder, byte by byte."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from rich.console import Console

import zarrmask
from zarrmask.errors import OutputError, ZarrmaskError
from zarrmask.progress import Reporter
from zarrmask.records.journal import Journal
from zarrmask.storage import lock
from zarrmask.storage.place import names_in, output_place

SIZE = 3.24  # micrometres


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Twelve slices of noise: two bricks, three levels."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for n in range(12):
        tifffile.imwrite(folder / f"{n}.tif", rng.integers(0, 65535, (300, 200), np.uint16))
    return folder


@pytest.fixture(scope="module")
def converted(noise, cluster, tmp_path_factory):
    """What a conversion leaves in a folder."""
    out = tmp_path_factory.mktemp("converted") / "v.zarr"
    return zarrmask.convert(noise, out, voxel_size=SIZE, scheduler=cluster)


@pytest.fixture
def lapsing(monkeypatch):
    """Locks that lapse at once."""
    monkeypatch.setattr(lock, "LAPSE", 0.0)
    monkeypatch.setattr(lock, "SETTLE", 0.1)


def in_folder(folder):
    """Every file under a folder, its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def in_bucket(s3, name):
    """Every object under a name, its bytes."""
    files, root = s3.files, f"{s3.bucket}/{name}"
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def command(s3, *arguments, **environment):
    """Start a command line that finds the server by its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "zarrmask", *map(str, arguments)],
        env={**os.environ, **s3.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def told(process):
    """Exit code and all that a command printed."""
    printed = process.communicate(timeout=120)[0]
    return process.returncode, printed


def test_a_conversion_leaves_the_same_bytes(s3, noise, converted, cluster):
    place = s3.place("same/v.zarr")
    assert zarrmask.convert(noise, place, voxel_size=SIZE, scheduler=cluster) == output_place(place)
    assert in_bucket(s3, "same") == {
        f"v.zarr/{name}": content for name, content in in_folder(converted).items()
    }
    with pytest.raises(OutputError, match=r"voxel-size: 3\.24 then, not given now"):
        zarrmask.convert(noise, place)
    before = s3.files.find("bucket/same", detail=True)
    assert zarrmask.convert(noise, place, voxel_size=SIZE) == output_place(place)
    assert s3.files.find("bucket/same", detail=True) == before

    there, here = zarrmask.open_pyramid(place), zarrmask.open_pyramid(converted)
    assert len(there.children) == 3
    for level in there.children:
        assert there[level].identical(here[level])
    assert told(command(s3, "info", s3.url("same/v.zarr"))) == told(command(s3, "info", converted))


def test_a_conversion_is_overwritten_and_what_others_added_stays(s3, noise, cluster):
    place = s3.place("over/v.zarr")
    zarrmask.convert(noise, place, scheduler=cluster)
    (place / "labels" / "mine" / ".zgroup").write_bytes(b'{"zarr_format": 2}')
    zarrmask.convert(noise, place, z="3:5", overwrite=True, scheduler=cluster)
    assert zarrmask.open_pyramid(place)["0/image"].shape == (2, 300, 200)
    assert (place / "labels" / "mine" / ".zgroup").exists()
    assert names_in(place.parent) == {"v.zarr"}


def test_a_run_leaves_the_same_bytes(s3, stack, cluster, tmp_path):
    options = {"every": 12, "voxel_size": SIZE, "scheduler": cluster}
    zarrmask.run(stack, tmp_path / "out", **options)
    record = zarrmask.run(stack, s3.place("run/out"), **options)
    here, there = in_folder(tmp_path / "out"), in_bucket(s3, "run/out")
    links = "masked.zarr/labels/"  # a bucket has none
    expected = {name for name in here if not name.startswith((links, "scroll.khprj/"))}
    assert set(there) == expected
    its_own = {"run.json", "report.html", "overview.png"}
    assert all(there[name] == here[name] for name in expected - its_own)
    assert json.loads(there["run.json"]) == json.loads(json.dumps(record))
    assert b"s3://bucket/run/out/masked.zarr" in there["report.html"]
    assert b"khartes.py" not in there["report.html"]
    assert s3.secret not in "".join(map(str, there.values()))
    printed = told(command(s3, "info", s3.url("run/out")))
    assert printed[0] == 0
    assert "finished" in printed[1]
    assert (
        "finished already"
        in told(command(s3, "run", stack, s3.url("run/out"), "--every", 12, "--voxel-size", SIZE))[
            1
        ]
    )


def test_a_killed_conversion_goes_on(s3, noise, converted, cluster, lapsing):
    name = "killed/v.zarr"
    arguments = ("convert", noise, s3.url(name), "--voxel-size", SIZE, "--workers", 1)
    process = command(s3, *arguments)
    entries = "bucket/killed/.v.zarr.zarrmask/finished/writing"
    try:
        end = time.monotonic() + 120
        while not s3.files.exists(entries):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    finished = s3.files.find(entries, detail=True)
    with pytest.raises(ZarrmaskError, match="not an OME-Zarr image"):
        zarrmask.open_pyramid(s3.place(name))

    code, printed = told(command(s3, *arguments))
    assert code == 1
    assert "in use by another zarrmask (process" in printed
    assert "its lock lapses in" in printed
    with pytest.raises(OutputError, match=r"voxel-size: 3\.24 then, not given now"):
        zarrmask.convert(noise, s3.place(name))
    assert s3.files.find(entries, detail=True) == finished

    zarrmask.convert(noise, s3.place(name), voxel_size=SIZE, scheduler=cluster)
    assert in_bucket(s3, name) == in_folder(converted)
    assert names_in(s3.place("killed")) == {"v.zarr"}


def test_two_do_not_write_to_one_output(s3, noise):
    journal = Journal.of_conversion(output_place(s3.place("two/v.zarr")))
    with journal.lock():
        with pytest.raises(OutputError, match="in use"):
            zarrmask.convert(noise, s3.place("two/v.zarr"))
        assert names_in(journal.work) == {"lock"}
    assert names_in(s3.place("two")) == set()


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "any"])
def test_of_those_that_come_at_once_one_gets_the_lock(s3, monkeypatch, lapsing, conditional):
    place = output_place(s3.place(f"race-{conditional}/lock"))
    if not conditional:  # as for a store that does not know of If-None-Match
        probe = lock._probe
        monkeypatch.setattr(lock, "_probe", lambda place: (probe(place)[0], False))
        monkeypatch.setattr(lock, "SETTLE", 1.0)
    monkeypatch.setattr(lock, "LAPSE", 60.0)

    def take(n):
        with contextlib.suppress(OutputError):
            lock._take(place, str(n).encode(), place)
            return n

    with ThreadPoolExecutor(4) as threads:
        got = [n for n in threads.map(take, range(4)) if n is not None]
    assert [str(n).encode() for n in got] == [place.read_bytes()]


@pytest.fixture
def restored():
    """Ctrl-C means afterwards what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _another(journal):
    """Another zarrmask, that takes the lock and keeps it as it would."""
    place, told = journal.work / "lock", threading.Event()

    def take():
        with contextlib.suppress(OutputError):  # a beat came between
            lock._take(place, b"{}", journal.out)
        while True:
            place.write_bytes(b"{}")
            if told.wait(0.2):
                return

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        told.set()
        thread.join()


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_a_lock_that_lapsed_is_taken_and_its_holder_told(
    s3, monkeypatch, lapsing, restored, ctrl_c
):
    signal.signal(signal.SIGINT, ctrl_c)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    journal = Journal.of_run(output_place(s3.place("taken/out")))
    told = pytest.raises(OutputError, match="taken over by another")
    with told, journal.lock(), _another(journal):
        time.sleep(60)
    assert (journal.work / "lock").read_bytes() == b"{}"  # not ours to remove
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_who_lost_a_lock_in_another_thread_is_told_at_the_end(s3, monkeypatch, lapsing):
    """Signals reach the main thread alone."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    journal = Journal.of_run(output_place(s3.place("threads/out")))

    def work():
        with journal.lock(), _another(journal):
            time.sleep(1)

    with ThreadPoolExecutor(1) as thread, pytest.raises(OutputError, match="taken over by another"):
        thread.submit(work).result()


def test_a_lock_is_renewed(s3, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "LAPSE", 2.5)  # servers tell whole seconds
    place = output_place(s3.place("renewed/out"))
    with Journal.of_run(place).lock():
        time.sleep(4)
        with pytest.raises(OutputError, match="in use"), Journal.of_run(place).lock():
            pass
    assert names_in(place) == set()


def test_a_store_that_fails_is_said_to_have_failed(mortal_s3, noise, cluster):
    s3, server = mortal_s3
    once = {"retries": {"total_max_attempts": 1}}
    place = s3.place("v.zarr", config_kwargs=once)

    def kill():
        while not s3.files.exists("bucket/v.zarr/0/.zarray"):
            time.sleep(0.01)
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(OutputError, match=r"does not answer.*run the same command again"):
        zarrmask.convert(noise, place, scheduler=cluster)
    killer.join()


def test_an_output_never_replaces_its_own_input(s3, noise, cluster):
    place = s3.place("itself/v.zarr")
    zarrmask.convert(noise, place, scheduler=cluster)
    before = in_bucket(s3, "itself")
    for out in ("itself/v.zarr", "itself/v.zarr/inside.zarr", "itself"):
        with pytest.raises(OutputError, match="would overwrite what is read"):
            zarrmask.convert(place, s3.place(out), overwrite=True)
    assert in_bucket(s3, "itself") == before


NOWHERE = {"endpoint_url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("bucket", "options", "problem"),
    [
        ("nobucket", {}, "make the bucket first"),
        ("bucket", {"secret": "planted-secret"}, "access is denied"),
        ("bucket", {"key": None, "secret": None}, "there are no credentials"),
        ("bucket", NOWHERE, "does not answer"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_said_to_be_so(
    s3, noise, monkeypatch, tmp_path, bucket, options, problem
):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = s3.place("out", **options)
    place = type(place)(f"s3://{bucket}/out/v.zarr", **place.storage_options)
    with pytest.raises(OutputError, match=problem) as error:
        zarrmask.convert(noise, place)
    assert "planted-secret" not in str(error.value)


def test_secrets_are_told_to_nobody(s3, noise):
    """Wrong keys, and secrets in addresses, by the command line and with a traceback."""
    wrong = {"AWS_SECRET_ACCESS_KEY": "planted-secret", "AWS_SESSION_TOKEN": "planted-token"}
    endpoint = {"AWS_ENDPOINT_URL": s3.endpoint.replace("://", "://user:planted-password@")}
    out = s3.url("secrets/v.zarr")
    started = [
        command(s3, "convert", noise, out, **wrong),
        command(s3, "--debug", "convert", noise, out, **wrong),
        command(s3, "--debug", "convert", noise, out, **wrong, **endpoint),
        command(s3, "--debug", "convert", noise, "s3://me:planted-password@bucket/v.zarr"),
        command(s3, "--debug", "convert", noise, f"{out}?token=planted"),
    ]
    for process in started:
        code, printed = told(process)
        assert code == 1
        assert "s3://" in printed
        assert "planted" not in printed


def test_secrets_of_the_input_are_in_no_output(s3, web, stack, cluster):
    for n in range(100, 103):
        shutil.copy(stack / f"00{n}.tif", web.folder)
    web.password, web.query = "me:planted-password", "sig=planted-signature"
    url = f"{web.url.replace('//', '//me:planted-password@')}/?{web.query}"
    console = Console(file=io.StringIO(), width=500)
    reporter = Reporter(console)
    out, line = s3.place("planted/out"), ["zarrmask", "run", url, "out"]
    record = zarrmask.run(url, out, scheduler=cluster, reporter=reporter, command=line)
    assert record["command"].startswith("zarrmask run 'http://...@")
    written = in_bucket(s3, "planted")
    assert written
    for told in (console.file.getvalue().encode(), *written.values()):
        assert b"planted" not in told.replace(b"planted/out", b"")


def test_shards_hold_the_same_voxels(s3, noise, cluster, tmp_path):
    options = {"ngff": "0.5", "scheduler": cluster}
    here = zarrmask.convert(noise, tmp_path / "v.zarr", **options)
    there = zarrmask.convert(noise, s3.place("shards/v.zarr"), **options)
    assert set(in_bucket(s3, "shards/v.zarr")) == set(in_folder(here))
    for level, image in zarrmask.open_pyramid(there).children.items():
        assert image.identical(zarrmask.open_pyramid(here)[level])


def test_a_pyramid_is_read_over_http(web, converted):
    shutil.copytree(converted, web.folder / "v.zarr")
    there, here = zarrmask.open_pyramid(f"{web.url}/v.zarr"), zarrmask.open_pyramid(converted)
    for level in here.children:
        assert there[level].identical(here[level])
    secret = web.url.replace("://", "://me:planted-password@")
    with pytest.raises(ZarrmaskError, match="not an OME-Zarr image") as error:
        zarrmask.open_pyramid(f"{secret}/nothing.zarr")
    assert "planted" not in str(error.value)
