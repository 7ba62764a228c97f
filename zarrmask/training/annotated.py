"""Batches of annotated slices, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from zarrmask.coco import CocoImage
from zarrmask.detection.inputs import Window
from zarrmask.errors import SettingsError
from zarrmask.training.augment import draw_change
from zarrmask.training.batches import Batch, Target, example
from zarrmask.training.recipe import Recipe


@dataclass(frozen=True)
class AnnotatedBatches(Dataset[Batch]):
    """Batches of annotated slices without end, augmented anew each time.

    Every image comes once before any comes twice, in an order of its own each time.

    Parameters
    ----------
    images : sequence of CocoImage
    recipe : Recipe
    seed : int
    window : "seed" or (lo, hi)
        Grey values that the network's 8 bits span.
    rank, processes : int
        Which of how many processes that share a batch this is.
    """

    images: Sequence[CocoImage]
    recipe: Recipe
    seed: int
    window: Window = "seed"
    rank: int = 0
    processes: int = 1

    def __getitem__(self, iteration: int) -> Batch:
        """Give the batch of an iteration."""
        share = self.recipe.batch // self.processes
        first = iteration * self.recipe.batch + self.rank * share
        examples = [self._example(place) for place in range(first, first + share)]
        return [image for image, _ in examples], [target for _, target in examples]

    def _example(self, place: int) -> tuple[Tensor, Target]:
        """Give the image at a place of the endless row of all."""
        image = self.images[shuffled(place, len(self.images), self.seed)]
        rng = np.random.default_rng([self.seed, 2, place])
        change = draw_change(rng, self.recipe, image.height, image.width)
        grey = change.image(image.grey(self.window))
        masks = [change.mask(instance.region.mask()) for instance in image.instances]
        categories = [instance.category for instance in image.instances]
        return example(
            grey,
            np.stack(masks) if masks else np.zeros((0, *grey.shape), np.uint8),
            np.array(categories, np.int64),
            self.recipe.margin,
        )


def shuffled(place: int, count: int, seed: int) -> int:
    """Give which of `count` things stands at a place of an endless row, shuffled round by round."""
    turn, within = divmod(place, count)
    return int(np.random.default_rng([seed, 3, turn]).permutation(count)[within])


def held_out(
    images: Sequence[CocoImage], fraction: float, seed: int
) -> tuple[list[CocoImage], list[CocoImage]]:
    """Part images at random into those to learn from and those to judge by.

    Parameters
    ----------
    images : sequence of CocoImage
    fraction : float
        To hold out, of those with instances and of those without. Of the first, one at least if it
        is not 0, and never all; where there is but one, none at all is held out: who finds nothing
        is right on the others.
    seed : int

    Raises
    ------
    SettingsError
        If there is no such share.
    """
    if not 0 <= fraction < 1:
        raise SettingsError(f"{fraction:g} of the images cannot be held out; give 0 to below 1")
    rng = np.random.default_rng([seed, 4])
    annotated, others = (
        rng.permutation([n for n, image in enumerate(images) if bool(image.instances) == has])
        for has in (True, False)
    )
    chosen = set[int]()
    if fraction and len(annotated) > 1:
        count = min(max(round(len(annotated) * fraction), 1), len(annotated) - 1)
        chosen = {*annotated[:count].tolist(), *others[: round(len(others) * fraction)].tolist()}
    return (
        [image for number, image in enumerate(images) if number not in chosen],
        [image for number, image in enumerate(images) if number in chosen],
    )
