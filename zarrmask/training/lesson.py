"""What is learned, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from zarrmask.detection.config import ModelConfig, stated_keys
from zarrmask.digest import sha256
from zarrmask.training.batches import Batch
from zarrmask.training.recipe import Recipe
from zarrmask.training.world import World


@dataclass(frozen=True)
class Lesson:
    """What is learned, and how.

    Attributes
    ----------
    config : ModelConfig
        The network.
    recipe : Recipe
    seed : int
        Of fresh weights, batches and samples.
    source : str
        What tells these batches from others: another source is another training.
    batches : callable
        Gives a process's batches by its rank and the number of processes.
    weights : mapping of str to Tensor, optional
        To begin from, in detectron2's names.
    origin : str
        What to call them in an error.
    begun : str
        Which weights these are, by what is in them; another beginning is another training.
    new_heads : bool
        Whether the layers that know classes begin afresh all the same.
    judge : callable, optional
        Gives how good weights are, the IoU of masks, from 0 to 1.
    """

    config: ModelConfig
    recipe: Recipe
    seed: int
    source: str
    batches: Callable[[int, int], Dataset[Batch]]
    weights: Mapping[str, Tensor] | None = None
    origin: str = ""
    begun: str = "no weights"
    new_heads: bool = False
    judge: Callable[[Mapping[str, Tensor], World], float] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        own = {"learned from": self.source, "seed": self.seed, "optimizer": self.recipe.optimizer}
        own |= {"begun from": self.begun + (", with new heads" if self.new_heads else "")}
        return {**own, "help": self.recipe.helped, **stated_keys(self.config)}


def weights_called(init: Path | None) -> str:
    """What a lesson's `begun` says of a checkpoint."""
    return "no weights" if init is None else f"weights {sha256(init)[:16]}"


def with_wishes(recipe: Recipe, iterations: int | None, seed: int | None) -> tuple[Recipe, int]:
    """Put a caller's iterations and seed, where given, in place of the config's."""
    recipe = replace(recipe, iterations=iterations or recipe.iterations)
    return recipe, max(recipe.seed, 0) if seed is None else seed
