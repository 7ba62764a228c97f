"""What tests share: a small simulated stack, a cluster, the real slices where they are."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import s3fs
import tifffile
from upath import UPath

import zarrmask
from zarrmask.cluster import connect
from zarrmask.phantom import Phantom

# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def pytest_collection_modifyitems(items):
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if marks & {"real", "reference"} and "ZARRMASK_SHARED" not in os.environ:
            reason = "ZARRMASK_SHARED does not name the folder of real slices and references"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared():
    """Folder of real slices and references."""
    return Path(os.environ["ZARRMASK_SHARED"])


@pytest.fixture(scope="session")
def cluster():
    """Address of a cluster of two worker processes."""
    with connect(workers=2) as client:
        yield client.scheduler.address


@pytest.fixture(scope="session")
def real_run(shared, cluster, tmp_path_factory):
    """A run on 60 real slices around the hand-traced one, at full size: folder and record."""
    folder = tmp_path_factory.mktemp("real")
    script = shared / "data" / "make_stack.py"
    subprocess.run([sys.executable, script, folder / "stack", "--slices", "180"], check=True)
    out = folder / "out"
    options = {"z": "120:180", "voxel_size": 7.91, "scheduler": cluster}
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as file:
        arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(arguments, stdout=file, stderr=file)
    try:
        _await(endpoint, server, log)
        yield S3(endpoint, *_lock_in(endpoint))
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


def _lock_in(endpoint):
    """Make the bucket and a user who may do all to it; from here on signatures are checked."""
    import boto3

    def client(service):
        return boto3.client(
            service,
            endpoint_url=endpoint,
            aws_access_key_id="root",
            aws_secret_access_key="root",
            region_name="us-east-1",
        )

    iam = client("iam")
    iam.create_user(UserName="user")
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=policy)
    keys = iam.create_access_key(UserName="user")["AccessKey"]
    client("s3").create_bucket(Bucket=S3.bucket)
    no_more = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(no_more).close()
    return keys["AccessKeyId"], keys["SecretAccessKey"]
