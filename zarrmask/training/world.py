"""The processes that train together: torch's launcher starts them, one a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from zarrmask.errors import SettingsError, TrainingError


@dataclass(frozen=True)
class World:
    """One process among those that train together.

    Attributes
    ----------
    rank, size : int
        Its number, and how many there are.
    device : torch.device
        What it computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum values over all processes, each of which has the same names."""
        if self.size == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def of_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the first process's tensors in all of them; each has the same names and shapes."""
        if self.size == 1:
            return dict(tensors)
        shared = {name: tensor.clone() for name, tensor in tensors.items()}
        for tensor in shared.values():
            dist.broadcast(tensor, 0)
        return shared

    def agrees_on(self, number: int) -> bool:
        """Whether all processes have the same number."""
        sums = self.total({"number": number, "square": number**2})
        return sums["number"] ** 2 == sums["square"] * self.size

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average values over all processes, each of which has the same names."""
        return {name: total / self.size for name, total in self.total(values).items()}


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the other processes that torchrun started, if it did.

    Parameters
    ----------
    device : str
        As torch names it; "auto": this process's CUDA GPU where there is one, else the processor.

    Raises
    ------
    SettingsError
        If there is no such device; if the other processes are not met.
    TrainingError
        If another process is lost.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, place)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as problem:
        raise SettingsError(
            f"this is to be one of {size} processes that train together (WORLD_SIZE), and they do "
            f"not come together ({str(problem).splitlines()[0]}). Start them by torchrun; to train "
            "with this one alone, unset WORLD_SIZE"
        ) from None
    try:
        yield World(dist.get_rank(), size, chosen)
        dist.barrier()  # who leaves first would cut off the others' last exchange
    except RuntimeError as problem:
        if not isinstance(problem, dist.DistError) and "gloo" not in str(problem):
            raise
        raise TrainingError(
            "another of the processes that train together has failed or was stopped: see what it "
            f"said ({str(problem).splitlines()[0]})"
        ) from None
    finally:
        dist.destroy_process_group()


def _device(name: str, place: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda", place) if name == "cuda" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise SettingsError(
            f"there is no device {name} to train on ({str(problem).splitlines()[0]}); "
            "name another with --device, such as cpu"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(
            f"nothing is trained on a {name}; name another with --device: cpu, cuda"
        )
    return device
