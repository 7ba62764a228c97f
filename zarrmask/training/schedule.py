"""How the learning rate goes over a training: detectron2's two schedules, as plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import TypeAlias

Course: TypeAlias = Callable[[int], float]
"""From an iteration, counted from 0, to its share of the base rate."""


def in_steps(steps: tuple[int, ...], gamma: float) -> Course:
    """Multiply by `gamma` at each of the steps: ``WarmupMultiStepLR`` without its warm-up.

    Examples
    --------
    >>> course = in_steps((10, 20), 0.1)
    >>> [round(course(iteration), 3) for iteration in (0, 9, 10, 19, 20)]
    [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    return lambda iteration: gamma ** sum(step <= iteration for step in steps)


def along_a_cosine(iterations: int, last: float) -> Course:
    """Fall from 1 to `last` over half a wave: ``WarmupCosineLR`` without its warm-up.

    Examples
    --------
    >>> course = along_a_cosine(100, 0.2)
    >>> [round(course(iteration), 3) for iteration in (0, 50, 100)]
    [1.0, 0.6, 0.2]
    """
    return lambda iteration: last + (1 - last) * (1 + cos(pi * iteration / iterations)) / 2


def warmed_up(course: Course, iterations: int, factor: float, *, linear: bool) -> Course:
    """Begin with `factor` of the rate; straight up to the course, or constant and then a jump.

    Parameters
    ----------
    course : Course
    iterations : int
        How long the warm-up takes; the course is followed from this iteration on.
    factor : float
    linear : bool

    Examples
    --------
    >>> course = warmed_up(in_steps((), 1.0), 4, 0.2, linear=True)
    >>> [round(course(iteration), 3) for iteration in (0, 1, 2, 3, 4, 5)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    """

    def rate(iteration: int) -> float:
        if iteration >= iterations:
            return course(iteration)
        start = factor * course(0)
        end = course(iterations) if linear else start
        return start + (end - start) * iteration / iterations

    return rate
