"""Writing a file, or a folder, so that a reader sees all of it or none, never half."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from zarrmask.errors import OutputError
from zarrmask.storage.place import Place, require_writable


def replace_file(place: Place, content: bytes) -> None:
    """Write `content` to a file, by way of a temporary one beside it; at a URL in one put.

    Parameters
    ----------
    place : Place
        The file to make or to replace; its folder exists.
    content : bytes
        What it holds afterwards.
    """
    if not isinstance(place, Path):
        place.fs.pipe_file(place.path, content)
        return
    with replacing(place) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, which takes the place of `path` once all is in it and on the disk."""
    temporary = partial_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    """Name a file beside `path` as nobody else does: on other machines are processes of this id."""
    return path.with_name(f".{path.name}.{uuid4().hex}.partial")


def refuse_full(out: Path) -> None:
    """Refuse a folder to be made that is there already, and not empty.

    Raises
    ------
    OutputError
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not an empty folder; name another one")


def require_replaceable(out: Path) -> None:
    """Refuse a folder that cannot become `whole_folder`'s.

    Raises
    ------
    OutputError
    """
    refuse_full(out)
    require_writable(out.absolute().parent)
    if out.exists() and (out.samefile(Path.cwd()) or out.is_mount()):
        raise OutputError(f"{out} is made whole, elsewhere first: name a folder in it")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes `out` when all has been written to it.

    Raises
    ------
    OutputError
        See `require_replaceable`.
    """
    require_replaceable(out)
    out = out.resolve()  # what a link leads to
    half = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        yield half
        half.rename(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
