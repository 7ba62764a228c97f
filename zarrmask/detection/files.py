"""Where the files of a detector lie: its checkpoint, and the config that goes with it."""

import re
from pathlib import Path

from zarrmask.errors import CheckpointError, some_of

_OF_A_TRAINING = re.compile("model_([0-9]{7}|best|final)")
"""Checkpoints of a training, which share one config: zarrmask's model.yaml, detectron2's own."""

SUFFIXES = (".safetensors", ".pth", ".pkl")
"""Of checkpoints."""


def require_file(checkpoint: Path) -> None:
    """Refuse what is no file.

    Raises
    ------
    CheckpointError
    """
    if checkpoint.is_dir():
        inside = sorted(one.name for one in checkpoint.iterdir() if one.suffix in SUFFIXES)
        names = f"name one of these in it: {some_of(inside)}" if inside else "and holds none"
        raise CheckpointError(f"{checkpoint} is a folder, no checkpoint; {names}")
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: No such file; name a checkpoint that is there")


def config_file(checkpoint: Path, given: Path | None = None) -> Path | None:
    """Where the config of a checkpoint is: as given, else beside it; None where there is none.

    Beside it is a `.yaml` of its name; or, of one that a training wrote, the training's.
    """
    if given is not None:
        return given
    beside = [checkpoint.with_suffix(".yaml")]
    if _OF_A_TRAINING.fullmatch(checkpoint.stem):
        beside += [checkpoint.with_name(name) for name in ("model.yaml", "config.yaml")]
    return next((file for file in beside if file.is_file()), None)


def guessed(checkpoint: Path, given: Path | None = None) -> str | None:
    """What to warn of where a checkpoint has no config (see `config_file`); None where it has."""
    if config_file(checkpoint, given):
        return None
    return (
        f"{checkpoint} stands alone, without its config: what the shapes of its weights do not "
        "show (the size and grey values of what it sees, its anchors' sizes) is taken as in "
        "detectron2's mask_rcnn_R_*_FPN configs. If it was trained otherwise, what it finds is "
        "wrong: give its config (--config)"
    )
