"""What becomes of slices that turn out to be unreadable while a run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from distributed import Client

from zarrmask.errors import StackError, ZarrmaskError, counted
from zarrmask.progress import Reporter
from zarrmask.records.damage import Damage
from zarrmask.stack import MOST_IN_A_ROW, Source, UnreadableError, too_many
from zarrmask.workers.cluster import come_to_rest

REPRIEVES = 3
"""How often a slice may be unreadable to a worker that can be read from here."""
AT_ONCE = 4
"""Slices that are looked at from here: whole ones, each of which may be tried for 15 seconds."""
GOES_ON = "then run the same command again: it goes on"

Result = TypeVar("Result")


@dataclass
class Bridger:
    """Decides of unreadable slices, and lets what was made of them be made anew.

    Attributes
    ----------
    damage : Damage
        What is known of them.
    policy : "stop" or "interpolate"
    forget : callable
        Given indices of slices: takes nothing for written that was made of them.
    reporter : Reporter
    """

    damage: Damage
    policy: str
    forget: Callable[[Sequence[int]], None]
    reporter: Reporter
    _reprieved: Counter[int] = field(default_factory=Counter)

    @property
    def _source(self) -> Source:
        return self.damage.source

    def begin(self) -> None:
        """Interpolate what is known to be unreadable before anything is read."""
        settled = self.damage.interpolated
        if bad := {z: why for z, why in self._source.unreadable.items() if z not in settled}:
            self._interpolate(bad)

    def bridging(self, client: Client, work: Callable[[Source], Result]) -> Result:
        """Do what reads the stack; once more where slices turn out bad, and are interpolated.

        Parameters
        ----------
        client : Client
        work : callable
            Takes the stack as it is to be read. What is in the ledger it does not do again.

        Raises
        ------
        StackError
            Where a slice cannot be read, and is not interpolated.
        """
        while True:
            try:
                return work(self.damage.bridged())
            except UnreadableError as error:
                if error.path != self._source.path:
                    raise
                if error.shape != self._source.shape:
                    raise StackError(
                        f"{error}\na coarser level, which is not interpolated; repair it, {GOES_ON}"
                    ) from None
                # With what it was raised in the scheduler would keep it as the tasks' result.
                bad = error.with_traceback(None)
            # What still runs may write, or enter in the ledger, what is to be forgotten.
            try:
                come_to_rest(client, self.reporter)
            except ZarrmaskError as restless:
                raise StackError(f"{bad}\n{restless}") from None
            self._settle(bad)

    def _settle(self, error: UnreadableError) -> None:
        excess = too_many({*error.why, *self.damage.interpolated}, self._source.shape[0])
        if self.policy == "stop" or excess:
            if not (excess and self._is_gone(error.why)):  # else the slices may be well
                bad = error.why if excess else self._unreadable_here(error.why)
                if bad:  # what is entered may change: it counts no more as part of the input
                    self.damage.enter(bad, self.forget, interpolate=False)
            raise StackError(f"{error}\n{self._to_do(excess)}")
        bad = self._unreadable_here(error.why)
        for z in error.why.keys() - bad.keys():
            self._reprieved[z] += 1
            if self._reprieved[z] > REPRIEVES:
                raise StackError(
                    f"{error}\nit can be read where zarrmask was started, but not where its "
                    f"workers are; see to that, {GOES_ON}"
                )
        if bad:
            self._interpolate(bad)

    def _to_do(self, excess: str | None) -> str:
        """What a person can do where the run stops."""
        deep = self._source.block[0]
        if deep > MOST_IN_A_ROW:
            return (
                f"a chunk holds {deep} slices, and no more than {MOST_IN_A_ROW} in a row are "
                "interpolated: put back a whole copy of what is damaged, or remove that file, so "
                f"that the array's fill value is read in its place; {GOES_ON}"
            )
        if self.policy == "stop":
            return f"repair that, {GOES_ON}; or add --on-bad-slice interpolate to it"
        return f"{excess}; repair them, {GOES_ON}"

    def _is_gone(self, bad: Collection[int]) -> bool:
        """Whether so many slices cannot be read since the disk is gone, or the server.

        Not where they are those of few layers of chunks, and others can be read.
        """
        deep, first = self._source.block[0], int(self._source.numbers[0])
        layers = {(number - first) // deep for number in bad}
        if deep == 1 or too_many(layers, -(-self._source.shape[0] // deep)):
            return True
        around = {n for others in self.damage.neighbours(bad).values() for n in others}
        return around <= self._unreadable_here(around).keys()

    def _interpolate(self, bad: Mapping[int, str]) -> None:
        """Interpolate slices from here on, if those around them are there.

        Raises
        ------
        StackError
            Where none around one of them can be read: the disk is gone, or the server.
        """
        around = self.damage.neighbours(bad)
        lost = self._unreadable_here({n for z in bad for n in around[z]})
        for z, why in bad.items():
            if all(n in lost for n in around[z]):
                raise StackError(
                    f"slice {z} cannot be read ({why}), nor can those around it: is the disk gone, "
                    f"or the server? Bring it back, {GOES_ON}"
                )
        self.damage.enter(bad, self.forget, interpolate=True)
        for z, why in bad.items():
            others = " and ".join(map(str, around[z]))
            self.reporter.say(f"slice {z} is interpolated from {others}: {why}")

    def _unreadable_here(self, numbers: Collection[int]) -> dict[int, str]:
        """Say of some slices what is wrong with those that cannot be read as a whole from here."""
        first = int(self._source.numbers[0])

        def look(number: int) -> dict[int, str]:
            try:
                self._source[number - first]
            except UnreadableError as error:
                return error.why
            return {}

        if len(numbers) > AT_ONCE:
            self.reporter.say(f"looking whether {counted(len(numbers), 'slices')} can be read here")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(look, sorted(numbers)))
        return {number: why for bad in found for number, why in bad.items()}
