"""Detectors on a cluster, and who asks which."""

import gc
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client

from zarrmask.detection.actors import LOST, DetectorLostError, DetectorSpec, Directory, ask
from zarrmask.detection.devices import accelerators
from zarrmask.errors import SettingsError
from zarrmask.progress import Reporter
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.workers.blocks import let_go
from zarrmask.workers.detectors import ATTEMPTS, Detectors


def detectors_on(client, **options):
    return Detectors(client, DetectorSpec(DEFAULT_CHECKPOINT), Reporter(), **options)


def asked(directory, turn):
    return directory.nearest(turn)._address


def answered(directory):
    return ask(directory.nearest(0), "input")


def actors(dask_worker):
    return len(dask_worker.state.actors)


def test_a_task_asks_the_detector_on_its_own_worker(cluster):
    with Client(cluster) as client:
        detectors = detectors_on(client, asked="cpu")
        detectors.load()
        assert len(detectors) == 2
        here, there = client.nthreads()
        directory = detectors.directory
        older = Directory(directory.name, ())  # from before there was a detector
        for worker in (here, there):
            for known in (directory, older):
                at = {"workers": [worker], "pure": False}
                assert client.submit(asked, known, 0, **at).result() == worker
                assert client.submit(answered, known, **at).result() == detectors.network_input()
        others = Directory("others", (("a", "one"), ("b", "other")))
        turns = [client.submit(asked, others, turn, pure=False) for turn in range(4)]
        assert client.gather(turns) == ["one", "other", "one", "other"]
        with pytest.raises(DetectorLostError, match=LOST):
            client.submit(asked, Directory("others", ()), 0, pure=False).result()

        taken = detectors.taken_over()
        assert (len(detectors), len(taken)) == (0, 2)
        assert list(client.run(actors).values()) == [1, 1]
        del taken
        gc.collect()  # the futures of what was loaded refer to each other
        while any(client.run(actors).values()):
            time.sleep(0.05)


def test_a_device_that_no_worker_has(cluster):
    if accelerators("cuda"):
        pytest.skip("there is a GPU")
    with Client(cluster) as client:
        with pytest.raises(SettingsError, match="--device cuda"):
            detectors_on(client, asked="cuda").load()
        detectors = detectors_on(client)
        detectors.load()
        assert detectors.kind == "cpu"


@dataclass(frozen=True)
class Waiting(DetectorSpec):
    """A detector that takes a while to load: until a file is there."""

    go: Path = Path()

    def load(self, device):
        while not self.go.exists():
            time.sleep(0.01)
        return super().load(device)


def loading(dask_scheduler):
    return len(dask_scheduler.tasks)


async def lose(count, dask_scheduler):
    for worker in list(dask_scheduler.workers)[:count]:
        await dask_scheduler.remove_worker(worker, stimulus_id="its machine is lost")


def test_a_machine_of_many_workers_that_is_lost_while_they_load_is_one_loss(cluster_here, tmp_path):
    with cluster_here(ATTEMPTS + 1, 1) as client, ThreadPoolExecutor(1) as pool:
        recipe = Waiting(DEFAULT_CHECKPOINT, go=tmp_path / "go")
        detectors = Detectors(client, recipe, Reporter(), asked="cpu")
        loaded = pool.submit(detectors.load)
        try:
            while client.run_on_scheduler(loading) <= ATTEMPTS + 1:  # and who is there
                time.sleep(0.01)
            client.run_on_scheduler(lose, ATTEMPTS)
            time.sleep(1)
        finally:
            recipe.go.touch()
        loaded.result()
        assert len(detectors) == 1
        del detectors


def test_who_waits_for_a_detector_can_be_let_go(cluster):
    """No worker has a GPU, as this run's had: nothing that Dask knows is waited for."""
    if accelerators("cuda"):
        pytest.skip("there is a GPU")
    with Client(cluster) as client, ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(detectors_on(client, kind="cuda", patience=60.0).load)
        while not client.futures:
            time.sleep(0.01)
        time.sleep(0.5)
        assert not loaded.done()
        let_go(client)
        with pytest.raises(CancelledError):
            loaded.result(timeout=20)
