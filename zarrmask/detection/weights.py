"""Weights in detectron2's names, into a network and out of it."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from zarrmask.errors import CheckpointError

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

_NO_WEIGHT = re.compile(r"(^|\.)(pixel_mean|pixel_std|num_batches_tracked)$|cell_anchors")
_LISTED = 10


def model_weights(model: nn.Module) -> dict[str, Tensor]:
    """Give the network's own tensors (no copies) under detectron2's names."""
    return {
        _detectron2_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not _NO_WEIGHT.search(name)
    }


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
        Naming the tensors that are missing, unexpected or of another shape.
    """
    own = model_weights(model)
    given = {name: tensor for name, tensor in tensors.items() if not _NO_WEIGHT.search(name)}
    differing = [
        f"{name} {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems = [
        *_listed("missing", (name for name in own if name not in given)),
        *_listed("unexpected", (name for name in given if name not in own)),
        *_listed("of another shape", differing),
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit its model config. Give the config that it was trained with "
            "(--config), or another checkpoint.\n" + "\n".join(problems)
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def _detectron2_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _listed(problem: str, names: Iterable[str]) -> Iterable[str]:
    every = list(names)
    if every:
        yield f"  {len(every)} {problem}:"
        yield from (f"    {name}" for name in every[:_LISTED])
        if len(every) > _LISTED:
            yield f"    and {len(every) - _LISTED} more"
