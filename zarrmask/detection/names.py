"""Which of a checkpoint's tensors are what, by detectron2's names for them."""

import re

_COUNTER = "num_batches_tracked"
_NO_WEIGHT = re.compile(rf"(^|\.)(pixel_mean|pixel_std|{_COUNTER})$|cell_anchors")


def is_weight(name: str) -> bool:
    """Whether a tensor of a checkpoint is a network's own, and not what its config says as well."""
    return not _NO_WEIGHT.search(name)


def is_counter(name: str) -> bool:
    """Whether a tensor counts the batches of a batch norm.

    It is no weight, but detectron2 misses those of norms that it has frozen.
    """
    return name.endswith(_COUNTER)
