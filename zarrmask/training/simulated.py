"""Batches of simulated slices: nothing is downloaded, and no real slice is looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from zarrmask.detection.config import read_config
from zarrmask.phantom import simulate
from zarrmask.shipped import CONFIGS
from zarrmask.training.batches import Batch, example
from zarrmask.training.lesson import Lesson, with_wishes
from zarrmask.training.recipe import Recipe, read_recipe

Drawn: TypeAlias = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
"""Images (y, x) and masks (n, y, x), 0 and 1."""

USES, APART = 3, 5
"""How often a drawing is learned from, mirrored and toned anew each time, and how many drawings
come in between. It comes back after 16 iterations: with 1, 2, 4, 8 or 16 workers to the one that
has drawn it."""


PHANTOM = CONFIGS / "phantom_r18.yaml"


def simulated_lesson(
    config: Path | None = None, *, iterations: int | None = None, seed: int | None = None
) -> Lesson:
    """Learn from simulated slices, from no weights at all.

    Parameters
    ----------
    config : Path, optional
        Of the network and of how to train it; by default that of the checkpoint that comes along.
    iterations, seed : int, optional
        Instead of the config's.

    Raises
    ------
    CheckpointError
        If the config is not understood.
    """
    recipe, seed = with_wishes(read_recipe(config or PHANTOM), iterations, seed)
    return Lesson(
        read_config(config or PHANTOM),
        recipe,
        seed,
        "simulated slices",
        partial(SimulatedBatches, recipe, seed),
    )


@dataclass
class SimulatedBatches(Dataset[Batch]):
    """Batches of simulated slices without end; all slices of a batch have one size.

    Parameters
    ----------
    recipe : Recipe
    seed : int
    rank, processes : int
        Which of how many processes that share a batch this is.
    """

    recipe: Recipe
    seed: int
    rank: int = 0
    processes: int = 1
    _kept: dict[int, Drawn] = field(default_factory=dict, repr=False)

    def __getitem__(self, iteration: int) -> Batch:
        """Give the batch of an iteration."""
        rng = np.random.default_rng([self.seed, self.rank, 1, iteration])
        examples = [self._vary(rng, *one) for one in self._drawing(drawing_of(iteration))]
        images, targets = zip(*examples, strict=True)
        return list(images), list(targets)

    def _drawing(self, number: int) -> Drawn:
        if number not in self._kept:
            rng = np.random.default_rng([self.seed, self.rank, 0, number])
            self._kept[number] = self._draw(rng)
        for old in [kept for kept in self._kept if kept < number - (USES - 1) * APART]:
            del self._kept[old]
        return self._kept[number]

    def _draw(self, rng: np.random.Generator) -> Drawn:
        limit = self.recipe.limit
        short = int(rng.integers(self.recipe.short[0], self.recipe.short[-1] + 1))
        long = min(
            int(short * rng.choice([1.0, rng.uniform(1, 1.4), rng.uniform(1.4, 1.8)])), limit
        )
        size = (long, short) if rng.random() < 0.2 else (short, long)
        slices = []
        for _ in range(self.recipe.batch // self.processes):
            image, pieces = simulate(rng, size)
            masks = np.stack(pieces) if pieces else np.zeros((0, *size), bool)
            slices.append((image, masks.astype(np.uint8)))
        return slices

    @staticmethod
    def _vary(rng: np.random.Generator, image: NDArray, masks: NDArray) -> tuple:
        """Mirror a slice and change its tones."""
        y, x = rng.choice([-1, 1], 2)
        tones = image[::y, ::x].astype(np.float32) - np.float32(110)
        tones = tones * np.float32(rng.uniform(0.75, 1.3)) + np.float32(rng.normal(110, 12))
        return example(tones.clip(0, 255), masks[:, ::y, ::x], np.zeros(len(masks), np.int64))


def drawing_of(iteration: int) -> int:
    """Give the number of the drawing that an iteration learns from.

    Every `USES` iterations there is a new one; the others go back to older ones, so that drawing
    takes as long all the time.

    Examples
    --------
    >>> [drawing_of(iteration) for iteration in range(30, 36)]
    [10, 5, 0, 11, 6, 1]
    """
    newest, use = divmod(iteration, USES)
    return max(newest - APART * use, 0)
