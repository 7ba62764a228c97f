"""How fast work goes, and how long it will take yet. Arithmetic only."""

from __future__ import annotations

from collections import deque

RECENT = 64
"""What came last tells how fast it goes: so many items at least, about a slab of bricks."""
RECENT_SECONDS = 30.0
"""And all that came in so many seconds at least."""
APART = 0.25
"""Seconds: what comes closer together than this is one mark, so that marks are few."""


class Pace:
    """Speed of what comes one by one or some at a time, from several hands.

    Parameters
    ----------
    total : int
        How many there are.
    done : int
        How many of them were done before: they tell nothing of the speed.
    now : float
        When the others are begun, seconds of any clock.

    Examples
    --------
    >>> pace = Pace(100, done=40, now=0)
    >>> pace.advance(10, now=5)
    >>> pace.speed(now=5), pace.left(now=5)
    (2.0, 25.0)
    """

    def __init__(self, total: int, done: int = 0, now: float = 0.0) -> None:
        self.total, self.done, self.before = total, done, done
        self.begun = now
        self._marks = deque([(now, done)])
        self._opened = now  # when the first came of those that the last mark stands for

    def expect(self, more: int) -> None:
        """Note that there are so many more to do than was known."""
        self.total += more

    def advance(self, count: int, now: float) -> None:
        """Note that so many more are done."""
        self.done += count
        if len(self._marks) > 1 and now - self._opened < APART:
            self._marks.pop()
        else:
            self._opened = now
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and self._is_enough(self._marks[1]):
            self._marks.popleft()

    def _is_enough(self, mark: tuple[float, int]) -> bool:
        now, done = self._marks[-1]
        return now - mark[0] >= RECENT_SECONDS and done - mark[1] >= RECENT

    def speed(self, now: float) -> float | None:
        """Items a second, lately; it falls while nothing comes. None where none has come yet."""
        then, done = self._marks[0]
        return (self.done - done) / (now - then) if self.done > done and now > then else None

    def mean_speed(self, now: float) -> float | None:
        """Items a second since the beginning."""
        done = self.done - self.before
        return done / (now - self.begun) if done and now > self.begun else None

    def left(self, now: float) -> float | None:
        """Seconds that the rest will take; None where nothing is known of it."""
        speed = self.speed(now)
        return None if speed is None else (self.total - self.done) / speed


def until_next(elapsed: float, interval: float) -> float:
    """Seconds until a person is told the next time: rarer the longer it lasts, so never a flood.

    Examples
    --------
    >>> until_next(elapsed=60, interval=30), until_next(elapsed=10 * 3600, interval=30)
    (30, 600.0)
    """
    return max(interval, elapsed / 60)
