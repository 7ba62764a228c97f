"""What a training leaves: checkpoints, and all that it takes to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from zarrmask.atomic import replace_file, replacing
from zarrmask.detection.config import ModelConfig, stated_keys
from zarrmask.detection.config_keys import as_document
from zarrmask.errors import CheckpointError, OutputError
from zarrmask.training.recipe import Recipe, recipe_keys

STATE, LAST, BEST = "training.pt", "model.safetensors", "model_best.pth"


def save_last(weights: Mapping[str, Tensor], path: Path, iterations: int) -> None:
    """Write weights in detectron2's names, half as long where that loses nothing.

    Convolutions and matrices are kept as float16, norms and biases as float32.
    """
    tensors = {
        name: (tensor.half() if tensor.ndim > 1 else tensor.float()).contiguous().cpu().clone()
        for name, tensor in weights.items()
    }
    metadata = {"format": "pt", "iteration": str(iterations - 1)}
    replace_file(path, save(tensors, metadata=metadata))


def save_detectron2(weights: Mapping[str, Tensor], path: Path, iterations: int) -> None:
    """Write weights as detectron2's trainer does, at full length, without its optimizer."""
    model = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as file:
        torch.save({"model": model, "iteration": iterations - 1}, file)


def numbered(iterations: int) -> str:
    """Give the name that detectron2 gives a checkpoint after so many iterations.

    Examples
    --------
    >>> numbered(1000)
    'model_0000999.pth'
    """
    return f"model_{iterations - 1:07d}.pth"


def outdated(done: int, period: int, keep: int) -> list[int]:
    """Give after how many iterations those checkpoints were written that need not be kept.

    Parameters
    ----------
    done : int
        Iterations after which the newest was written.
    period : int
        Iterations from one to the next.
    keep : int
        How many stay; 0 is all.

    Examples
    --------
    >>> outdated(1000, 300, 2)
    [300, 600]
    """
    written = [*range(period, done, period), done]
    return written[:-keep] if keep else []


def save_config(config: ModelConfig, recipe: Recipe, path: Path) -> None:
    """Write a config that detectron2 and zarrmask read, with nothing to be looked up elsewhere."""
    document = as_document({**stated_keys(config), **recipe_keys(recipe)})
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None)
    replace_file(path, text.encode())


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write all that it takes to go on."""
    with replacing(path) as file:
        torch.save(dict(state), file)


def read_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read what it takes to go on; None where there is nothing.

    Raises
    ------
    CheckpointError
        If the file is no such state.
    OutputError
        If it is of a training of something else; all differences are named.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before = state["identity"]
        differing = [
            f"{name} was {before.get(name)!r}, is {value!r}"
            for name, value in identity.items()
            if before.get(name) != value
        ]
    except Exception as problem:  # a damaged file may raise anything
        raise CheckpointError(
            f"{path} is no training to go on with ({str(problem).splitlines()[0][:200]}). "
            "Name another folder, or remove the file to begin anew."
        ) from None
    if differing:
        raise OutputError(
            f"{path.parent} holds a training of something else. Name another folder, or let this "
            f"one begin from that one's weights (--init {path.parent / LAST}).\n  "
            + "\n  ".join(differing)
        )
    return state
