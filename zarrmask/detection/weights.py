"""Weights in detectron2's names, into a network and out of it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from zarrmask.detection.names import is_counter, is_weight
from zarrmask.errors import CheckpointError, first_of

# torchvision's names in `network`, to be rewritten in this order.
_RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone\.body\.", "backbone.bottom_up."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.fpn\.inner_blocks\.(\d)\.", lambda found: f".fpn_lateral{int(found[1]) + 2}."),
    (r"\.fpn\.layer_blocks\.(\d)\.", lambda found: f".fpn_output{int(found[1]) + 2}."),
    (r"(\.fpn_\w+\d)\.0\.", r"\1."),
    (r"(\.fpn_\w+\d)\.1\.", r"\1.norm."),
    (r"^rpn\.head\.", "proposal_generator.rpn_head."),
    (r"\.rpn_head\.conv\.0\.0\.", ".rpn_head.conv."),
    (r"\.cls_logits\.", ".objectness_logits."),
    (r"\.rpn_head\.bbox_pred\.", ".rpn_head.anchor_deltas."),
    (r"\.box_head\.(\d+)\.", lambda found: f".box_head.fc{(int(found[1]) + 1) // 2}."),
    (r"\.mask_head\.(\d+)\.0\.", lambda found: f".mask_head.mask_fcn{int(found[1]) + 1}."),
    (r"\.mask_predictor\.conv5_mask\.", ".mask_head.deconv."),
    (r"\.mask_predictor\.mask_fcn_logits\.", ".mask_head.predictor."),
)

_LISTED = 10

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Misfit:
    """How a checkpoint's tensors differ from those that a network has; false where they do not.

    Parameters
    ----------
    missing, unexpected : tuple of str
        Names.
    reshaped : mapping of str to (shape, shape)
        The shape that a tensor has, and the one that the network's has.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: Mapping[str, tuple[Shape, Shape]]

    @classmethod
    def of(cls, given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> "Misfit":
        """Compare shapes by name; what old files carry besides weights is passed over."""
        given = {name: shape for name, shape in given.items() if is_weight(name)}
        return cls(
            tuple(name for name in expected if name not in given),
            tuple(name for name in given if name not in expected),
            {
                name: (given[name], shape)
                for name, shape in expected.items()
                if given.get(name, shape) != shape
            },
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def refuse(self, source: str) -> None:
        """Raise a `CheckpointError` of the checkpoint that is called so, if it does not fit."""
        if self:
            raise CheckpointError(
                f"{source} does not fit its model config. Give the config that it was trained with "
                "(--config), or another checkpoint.\n" + "\n".join(self.lines())
            )

    def lines(self) -> list[str]:
        """Say it to a person, at no great length."""
        reshaped = (
            f"{name} {found}, expected {expected}"
            for name, (found, expected) in self.reshaped.items()
        )
        return [
            *_listed("missing", self.missing),
            *_listed("unexpected", self.unexpected),
            *_listed("of another shape", reshaped),
        ]


def model_weights(model: nn.Module) -> dict[str, Tensor]:
    """Give the network's own tensors (no copies) under detectron2's names."""
    return {
        _detectron2_name(name): tensor
        for name, tensor in model.state_dict().items()
        if is_weight(name)
    }


def norm_counters(model: nn.Module) -> dict[str, Tensor]:
    """Give the counters of batch norms, int64 (), under detectron2's names; see `is_counter`."""
    return {
        _detectron2_name(name): tensor
        for name, tensor in model.state_dict().items()
        if is_counter(name)
    }


def weight_shapes(model: nn.Module) -> dict[str, Shape]:
    """Give the shapes of `model_weights`."""
    return {name: tuple(tensor.shape) for name, tensor in model_weights(model).items()}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a network with a checkpoint's tensors, which must be exactly those it has.

    Parameters
    ----------
    model : nn.Module
        As `network.build_model` makes it.
    tensors : mapping of str to Tensor
        In detectron2's names. What old files carry besides weights is passed over.
    source : str
        What to call the checkpoint in an error.

    Raises
    ------
    CheckpointError
        Naming the tensors that are missing, unexpected or of another shape, or that hold what is
        no number.
    """
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    Misfit.of(given, weight_shapes(model)).refuse(source)
    own = model_weights(model)
    require_finite({name: tensors[name] for name in own}, source)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold what is no number: nothing would be found with them.

    Raises
    ------
    CheckpointError
    """
    if bad := not_finite(tensors):
        raise CheckpointError(
            f"{source} cannot be used: {len(bad)} of its {len(tensors)} tensors hold infinities or "
            f"NaN, as {bad[0]}: its training went astray; take an earlier checkpoint"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold infinities, or what is no number."""
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def _detectron2_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _listed(problem: str, names: Iterable[str]) -> Iterable[str]:
    every = list(names)
    if every:
        yield f"  {len(every)} {problem}:"
        yield from (f"    {name}" for name in first_of(every, _LISTED))
