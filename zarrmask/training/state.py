"""What a training leaves: checkpoints, and all that it takes to go on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from zarrmask.detection.checkpoint import load_torch
from zarrmask.detection.config import ModelConfig, stated_keys
from zarrmask.detection.config_keys import as_document
from zarrmask.errors import CheckpointError, OutputError, some_of
from zarrmask.storage.atomic import replace_file, replacing
from zarrmask.storage.place import names_in
from zarrmask.training.recipe import Recipe, recipe_keys

STATE, LAST, BEST = "training.pt", "model.safetensors", "model_best.pth"
LOCK = ".lock"
_NUMBERED = re.compile(r"model_[0-9]{7}\.pth")


def save_last(weights: Mapping[str, Tensor], path: Path, iterations: int) -> None:
    """Write weights in detectron2's names, at half precision where that loses nothing.

    Convolutions and matrices are kept as float16, norms and biases as float32.
    """

    def stored(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():  # what counts batches
            return tensor
        return tensor.half() if tensor.ndim > 1 else tensor.float()

    tensors = {name: stored(one).contiguous().cpu().clone() for name, one in weights.items()}
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


def outdated(names: Iterable[str], done: int, keep: int) -> list[str]:
    """Give those of some files that are numbered checkpoints and need not be kept.

    Parameters
    ----------
    names : iterable of str
    done : int
        Iterations that have been done; what is numbered higher is of another training.
    keep : int
        How many stay, the newest; 0 is all.

    Examples
    --------
    >>> outdated(["model_0000299.pth", "model_0000599.pth", "model_best.pth"], 600, 1)
    ['model_0000299.pth']
    """
    mine = sorted(name for name in names if _NUMBERED.fullmatch(name) and name <= numbered(done))
    return mine[:-keep] if keep else []


def refuse_others(out: Path) -> None:
    """Refuse a folder with files in it in which no training of zarrmask has begun.

    Raises
    ------
    OutputError
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a folder to train in")
    there = names_in(out)
    if there and not there & {STATE, LOCK}:
        raise OutputError(
            f"{out} holds {some_of(sorted(there))} and no training of zarrmask's to go on with; "
            "name another folder: files of these names would be replaced"
        )


def save_config(config: ModelConfig, recipe: Recipe, path: Path) -> None:
    """Write a config that detectron2 and zarrmask read, with nothing to be looked up elsewhere."""
    document = as_document({**stated_keys(config), **recipe_keys(recipe)})
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None)
    replace_file(path, text.encode())


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write all that it takes to go on."""
    with replacing(path) as file:
        torch.save(dict(state), file)


def stamp(path: Path) -> tuple[int, int] | None:
    """Tell a file from one that takes its place; None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


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
        state: dict[str, Any] = load_torch(path)
        before = state["identity"]
        differing = [
            f"{name} was {_said(before, name)}, is {_said(identity, name)}"
            for name in {**identity, **before}
            if _said(before, name) != _said(identity, name)
        ]
    except Exception as problem:  # a damaged file may raise anything
        why = f"{problem}\n" if isinstance(problem, CheckpointError) else ""
        raise CheckpointError(
            f"{why}{path} is not a training to go on with. Name another folder, or remove the "
            "file to begin anew."
        ) from None
    if differing:
        last = path.with_name(LAST)
        from_it = f", or let this one begin from that one's weights (--init {last})"
        raise OutputError(
            f"{path.parent} holds a training of something else. Name another folder"
            f"{from_it if last.exists() else ''}.\n  " + "\n  ".join(differing)
        )
    return state


def _said(identity: Mapping[str, Any], name: str) -> str:
    """What an identity says by a name; of the network it holds what is not detectron2's default."""
    return repr(identity[name]) if name in identity else "detectron2's default"
