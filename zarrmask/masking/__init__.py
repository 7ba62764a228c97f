"""From keyframes to the mask of every slice."""

from zarrmask.masking.cut import cut_out
from zarrmask.masking.dilation import dilate, dilated_part, kernel_side
from zarrmask.masking.hold import HeldMasks, HeldRegion
from zarrmask.masking.keyframe_store import KeyframeStore, Sighting
from zarrmask.masking.keyframes import held_by, keyframe_indices, read_together

__all__ = [
    "HeldMasks",
    "HeldRegion",
    "KeyframeStore",
    "Sighting",
    "cut_out",
    "dilate",
    "dilated_part",
    "held_by",
    "kernel_side",
    "keyframe_indices",
    "read_together",
]
