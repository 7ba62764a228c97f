"""What tests share: a small simulated stack, a cluster, the real slices where they are."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import tifffile

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
