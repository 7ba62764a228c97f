"""Slices of a stack that turned out to be unreadable, as the record of an output keeps them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zarrmask.errors import OutputError, StackError, counted, listed
from zarrmask.records.journal import Journal
from zarrmask.stack import Source, anchors, bridged, open_source
from zarrmask.stack.zarr_source import ZarrSource
from zarrmask.storage.place import Place, lacks_secrets, printable

ENTRIES, REST = "bad_slices", "fingerprint_without_bad_slices"
"""Keys of a record: the slices, and the fingerprint of the input without them."""
INTERPOLATED, READ_LATER = "interpolated", "read later"


@dataclass(frozen=True)
class Damage:
    """The unreadable slices of an output's stack.

    Attributes
    ----------
    journal : Journal
        Of the output.
    source : Source
        The stack as it is read.
    """

    journal: Journal
    source: Source

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What is known of each slice: its number `z`, `why`, how it is `treated`, and `from` which
        others; ascending.
        """
        return list((self.journal.read() or {}).get(ENTRIES, []))

    @property
    def interpolated(self) -> list[int]:
        """Numbers of the slices that are interpolated, once and for all."""
        return interpolated(self.entries)

    def bridged(self) -> Source:
        """Give the stack as it is worked on."""
        return bridged(self.source, self.interpolated)

    def neighbours(self, numbers: Collection[int]) -> dict[int, list[int]]:
        """From which slices some others are interpolated, and those that are already."""
        first = int(self.source.numbers[0])
        bad = {*numbers, *self.interpolated}
        missing = [number - first for number in self.source.missing]
        found = anchors([number - first for number in bad], missing, self.source.shape[0])
        return {
            first + index: [first + other for other in others if other is not None]
            for index, others in found.items()
        }

    def enter(
        self,
        why: Mapping[int, str],
        forget: Callable[[Sequence[int]], None],
        *,
        interpolate: bool,
    ) -> None:
        """Record unreadable slices, for good if they are interpolated.

        Parameters
        ----------
        why : mapping
            What is wrong with each, by number.
        forget : callable
            Given indices of slices, takes nothing for written that was made of them.
        interpolate : bool
        """
        before = {entry["z"]: entry for entry in self.entries}
        after = dict(before)
        for z, told in why.items():
            treated = INTERPOLATED if interpolate else None
            after[z] = {"z": z, "why": told, "treated": treated, "from": []}
        for z, others in self.neighbours(why if interpolate else ()).items():
            after[z] = {**after[z], "from": others}
        known = {ENTRIES: [after[z] for z in sorted(after)], REST: self._rest(after)}
        first = int(self.source.numbers[0])
        # At first: a run that is stopped meanwhile meets them again, and comes back here.
        forget([z - first for z in sorted(after) if z in why or after[z] != before[z]])
        self.journal.write({**(self.journal.read() or {}), **known})

    def _rest(self, bad: Collection[int]) -> str | None:
        try:
            return self.source.fingerprint(bad)
        except StackError:  # more files are gone, which nobody has asked for yet
            return None

    def recognised(self, identity: Mapping[str, Any], *, overwrite: bool) -> Mapping[str, Any]:
        """Give an identity, its input's fingerprint as it was before bad slices were repaired.

        Not where slices that were interpolated are to be read after all, for which one overwrites.
        """
        record = self.journal.read() or {}
        if overwrite and interpolated(record.get(ENTRIES, [])):
            return identity
        if not record.get("identity") or not is_repaired(self.source, record):
            return identity
        then = record["identity"]["input"]["fingerprint"]
        return {**identity, "input": {**identity["input"], "fingerprint": then}}

    def warnings(self) -> list[str]:
        """What a person should know of it."""
        later = [entry["z"] for entry in self.entries if entry["treated"] is None]
        told = {
            "cannot be read, interpolated from those around": self.interpolated,
            "could not be read at first": later,
        }
        return [
            f"{counted(len(some), 'slices')} {what}: {listed(some)}"
            for what, some in told.items()
            if some
        ]

    def record(self) -> dict[str, Any]:
        """What a finished output keeps of it."""
        entries = [{**entry, "treated": entry["treated"] or READ_LATER} for entry in self.entries]
        rest = (self.journal.read() or {}).get(REST)
        return {ENTRIES: entries, **({REST: rest} if rest else {})}


def interpolated(entries: list[dict[str, Any]]) -> list[int]:
    """Numbers of the slices that are interpolated, of those in a record."""
    return [entry["z"] for entry in entries if entry["treated"] == INTERPOLATED]


def is_unchanged(source: Source, record: Mapping[str, Any]) -> bool:
    """Whether a stack is the one that an output was made from."""
    return bool(source.fingerprint() == record["identity"]["input"]["fingerprint"])


def is_repaired(source: Source, record: Mapping[str, Any]) -> bool:
    """Whether a stack is the one that an output was made from, but for slices that were bad."""
    bad = [entry["z"] for entry in record.get(ENTRIES, [])]
    if not bad or not set(bad) <= set(source.numbers.tolist()):
        return False
    return bool(source.fingerprint(bad) == record.get(REST))


def _reopened(record: Mapping[str, Any]) -> Source | None:
    """Open the stack of a finished run as the run read it; None if it is another one now.

    Raises
    ------
    StackError
        Where it cannot be read.
    """
    entries = record.get(ENTRIES, [])
    source = open_source(
        record["input"]["path"], allow_missing=True, allow_unreadable=bool(entries)
    )
    if is_unchanged(source, record) or is_repaired(source, record):
        return bridged(source, interpolated(entries))
    return None


def slices_of(
    run: Place, record: Mapping[str, Any], usable: Callable[[Source], bool], kind: str
) -> tuple[Source, bool]:
    """Open the stack of a finished run as the run read it; else the run's own volume.

    Parameters
    ----------
    run : Place
    record : mapping
        Its.
    usable : callable
        Whether the volume will do.
    kind : str
        What a volume has to be of.

    Returns
    -------
    source : Source
        Numbered as the stack is.
    original : bool
        Whether it is the stack.

    Raises
    ------
    OutputError
        Where there is neither.
    """
    try:
        if (stack := _reopened(record)) is not None:
            return stack, True
        lacks = "has changed since the run read it"
    except StackError as error:
        lacks = f"cannot be read: {error}"
    if (run / "volume.zarr").exists():
        volume = open_source(run / "volume.zarr")
        if isinstance(volume, ZarrSource) and usable(volume):
            return volume.numbered(record["z"][0]), False
    path = record["input"]["path"]
    advice = "Put the stack back"
    if lacks_secrets(path):
        advice = (
            "The login or query of its URL was not kept: give credentials in ~/.netrc or in the "
            "environment, or a copy of the stack, and run anew"
        )
    raise OutputError(
        f"the slices of {printable(run)} are gone: its stack {path} {lacks}; and it has no "
        f"volume.zarr of {kind}. {advice}"
    )
