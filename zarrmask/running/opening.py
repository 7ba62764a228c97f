"""What a run begins with: a stack that is checked, and an output that is another place."""

from __future__ import annotations

import multiprocessing
import os
import time
from math import isclose
from pathlib import Path
from typing import Any

from zarrmask.errors import OutputError, StackError, ZarrmaskError, counted, listed
from zarrmask.progress import Reporter
from zarrmask.records.journal import Journal
from zarrmask.settings import Settings
from zarrmask.stack import Source, open_source
from zarrmask.storage.place import Place, place_of

TOLD_EVERY = 5.0  # seconds


def open_input(
    stack: str | Place, settings: Settings, reporter: Reporter
) -> tuple[Source, Settings]:
    """Open and check the stack, and say what was found.

    With it come the settings, whose voxel size is the stack's where none is asked for: dilation
    goes by it, so it is a part of the output's identity.
    """
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            reporter.say(f"checking headers: {done} of {total}")

    if not isinstance(place := place_of(stack), Path) and place.protocol == "memory":
        raise StackError(
            f"the stack {place} is in this process's own memory, which the workers, processes too, "
            "do not see"
        )
    source = open_source(
        stack,
        allow_missing=settings.allow_missing,
        progress=progress,
        allow_unreadable=settings.on_bad_slice == "interpolate",
    )
    z, y, x = source.shape
    reporter.say(f"{source.path}: {source.kind}, {z} x {y} x {x} {source.dtype}")
    if source.oblong and settings.voxel_size is None:
        reporter.warn(
            f"its voxels are {source.oblong}: outputs state no voxel size, and do not "
            "lie over it in viewers that go by that"
        )
    stated, wished = source.voxel_size, settings.voxel_size
    if source.unitless and wished is None:
        reporter.warn(
            f"its voxels are {stated:g}, by what it states without a unit: micrometres are taken "
            "(--voxel-size says otherwise)"
        )
    if source.oblong and wished:
        reporter.warn(
            f"its voxels are {source.oblong}: outputs state {wished:g} micrometres each way, by "
            "--voxel-size, and do not lie over it in viewers that go by that"
        )
    if stated and wished and not isclose(stated, wished, rel_tol=1e-6):
        reporter.warn(
            f"its voxels are {stated:g} micrometres by what it states, {wished:g} by --voxel-size: "
            "outputs state the latter, and do not lie over it in viewers that go by that"
        )
    if source.missing:
        reporter.warn(
            f"{counted(len(source.missing), 'missing slices')}, zeros in what is read: "
            + listed(source.missing)
        )
    if stated and not wished:
        settings = settings.model_copy(update={"voxel_size": stated})
    return source, settings


def keep_apart(source: Source, journal: Journal) -> None:
    """Refuse an output that would replace its own input, or lie within it.

    Raises
    ------
    OutputError
        Where they overlap, or the output's name cannot be written down.
    """
    try:
        str(journal.out).encode()
    except UnicodeEncodeError:
        raise OutputError(f"the output's name {str(journal.out)!r} is not valid UTF-8") from None
    inputs = _places(source)
    for written in (*journal.pyramids, *journal.others):
        target = str(written.resolve())
        replaced = any(_within(path, target) for path in inputs)
        within = "zarr" in source.kind.lower() and any(_within(target, path) for path in inputs)
        if replaced or within:
            raise OutputError(
                f"{written} would overwrite what is read, {source.path}; name another output"
            )


def _places(source: Source) -> set[str]:
    """Where a stack lies, and, as these may be links, where the levels of a pyramid do."""
    if "://" in source.path:
        return {source.path.rstrip("/")}
    place = Path(source.path)
    levels: list[str] = []
    if place.is_dir():
        with os.scandir(place) as entries:  # a flat zarr has a million chunks, which are files
            levels = [
                entry.path
                for entry in entries
                if entry.name[:1].isdigit() and (entry.is_symlink() or entry.is_dir())
            ]
    return {str(path.resolve()) for path in (place, *map(Path, levels))}


def _within(place: str, folder: str) -> bool:
    return f"{place}/".startswith(f"{folder}/")


def to_be_seen(journal: Journal, source: Source, *others: Path) -> list[Place]:
    """What all workers are to see."""
    stack = [] if "://" in source.path else [Path(source.path)]
    return [journal.held, *stack, *others]


def input_identity(source: Source) -> dict[str, Any]:
    """What of a stack makes a run this one: no path, since a moved stack is the same."""
    return {
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "missing": list(source.missing),
        **position_identity(source),
        "fingerprint": source.fingerprint(),
    }


def position_identity(source: Source) -> dict[str, Any]:
    """Where a stack states that it lies, if it does: what is written says so, too."""
    return {"offset": list(source.offset)} if any(source.offset) else {}


def changed_meanwhile(source: Source, out: Place) -> StackError:
    """What to say where a stack is not any more what it was when it began to be read."""
    return StackError(
        f"{source.path} was changed while it was read, so {out} may hold some of what it was and "
        "some of what it is; give the same command with --overwrite"
    )


def refuse_worker() -> None:
    """Refuse to run where a script that lacks its guard is imported by its own workers."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ZarrmaskError(
            'call zarrmask below `if __name__ == "__main__":`; its workers import your script'
        )
