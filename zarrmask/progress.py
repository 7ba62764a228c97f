"""What a person sees while a run goes on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from zarrmask.place import redacted

Advance = Callable[[int], None]


@dataclass
class Stage:
    """A part of a run and what it took.

    Attributes
    ----------
    name, unit : str
        What is done, and what is counted.
    items : int
        How many of the unit.
    seconds : float
        Wall time.
    """

    name: str
    unit: str
    items: int
    seconds: float = 0.0


def listed(numbers: Sequence[int], most: int = 20) -> str:
    """Slice numbers for a person, the first of them where there are many.

    Examples
    --------
    >>> listed([3, 5, 8, 9], most=3)
    '3, 5, 8 and 1 more'
    """
    shown = ", ".join(str(number) for number in numbers[:most])
    return shown + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


class _Rate(ProgressColumn):
    """Items a second, or seconds an item where that is the larger number."""

    def render(self, task: Task) -> Text:
        speed = task.completed / task.elapsed if task.finished and task.elapsed else task.speed
        return Text(_rate(speed, task.fields["unit"]) if speed else "", style="dim")


def _rate(speed: float, unit: str) -> str:
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit.removesuffix('s')}"


@dataclass
class Reporter:
    """Tells a person how a run goes.

    Attributes
    ----------
    console : rich.console.Console
        Where to.
    stages : list of Stage
        What is done so far.
    warnings : list of str
        What has been warned of.
    interval : float
        Seconds between two lines where there is no terminal.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True))
    stages: list[Stage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    interval: float = 30.0

    def say(self, text: str) -> None:
        """Print a line."""
        text = redacted(text)
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning, and keep it for the record."""
        text = redacted(text)
        self.warnings.append(text)
        self.console.print(
            f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a stage's progress; yields the function that tells how many more are done."""
        stage = Stage(name, unit, total)
        start = time.monotonic()
        shown = self._bar(stage) if self.console.is_terminal else self._lines(stage)
        with shown as advance:
            yield advance
        stage.seconds = time.monotonic() - start
        self.stages.append(stage)

    @contextmanager
    def _bar(self, stage: Stage) -> Iterator[Advance]:
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(f"{stage.name:<22}", total=stage.items, unit=stage.unit)
            yield lambda count: progress.advance(task, count)

    @contextmanager
    def _lines(self, stage: Stage) -> Iterator[Advance]:
        start = last = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last >= self.interval and done:
                last = now
                left = (now - start) / done * (stage.items - done)
                rate = _rate(done / (now - start), stage.unit)
                self.say(
                    f"{stage.name}: {done} of {stage.items} {stage.unit}, {rate}, {left:.0f} s left"
                )

        yield advance
        self.say(f"{stage.name}: {stage.items} {stage.unit} in {time.monotonic() - start:.1f} s")
