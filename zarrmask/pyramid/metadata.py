"""The OME-NGFF metadata of a pyramid, as khartes (0.4 only), napari and neuroglancer read it.

Written and read through ome-zarr. A dataset's scale is 2 to the level, as khartes demands; the
voxel size stands in the multiscale's own transformation, which NGFF applies after the dataset's
(https://ngff.openmicroscopy.org/0.4/#multiscale-md).

ome-zarr is imported where it is used: that takes seconds, and the workers need none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zarrmask.errors import ZarrmaskError
from zarrmask.pyramid.store import open_group
from zarrmask.storage.place import Place, place_of, printable, zarr_store

MASK_VALUE = 255
LABEL = "mask"


def write_metadata(
    path: Place,
    name: str,
    levels: int,
    *,
    voxel_size: float | None,
    origin: tuple[float, float, float],
    ngff: str = "0.4",
    reduce: str = "mean",
) -> None:
    """Make a group of arrays "0", "1", ... an OME-NGFF image.

    Parameters
    ----------
    path : Place
        A zarr group, of format 2 for NGFF 0.4, of format 3 for 0.5.
    name : str
        The image's name.
    levels : int
        Number of levels.
    voxel_size : float or None
        Side of a voxel at level 0 in micrometres; None if unknown.
    origin : (z, y, x) of float
        Where the image begins in the stack it was cut from, voxels.
    ngff : str
        Version of OME-NGFF.
    reduce : str
        How a level was made from the one before: "mean" or "max" of 2 x 2 x 2 voxels.
    """
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_multiscales_metadata

    group = open_group(path, "r+")
    unit = {} if voxel_size is None else {"unit": "micrometer"}
    axes = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    size = 1.0 if voxel_size is None else voxel_size
    # khartes, which reads 0.4 alone, wants levels of scale 1, 2, 4 ..., and passes over what scales
    # all of them; other viewers pass over that too, or do not heed where it moves the image.
    apart = ngff == "0.4"
    of_level = (1.0, (0.0, 0.0, 0.0)) if apart else (size, origin)
    datasets = [
        {"path": str(n), "coordinateTransformations": _level(n, *of_level)} for n in range(levels)
    ]
    fmt = FormatV04() if apart else FormatV05()
    write_multiscales_metadata(group, datasets, fmt=fmt, axes=axes, name=name)
    attributes: dict[str, Any] = dict(group.attrs)
    multiscale = attributes.get("ome", attributes)["multiscales"][0]
    multiscale["type"] = reduce
    if apart and (voxel_size is not None or any(origin)):
        whole: list[dict[str, Any]] = [{"type": "scale", "scale": [size] * 3}]
        if any(origin):
            whole.append({"type": "translation", "translation": [size * start for start in origin]})
        multiscale["coordinateTransformations"] = whole
    group.attrs.put(attributes)


def _level(level: int, size: float, origin: tuple[float, float, float]) -> list[dict[str, Any]]:
    """Where a level lies: voxels of such a size at level 0, the first of them there."""
    times = float(2**level)
    transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [size * times] * 3}]
    # The middle of a voxel that stands for 2^level: half of them, less half of itself.
    moved = [size * (start + (times - 1) / 2) for start in origin]
    if any(moved):
        transformations.append({"type": "translation", "translation": moved})
    return transformations


def link_label(image: Path, mask: Path) -> None:
    """Make a mask pyramid the label image `labels/mask` of an image, without writing it anew.

    Parameters
    ----------
    image, mask : Path
        Finished pyramids beside each other, in a folder: at a URL there are no links. The label
        has metadata of its own; its levels are relative links, so that the folder that holds both
        can be moved.
    """
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_label_metadata

    attributes: dict[str, Any] = dict(open_group(mask, "r").attrs)
    new = "ome" in attributes  # NGFF 0.5 has its own namespace
    stated = {
        key: value
        for key, value in attributes.get("ome", attributes).items()
        if key in ("multiscales", "version")
    }
    labels = open_group(image / "labels", "a", zarr_format=3 if new else 2)
    label = labels.create_group(LABEL, overwrite=True)
    label.attrs.put({"ome": stated} if new else stated)
    for dataset in stated["multiscales"][0]["datasets"]:
        level = dataset["path"]
        (image / "labels" / LABEL / level).symlink_to(
            Path("..", "..", "..", mask.name, level), target_is_directory=True
        )
    colour = {"label-value": MASK_VALUE, "rgba": [255, 140, 0, 96]}
    source = {"image": "../../"}
    there: Any = dict(labels.attrs)
    listing = there.setdefault("ome", {}) if new else there
    if new:
        listing["version"] = stated["version"]
    listing["labels"] = [name for name in listing.get("labels", []) if name != LABEL]
    labels.attrs.put(there)
    fmt = FormatV05() if new else FormatV04()
    write_label_metadata(labels, LABEL, colors=[colour], fmt=fmt, source=source)


def read_metadata(path: str | Place) -> Mapping[str, Any]:
    """First multiscale of an OME-Zarr image, as its metadata states it.

    Raises
    ------
    ZarrmaskError
        Where there is no OME-Zarr image, or none that ome-zarr reads.
    """
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    place = place_of(path)
    version = FormatV05() if (place / "zarr.json").is_file() else FormatV04()
    location = parse_url(zarr_store(place), fmt=version)
    try:
        nodes = list(Reader(location)()) if location is not None else []
    except FileNotFoundError:  # it opens all levels
        raise ZarrmaskError(
            f"{printable(place)} lacks a level that its metadata list; copy it whole"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ZarrmaskError(
            f"{printable(place)}: ome-zarr does not read its OME metadata ({error}); write it anew "
            "with `zarrmask convert`"
        ) from None
    if location is None or not nodes or "multiscales" not in location.root_attrs:
        raise ZarrmaskError(
            f"{printable(place)} is not an OME-Zarr image: expected a zarr group with "
            "`multiscales` in its attributes, as `zarrmask convert` and `zarrmask run` write"
        )
    # In NGFF 0.5 the version stands beside the multiscales.
    return {"version": location.root_attrs.get("version"), **location.root_attrs["multiscales"][0]}
