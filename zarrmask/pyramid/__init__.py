"""OME-Zarr pyramids: their layout, halving, metadata, writing and reading."""

from zarrmask.pyramid.layout import STEP, BrickGrid, Region, Shape, brick_grid, brick_key, tiles
from zarrmask.pyramid.metadata import MASK_VALUE, link_label, read_metadata, write_metadata
from zarrmask.pyramid.reading import open_pyramid
from zarrmask.pyramid.writing import Pyramid, remove_pyramid

__all__ = [
    "MASK_VALUE",
    "STEP",
    "BrickGrid",
    "Pyramid",
    "Region",
    "Shape",
    "brick_grid",
    "brick_key",
    "link_label",
    "open_pyramid",
    "read_metadata",
    "remove_pyramid",
    "tiles",
    "write_metadata",
]
