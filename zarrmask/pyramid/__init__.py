"""OME-Zarr pyramids: their layout, halving, metadata, writing and reading."""

from zarrmask.pyramid.layout import (
    USUAL_BRICK,
    BrickGrid,
    Format,
    brick_grid,
    brick_key,
    shifted,
    sides,
    step_grid,
    tiles,
    touched,
    within,
)
from zarrmask.pyramid.metadata import link_label, read_metadata, write_metadata
from zarrmask.pyramid.reading import open_pyramid
from zarrmask.pyramid.store import open_array
from zarrmask.pyramid.writing import Pyramid, Step, remove_pyramid
from zarrmask.storage.files import Region, Shape

__all__ = [
    "USUAL_BRICK",
    "BrickGrid",
    "Format",
    "Pyramid",
    "Region",
    "Shape",
    "Step",
    "brick_grid",
    "brick_key",
    "link_label",
    "open_array",
    "open_pyramid",
    "read_metadata",
    "remove_pyramid",
    "shifted",
    "sides",
    "step_grid",
    "tiles",
    "touched",
    "within",
    "write_metadata",
]
