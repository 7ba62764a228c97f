"""The sides of voxels that TIFFs state: OME's and ImageJ's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from zarrmask.info import describe
from zarrmask.stack import open_source
from zarrmask.stack.voxels import UNKNOWN, Voxels

SLICES = np.zeros((5, 8, 9), np.uint16)


def imagej(unit: str, side: float, spacing: float | None = None) -> dict[str, Any]:
    """Options of a TIFF as ImageJ writes it: pixels a unit, as millionths."""
    resolution = (round(1e6 / side), 10**6)
    metadata = {"axes": "ZYX", "unit": unit} | ({"spacing": spacing} if spacing else {})
    return {"imagej": True, "resolution": (resolution, resolution), "metadata": metadata}


def ome(**sizes: Any) -> dict[str, Any]:
    sizes = {f"PhysicalSize{name}": size for name, size in sizes.items()}
    return {"ome": True, "metadata": {"axes": "ZYX"} | sizes}


@pytest.mark.parametrize(
    ("options", "voxels"),
    [
        (imagej("micron", 7.91, 7.91), Voxels(7.91, "")),
        (imagej("um", 1.0), Voxels(1.0, "")),
        (imagej("um", 0.5), Voxels(None, "1 x 0.5 x 0.5 um, not cubic")),
        (imagej(r"\u00B5m", 3.24, 3.24), Voxels(3.24, "")),
        (imagej("mm", 0.025, 0.025), Voxels(25.0, "")),
        (imagej("micron", 8.0, 20.0), Voxels(None, "20 x 8 x 8 micron, not cubic")),
        (imagej("pixel", 1.0), UNKNOWN),
        (imagej("inch", 1 / 72), UNKNOWN),
        ({"resolution": (72, 72), "resolutionunit": "inch"}, UNKNOWN),
        ({"resolution": (400, 400), "resolutionunit": "centimeter"}, UNKNOWN),
        (ome(X=7.91, Y=7.91, Z=7.91), Voxels(7.91, "")),
        (ome(X=7910, XUnit="nm", Y=7.91, YUnit="\u00b5m", Z=7.91), Voxels(7.91, "")),
        (ome(X=8, Y=8), UNKNOWN),
        (ome(X=8, Y=8, Z=20), Voxels(None, "20 x 8 x 8 um, not cubic")),
        (ome(X=1, XUnit="pixel", Y=1, YUnit="pixel"), UNKNOWN),
        (ome(X=0, Y=0), UNKNOWN),
        (ome(), UNKNOWN),
    ],
)
def test_what_a_tiff_states(tmp_path: Path, options: dict[str, Any], voxels: Voxels) -> None:
    whole = tmp_path / "whole.tif"
    tifffile.imwrite(whole, SLICES, **options)
    source = open_source(whole)
    assert (source.voxel_size, source.oblong, source.unitless) == voxels
    assert open_source(whole, labels=True).voxel_size is None
    size = "not stated" if voxels.size is None else f"{voxels.size:g} micrometres"
    assert describe(whole)["voxel size"] == (voxels.oblong or size)


@pytest.mark.parametrize(
    ("options", "size"), [(imagej("micron", 7.91), 7.91), (ome(X=8, Y=8), 8.0), ({}, None)]
)
def test_a_folder_goes_by_its_first_slice(
    tmp_path: Path, options: dict[str, Any], size: float | None
) -> None:
    if options:
        options["metadata"]["axes"] = "YX"
    for z, image in enumerate(SLICES):
        tifffile.imwrite(tmp_path / f"{z:03d}.tif", image, **(options if z == 0 else {}))
    assert open_source(tmp_path).voxel_size == size


def test_a_damaged_description_states_nothing(tmp_path: Path) -> None:
    path = tmp_path / "1.tif"
    broken = '<?xml version="1.0"?><OME><Image><Pixels PhysicalSizeX="wide"/></Image></OME>'
    tifffile.imwrite(path, SLICES[0], description=broken, metadata=None)
    assert open_source(tmp_path).voxel_size is None
