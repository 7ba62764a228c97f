"""What is learned, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from zarrmask.detection.checkpoint import Checkpoint
from zarrmask.detection.config import ModelConfig, config_file, guessed, stated_keys
from zarrmask.detection.config_file import Document
from zarrmask.detection.config_keys import lookup
from zarrmask.detection.shapes import documents_of
from zarrmask.errors import SettingsError
from zarrmask.storage.digest import sha256
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
    warnings : sequence of str
        What may not be as it was meant.
    summary : str
        What it is that is learned from, for a person.
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
    warnings: Sequence[str] = ()
    summary: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        own = {"learned from": self.source, "seed": self.seed, "optimizer": self.recipe.optimizer}
        own |= {"begun from": self.begun + (", with new heads" if self.new_heads else "")}
        return {**own, "help": self.recipe.helped, **stated_keys(self.config)}


def weights_called(init: Path | None) -> str:
    """What a lesson's `begun` says of a checkpoint."""
    return "no weights" if init is None else f"weights {sha256(init)[:16]}"


def require_no_weights(documents: Sequence[Document], config: Path) -> None:
    """Refuse a config that names weights to begin from, where no weights are to be begun from.

    Raises
    ------
    SettingsError
        If it has a ``MODEL.WEIGHTS``.
    """
    if named := lookup(documents, "MODEL.WEIGHTS", ""):
        raise SettingsError(
            f"{config} has MODEL.WEIGHTS {named}, which zarrmask does not fetch. Leave the key "
            "out, or give --init a whole Mask R-CNN, as COCO's model_final_*.pkl of detectron2's "
            "model zoo (with --new-heads, since it knows other classes); a backbone alone, as "
            "ImageNet's R-50.pkl, is nothing to begin from here"
        )


def network_of(
    documents: Sequence[Document], init: Path, weights: Checkpoint
) -> tuple[list[Document], str, list[str]]:
    """Add to a config that describes no network that of the checkpoint to begin from.

    Returns
    -------
    documents : list of nested mappings
        The config's take precedence.
    called : str
        Where the others are from.
    warnings : list of str
        What may not be as it was meant.
    """
    beside = documents_of(init, weights.shapes)
    called = f"what {config_file(init) or init} says of the network"
    return [*documents, *beside], called, list(filter(None, [guessed(init)]))


def frozen_at_random(recipe: Recipe, config: Path) -> list[str]:
    """What to warn of where stages that do not learn begin from no weights."""
    if not recipe.frozen_stages:
        return []
    return [
        f"{config}: the first stages of the network are random, since there is no --init, and stay "
        f"so (MODEL.BACKBONE.FREEZE_AT {recipe.frozen_stages}): with 0 all of it learns"
    ]


def with_wishes(recipe: Recipe, iterations: int | None, seed: int | None) -> tuple[Recipe, int]:
    """Put a caller's iterations and seed, where given, in place of the config's."""
    recipe = replace(
        recipe,
        iterations=iterations or recipe.iterations,
        seed=recipe.seed if seed is None else seed,
    )
    return recipe, max(recipe.seed, 0)
