"""From keyframes to the mask of every slice."""

from zarrmask.masking.cut import cut_out
from zarrmask.masking.dilation import dilate, kernel_side
from zarrmask.masking.enlarging import enlarged_mask
from zarrmask.masking.field_store import KEYFRAMES_A_CHUNK, FieldStore
from zarrmask.masking.hold import HeldMasks
from zarrmask.masking.interpolation import InterpolatedMasks
from zarrmask.masking.keyframe_store import KeyframeStore
from zarrmask.masking.keyframes import read_together
from zarrmask.masking.outliers import cost
from zarrmask.masking.placing import Placing
from zarrmask.masking.protocol import Masks, RegionMasks, SettledMasks
from zarrmask.masking.seeking import Answer, Ask, Doubt, Keyframes, seek
from zarrmask.masking.sighting import Sighting

__all__ = [
    "KEYFRAMES_A_CHUNK",
    "Answer",
    "Ask",
    "Doubt",
    "FieldStore",
    "HeldMasks",
    "InterpolatedMasks",
    "KeyframeStore",
    "Keyframes",
    "Masks",
    "Placing",
    "RegionMasks",
    "SettledMasks",
    "Sighting",
    "cost",
    "cut_out",
    "dilate",
    "enlarged_mask",
    "kernel_side",
    "read_together",
    "seek",
]
