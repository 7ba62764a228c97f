"""Whether memory and disk space will do, before anything is done."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

import dask

from zarrmask.errors import RoomError, counted, sized
from zarrmask.planning.forecast import Forecast
from zarrmask.storage.place import Place, is_local


def free_space(place: Place) -> int | None:
    """Bytes that are free where a place is, or will be; None where nobody knows: at a URL."""
    if not is_local(place):
        return None
    there = next(path for path in (place, *place.parents) if path.exists())
    return shutil.disk_usage(there).free


def scratch_disk() -> Path:
    """Where scratch files of this machine go that have no place beside the output."""
    return Path(dask.config.get("temporary-directory", None) or gettempdir())


def check_room(forecast: Forecast, place: Place, left: float | None) -> list[str]:
    """Refuse what will certainly not do; see `shortages`.

    Returns
    -------
    list of str
        What a person should be warned of.

    Raises
    ------
    RoomError
        Where the memory, or the space on the disk, is less than the least that is needed.
    """
    problems, warnings = shortages(forecast, place, left)
    if problems:
        raise RoomError("\n".join(problems))
    return warnings


def shortages(forecast: Forecast, place: Place, left: float | None) -> tuple[list[str], list[str]]:
    """Say where memory or space will certainly not do, and where they may not.

    Parameters
    ----------
    forecast : Forecast
    place : Place
        Where the output will be.
    left : float or None
        Share of the bricks that is still to be written; None where the output replaces one of
        which nobody knows how much room it will make.

    Returns
    -------
    problems, warnings : list of str
    """
    problems = [] if forecast.fits else [want_of_memory(forecast)]
    warnings = []
    ahead = forecast.decoded_bytes
    if ahead and not is_local(place):  # then on this machine
        disk = scratch_disk()
        if (left_there := shutil.disk_usage(disk).free) < ahead:
            problems.append(
                f"{sized(left_there)} are free in {disk}, but slices decoded ahead will take "
                f"{sized(ahead)} there; set TMPDIR to a larger disk, or give more --memory"
            )
    free = free_space(place)
    if free is not None and left is not None:
        least = int(left * forecast.least_bytes) + (ahead if left else 0)
        most = int(left * sum(forecast.bytes_written.values())) + forecast.scratch_bytes
        if free < least:
            problems.append(
                f"{sized(free)} are free at {place}, but the output will take {sized(least)} at "
                f"the very least, and up to {sized(most)}; make room, or name another output"
            )
        elif free < most:
            warnings.append(
                f"{sized(free)} are free at {place}; the output takes up to {sized(most)}, less "
                "what compression saves and the mask leaves out. Should the disk run full, make "
                "room and give the same command again: it goes on"
            )
    return problems, warnings


def want_of_memory(forecast: Forecast) -> str:
    """Say that the memory will not do, and what would."""
    crew, memory = forecast.crew, forecast.memory
    task, writing = memory.largest, memory.largest == "writing a brick"
    if writing:
        z, y, x = forecast.plan.grid.brick
        task += f" of {z} x {y} x {x} voxels"
    if not crew.local:
        limit = (crew.memory or 0) // crew.workers
        return (
            f"a worker of the cluster will take {sized(memory.a_worker)} for {crew.threads} tasks "
            f"at once, but has {sized(limit)}: {task} takes {sized(memory.task)}; start workers "
            "with a higher --memory-limit or fewer --nthreads"
        )
    crews = (replace(crew, workers=count) for count in range(crew.workers, 0, -1))
    fewer = next((c.workers for c in crews if replace(forecast, crew=c).fits), 0)
    advice = [f"--memory {-(-memory.total // 10**8) / 10:g}GB, if this machine has it"]
    if fewer:
        count = f"CUDA_VISIBLE_DEVICES with {fewer} GPUs" if crew.gpus else f"--workers {fewer}"
        advice.insert(0, count)
    elif writing and memory.task > memory.total / 10:
        advice.append("smaller chunks, or a stack that is not compressed: less is held at once")
    takes, has = sized(memory.total), sized(crew.memory or 0)
    if takes == has:
        takes, has = f"{memory.total / 1e6:,.1f} MB", f"{(crew.memory or 0) / 1e6:,.1f} MB"
    return (
        f"{counted(crew.workers, 'workers')} and the client will take {takes} of memory, but have "
        f"{has}: {task} takes {sized(memory.task)}; use " + ", or ".join(advice)
    )
