"""Detectors on a cluster, and who asks which."""

import pytest
from distributed import Client

from zarrmask.detection.actors import LOST, DetectorLostError, Directory, Recipe, ask
from zarrmask.detection.devices import accelerators
from zarrmask.detectors import Detectors
from zarrmask.errors import SettingsError
from zarrmask.progress import Reporter
from zarrmask.shipped import DEFAULT_CHECKPOINT


def detectors_on(client, **options):
    return Detectors(client, Recipe(DEFAULT_CHECKPOINT), Reporter(), **options)


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
        while any(client.run(actors).values()):
            pass


def test_a_device_that_no_worker_has(cluster):
    if accelerators("cuda"):
        pytest.skip("there is a GPU")
    with Client(cluster) as client:
        with pytest.raises(SettingsError, match="--device cuda"):
            detectors_on(client, asked="cuda").load()
        detectors = detectors_on(client)
        detectors.load()
        assert detectors.kind == "cpu"
