"""What a person sees while a run goes on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple, Protocol

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from zarrmask.errors import counted
from zarrmask.pace import Pace, until_next
from zarrmask.storage.place import redacted


class Advance(Protocol):
    """Tells how many more are done, and of how many more it is known now that they are to be."""

    def __call__(self, count: int, more: int = 0) -> None:
        """Take note of both."""


@dataclass
class Stage:
    """A part of a run and what it took.

    Attributes
    ----------
    name, unit : str
        What is done, and what is counted.
    items : int
        How many of the unit; not those that were done before.
    seconds : float
        Wall time.
    began : float
        When, by a clock that all stages of a run go by; they may go on at once.
    """

    name: str
    unit: str
    items: int
    seconds: float = 0.0
    began: float = 0.0


class Each(NamedTuple):
    """What one of the items of a stage is, on average; 0 where that says nothing."""

    bytes: float = 0.0
    slices: float = 0.0


def rates(speed: float, unit: str, each: Each | None = None) -> str:
    """Items a second, slices where it is known how many they are; and bytes a second.

    Seconds an item, where that is the larger number.

    Examples
    --------
    >>> rates(0.25, "bricks", Each(2e9)), rates(12, "slices"), rates(0.25, "bricks", Each(0, 32))
    ('4.0 s/brick, 500.0 MB/s', '12.0 slices/s', '8.0 slices/s')
    """
    each = each or Each()
    fast, what = (speed * each.slices, "slices") if each.slices else (speed, unit)
    told = f"{fast:.1f} {what}/s" if fast >= 1 else f"{1 / fast:.1f} s/{what.removesuffix('s')}"
    return told + (f", {decimal(int(speed * each.bytes))}/s" if each.bytes else "")


def time_left(seconds: float) -> str:
    """How long it will take yet.

    Examples
    --------
    >>> time_left(4.2), time_left(100_000)
    ('0:00:04 left', '1 day, 3:46:40 left')
    """
    return f"{timedelta(seconds=round(seconds))} left"


class _Time(ProgressColumn):
    """How long it will take yet; of what is finished, how long it took, and how fast it went."""

    def render(self, task: Task) -> Text:
        now, pace = task.get_time(), task.fields["pace"]
        if task.finished:
            speed = pace.mean_speed(now)
            took = timedelta(seconds=round(task.finished_time or 0))
            return Text(f"{took}   {_rates(task, speed)}", style="dim")
        left = pace.left(now)
        return Text("" if left is None else time_left(left), style="cyan")


class _Bars(Progress):
    """A bar, and beneath it, until it is full, how fast it goes and how those who work are."""

    vitals: Callable[[], str]

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        going = [task for task in self.tasks if not task.finished]
        for task in going:
            told = _rates(task, task.fields["pace"].speed(task.get_time()))
            if told and len(going) > 1:
                told = f"{task.description.strip()}: {told}"
            told = "; ".join(filter(None, (told, self.vitals() if task is going[-1] else "")))
            if told:
                yield Text(f"  {told}", style="dim", no_wrap=True, overflow="ellipsis")


def _rates(task: Task, speed: float | None) -> str:
    return rates(speed, task.fields["unit"], task.fields["each"]) if speed else ""


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
        Seconds between two lines where there is no terminal; in long runs it grows.
    vitals : callable
        Says how those who work are: their memory, how many there are. Empty where nobody knows.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True))
    stages: list[Stage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    interval: float = 30.0
    vitals: Callable[[], str] = str
    _bars: _Bars | None = None
    _shown: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def quiet(cls) -> Reporter:
        """One that prints nothing; warnings are kept all the same."""
        return cls(Console(quiet=True))

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
    def stage(
        self, name: str, total: int, unit: str, *, before: int = 0, size: int = 0, slices: int = 0
    ) -> Iterator[Advance]:
        """Show a stage's progress; yields the function that tells how many more are done.

        Several may go on at once, each in a thread of its own or within another.

        Parameters
        ----------
        name, unit : str
            What is done, and what is counted.
        total : int
            How many there are, as far as is known.
        before : int
            How many of them another session has done: shown, but no measure of the speed.
        size : int
            Bytes that are worked on in all of them; 0 where that says nothing.
        slices : int
            How many slices all of them are; 0 where that says nothing.
        """
        start = time.monotonic()
        stage = Stage(name, unit, total - before, began=start)
        pace = Pace(total, before, start)
        each = Each(size / total, slices / total) if total else Each()
        terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        shown = self._bar if terminal else self._lines
        with shown(stage, pace, each) as advance:
            yield advance
        stage.items, stage.seconds = pace.total - before, time.monotonic() - start
        self.stages.append(stage)

    @contextmanager
    def _bar(self, stage: Stage, pace: Pace, each: Each) -> Iterator[Advance]:
        with self._drawn() as bars:
            task = bars.add_task(
                f"{stage.name:<22}",
                total=pace.total,
                completed=pace.done,
                unit=stage.unit,
                pace=pace,
                each=each,
            )

            def advance(count: int, more: int = 0) -> None:
                pace.expect(more)
                pace.advance(count, time.monotonic())
                bars.update(task, total=pace.total, advance=count)

            yield advance
            if self._shown > 1:  # others go on: its bar gives way to a line
                bars.remove_task(task)
                self.say(_told(stage, pace, each))

    @contextmanager
    def _drawn(self) -> Iterator[_Bars]:
        """Bars on the terminal, which all stages share that go on at once."""
        with self._lock:
            if self._bars is None:
                columns = (
                    SpinnerColumn(finished_text="✓"),
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=24),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]}"),
                    _Time(Column(no_wrap=True, overflow="ellipsis")),
                )
                self._bars = _Bars(*columns, console=self.console, get_time=time.monotonic)
                self._bars.vitals = self.vitals
                self._bars.start()
            self._shown += 1
        try:
            yield self._bars
        finally:
            with self._lock:
                self._shown -= 1
                if not self._shown:
                    self._bars.stop()
                    self._bars = None

    @contextmanager
    def _lines(self, stage: Stage, pace: Pace, each: Each) -> Iterator[Advance]:
        finished = threading.Event()

        def tell() -> None:
            while not finished.wait(until_next(time.monotonic() - pace.begun, self.interval)):
                self.say(_line(stage, pace, each, self.vitals(), time.monotonic()))

        def advance(count: int, more: int = 0) -> None:
            pace.expect(more)
            pace.advance(count, time.monotonic())

        teller = threading.Thread(target=tell, name="progress", daemon=True)
        teller.start()
        try:
            yield advance
        finally:
            finished.set()
            teller.join()
        self.say(_told(stage, pace, each))


def _told(stage: Stage, pace: Pace, each: Each) -> str:
    """What a stage did, how long it took, and how fast it went."""
    now = time.monotonic()
    speed, items = pace.mean_speed(now), pace.total - pace.before
    is_rate = items > 1 or any(each)
    fast = f", {rates(speed, stage.unit, each)}" if speed and is_rate else ""
    return f"{stage.name}: {counted(items, stage.unit)} in {now - pace.begun:.1f} s{fast}"


def _line(stage: Stage, pace: Pace, each: Each, vitals: str, now: float) -> str:
    """How far a stage is, how fast it goes, how long it will take yet, how those who work are."""
    speed, left = pace.speed(now), pace.left(now)
    share = f"{pace.done:,} of {pace.total:,} {stage.unit} ({pace.done / max(1, pace.total):.0%})"
    parts = [share]
    parts += [rates(speed, stage.unit, each)] if speed else []
    parts += [time_left(left)] if left is not None else []
    parts += [vitals] if vitals else []
    return f"{stage.name}: " + "; ".join(parts)
