"""Who does the work, and with what memory: found before anything is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dask.system
import psutil
from dask.utils import parse_bytes, parse_timedelta
from distributed.system import memory_limit

from zarrmask.errors import SettingsError
from zarrmask.progress import Reporter
from zarrmask.storage.pipelines import ENCODERS
from zarrmask.workers.cluster import PATIENCE, reach
from zarrmask.workers.gpus import visible_gpus
from zarrmask.workers.processes import DETECTING, WRITING, shared_imports

PAUSE = 0.8
"""Share of its limit at which a worker of a named cluster takes no more tasks (Dask's default)."""
LEAST_MEMORY = 10**6
LONGEST = 1e8


@dataclass(frozen=True)
class CrewRequest:
    """Who is to do the work, as `zarrmask.run` was asked; its parameters."""

    scheduler: str | None = None
    workers: int | None = None
    memory: str | int | None = None
    patience: str | float | None = None
    gpus: bool = False

    @property
    def size(self) -> int | None:
        """The memory, bytes.

        Raises
        ------
        SettingsError
        """
        if self.memory is None:
            return None
        try:
            size = int(parse_bytes(self.memory))
        except ValueError:
            size = 0
        if size < LEAST_MEMORY:
            raise SettingsError(
                f"--memory {self.memory} is not a size; write it as 8GB, 500MB or 16GiB"
            )
        return size

    @property
    def seconds(self) -> float:
        """The patience.

        Raises
        ------
        SettingsError
        """
        if self.patience is None:
            return PATIENCE
        try:
            seconds = float(parse_timedelta(self.patience))
        except (ValueError, LookupError, TypeError):
            seconds = 0.0
        if not 0 < seconds < LONGEST:
            raise SettingsError(
                f"--patience {self.patience} is not a time to wait; write it in seconds, or as "
                "90s, 10m or 12h"
            )
        return seconds


@dataclass(frozen=True)
class Crew:
    """Who does the work, and with what memory.

    Attributes
    ----------
    workers : int
        Processes.
    threads : int
        Tasks at once in each.
    memory : int or None
        Bytes that all may use together; on this machine the client too. None: nobody knows.
    scheduler : str or None
        Address of the cluster that they belong to. None: they are processes of this machine that
        zarrmask starts itself.
    fixed : bool
        Whether their number was asked for: else there may be fewer, for want of memory.
    gpus : bool
        Whether they have GPUs of their own.
    patience : float
        Seconds to wait for one of them where none is left.
    imported : tuple of str
        Modules that they share, since they are forked.
    """

    workers: int
    threads: int
    memory: int | None
    scheduler: str | None = None
    fixed: bool = True
    gpus: bool = False
    patience: float = PATIENCE
    imported: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether zarrmask starts them on this machine."""
        return self.scheduler is None

    @property
    def encoders(self) -> int:
        """Threads of each process that encode; of a cluster's nobody here knows the cores."""
        cores: int = dask.system.CPU_COUNT
        return ENCODERS * (max(1, cores // self.workers) if self.local else self.threads)

    def fewer(self) -> Crew | None:
        """The same with a worker less, on GPUs with a thread less; None where there is no such."""
        if self.fixed:
            return None
        if self.gpus:
            return replace(self, threads=self.threads - 1) if self.threads > 1 else None
        return replace(self, workers=self.workers - 1) if self.workers > 1 else None


def find_crew(request: CrewRequest, reporter: Reporter, *, detects: bool = False) -> Crew:
    """Say who would do the work; starts nothing.

    Parameters
    ----------
    request : CrewRequest
    reporter : Reporter
        Where it says that it waits.
    detects : bool
        Whether it needs detectors.

    Raises
    ------
    ZarrmaskError
        Where no scheduler answers, or it has no worker; where what is asked for cannot be.
    """
    scheduler, workers = request.scheduler, request.workers
    if workers is not None and workers < 1:
        raise SettingsError(f"{workers} workers; give 1 at least, or none for as many as do best")
    size, patience = request.size, request.seconds
    if request.gpus:
        if scheduler is not None or workers is not None:
            raise SettingsError(
                "--gpus starts a worker on each GPU of this machine; leave it out, or --scheduler "
                "and --workers (CUDA_VISIBLE_DEVICES names fewer GPUs)"
            )
        count = len(visible_gpus())
        threads = max(1, dask.system.CPU_COUNT // count)
        there_is = size or available_memory()
        return Crew(count, threads, there_is, fixed=False, gpus=True, patience=patience)
    if scheduler is None:
        return Crew(
            workers or dask.system.CPU_COUNT,
            1,
            size or available_memory(),
            fixed=workers is not None,
            patience=patience,
            imported=shared_imports(DETECTING if detects else WRITING),
        )
    if workers is not None:
        raise SettingsError(
            "a cluster at --scheduler has its own workers; leave --workers out, or --scheduler"
        )
    with reach(scheduler, patience, reporter) as client:
        there: list[dict[str, Any]] = list(client.scheduler_info(n_workers=-1)["workers"].values())
    limit = min((worker["memory_limit"] or 0 for worker in there), default=0)
    if size is None and limit:
        size = int(PAUSE * limit) * len(there)
    # The only one may have died since: another is waited for once there is work.
    threads = max((worker["nthreads"] for worker in there), default=1)
    gpus = any(worker.get("gpu") for worker in there)  # Dask says so where NVML is installed
    return Crew(max(len(there), 1), threads, size, scheduler, gpus=gpus, patience=patience)


def available_memory() -> int:
    """Bytes that this machine, or the container on it, has available."""
    return int(min(psutil.virtual_memory().available, memory_limit()))
