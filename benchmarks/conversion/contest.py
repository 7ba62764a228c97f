"""Contestants in turn, round by round, and what their figures say."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conversion.measuring import Cost, forget, measure

WIDE = 0.2
"""Quartiles further apart than this part of the median, less start, deserve a warning."""
ENOUGH = 3  # rounds


@dataclass(frozen=True)
class Contestant:
    """A command that makes something of a stack.

    Attributes
    ----------
    name : str
    command : callable
        See `conversion.contestants.Command`.
    stack, small : Path
        What is measured, and the little stack whose time counts as start.
    seconds : callable
        What of a command's cost is its time.
    check : callable, optional
        Raises where the output, made of the stack, is not what it has to be; returns what is to be
        said of it.
    """

    name: str
    command: Callable[[Path, Path], list[str]]
    stack: Path
    small: Path
    seconds: Callable[[Cost], float] = lambda cost: cost.seconds
    check: Callable[[Path, Path], str] | None = None


@dataclass
class Figures:
    """What was measured of a contestant.

    Attributes
    ----------
    whole, start : list of float
        Seconds on the stack and on the little one, round by round.
    whole_sync, start_sync : list of float
        Of these, seconds of the `sync`.
    whole_cpu, start_cpu : list of float
        Processor seconds of the same.
    peak, written : int
        Peak memory on the stack and bytes of the output, in the round that warms up.
    note : str
        What the check has to say.
    failed : str
        Why there are no more figures.
    """

    whole: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    whole_sync: list[float] = field(default_factory=list)
    start_sync: list[float] = field(default_factory=list)
    whole_cpu: list[float] = field(default_factory=list)
    start_cpu: list[float] = field(default_factory=list)
    peak: int = 0
    written: int = 0
    note: str = ""
    failed: str = ""

    @property
    def start_seconds(self) -> float:
        """What counts as start."""
        return statistics.median(self.start)

    @property
    def net(self) -> list[float]:
        """Seconds less start, round by round."""
        return [seconds - self.start_seconds for seconds in self.whole]

    @property
    def busy(self) -> float | None:
        """Processors kept busy, start left out; None where it takes no longer than its start."""
        cpu = statistics.median(self.whole_cpu) - statistics.median(self.start_cpu)
        seconds = statistics.median(self.net)
        return cpu / seconds if seconds > 0 else None


def contest(
    contestants: Sequence[Contestant], folder: Path, rounds: int, *, cold: bool = False
) -> dict[str, Figures]:
    """Let contestants take turns: a round to warm up, to check and to watch memory, then `rounds`.

    One that fails is told of and left out of what follows. Before each turn the page cache is made
    to forget the stack where `cold` says so.
    """
    figures = {contestant.name: Figures() for contestant in contestants}
    for turn in range(rounds + 1):
        for contestant in contestants:
            mine = figures[contestant.name]
            if mine.failed:
                continue
            try:
                _take_turn(contestant, mine, folder, warming_up=turn == 0, cold=cold)
            except Exception as error:  # others may still do
                mine.failed = str(error)
                tell(f"{contestant.name} failed: {error}")
        tell(f"round {turn} of {rounds}")
    return figures


def _take_turn(
    contestant: Contestant, mine: Figures, folder: Path, *, warming_up: bool, cold: bool
) -> None:
    """Let a contestant do its little stack and its stack."""
    for name, stack in (("start", contestant.small), ("whole", contestant.stack)):
        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            out = place / "out.zarr"
            if cold:
                forget(stack)
            cost = measure(contestant.command(stack, out), memory=warming_up)
            seconds = contestant.seconds(cost)
            if warming_up:
                if name == "whole":
                    mine.peak = cost.peak or 0
                    found = {stat.st_ino: stat.st_size for stat in map(os.lstat, _files(place))}
                    mine.written = sum(found.values())  # shared files once
                    mine.note = contestant.check(stack, out) if contestant.check else ""
                continue
            getattr(mine, name).append(seconds)
            getattr(mine, f"{name}_sync").append(cost.sync)
            getattr(mine, f"{name}_cpu").append(cost.cpu)
        finally:
            _empty(place)


def _empty(folder: Path) -> None:
    """Give back the room that files take; their names go with the folder that is worked in.

    For every file that it makes, ext4 goes past all those that were removed in the minutes before
    (`recently_deleted` in fs/ext4/ialloc.c): what one contestant left would be the next one's cost.
    """
    for path in _files(folder):
        os.truncate(path, 0)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def ratios(one: Figures, other: Figures) -> list[float]:
    """Times less start of one over those of the other, round by round: they ran side by side."""
    return [a / b for a, b in zip(one.net, other.net, strict=True) if a > 0 and b > 0]


def ratio(one: Figures, other: Figures) -> float | None:
    """Ratio of two contestants: that of the medians of their times less start.

    None where one of them takes no longer than its start.
    """
    above, below = statistics.median(one.net), statistics.median(other.net)
    return above / below if above > 0 and below > 0 else None


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Quartiles that lie within the values."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def doubts(figures: Mapping[str, Figures]) -> list[str]:
    """Say which figures are not to be relied on: small ones, and those that are spread wide."""
    small, wide = [], []
    for name, mine in figures.items():
        middle = statistics.median(mine.net)
        spread = sum(high - low for low, high in map(quartiles, (mine.whole, mine.start)))
        if middle <= 0:
            small.append(name)
        elif spread > WIDE * middle:
            wide.append(f"{name} ({spread / middle:.0%})")
    said = []
    if any(len(mine.whole) < ENOUGH for mine in figures.values()):
        said.append(f"fewer than {ENOUGH} rounds do not tell noise")
    if small:
        said.append(f"{', '.join(small)}: no longer than the start; take a larger stack")
    if wide:
        said.append(
            "noisy: the quartiles of whole and start are, together, far apart for their "
            f"difference: {', '.join(wide)}"
        )
    return said


def tell(text: str) -> None:
    """Say how it goes, apart from the tables."""
    print(text, file=sys.stderr, flush=True)
