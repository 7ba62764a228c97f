"""Batches of simulated slices: nothing is downloaded, and no real slice is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from zarrmask.detection.config import ModelConfig, read_config, stated_keys
from zarrmask.detection.files import config_file
from zarrmask.errors import CheckpointError, SettingsError
from zarrmask.phantom import simulate
from zarrmask.shipped import CONFIGS
from zarrmask.training.batches import Batch, Target, example
from zarrmask.training.lesson import Lesson, begin
from zarrmask.training.recipe import Recipe

PHANTOM = CONFIGS / "phantom_r18.yaml"


def simulated_lesson(
    config: Path | None = None,
    *,
    init: Path | None = None,
    iterations: int | None = None,
    seed: int | None = None,
) -> Lesson:
    """Learn from simulated slices.

    Parameters
    ----------
    config : Path, optional
        Of how to train, and of the network; one that describes none takes that of `init`. By
        default that of the bundled checkpoint.
    init : Path, optional
        The checkpoint to begin from; by default no weights at all.
    iterations, seed : int, optional
        Instead of the config's.

    Raises
    ------
    CheckpointError
        If config or checkpoint are not understood.
    SettingsError
        If the config names weights, and there is no `init`; if it wants what simulated slices are
        not.
    """
    start = begin(config or PHANTOM, init, iterations, seed)
    warnings = list(start.warnings)
    if config is None and init is not None:
        warnings += _unlike(start.network, init)
    _require_what_is_drawn(start.network, start.recipe, start.source)
    return Lesson(
        start.network,
        start.recipe,
        start.seed,
        "simulated slices",
        partial(SimulatedBatches, start.recipe, start.seed),
        start.weights,
        start.origin,
        start.begun,
        warnings=warnings,
        summary="simulated slices",
    )


def _unlike(network: ModelConfig, init: Path) -> list[str]:
    """What to warn of where the config beside the weights is not that of the bundled network."""
    file = config_file(init)
    if file is None:
        return []
    try:
        own, theirs = stated_keys(network), stated_keys(read_config(file))
    except CheckpointError:
        return [f"the network is that of {PHANTOM.name}; {file} describes none to compare it with"]
    keys = [key for key in {**own, **theirs} if own.get(key) != theirs.get(key)]
    if not keys:
        return []
    return [
        f"the network is that of {PHANTOM.name}; {file} has another {', '.join(keys[:10])}. If it "
        f"is to be as there, say so: --config {file}"
    ]


def _require_what_is_drawn(network: ModelConfig, recipe: Recipe, source: str) -> None:
    """Refuse what changes nothing where slices are simulated."""
    wished = {
        f"MODEL.ROI_HEADS.NUM_CLASSES {network.classes} (1: papyrus)": network.classes != 1,
        "INPUT.CROP.ENABLED (False: details of slices are drawn)": recipe.cropped,
        "INPUT.RANDOM_FLIP none (they are mirrored along both axes)": recipe.flip == "none",
        "INPUT.MIN_SIZE_TRAIN_SAMPLING choice (range: any size between)": (
            recipe.sampling == "choice" and len(recipe.short) > 1
        ),
        "TEST.EVAL_PERIOD (0: no slices are held out)": recipe.validation_period > 0,
    }
    if refused := [name for name, is_wished in wished.items() if is_wished]:
        raise SettingsError(
            f"{source} wants what simulated slices do not heed; leave it out, or as in brackets:"
            + "".join(f"\n  {name}" for name in refused)
        )


@dataclass(frozen=True)
class SimulatedBatches(Dataset[Batch]):
    """Batches of simulated slices without end; those of a batch have one size, or nearly.

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

    def __getitem__(self, iteration: int) -> Batch:
        """Give the batch of an iteration."""
        rng = np.random.default_rng([self.seed, self.rank, 1, iteration])
        count = self.recipe.batch // self.processes
        hard = self._hard(rng, count)
        size = self._sizes[hard[0]] if hard else _size(rng, self.recipe)
        examples = [_shown(rng, *numbered_slice(self.recipe, number)) for number in hard]
        examples += [_shown(rng, *_scaled(rng, size)) for _ in range(count - len(hard))]
        images, targets = zip(*examples, strict=True)
        return list(images), list(targets)

    def _hard(self, rng: np.random.Generator, count: int) -> list[int]:
        """Choose numbered slices, the others like the first: padding is no part of a slice."""
        chosen: list[int] = []
        for numbers, share in zip((self.recipe.missed, self.recipe.mistaken), HARD, strict=True):
            for _ in range(rng.binomial(count, share) if numbers else 0):
                near = self._nearest(numbers, chosen[0]) if chosen else numbers
                chosen.append(int(rng.choice(near)))
        return chosen[:count]

    def _nearest(self, numbers: tuple[int, ...], other: int) -> list[int]:
        """Give those numbers whose slices are most like another's in size."""
        height, width = self._sizes[other]
        return sorted(
            numbers,
            key=lambda n: abs(self._sizes[n][0] - height) + abs(self._sizes[n][1] - width),
        )[:10]

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        numbers = (*self.recipe.missed, *self.recipe.mistaken)
        return {number: _size(_numbered(number), self.recipe) for number in numbers}


