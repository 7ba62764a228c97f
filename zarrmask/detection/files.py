"""Where the files of a detector lie: its checkpoint, and the config that goes with it."""

import re
import struct
import zipfile
from pathlib import Path

from zarrmask.errors import CheckpointError, some_of

_OF_A_TRAINING = re.compile("model_([0-9]{7}|best|final)")
"""Checkpoints of a training, which share one config: zarrmask's model.yaml, detectron2's own."""

SUFFIXES = (".safetensors", ".pth", ".pkl")
"""Of checkpoints."""


TORCH, OLD_TORCH = "torch", "torch, as before 1.6"
PICKLE, SAFETENSORS = "pickle of arrays", "safetensors"
"""What a checkpoint may be, by how it begins."""


def format_of(checkpoint: Path) -> str:
    """Tell what kind of file a checkpoint is, by its first bytes.

    Raises
    ------
    CheckpointError
        If it is none, or not there.
    """
    _require_file(checkpoint)
    try:
        with checkpoint.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint}: cannot read the checkpoint: {error.strerror}"
        ) from None
    if zipfile.is_zipfile(checkpoint):
        return TORCH
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < checkpoint.stat().st_size:
        return SAFETENSORS
    if checkpoint.suffix == ".pkl":
        return PICKLE
    if start[:1] == b"\x80":
        return OLD_TORCH
    found = "it is empty" if not start else f"it starts with {start!r}"
    if start.startswith(b"PK"):  # a zip's directory stands at its end
        found = "its end is missing: it was not written, copied or downloaded whole"
    raise CheckpointError(
        f"{checkpoint} is not a checkpoint: {found}. Expected a detectron2 .pth or .pkl, or a "
        ".safetensors file."
    )


def _require_file(checkpoint: Path) -> None:
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
