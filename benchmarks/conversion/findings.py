"""What a part of the benchmark found: tables for people, figures for programs, goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conversion.contest import Figures, doubts, quartiles, ratio, ratios

GB = 1e9


@dataclass(frozen=True)
class Goal:
    """Something to be reached.

    Attributes
    ----------
    what, limit, measured : str
        For people.
    reached : bool or None
        None where it could not be measured.
    """

    what: str
    limit: str
    measured: str
    reached: bool | None

    def __str__(self) -> str:
        words = {True: "reached", False: "NOT REACHED", None: "not measured"}[self.reached]
        return f"{self.what}: {self.measured} ({self.limit}): {words}"


@dataclass
class Findings:
    """What a part has to say.

    Attributes
    ----------
    lines : list of str
        Markdown.
    figures : dict
        JSON.
    goals : list of Goal
    failures, doubts : list of str
        What went wrong, and what makes the figures doubtful.
    """

    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def tell(self, *lines: str) -> None:
        """Add lines."""
        self.lines.extend(lines)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a table, its columns as wide as they need to be to be read as they are."""
        cells = [list(head), *map(list, rows)]
        widths = [max(3, *(len(row[n]) for row in cells)) for n in range(len(head))]
        padded = [
            [text.ljust(w) if n == 0 else text.rjust(w) for n, (text, w) in enumerate(pairs)]
            for pairs in (list(zip(row, widths, strict=True)) for row in cells)
        ]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        self.tell("", *(f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])), "")

    def compare(
        self,
        what: str,
        limit: str,
        times: float | None,
        reached: Callable[[float], bool],
        digits: int = 2,
    ) -> None:
        """Add a goal that is a ratio; one that could not be told is neither reached nor missed."""
        measured = "cannot be told" if times is None else number(times, digits)
        self.goals.append(Goal(what, limit, measured, None if times is None else reached(times)))

    def contest(
        self,
        results: Mapping[str, Figures],
        base: str,
        *,
        processes: bool = True,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        """Add the table of a contest.

        Parameters
        ----------
        base : str
            The contestant that the others are compared with.
        processes : bool
            Whether processor time and memory say something: not where only stages are timed.
        bases : mapping, optional
            Whom each contestant is compared with, where that is not one for all.
        """
        self.figures["contestants"] = {name: _figures(mine) for name, mine in results.items()}
        for name, mine in results.items():
            if mine.failed:
                self.failures.append(f"{name}: {mine.failed}")
        done = {name: mine for name, mine in results.items() if not mine.failed}
        self.doubts += doubts(done)
        head = ["", "GB written", "start s", "s less start", "quartiles", "least", f"times {base}"]
        head += ["quartiles"] + (["cores busy", "peak GB"] if processes else [])
        references = {name: done.get(bases[name] if bases else base) for name in done}
        self.table(head, (_row(name, m, references[name], processes) for name, m in done.items()))


def _row(name: str, mine: Figures, reference: Figures | None, processes: bool) -> list[str]:
    row = [
        name,
        f"{mine.written / GB:.2f}",
        f"{mine.start_seconds:.2f}",
        f"{statistics.median(mine.net):.2f}",
        between(mine.net),
        f"{min(mine.net):.2f}",
    ]
    times = ratio(mine, reference) if reference else None
    row += [number(times), between(ratios(mine, reference) if reference else [])]
    return row + ([number(mine.busy, 1), f"{mine.peak / GB:.2f}"] if processes else [])


def number(value: float | None, digits: int = 2, unit: float = 1) -> str:
    """Give a number for people; a dash where there is none."""
    return "-" if value is None else f"{value / unit:.{digits}f}"


def between(values: Sequence[float]) -> str:
    """Quartiles for people."""
    if not values:
        return "-"
    low, high = quartiles(values)
    return f"{low:.2f} - {high:.2f}"


def _figures(mine: Figures) -> dict[str, Any]:
    if mine.failed:
        return {"failed": mine.failed}
    return {
        "seconds": mine.whole,
        "start_seconds": mine.start,
        "sync_seconds": mine.whole_sync,
        "start_sync_seconds": mine.start_sync,
        "cpu_seconds": mine.whole_cpu,
        "start_cpu_seconds": mine.start_cpu,
        "net_median": statistics.median(mine.net),
        "net_quartiles": quartiles(mine.net),
        "peak_bytes": mine.peak,
        "written_bytes": mine.written,
        "note": mine.note,
    }
