"""Checkpoints from one kind of file to another, with no number changed."""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from zarrmask.detection.checkpoint import Checkpoint, is_numeric, read_checkpoint
from zarrmask.detection.names import is_counter, is_weight
from zarrmask.errors import CheckpointError, OutputError
from zarrmask.storage.atomic import replace_file
from zarrmask.storage.place import require_writable


def convert_checkpoint(source: Path, target: Path, *, overwrite: bool = False) -> Checkpoint:
    """Write a checkpoint as another kind of file.

    Weights keep their names, types and every bit. The `iteration` and the author go along;
    optimizers and the like do not, nor what the config says as well (`pixel_mean`, `pixel_std`,
    `cell_anchors`).

    Parameters
    ----------
    source : Path
        See `read_checkpoint`.
    target : Path
        Its suffix says what is written: ``.pth`` (torch), ``.pkl`` (NumPy arrays, as in
        detectron2's model zoo) or ``.safetensors``. Written whole or not at all.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Checkpoint
        What was written.

    Raises
    ------
    CheckpointError
        If the source cannot be read, or the target's kind cannot hold it.
    OutputError
        If the target is there already, or cannot be made.
    """
    if target.suffix not in _WRITERS:
        raise OutputError(
            f"{target} ends in {target.suffix!r}; name a file that ends in {', '.join(_WRITERS)}"
        )
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}; make it or name another")
    if target.is_dir() or (target.exists() and not overwrite):
        advice = "" if target.is_dir() else ", or give --overwrite"
        raise OutputError(f"{target} exists; name another file{advice}")
    require_writable(target.parent)
    found = read_checkpoint(source)
    if found.metadata.get("matching_heuristics"):
        raise CheckpointError(
            f"{source} has not detectron2's names but others that detectron2 guesses from "
            "(matching_heuristics); let detectron2 load it and save what it made of it"
        )
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in found.tensors.items()
        if is_weight(name) or is_counter(name)
    }
    if target.suffix == ".pkl":
        _require_arrays(tensors, source)
    metadata: dict[str, Any] = {"__author__": str(found.metadata.get("__author__", "zarrmask"))}
    if found.iteration is not None:
        metadata["iteration"] = found.iteration
    replace_file(target, _WRITERS[target.suffix](tensors, metadata))
    return Checkpoint(tensors, metadata, target.suffix)


def _require_arrays(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse numbers that NumPy does not have."""
    foreign = {str(tensor.dtype) for tensor in tensors.values() if not is_numeric(_array(tensor))}
    if foreign:
        raise CheckpointError(
            f"{source} holds tensors of {', '.join(sorted(foreign))}, which arrays in a .pkl "
            "cannot be; convert it to .pth or .safetensors"
        )


def _torch_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save({"model": tensors, **metadata}, file)
    return file.getvalue()


def _safetensors_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    texts = {name: str(value) for name, value in metadata.items()}
    content: bytes = safetensors.torch.save(dict(tensors), {"format": "pt", **texts})
    return content


def _pickle_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    arrays = {name: _array(tensor) for name, tensor in tensors.items()}
    _ArrayPickler(file, protocol=5).dump({"model": arrays, **metadata})
    return file.getvalue()


def _array(tensor: Tensor) -> Any:
    """Give the tensor's numbers without a copy; None where NumPy has no such type."""
    try:
        return tensor.numpy()
    except TypeError:
        return None


class _ArrayPickler(pickle.Pickler):
    """Names nothing but `numpy.ndarray`: where its helpers are is another in every NumPy."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


_WRITERS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any]], bytes]] = {
    ".pth": _torch_file,
    ".pkl": _pickle_file,
    ".safetensors": _safetensors_file,
}
