"""Which tasks of a run are finished, and what came of them: a small file a task.

A task writes its own entry when all that it writes is written. A run that was stopped, however,
reads the entries and does what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from zarrmask.storage.atomic import replace_file
from zarrmask.storage.place import Place, make_folder, names_in, read_files, remove

SUFFIX = ".json"


@dataclass(frozen=True)
class Ledger:
    """Entries of one stage.

    Attributes
    ----------
    folder : Place
        Holds an entry a task, `KEY.json`; made when the first is written.
    """

    folder: Place

    def stage(self, name: str) -> Ledger:
        """Give the ledger of one of the stages."""
        return Ledger(self.folder / name)

    def enter(self, key: Hashable, result: Any) -> None:
        """Say that a task is finished, with what came of it (JSON)."""
        make_folder(self.folder)
        replace_file(self.folder / f"{key}{SUFFIX}", json.dumps(result).encode())

    def forget(self) -> None:
        """Take nothing for finished any more."""
        remove(self.folder)

    def take_back(self, keys: Iterable[Hashable]) -> None:
        """Take some tasks for finished no more."""
        for key in keys:
            remove(self.folder / f"{key}{SUFFIX}")

    def results(self, keys: Iterable[Hashable] = ()) -> dict[str, Any]:
        """Give what came of each finished task, by its key.

        Parameters
        ----------
        keys : iterable, optional
            Of tasks that are finished for certain: a shared file system may list entries that other
            machines wrote a moment ago only later, but opens them by name.
        """
        entries = read_files(self.folder, SUFFIX)
        for name in (f"{key}{SUFFIX}" for key in keys):
            if name not in entries:
                entries[name] = (self.folder / name).read_bytes()
        return {name.removesuffix(SUFFIX): json.loads(entry) for name, entry in entries.items()}

    def missing(self, keys: Iterable[Hashable]) -> list[int]:
        """Give the places, in `keys`, of the tasks that are not finished."""
        there = names_in(self.folder)
        return [place for place, key in enumerate(keys) if f"{key}{SUFFIX}" not in there]
