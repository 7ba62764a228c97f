"""`configs/slurm.yaml` and the `mask.py` of docs/cluster.md, on the SLURM that is there.

`pytest -m slurm --basetemp FOLDER`: a folder, new or to be emptied, that all nodes share. Jobs of a
core and 3 GB go to the default queue; what else a site wants is told to SLURM itself, as by
`SBATCH_ACCOUNT` and `SBATCH_PARTITION`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

import zarrmask

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]
OPTIONS = {"every": 6, "device": "cpu"}
"""So many keyframes that there is time to die; a GPU would not find the same to the bit."""
DETECTED, WRITTEN = "detecting/*.json", "writing/level-0/*/*.json"


def ask(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def queue():
    """Name of the default queue, and whether it has GPUs."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    if not shutil.which("sbatch"):
        pytest.skip("there is no SLURM here: sbatch is not found")
    try:
        known = ask("sinfo", "--noheader", "--format=%P %G").splitlines()
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"SLURM does not answer: {getattr(error, 'stderr', None) or error}")
    name, gpus = next((line.split() for line in known if "*" in line), known[0].split())
    return name.rstrip("*"), "gpu" in gpus


class Jobs:
    """The documented `mask.py` in a folder, and its jobs, which nobody else's are called like."""

    def __init__(self, folder, stack, queue):
        self.folder, self.out = folder, folder / "out"
        self._name = f"zarrmask-{uuid4().hex}"
        self._process = None
        config = yaml.safe_load((ROOT / "configs/slurm.yaml").read_text())
        filled = config["jobqueue"]["slurm"]
        filled.update(name=self._name, queue=queue[0], cores=1, memory="3GB")
        if not queue[1]:
            filled["job-extra-directives"] = []
        (folder / "slurm.yaml").write_text(yaml.safe_dump(config))
        text = (ROOT / "docs/cluster.md").read_text()
        (script,) = re.findall(r"```python\n(# mask\.py\n.*?)```", text, re.DOTALL)
        options = "".join(f", {name}={value!r}" for name, value in OPTIONS.items())
        for old, new in (
            ('"/shared/stack"', repr(str(stack))),
            ('"/shared/out"', repr(str(self.out)) + options),
            ("minimum_jobs=8, maximum_jobs=8", "minimum_jobs=2, maximum_jobs=2"),
        ):
            assert script.count(old) == 1
            script = script.replace(old, new)
        (folder / "mask.py").write_text(script)

    def start(self):
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "mask.py"],
                cwd=self.folder,
                env={**os.environ, "DASK_CONFIG": "slurm.yaml"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def told(self):
        return (self.folder / "log").read_text()

    def done(self, entries):
        return len(list(self.out.glob(f".zarrmask/finished/{entries}")))

    def wait_for(self, entries, count):
        """Wait until so many entries are in the ledger."""
        while self.done(entries) < count:
            assert self._process.poll() is None, self.told
            time.sleep(0.01)

    def there(self, *states):
        """Jobs that are running, or in other states, by their numbers."""
        wanted = [f"--states={','.join(states)}"] if states else []
        return ask("squeue", "--noheader", f"--name={self._name}", *wanted, "--format=%A").split()

    def cancel(self, most):
        """Cancel some that run; tells how many."""
        running = self.there("RUNNING")[:most]
        ask("scancel", *running)
        return len(running)

    def stop(self):
        """Stop `mask.py` as a job that comes to its end is stopped; gives its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self.status()

    def status(self):
        return self._process.wait()

    def close(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        ask("scancel", f"--name={self._name}")


@pytest.fixture
def tall(stack, tmp_path):
    """A stack of six bricks and 250 keyframes, on a disk that all nodes share."""
    folder = tmp_path / "tall"
    folder.mkdir()
    for n in range(1500):
        shutil.copy(stack / f"{100 + n * 23 // 1500:05d}.tif", folder / f"{n:05d}.tif")
    return folder


@pytest.fixture
def jobs(queue, tall, tmp_path):
    jobs = Jobs(tmp_path, tall, queue)
    yield jobs
    jobs.close()


def contents(out):
    """Every file of the three zarrs and its bytes."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for name in ("volume", "mask", "masked")
        for path in sorted((out / f"{name}.zarr").rglob("*"))
        if path.is_file()
    }


def test_the_run_is_stopped_and_jobs_are_cancelled(jobs, tall, cluster, tmp_path):
    jobs.start()
    jobs.wait_for(DETECTED, 3)
    assert jobs.stop() == 128 + signal.SIGTERM
    while jobs.there("PENDING", "RUNNING"):  # it took its jobs along
        time.sleep(1)

    before = jobs.done(DETECTED)
    jobs.start()
    jobs.wait_for(DETECTED, before + 3)
    assert jobs.cancel(2) > 0
    jobs.wait_for(WRITTEN, 1)
    assert jobs.cancel(1) == 1
    assert jobs.status() == 0, jobs.told
    record = json.loads((jobs.out / "run.json").read_text())
    assert record["resumed"]
    assert record["workers"]["lost"] > 0

    whole = tmp_path / "whole"
    zarrmask.run(tall, whole, scheduler=cluster, **OPTIONS)
    assert contents(jobs.out) == contents(whole)
