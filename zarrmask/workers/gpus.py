"""The GPUs of this machine, and dask-cuda's cluster on them (the extra `zarrmask[gpus]`)."""

from __future__ import annotations

from typing import Any

from distributed import LocalCluster

from zarrmask.errors import SettingsError
from zarrmask.settings import Settings


def visible_gpus() -> list[str]:
    """NVIDIA's GPUs that are there, or those that `CUDA_VISIBLE_DEVICES` names, as it names them.

    Raises
    ------
    SettingsError
        Where dask-cuda is missing, where NVIDIA's library (NVML) does not answer, or there is none.
    """
    try:
        from dask_cuda.utils import cuda_visible_devices, get_gpu_handle, nvml_device_index
        from pynvml import NVMLError
    except ImportError as error:
        raise SettingsError(
            f"--gpus needs dask-cuda, which is not installed or lacks something ({error}): "
            "pip install 'zarrmask[gpus]'; without --gpus, GPUs are used all the same"
        ) from None
    try:
        names = cuda_visible_devices(0)
        gpus: list[str] = names.split(",") if names else []
        for n in range(len(gpus)):
            get_gpu_handle(nvml_device_index(n, names))
    except (NVMLError, ValueError) as error:
        raise SettingsError(
            f"--gpus: no GPU can be asked for ({error}); `nvidia-smi` has to list the GPUs, and "
            "CUDA_VISIBLE_DEVICES, if it is set, to name some of them"
        ) from None
    if not gpus:
        raise SettingsError("--gpus: there is no NVIDIA GPU here; leave --gpus out")
    return gpus


def gpu_cluster(**options: Any) -> LocalCluster:
    """Start dask-cuda's cluster: a process a GPU, bound to the cores next to it.

    Parameters
    ----------
    **options
        Of `distributed.LocalCluster`.
    """
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(device_memory_limit=None, **options)  # Dask keeps nothing on GPUs


def on_gpus(settings: Settings) -> Settings:
    """Settings whose detectors run on GPUs and nowhere else.

    Raises
    ------
    SettingsError
        Where they name another device.
    """
    if settings.device not in ("auto", "cuda"):
        raise SettingsError(f"--gpus detects on GPUs; leave it out, or --device {settings.device}")
    return settings.model_copy(update={"device": "cuda"})
