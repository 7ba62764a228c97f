"""Whose an output is, which run it belongs to, and how far that run has come.

The record lies in the output itself, so that it goes wherever that goes: in `run.json` of a run's
folder, in the attributes of a converted zarr. While a run goes on a work folder holds its lock and
what one pass leaves to the next; a finished run leaves none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zarrmask import __version__
from zarrmask.errors import OutputError
from zarrmask.pyramid import remove_pyramid
from zarrmask.records.ledger import Ledger
from zarrmask.storage.atomic import replace_file
from zarrmask.storage.lock import hold
from zarrmask.storage.place import (
    Place,
    is_local,
    make_folder,
    names_in,
    printable,
    remove,
    written_command,
)

_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
WORK, LOCK, SCRATCH, FINISHED = ".zarrmask", "lock", "scratch", "finished"
CORRECTING = "correcting"
"""State of a finished run while some of its slices are done anew; see `zarrmask.redo`."""
PYRAMIDS = ("volume.zarr", "mask.zarr", "masked.zarr")
OTHERS = ("keyframes.zarr", "report.html", "overview.png")
"""What else a run writes and `--overwrite` removes; `scroll.khprj`, drawn in by a person, stays."""


@dataclass(frozen=True)
class RecordFile:
    """A JSON file that holds a record, perhaps among other things.

    Attributes
    ----------
    name : str
        The file's, in the output.
    key : tuple of str
        Where in it the record is; without any, the record is the whole of it.
    new : str
        What the file holds, as JSON, before anything is put into it.
    """

    name: str
    key: tuple[str, ...] = ()
    new: str = "{}"

    def read(self, out: Place) -> dict[str, Any] | None:
        """The record in an output, or None where zarrmask has left none."""
        try:
            record = json.loads((out / self.name).read_bytes())
            for key in self.key:
                record = record[key]
            return dict(record) if {"zarrmask", "state", "identity"} <= set(record) else None
        except (*_NO_FILE, ValueError, KeyError, TypeError):
            return None

    def write(self, out: Place, record: Mapping[str, Any]) -> None:
        """Replace the record at once: a reader sees the old one or the new one."""
        content: dict[str, Any] = json.loads(self.new)
        if self.key:
            with suppress(FileNotFoundError):
                content = json.loads((out / self.name).read_bytes())
            holder = content
            for key in self.key[:-1]:
                holder = holder.setdefault(key, {})
            holder[self.key[-1]] = record
        else:
            content = dict(record)
        replace_file(out / self.name, (json.dumps(content, indent=2) + "\n").encode())


OF_A_RUN = RecordFile("run.json")
OF_A_CONVERSION = {
    "0.4": RecordFile(".zattrs", ("zarrmask",)),
    "0.5": RecordFile(
        "zarr.json",
        ("attributes", "zarrmask"),
        '{"attributes": {}, "zarr_format": 3, "node_type": "group"}',
    ),
}
"""The attributes of a group, by version of NGFF."""


@dataclass(frozen=True)
class Journal:
    """The record of one output.

    Attributes
    ----------
    out : Place
        The output folder, or the zarr of a conversion.
    records : tuple of RecordFile
        Where in it the record may be; it is written to the first.
    work : Place
        Folder for the lock and for scratch data.
    pyramids, others : tuple of Place
        What is zarrmask's to remove.
    """

    out: Place
    records: tuple[RecordFile, ...]
    work: Place
    pyramids: tuple[Place, ...]
    others: tuple[Place, ...] = ()

    @classmethod
    def of_run(cls, out: Place) -> Journal:
        """Journal of a run's folder."""
        return cls(
            out=out,
            records=(OF_A_RUN,),
            work=out / WORK,
            pyramids=tuple(out / name for name in PYRAMIDS),
            others=tuple(out / name for name in OTHERS),
        )

    @classmethod
    def of_conversion(cls, out: Place, ngff: str = "0.4") -> Journal:
        """Journal of a zarr that is converted to, in a version of NGFF."""
        mine = OF_A_CONVERSION[ngff]
        return cls(
            out=out,
            records=(mine, *(record for record in OF_A_CONVERSION.values() if record is not mine)),
            work=out.with_name(f".{out.name}{WORK}"),
            pyramids=(out,),
        )

    def read(self) -> dict[str, Any] | None:
        """The record, or None where zarrmask has left none."""
        found = (place.read(self.out) for place in self.records)
        return next((record for record in found if record is not None), None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace the record at once: a reader sees the old one or the new one."""
        self.records[0].write(self.out, {"zarrmask": __version__, **record})

    def check(self, identity: Mapping[str, Any], *, overwrite: bool) -> str:
        """Whether the output is "new", "unfinished" or "finished" work of this identity.

        Raises
        ------
        OutputError
            Where it is not zarrmask's, or of another identity and not to be overwritten.
        """
        if all(name == WORK or name.endswith(".partial") for name in names_in(self.out)):
            return "new"
        record = self.read()
        if record is None:
            raise OutputError(
                f"{self.out} exists and was not made by zarrmask, or is a part of what was: it has "
                "no record of its own, so it is left as it is; name another output"
            )
        if record["identity"] is None:
            return "new"
        unlike = differences(record["identity"], json.loads(json.dumps(identity)))
        corrected = record.get("corrections") or record["state"] == CORRECTING
        if corrected and (overwrite or record["state"] == CORRECTING):
            raise OutputError(
                f"{self.out} holds masks that a person corrected, which no run undoes; "
                + (
                    f"a correction was stopped; first finish it: {record['pending']['command']}"
                    if record["state"] == CORRECTING
                    else f"{written_command(['zarrmask', 'redo', str(self.out), '--undo'])} takes "
                    "back the last of them; or name another output, or remove it yourself"
                )
            )
        if overwrite and (unlike or record["state"] == "finished"):
            return "new"
        if unlike:
            raise OutputError(
                f"{self.out} was made with other settings or input:\n"
                + "\n".join(f"  {line}" for line in unlike)
                + (f"\nit was begun by: {record['command']}" if "command" in record else "")
                + "\nname another output, or replace it with --overwrite"
            )
        return str(record["state"])

    def start(
        self, identity: Mapping[str, Any] | None, begun: Mapping[str, Any] | None = None
    ) -> None:
        """Make the output this identity's, with nothing in it done; what was there is removed.

        With it is kept how it was begun, for people.
        """
        make_folder(self.out)
        # Nobody's until all is gone: a run that is stopped here begins anew.
        self.write({"state": "unfinished", "identity": None})
        for pyramid in self.pyramids:
            remove_pyramid(pyramid)
        for path in (*self.others, self.scratch, self.ledger.folder):
            remove(path)
        make_folder(self.out)
        self.write({"state": "unfinished", "identity": identity, **(begun or {})})

    def finish(self, record: Mapping[str, Any]) -> None:
        """Leave the finished record, and nothing of the work folder."""
        self.write(record)
        self.clean()

    def clean(self) -> None:
        """Remove what only unfinished work needs; a run may be stopped before it does."""
        for name in names_in(self.out):
            if name.startswith(".") and name.endswith(".partial"):
                remove(self.out / name)
        for name in names_in(self.work) - {LOCK}:
            remove(self.work / name)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Give what the record says under a name (JSON); computed and recorded the first time."""
        record = self.read() or {}
        if name not in record:
            value = compute()  # which may leave something in the record itself
            record = {**(self.read() or {}), name: value}
            self.write(record)
        return record[name]

    @property
    def held(self) -> Place:
        """File that is there while this run holds the output."""
        return self.work / LOCK

    @property
    def ledger(self) -> Ledger:
        """What is finished, task by task."""
        return Ledger(self.work / FINISHED)

    @property
    def scratch(self) -> Place:
        """Folder for what one pass leaves to the next."""
        return self.work / SCRATCH

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the output against other runs; see `zarrmask.storage.lock.hold`.

        Raises
        ------
        OutputError
            Where another run holds it.
        """
        made = _make_folders(self.out, self.work)
        try:
            with hold(self.held, self.out):
                try:
                    yield
                finally:
                    names = names_in(self.work) if is_local(self.work) else set()
                    if not names & {SCRATCH, FINISHED}:
                        for name in names:
                            remove(self.work / name)
        finally:
            # Not before the lock is closed: NFS keeps a file that is open, under another name.
            for folder in made:
                with suppress(OSError):  # it is not empty; else a run that was refused leaves none
                    folder.rmdir()


def to_go_on(record: Mapping[str, Any]) -> str:
    """Say what to do with an output that is unfinished, by its record."""
    command = record.get("command")
    return f"to go on: {command}" if command else "to go on, do again what began it"


def finished_record(run: Place, *others: str) -> dict[str, Any]:
    """Read the record of a finished run.

    Parameters
    ----------
    run : Place
        Its folder.
    *others : str
        States that will do as well.

    Raises
    ------
    OutputError
        If there is none.
    """
    record = Journal.of_run(run).read()
    if record is not None and record["state"] in ("finished", *others):
        return record
    if record is not None and record["state"] == CORRECTING:
        raise OutputError(
            f"a correction of {printable(run)} was stopped; first finish it: "
            + record["pending"]["command"]
        )
    if record is not None and record["state"] == "unfinished":
        raise OutputError(f"the run in {printable(run)} is unfinished; {to_go_on(record)}")
    raise OutputError(
        f"{printable(run)} holds no finished run; expected what `zarrmask run` leaves"
    )


def _make_folders(out: Place, work: Place) -> list[Path]:
    """Make the work folder, where folders have to be made.

    Gives those that are to go if they are empty at the end: it, and those that were not there.
    """
    if not isinstance(work, Path) or not isinstance(out, Path):
        return []
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a folder for the output")
    made = [work, *(folder for folder in work.parents if not folder.exists())]
    work.mkdir(parents=True, exist_ok=True)
    return made


_HASH = re.compile("[0-9a-f]{64}")
_HASHED = {
    "fingerprint": "names, sizes or times of its files have changed since (copies that kept their "
    "times are the same: rsync -t, cp -p)",
    "sha256": "its content has changed since",
}
"""What to say of hashes, by the last part of their name."""


def differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Lines that name what differs between two identities.

    Examples
    --------
    >>> differences({"settings": {"z": [None, 9]}}, {"settings": {"z": [None, None]}})
    ['--z: :9 then, : now']
    >>> differences({"settings": {"window": None}}, {"settings": {"window": "auto"}})
    ['--window: not given then, auto now']
    """
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            line
            for key in dict.fromkeys([*then, *now])
            for line in differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    if then == now:
        return []
    last = name.rpartition(".")[2]
    if last in _HASHED and all(_HASH.fullmatch(str(value)) for value in (then, now)):
        return [f"{name.removesuffix('.' + last)}: {_HASHED[last]}"]
    if name.startswith("settings."):
        name = "--" + name.removeprefix("settings.").replace("_", "-")
    if name in ("--z", "--y", "--x"):
        then, now = _range(then), _range(now)
    return [f"{name}: {_told(then)} then, {_told(now)} now"]


def _range(ends: Sequence[int | None] | None) -> str:
    """Write a range as it is given, "A:B".

    Examples
    --------
    >>> _range([None, 9]), _range(None)
    (':9', ':')
    """
    return ":".join("" if end is None else str(end) for end in ends or (None, None))


def _told(value: Any) -> str:
    """A value of an identity as one would give it."""
    match value:
        case None:
            return "not given"
        case True | False:
            return "on" if value else "off"
        case [*several]:
            return " ".join(map(_told, several))
        case dict():
            return ", ".join(f"{key} {_told(one)}" for key, one in value.items())
    return str(value)
