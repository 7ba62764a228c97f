"""From keyframes to the mask of every slice."""

from zarrmask.masking.cut import cut_out
from zarrmask.masking.dilation import dilate, dilated_part, kernel_side
from zarrmask.masking.enlarging import enlarged_mask
from zarrmask.masking.field_store import KEYFRAMES_A_CHUNK, FieldStore
from zarrmask.masking.hold import HeldMasks
from zarrmask.masking.interpolation import InterpolatedMasks
from zarrmask.masking.keyframe_store import KeyframeStore, Sighting
from zarrmask.masking.keyframes import held_by, keyframe_indices, read_together
from zarrmask.masking.protocol import Masks, RegionMasks

__all__ = [
    "KEYFRAMES_A_CHUNK",
    "FieldStore",
    "HeldMasks",
    "InterpolatedMasks",
    "KeyframeStore",
    "Masks",
    "RegionMasks",
    "Sighting",
    "cut_out",
    "dilate",
    "dilated_part",
    "enlarged_mask",
    "held_by",
    "kernel_side",
    "keyframe_indices",
    "read_together",
]
