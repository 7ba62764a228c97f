"""What tests share: a small simulated stack, a cluster, a web server, the real slices if there."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import hypothesis
import pytest
import s3fs
import tifffile
from distributed import Client, LocalCluster
from upath import UPath

import zarrmask
from zarrmask import cli
from zarrmask.phantom import Phantom
from zarrmask.progress import Reporter
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import Crew
from zarrmask.workers.processes import WRITING

# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def pytest_collection_modifyitems(items):
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if marks & {"real", "reference"} and "ZARRMASK_SHARED" not in os.environ:
            reason = "ZARRMASK_SHARED does not name the folder of real slices and references"
            item.add_marker(pytest.mark.skip(reason=reason))
        if "detectron2" in marks and find_spec("detectron2") is None:
            reason = "detectron2 is not installed (docs/detector.md says how); zarrmask needs none"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(name="zarrmask")
def command_line(monkeypatch, capsys, tmp_path):
    """Run a command line; gives its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["zarrmask", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared():
    """Folder of real slices and references."""
    return Path(os.environ["ZARRMASK_SHARED"])


@pytest.fixture(scope="session")
def cluster():
    """Address of a cluster of two worker processes."""
    with connect(Crew(2, 1, None, imported=WRITING), [], Reporter()) as client:
        yield client.scheduler.address


@pytest.fixture(scope="session")
def real_run(shared, cluster, tmp_path_factory):
    """A run on 60 real slices around the hand-traced one, at full size: folder and record."""
    folder = tmp_path_factory.mktemp("real")
    script = shared / "data" / "make_stack.py"
    subprocess.run([sys.executable, script, folder / "stack", "--slices", "180"], check=True)
    out = folder / "out"
    options = {"z": "120:180", "every": 10, "voxel_size": 7.91, "scheduler": cluster}
    return out, zarrmask.run(folder / "stack", out, **options)


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """The middle of a simulated scroll: 23 slices of 150 x 170, numbered from 100."""
    folder = tmp_path_factory.mktemp("stack")
    phantom = Phantom((80, 150, 170), seed=3)
    for n in range(23):
        tifffile.imwrite(folder / f"{100 + n:05d}.tif", phantom.slice(30 + n)[0])
    return folder


@dataclass(frozen=True)
class S3:
    """An S3 server that checks signatures: its address, a bucket on it, and a user's keys."""

    endpoint: str
    key: str
    secret: str
    bucket: str = "bucket"

    @property
    def options(self):
        """Storage options of a `UPath` or of s3fs."""
        return {"endpoint_url": self.endpoint, "key": self.key, "secret": self.secret}

    @property
    def environment(self):
        """What a process needs to find the server and be let in."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def files(self):
        """The server's file system, as it is now."""
        return s3fs.S3FileSystem(**self.options, use_listings_cache=False)

    def url(self, name):
        return f"s3://{self.bucket}/{name}"

    def place(self, name, **options):
        """A `UPath` that needs no environment."""
        return UPath(self.url(name), **{**self.options, **options})


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A real S3 server on loopback, for all tests of a session: use a name of your own each."""
    with _s3_server(tmp_path_factory.mktemp("s3") / "log") as (endpoint, _):
        _make_bucket(endpoint)
        yield S3(endpoint, *_lock_in(endpoint))


@pytest.fixture
def mortal_s3(tmp_path):
    """An S3 server for one test to kill, and its process; it lets everybody in."""
    with _s3_server(tmp_path / "log") as (endpoint, server):
        _make_bucket(endpoint)
        yield S3(endpoint, "root", "root"), server


@contextmanager
def _s3_server(log):
    """Address and process of an S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(arguments, stdout=file, stderr=file)
    try:
        _await(endpoint, server, log)
        yield endpoint, server
    finally:
        server.kill()
        server.wait()


def _await(endpoint, server, log, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/").close()
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


def _client(service, endpoint):
    import boto3

    return boto3.client(
        service,
        endpoint_url=endpoint,
        aws_access_key_id="root",
        aws_secret_access_key="root",
        region_name="us-east-1",
    )


def _make_bucket(endpoint):
    _client("s3", endpoint).create_bucket(Bucket=S3.bucket)


def _lock_in(endpoint):
    """Make a user who may do all to buckets; from here on signatures are checked."""
    iam = _client("iam", endpoint)
    iam.create_user(UserName="user")
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=policy)
    keys = iam.create_access_key(UserName="user")["AccessKey"]
    no_more = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(no_more).close()
    return keys["AccessKeyId"], keys["SecretAccessKey"]


class Web(ThreadingHTTPServer):
    """A folder on 127.0.0.1 by HTTP: index pages, ranges, ETags; fails where it is told to.

    Attributes
    ----------
    url : str
        Of the folder, without a slash at its end.
    requests : list of (method, path, range)
        All that came; the range as its header said it, or None.
    fault : callable
        Given method and path, what goes wrong: a status such as 503, "drop" (the connection is
        closed in the middle of the content), "stall" (no answer), "whole" (no ranges), or None.
    password : str or None
        "user:password" that every request has to bring, if any.
    query : str or None
        Query string that every request has to bring, if any, as signed URLs do.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder):
        self.folder = folder
        self.requests = []
        self.fault = lambda method, path: None
        self.password = self.query = None
        self.stopping = threading.Event()
        super().__init__(("127.0.0.1", 0), WebRequest)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that go away in the middle are no news."""


class WebRequest(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, request, address, server):
        super().__init__(request, address, server, directory=str(server.folder))

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def answer(self):
        path, _, query = self.path.partition("?")
        self.server.requests.append((self.command, unquote(path), self.headers.get("Range")))
        fault = self.server.fault(self.command, unquote(path))
        if fault == "stall":
            self.server.stopping.wait(30)
            self.close_connection = True
        elif isinstance(fault, int):
            self.refuse(fault)
        elif self.server.password and self.headers.get("Authorization") != "Basic " + (
            base64.b64encode(self.server.password.encode()).decode()
        ):
            self.refuse(401)
        elif self.server.query and query != self.server.query:
            self.refuse(403)
        else:
            place = Path(self.translate_path(path))
            if place.is_dir():
                listing = self.list_directory(place)  # has sent the headers
                content = listing.read() if listing else b""
                self.wfile.write(content if self.command == "GET" else b"")
            elif place.is_file():
                self.send(place, fault)
            else:
                self.refuse(404)

    def refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, place, fault):
        drop, range_ = fault == "drop", fault != "whole" and self.headers.get("Range", "")
        state = place.stat()
        start, stop = 0, state.st_size
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", range_ or ""):
            first, last = found.groups()
            start = int(first) if first else max(0, stop - int(last))
            stop = min(stop, int(last) + 1) if first and last else stop
            if start >= stop:
                self.refuse(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{state.st_size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{state.st_mtime_ns:x}-{state.st_size:x}"')
        self.send_header("Last-Modified", self.date_time_string(int(state.st_mtime)))
        self.end_headers()
        if self.command == "GET":
            with place.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read((stop - start) // (2 if drop else 1)))
        if drop:
            self.close_connection = True


@pytest.fixture
def web(tmp_path):
    """A server of the folder `tmp_path/web`."""
    folder = tmp_path / "web"
    folder.mkdir(exist_ok=True)
    with Web(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()


@contextmanager
def _threads(workers, threads):
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=False,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def cluster_here():
    """Starts a cluster of so many workers in this process, and gives its client."""
    return _threads


@pytest.fixture
def here(cluster_here):
    """Address of a cluster of two threads of this process: what it does can be counted."""
    with cluster_here(1, 2) as client:
        yield client.scheduler.address
