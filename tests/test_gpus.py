"""`--gpus`: dask-cuda's cluster, as far as a machine without GPUs can tell."""

import os
import sys

import numpy as np
import psutil
import pytest
import zarr

import zarrmask
from zarrmask.errors import SettingsError
from zarrmask.progress import Reporter
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import Crew, CrewRequest, find_crew
from zarrmask.workers.gpus import visible_gpus

GB = 10**9


def test_a_missing_dask_cuda_is_named_with_what_brings_it(zarrmask, stack, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    code, _, error = zarrmask("run", stack, tmp_path / "out", "--gpus")
    assert code == 1
    assert "pip install 'zarrmask[gpus]'" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", [{"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}])
def test_gpus_and_other_workers_exclude_each_other(other):
    with pytest.raises(SettingsError, match="leave it out, or --scheduler and --workers"):
        find_crew(CrewRequest(gpus=True, **other), Reporter())


def test_gpus_do_not_detect_on_a_processor(stack, tmp_path):
    with pytest.raises(SettingsError, match="leave it out, or --device cpu"):
        zarrmask.run(stack, tmp_path / "out", gpus=True, device="cpu")


def test_a_conversion_has_no_use_for_gpus(zarrmask, stack, tmp_path):
    code, _, error = zarrmask("plan", stack, tmp_path / "out.zarr", "--convert", "--gpus")
    assert code == 1
    assert "a conversion has no settings gpus; leave them out" in error


def test_a_machine_without_gpus_says_so(stack, tmp_path, monkeypatch):
    pytest.importorskip("dask_cuda", reason="zarrmask[gpus] is not installed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")
    with pytest.raises(SettingsError, match="no GPU can be asked for"):
        zarrmask.run(stack, tmp_path / "out", gpus=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SettingsError, match="no GPU can be asked for"):
        zarrmask.run(stack, tmp_path / "out", gpus=True)


def test_a_worker_a_gpu_shares_the_cores(monkeypatch):
    monkeypatch.setattr("zarrmask.workers.crew.visible_gpus", lambda: ["0", "1", "2"])
    monkeypatch.setattr("dask.system.CPU_COUNT", 32)
    crew = find_crew(CrewRequest(memory="64GB", gpus=True), Reporter())
    assert crew == Crew(3, 10, 64 * GB, fixed=False, gpus=True)


def test_the_cluster_is_dask_cuda_s(stack, tmp_path, monkeypatch):
    """The real cluster; only asking NVIDIA's library, which is not here, is left out."""
    pytest.importorskip("dask_cuda", reason="zarrmask[gpus] is not installed")
    monkeypatch.setattr("zarrmask.workers.crew.visible_gpus", lambda: ["0", "1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")
    with connect(Crew(2, 3, None, gpus=True), [], Reporter()) as client:
        assert type(client.cluster).__name__ == "LocalCUDACluster"
        assert list(client.nthreads().values()) == [3, 3]
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        devices = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert set(devices.values()) == {"0,1", "1,0"}
        commands = client.run(lambda: psutil.Process().cmdline())
        assert all("spawn_main" in " ".join(command) for command in commands.values())
    with pytest.raises(SettingsError, match="torch sees none here"):
        zarrmask.run(stack, tmp_path / "out", gpus=True)


@pytest.mark.gpu
def test_a_run_on_gpus_finds_what_processors_find(stack, cluster, tmp_path):
    pytest.importorskip("dask_cuda", reason="zarrmask[gpus] is not installed")
    try:
        visible_gpus()
    except SettingsError as error:
        pytest.skip(str(error))
    record = zarrmask.run(stack, tmp_path / "gpus", every=7, gpus=True)
    zarrmask.run(stack, tmp_path / "processors", every=7, device="cpu", scheduler=cluster)
    assert record["settings"]["device"] == "cuda"
    one, other = (
        zarr.open_array(tmp_path / name / "mask.zarr/0", mode="r")[:] > 0
        for name in ("gpus", "processors")
    )
    assert np.count_nonzero(one & other) > 0.99 * np.count_nonzero(one | other)
