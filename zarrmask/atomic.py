"""Writing a file so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import os
from pathlib import Path

from zarrmask.place import Place


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
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
