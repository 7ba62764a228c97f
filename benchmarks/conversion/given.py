"""Masks that are given: a run in which nothing has to be detected.

The masks are ellipses that drift from keyframe to keyframe, as a scroll's sections do.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking import Answer, Ask, Keyframes, Sighting, seek
from zarrmask.running import cutout
from zarrmask.running.looking import detect_keyframes
from zarrmask.workers.detectors import Detectors


def ellipse(
    shape: tuple[int, int], part: float, side: int, place: int, count: int
) -> NDArray[np.uint8]:
    """Draw the mask of a keyframe: 255 in an ellipse, else 0.

    Parameters
    ----------
    shape : (rows, columns)
    part : float
        Of the slice that it covers when it has been dilated.
    side : int
        Of the dilation's square kernel, pixels.
    place, count : int
        Which keyframe it is, and of how many.
    """
    turn = 2 * np.pi * place / max(count, 1)
    # Its axes, 10 to 9, as parts of the slice's sides; the drift stays inside the slice.
    long = np.sqrt(part / np.pi / 0.9)
    drift = min(0.02, max(0.5 - long, 0.0))
    rows, columns = shape
    y = (np.arange(rows) + 0.5 - rows * (0.5 + drift * np.sin(turn)))[:, None]
    x = (np.arange(columns) + 0.5 - columns * (0.5 + drift * np.cos(turn)))[None, :]
    height = max(rows * long * 0.9 - side / 2, 0.5)
    width = max(columns * long - side / 2, 0.5)
    inside: NDArray[np.bool_] = (y / height) ** 2 + (x / width) ** 2 <= 1
    return np.where(inside, np.uint8(255), np.uint8(0))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What is asked of a program that converts a stack, or masks it with given masks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("what", choices=("convert", "run"))
    parser.add_argument("stack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--covers", type=float, default=0.55)
    return parser


@contextmanager
def given_masks(part: float) -> Iterator[None]:
    """Let `zarrmask.run` find ellipses, that cover this part of each slice, instead of detecting.

    All else is the run's own. What is written to the disk before the writing stages is synced.
    """
    arguments = inspect.signature(detect_keyframes)

    def put(*args: Any, **kwargs: Any) -> Iterator[Keyframes]:
        call = arguments.bind(*args, **kwargs).arguments
        plan, store = call["plan"], call["store"]
        _, rows, columns = plan.shape

        def looks(ask: Callable[[], Sequence[Ask]]) -> Iterator[tuple[Ask, Answer]]:
            while positions := ask():
                for position in positions:
                    assert isinstance(position, int)  # nothing is doubted
                    mask = ellipse((rows, columns), part, plan.side, position, len(plan.keyframes))
                    store.write_mask(position, mask)
                    box = np.array([[0, 0, columns, rows]], np.float32)
                    yield position, Sighting.of_mask(mask, box, np.ones(1, np.float32))

        store.reserve(len(plan.keyframes), rows, columns)
        *_, found = seek(plan.placing, looks, mends=False)
        store.write_sightings(plan.numbers, found.sightings, found.states, found.positions)
        os.sync()
        yield found

    with (
        mock.patch.object(cutout, "detect_keyframes", put),
        mock.patch.object(Detectors, "load"),
    ):
        yield
