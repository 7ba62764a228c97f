"""What a checkpoint file is, for a person and for a machine."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.config import ModelConfig, interpret
from zarrmask.detection.files import config_file
from zarrmask.detection.names import is_counter, is_weight
from zarrmask.detection.network import build_model
from zarrmask.detection.shapes import documents_of
from zarrmask.detection.weights import Misfit, not_finite, weight_shapes
from zarrmask.storage.digest import sha256


@dataclass(frozen=True)
class Inspection:
    """A checkpoint file, and how it fits the network that its config describes.

    Parameters
    ----------
    file : Path
    format : str
        What kind of file it is, by its content.
    size : int
        Bytes of the file, with all that stands beside the weights.
    sha256 : str
        Of the file, in hexadecimal digits.
    iteration : int or None
        How far the training had come, where the file says so.
    author : str or None
        Who wrote it, where the file says so.
    model : ModelConfig
    config : Path or None
        Where that was read; None where the shapes of the weights told it.
    weights, parameters, weight_bytes : int
        Tensors that are weights, the numbers in them, and the bytes of these.
    dtypes : dict of str to int
        How many weights are of which type.
    passed_over : tuple of str
        Tensors that are no weights: what the config says as well, and counters of batch norms.
    misfit : Misfit
        Between the weights and the network of `model`.
    not_finite : tuple of str
        Weights that hold infinities, or what is no number: nothing can be detected with them.
    """

    file: Path
    format: str
    size: int
    sha256: str
    iteration: int | None
    author: str | None
    model: ModelConfig
    config: Path | None
    weights: int
    parameters: int
    weight_bytes: int
    dtypes: dict[str, int]
    passed_over: tuple[str, ...]
    misfit: Misfit
    not_finite: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Give all of it as JSON holds it."""
        config = None if self.config is None else str(self.config)
        paths = {"file": str(self.file), "config": config}
        return {**asdict(self), **paths, "fits": self.fits}

    @property
    def fits(self) -> bool:
        """Whether it can be used: every weight is there, has its place, and is a number."""
        return not (self.misfit or self.not_finite)

    def lines(self) -> dict[str, str]:
        """Say it to a person: names, and what to print behind them."""
        model = self.model
        damaged = [
            f"{len(self.not_finite)} weights hold infinities or NaN, as {name}"
            for name in self.not_finite[:1]
        ]
        types = " and ".join(self.dtypes)
        known: dict[str, str | None] = {
            "file": f"{self.file}, {self.size:,} bytes",
            "format": self.format,
            "sha256": self.sha256,
            "author": self.author,
            "iteration": None if self.iteration is None else f"{self.iteration:,}",
            "config": "told from the shapes of the weights; what they do not show is as usual"
            if self.config is None
            else str(self.config),
            "network": f"Mask R-CNN, ResNet-{model.depth} with FPN",
            "classes": f"{model.classes}",
            "channels": _channels(model),
            "norms": f"{model.resnet_norm}; in the pyramid {model.fpn_norm or 'none'}",
            "anchors": f"{model.anchors_per_place} a place on {', '.join(model.rpn_levels)}",
            "sees": _input(model),
            "weights": f"{self.weights:,} tensors of {self.parameters:,} numbers ({types}), "
            f"{self.weight_bytes:,} bytes",
            "passed over": ", ".join(_summed_up(self.passed_over)),
            "fits": "yes: every weight has its place" if self.fits else "no:",
            "": "\n".join([*self.misfit.lines(), *damaged, *self._advice()]),
        }
        return {name: text for name, text in known.items() if text}

    def _advice(self) -> list[str]:
        """What to do where weights do not fit a network that their shapes were taken for."""
        if self.config is not None or not self.misfit:
            return []
        beside = self.file.with_suffix(".yaml").name
        return [f"give the config it was trained with (--config), or put it beside as {beside}"]


def inspect_checkpoint(path: Path, config: Path | None = None) -> Inspection:
    """Say what a checkpoint is, without running anything in it.

    Parameters
    ----------
    path : Path
        See `read_checkpoint`.
    config : Path, optional
        The detectron2 config it was trained with; see `config_of` for what is taken without one.
        Anchors that are not the usual, which shapes do not tell, are said to be a misfit.

    Raises
    ------
    CheckpointError
        If the file or its config cannot be read, or is not of a Mask R-CNN with FPN.
    """
    found = read_checkpoint(path)
    file = config_file(path, config)
    model = interpret(documents_of(path, found.shapes, config), str(file or path))
    with torch.device("meta"):  # shapes alone: no number is made
        expected = weight_shapes(build_model(model))
    named = {name: tensor for name, tensor in found.tensors.items() if is_weight(name)}
    weights = list(named.values())
    author = found.metadata.get("__author__")
    return Inspection(
        file=path,
        format=found.format,
        size=path.stat().st_size,
        sha256=sha256(path),
        iteration=found.iteration,
        author=None if author is None else str(author),
        model=model,
        config=file,
        weights=len(weights),
        parameters=sum(tensor.numel() for tensor in weights),
        weight_bytes=sum(tensor.numel() * tensor.itemsize for tensor in weights),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights)),
        passed_over=tuple(name for name in found.tensors if not is_weight(name)),
        misfit=Misfit.of(found.shapes, expected),
        not_finite=tuple(not_finite(named)),
    )


def _summed_up(names: Sequence[str]) -> list[str]:
    """Names, but of counters their number: every batch norm has one."""
    others = [name for name in names if not is_counter(name)]
    counters = sum(map(is_counter, names))
    return [*others, *([f"counters of {counters} batch norms"] if counters else [])]


def _channels(model: ModelConfig) -> str:
    stages = [model.res2_channels * 2**stage for stage in range(4)]
    inner = [model.bottleneck_channels * 2**stage for stage in range(4)]
    narrow = f" (within {_listed(inner)})" if model.is_bottleneck else ""
    return (
        f"stem {model.stem_channels}, stages {_listed(stages)}{narrow}, pyramid "
        f"{model.fpn_channels}, boxes {model.box_fc_count} x {model.box_fc_channels}, masks "
        f"{model.mask_convs} x {model.mask_channels}"
    )


def _listed(numbers: Iterable[int]) -> str:
    return "-".join(map(str, numbers))


def _input(model: ModelConfig) -> str:
    ways = ", each slice brought to one contrast" if model.even_contrast else ""
    ways += ", small objects looked at closer" if model.look_closer else ""
    if model.min_size == 0:
        return f"{model.channel_order}, slices at their own size{ways}"
    sides = f"shorter side {model.min_size}, longer at most {model.max_size}"
    return f"{model.channel_order}, {sides}{ways}"
