"""Which tasks of a run are finished, and what came of them: a small file a task.

A task writes its own entry when all that it writes is written. A run that was stopped, however,
reads the entries and does what is missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zarrmask.atomic import replace_file


@dataclass(frozen=True)
class Ledger:
    """Entries of one stage.

    Attributes
    ----------
    folder : Path
        Holds an entry a task, `KEY.json`; made when the first is written.
    """

    folder: Path

    def stage(self, name: str) -> Ledger:
        """Give the ledger of one of the stages."""
        return Ledger(self.folder / name)

    def enter(self, key: Hashable, result: Any) -> None:
        """Say that a task is finished, with what came of it (JSON)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / f"{key}.json", json.dumps(result).encode())

    def forget(self) -> None:
        """Take nothing for finished any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def results(self) -> dict[str, Any]:
        """Give what came of each finished task, by its key."""
        return {path.stem: json.loads(path.read_bytes()) for path in self.folder.glob("*.json")}

    def missing(self, keys: Iterable[Hashable]) -> list[int]:
        """Give the places, in `keys`, of the tasks that are not finished."""
        there = {path.stem for path in self.folder.glob("*.json")}
        return [place for place, key in enumerate(keys) if str(key) not in there]
