"""Whether a zarr is one that zarrmask has begun to write, and not finished."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr

from zarrmask.stack.remote import Remote

UNFINISHED = (
    "zarrmask has not finished writing it; give the command that began it again, and take it then"
)


def is_unfinished(place: str | Remote, attributes: dict[str, Any]) -> bool:
    """Whether a group is a pyramid of zarrmask's that is still being written, or was stopped.

    A conversion has its record in the group itself, a run beside its groups.
    """
    record = attributes.get("zarrmask")
    if record is None and isinstance(place, str):
        with suppress(OSError, ValueError):
            record = json.loads((Path(place).parent / "run.json").read_bytes())
    state = record.get("state") if isinstance(record, dict) else None
    return isinstance(state, str) and state != "finished"


def is_of_unfinished(folder: Path) -> bool:
    """Whether a folder, of which an array is a level, is a pyramid that is still being written."""
    try:
        group = zarr.open_group(folder, mode="r")
    except (OSError, ValueError, KeyError, TypeError):  # an array may lie anywhere
        return False
    return is_unfinished(str(folder), dict(group.attrs))
