"""The examples in configs/ for others' clusters, against the packages that they are for."""

import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import dask
import jsonschema
import pytest
import yaml
from distributed import Client
from distributed.cli.dask_worker import main as dask_worker

import zarrmask
from zarrmask.cli import run_command

CONFIGS = Path(__file__).parents[1] / "configs"


def said_version(config, package):
    """The version that a config says it was written for."""
    (head,) = re.findall(r"^# .*$", config.read_text(), re.MULTILINE)[:1]
    return re.search(rf"{package}\)? ([\d.]+[\d])", head)[1]


@pytest.fixture
def slurm():
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    config = CONFIGS / "slurm.yaml"
    assert said_version(config, "dask-jobqueue") == version("dask-jobqueue")
    content = yaml.safe_load(config.read_text())["jobqueue"]["slurm"]
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in content.items()}):
        yield content


def test_slurm_s_keys_are_dask_jobqueue_s(slurm):
    defaults = Path(find_spec("dask_jobqueue").origin).with_name("jobqueue.yaml")
    known = yaml.safe_load(defaults.read_text())["jobqueue"]["slurm"]
    assert set(slurm) <= set(known)


def test_a_conversion_on_slurm_s_workers(slurm, stack, tmp_path, monkeypatch):
    """`sbatch` runs the job's script here; all else is dask-jobqueue's and the config's."""
    from dask_jobqueue import SLURMCluster

    monkeypatch.chdir(tmp_path)
    sbatch, scancel = tmp_path / "sbatch", tmp_path / "scancel"
    sbatch.write_text("#!/bin/sh\ncp $1 job.sh\nsetsid sh job.sh >log 2>&1 &\necho Submitted 7\n")
    scancel.write_text("#!/bin/sh\n")
    for program in (sbatch, scancel):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    scheduler = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with SLURMCluster(scheduler_options=scheduler) as cluster:
        cluster.scale(jobs=1)
        with Client(cluster) as client:
            client.wait_for_workers(1, timeout=60)
            (worker,) = client.scheduler_info()["workers"].values()
            assert worker["nthreads"] == slurm["cores"]
            assert worker["local_directory"].startswith("/tmp/dask-scratch-space")
            method = "distributed.worker.multiprocessing-method"
            assert list(client.run(dask.config.get, method).values()) == ["spawn"]
            zarrmask.convert(stack, tmp_path / "out.zarr", scheduler=cluster.scheduler_address)
            client.retire_workers(close_workers=True)
    script = (tmp_path / "job.sh").read_text()
    assert "#SBATCH --gres=gpu:1\n" in script
    assert "#SBATCH --mem=45G\n" in script
    assert "--memory-limit 44.70GiB" in script  # 48 GB
    assert "#SBATCH -t 24:00:00\n" in script
    assert "#SBATCH -p gpu\n" in script
    assert f"{sys.executable} -m distributed.cli.dask_worker tcp://" in script


@pytest.fixture
def job():
    return yaml.safe_load((CONFIGS / "kubernetes.yaml").read_text())


def test_the_operator_takes_the_job(job):
    spec = find_spec("dask_kubernetes")
    if spec is None:
        pytest.skip("dask-kubernetes is not installed")
    config = CONFIGS / "kubernetes.yaml"
    assert said_version(config, r"\(dask-kubernetes") == version("dask-kubernetes")
    charts = Path(spec.origin).parent / "operator/deployment/helm/dask-kubernetes-operator"
    definition = yaml.safe_load((charts / "crds/daskjob.yaml").read_text())["spec"]
    assert job["apiVersion"] == f"{definition['group']}/{definition['versions'][0]['name']}"
    assert job["kind"] == definition["names"]["kind"]
    schema = closed(definition["versions"][0]["schema"]["openAPIV3Schema"])
    jsonschema.validate({"spec": job["spec"]}, schema)
    job["spec"]["cluster"]["spec"]["worker"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        jsonschema.validate({"spec": job["spec"]}, schema)


def closed(schema):
    """A schema that takes nothing but what it names: the server would drop it without a word."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(one) for name, one in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def test_the_job_s_commands_are_those_of_zarrmask_and_dask(job):
    spec = job["spec"]["cluster"]["spec"]
    (client,) = job["spec"]["job"]["spec"]["containers"]
    (worker,) = spec["worker"]["spec"]["containers"]
    (scheduler,) = spec["scheduler"]["spec"]["containers"]
    assert client["args"][:2] == ["zarrmask", "run"]
    asked = run_command.make_context("run", client["args"][2:]).params
    assert asked["scheduler"] == "$(DASK_SCHEDULER_ADDRESS)"
    assert worker["args"][:2] == ["dask", "worker"]
    options = dask_worker.make_context("worker", worker["args"][2:]).params
    assert options["nanny"] is True
    assert options["local_directory"] == "/scratch"
    assert {"name": "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD", "value": "spawn"} in (
        worker["env"]
    )
    assert scheduler["args"] == ["dask", "scheduler"]
    assert client["image"] == worker["image"] == scheduler["image"]
    # All who read or write see the same volume.
    assert client["volumeMounts"][0] in worker["volumeMounts"]
    assert (
        spec["scheduler"]["service"]["selector"]["dask.org/cluster-name"]
        == (job["metadata"]["name"])
    )


def test_slurm_s_worker_arguments_are_dask_s():
    config = yaml.safe_load((CONFIGS / "slurm.yaml").read_text())["jobqueue"]["slurm"]
    options = dask_worker.make_context("worker", config["worker-extra-args"]).params
    assert options["lifetime"] == "23h"
    script = "\n".join(config["job-script-prologue"])
    assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
    assert "MULTIPROCESSING_METHOD=spawn" in script
