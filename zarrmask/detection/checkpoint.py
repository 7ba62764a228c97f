"""Reading checkpoint files as data: nothing in them is ever executed."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarrmask.detection.files import PICKLE, SAFETENSORS, TORCH, format_of
from zarrmask.detection.names import is_weight
from zarrmask.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a checkpoint file.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By detectron2's names.
    metadata : mapping of str to object
        The numbers and texts beside them, such as `iteration`.
    format : str
        What kind of file they stood in.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    format: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def iteration(self) -> int | None:
        """How far the training had come, where the file says so (safetensors does as text)."""
        said = str(self.metadata.get("iteration"))
        return int(said) if re.fullmatch(r"[0-9]{1,18}", said) else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that detectron2 or zarrmask wrote.

    Parameters
    ----------
    path : Path
        A `.pth` (of a trainer, or a state dict alone), a model-zoo `.pkl`, or `.safetensors`. The
        content decides which it is.

    Raises
    ------
    CheckpointError
        If the file is none of these, is damaged, or asks to import anything but arrays.
    """
    form = format_of(path)
    if form == SAFETENSORS:
        return _load_safetensors(path)
    content = _load_pickle(path) if form == PICKLE else load_torch(path, mmap=form == TORCH)
    return _from_content(content, path, form)


def load_torch(path: Path, *, mmap: bool = False) -> Any:
    """Load torch's own format as data; memory-mapped, what is not looked at costs nothing.

    Raises
    ------
    CheckpointError
        See `read_checkpoint`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what torch meets in a foreign file
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)|(?:function|class|type) (\S+\.\S+)", str(error))
        if wanted is None:
            raise _damaged(path, error) from None
        raise _refused(path, wanted[1] or wanted[2]) from None
    except Exception as error:  # a damaged file may raise anything
        raise _damaged(path, error) from None


def _load_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            _require_plain(tensors, path)
            return Checkpoint(tensors, metadata, SAFETENSORS)
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from None


def _load_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except _ForbiddenImportError as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path, error) from None


class _ForbiddenImportError(Exception):
    """A pickle asked for something that is no array."""


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and plain containers, and can import nothing else.

    Where pickled arrays name a class or a function of NumPy's, a minimal substitute of our own
    stands in: a pickle can call what it is given with whatever it likes, and set its state.
    NumPy's own dtypes would let it make arrays of addresses.
    """

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _ndarray,
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _array,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise _ForbiddenImportError(f"{module}.{name}")
        return _Untouched(allowed[module, name])


class _Untouched:
    """Stands for a class or a function that a pickle names: it can be called, and not changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        return self._call(*given)

    def __setstate__(self, state: Any) -> None:
        raise _ForbiddenImportError(f"{self._call.__name__} with another state")


class _Dtype:
    """Stands for the type of a pickled array; `plain` is None where it is not one of numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        known = re.fullmatch(r"[<>=|]?([fiu][1248]|b1)", str(code))
        self.plain = None if known is None else np.dtype(str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.plain is not None:
            self.plain = self.plain.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands for a pickled array; `values` is None where it is not one of numbers."""

    def __init__(self) -> None:
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, raw = state
        raw = _latin1(raw) if isinstance(raw, str) else raw  # of Python 2
        self.fill(raw, dtype, shape, "F" if by_columns else "C")

    def fill(self, raw: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> None:
        plain = dtype.plain if isinstance(dtype, _Dtype) else None
        values = None if plain is None else np.frombuffer(raw, plain)
        self.values = None if values is None else values.reshape(shape, order=order)


def _ndarray(shape: tuple[int, ...], dtype: Any, buffer: Any) -> _Array:
    return _array(buffer, _Dtype(dtype) if isinstance(dtype, str) else dtype, shape, "C")


def _empty_array(*_: Any) -> _Array:
    return _Array()  # the pickle sets shape, dtype and values afterwards


def _scalar(dtype: Any, raw: Any) -> Any:
    array = _Array()
    array.fill(_latin1(raw) if isinstance(raw, str) else raw, dtype, (1,), "C")
    return None if array.values is None else array.values[0].item()


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.fill(buffer, dtype, shape, order)
    return array


def _latin1(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _from_content(content: Any, path: Path, kind: str) -> Checkpoint:
    """Find the named tensors in what a file holds; `model` holds them, or the top level does."""
    if not isinstance(content, Mapping):
        raise _no_weights(path, f"it holds a {type(content).__name__}")
    model = content.get("model", content)
    if not isinstance(model, Mapping):
        raise _no_weights(path, f"its 'model' is a {type(model).__name__}")
    plain: dict[Any, Any] = {
        name: value.values if isinstance(value, _Array) else value for name, value in model.items()
    }
    tensors = {
        str(name): value if isinstance(value, Tensor) else _tensor(value)
        for name, value in plain.items()
        if isinstance(value, Tensor) or is_numeric(value)
    }
    if not tensors:
        raise _no_weights(path, f"it holds {', '.join(map(repr, list(model)[:5])) or 'nothing'}")
    if all(name.startswith("module.") for name in tensors):  # as saved from several GPUs
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    _require_plain(tensors, path)
    others = {name: one for name, one in content.items() if isinstance(one, str | int | float)}
    return Checkpoint(tensors, others, kind)


def _require_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are no arrays of numbers to compute with."""
    odd = [
        f"{name} ({'no values' if tensor.is_meta else f'{tensor.layout}, {tensor.dtype}'})"
        for name, tensor in tensors.items()
        if is_weight(name)
        and (tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in _PLAIN)
    ]
    if odd:
        raise CheckpointError(
            f"{path} cannot be used: {len(odd)} of its {len(tensors)} tensors are no dense arrays "
            f"of common numbers, as {odd[0].replace('torch.', '')}; save them as float32"
        )


_PLAIN = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


def is_numeric(value: Any) -> bool:
    """Whether something is an array of numbers that torch has too."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.itemsize <= 8


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.tensor(array.astype(array.dtype.newbyteorder("="), copy=False))


def _refused(path: Path, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not loaded: it asks to import {wanted}, and a checkpoint may hold nothing but "
        "arrays. Nothing in it was run. If you trust its author, load it where it was made, save "
        "its weights alone, torch.save({'model': model.state_dict()}, FILE), and give that file."
    )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    # torch's own words advise to load the file unsafely; only what it stumbled on is repeated.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    reason = text.splitlines()[0]
    return CheckpointError(
        f"{path} is not a checkpoint, or a damaged one ({reason}). Expected a detectron2 .pth or "
        ".pkl, or a .safetensors file; compare its size and hash with the original."
    )


def _no_weights(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds no weights: {found}. Expected detectron2's {{'model': {{name: array}}}}."
    )