def _size(rng: np.random.Generator, recipe: Recipe) -> tuple[int, int]:
    """Height and width, pixels."""
    short = int(rng.integers(recipe.short[0], recipe.short[-1] + 1))
    ratio = float(rng.choice([1.0, rng.uniform(1, 1.4), rng.uniform(1.4, 1.8)]))
    long = min(int(short * ratio), recipe.limit)
    return (long, short) if rng.random() < 0.2 else (short, long)


HARD = 0.25, 0.175
"""Shares of slices that are numbered ones: with papyrus that was missed, without any."""


def _numbered(number: int) -> np.random.Generator:
    """Give what draws the slice of a number; the seed is no training's."""
    return np.random.default_rng([77770001, number])


def numbered_slice(recipe: Recipe, number: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw the simulated slice of a number, as `recipe` has them drawn.

    Returns
    -------
    image : ndarray of uint8, (h, w)
    masks : ndarray of bool, (pieces, h, w)
    """
    rng = _numbered(number)
    return _scaled(rng, _size(rng, recipe))


ODD, ENDS = 0.7, 0.5
"""Odd slices, and C shapes and pieces among them, are shown more often than they are judged by:
they are learned last."""


SCALES, SHARES = ((1.0, 1.0), (0.65, 1.0), (1.0, 1.5)), (0.4, 0.45, 0.15)
"""Sides a slice is drawn with over those it is shown with, from and to; and shares of slices: a
detector too enlarges and reduces the slices it is given."""


def _shown(
    rng: np.random.Generator, image: NDArray[np.uint8], masks: NDArray[np.bool_]
) -> tuple[Tensor, Target]:
    """Mirror a slice and change its tones."""
    y, x = rng.choice([-1, 1], 2)
    tones = image[::y, ::x].astype(np.float32) - np.float32(110)
    tones = tones * np.float32(rng.uniform(0.75, 1.3)) + np.float32(rng.normal(110, 12))
    mirrored = masks[:, ::y, ::x].astype(np.uint8)
    return example(tones.clip(0, 255), mirrored, np.zeros(len(masks), np.int64))


def _scaled(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a slice in one size and resize it, and the masks of its pieces, to another."""
    scale = float(rng.uniform(*SCALES[rng.choice(len(SCALES), p=SHARES)]))
    height, width = size
    image, pieces = simulate(rng, (round(height * scale), round(width * scale)), odd=ODD, ends=ENDS)
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    masks = np.zeros((len(pieces), *size), bool)
    for mask, piece in zip(masks, pieces, strict=True):
        mask[...] = cv2.resize(piece.astype(np.float32), (width, height), interpolation=how) > 0.5
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8), masks
