"""What is learned, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.config import ModelConfig, describes_network, stated_keys
from zarrmask.detection.config_file import Document, read_documents
from zarrmask.detection.config_keys import lookup
from zarrmask.detection.files import config_file, guessed
from zarrmask.detection.shapes import documents_of
from zarrmask.errors import SettingsError
from zarrmask.storage.digest import sha256
from zarrmask.training.batches import Batch
from zarrmask.training.recipe import Recipe, interpret_training
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
    def is_schooled(self) -> bool:
        """Whether the weights to begin from find what is to be found already."""
        return self.weights is not None and not self.new_heads

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        own = {"learned from": self.source, "seed": self.seed, "optimizer": self.recipe.optimizer}
        own |= {"begun from": self.begun + (", with new heads" if self.new_heads else "")}
        return {**own, "help": self.recipe.helped, **stated_keys(self.config)}


@dataclass(frozen=True)
class Beginning:
    """What a config and a checkpoint say of a training, whatever is learned from.

    Attributes
    ----------
    network : ModelConfig
    recipe : Recipe
    seed : int
    documents : sequence of nested mappings
        What the config itself says, without what stands beside the checkpoint.
    source : str
        What to call both in an error.
    weights, origin, begun
        See `Lesson`.
    warnings : sequence of str
        What may not be as it was meant.
    """

    network: ModelConfig
    recipe: Recipe
    seed: int
    documents: Sequence[Document]
    source: str
    weights: Mapping[str, Tensor] | None
    origin: str
    begun: str
    warnings: Sequence[str]


def begin(
    config: Path,
    init: Path | None,
    iterations: int | None,
    seed: int | None,
    *,
    usual: Path | None = None,
) -> Beginning:
    """Read how to train, what network, and the weights to begin from.

    Parameters
    ----------
    config : Path
        One that describes no network takes that of the checkpoint, and beats it key by key.
    init : Path, optional
        The checkpoint to begin from.
    iterations, seed : int, optional
        Instead of the config's.
    usual : Path, optional
        The checkpoint where there is no `init` and the config describes no network.

    Raises
    ------
    CheckpointError
        If config or checkpoint are not understood.
    SettingsError
        If the config names weights, and there is no `init`.
    """
    own = read_documents(config)
    describes = describes_network(own)
    if init is None:
        _require_no_weights(own, config)
        init = None if describes else usual
    documents, source, warnings = own, str(config), list[str]()
    weights, origin, begun = None, "", "no weights"
    if init is not None:
        checkpoint = read_checkpoint(init)
        weights, origin, begun = checkpoint.tensors, str(init), f"weights {sha256(init)[:16]}"
        if not describes:
            documents = [*own, *documents_of(init, checkpoint.shapes)]
            source = f"{config}, with what {config_file(init) or init} says of the network"
            warnings += filter(None, [guessed(init)])
    network, recipe = interpret_training(documents, source)
    recipe = replace(
        recipe,
        iterations=iterations or recipe.iterations,
        seed=recipe.seed if seed is None else seed,
    )
    if init is None and recipe.frozen_stages:
        warnings.append(_frozen_at_random(recipe.frozen_stages, config))
    return Beginning(
        network, recipe, max(recipe.seed, 0), own, source, weights, origin, begun, warnings
    )


def _require_no_weights(documents: Sequence[Document], config: Path) -> None:
    """Refuse a config that names weights to begin from, where no weights are to be begun from."""
    if named := lookup(documents, "MODEL.WEIGHTS", ""):
        raise SettingsError(
            f"{config} has MODEL.WEIGHTS {named}, which zarrmask does not fetch. Leave the key "
            "out, or give --init a whole Mask R-CNN, as COCO's model_final_*.pkl of detectron2's "
            "model zoo (with --new-heads, since it knows other classes); a backbone alone, as "
            "ImageNet's R-50.pkl, is nothing to begin from here"
        )


def _frozen_at_random(stages: int, config: Path) -> str:
    """What to warn of where stages that do not learn begin from no weights."""
    return (
        f"{config}: the first stages of the network are random, since there is no --init, and stay "
        f"so (MODEL.BACKBONE.FREEZE_AT {stages}): with 0 all of it learns"
    )
