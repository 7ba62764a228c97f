"""Reading COCO annotations: all that is wrong is told at once, before anything is begun."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from zarrmask.coco.dataset import CocoDataset, CocoImage, Instance, read_grey
from zarrmask.coco.region import Region
from zarrmask.errors import AnnotationError, counted, escaped, first_of
from zarrmask.storage.place import absolute
from zarrmask.wording import got, wanted


class _Category(BaseModel):
    id: int
    name: str


class _Image(BaseModel):
    id: int
    file_name: str
    height: int = Field(gt=0, lt=2**16)
    width: int = Field(gt=0, lt=2**16)


class _Annotation(BaseModel):
    id: int | None = None
    image_id: int
    category_id: int
    iscrowd: bool | None = False
    segmentation: Any = None


Entry = TypeVar("Entry", bound=BaseModel)


def read_coco(annotations: Path, images: Path) -> CocoDataset:
    """Read COCO instance annotations, and check their images.

    Parameters
    ----------
    annotations : Path
        The JSON. Segmentations are polygons or run lengths, compressed or not; categories may have
        any ids. Boxes and areas are taken from the segmentations, not from the file.
    images : Path
        Folder in which all file names are; each image is decoded once, to see that it is whole.

    Returns
    -------
    CocoDataset

    Raises
    ------
    AnnotationError
        All that is wrong with them, at once: images that are missing, damaged or of another size
        than stated, or outside the folder; unknown images and categories, ids that occur twice;
        polygons and run lengths that cannot be, or that cover no pixel; no annotation at all.
    """
    document = _document(annotations)
    if not images.is_dir():
        raise AnnotationError(f"{images} is not a folder; name the one that holds the images")
    problems: list[str] = []
    categories = _entries(document, "categories", _Category, problems)
    listed = _entries(document, "images", _Image, problems)
    marked = _entries(document, "annotations", _Annotation, problems)
    for name, ids in {
        "category": [category.id for category in categories],
        "image": [image.id for image in listed],
        "annotation": [mark.id for mark in marked if mark.id is not None],
    }.items():
        problems += [f"{name} id {id_} occurs {n} times" for id_, n in _repeated(ids)]
    problems += [
        f"{escaped(str(name))} is listed {n} times, as {n} images"
        for name, n in _repeated([os.path.normpath(image.file_name) for image in listed])
    ]
    found, missing = _images(listed, images)
    order = {id_: index for index, id_ in enumerate(sorted({c.id for c in categories}))}
    refused = len(listed) < len(document["images"]), len(categories) < len(document["categories"])
    instances, crowds, bad = _instances(marked, {i.id: i for i in listed}, order, *refused)
    problems += missing + bad
    if not problems and not instances:
        problems = ["no annotation at all" if not crowds else _ONLY_CROWDS.format(len(marked))]
    if problems:
        raise _refusal(annotations, problems)
    names = {category.id: category.name for category in categories}
    return CocoDataset(
        annotations,
        tuple(names[id_] for id_ in order),
        tuple(
            replace(i, instances=tuple(instances[i.id]), crowds=tuple(crowds[i.id])) for i in found
        ),
    )


_ONLY_CROWDS = (
    "all of the {} annotations are crowds (iscrowd 1), and there is nothing to learn from them; "
    "CVAT exports what was painted as crowds: draw polygons"
)


def _document(path: Path) -> dict[str, list[Any]]:
    """The JSON, with the lists that make it COCO's."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not JSON: {error}") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(k), list) for k in keys):
        there = ", ".join(map(str, document)) if isinstance(document, dict) else "no object"
        raise AnnotationError(
            f"{path} is not a COCO file of instances: expected lists of {', '.join(keys)}; found "
            f"{there[:200] or 'nothing'}"
        )
    return document


def _entries(
    document: Mapping[str, list[Any]], name: str, kind: type[Entry], problems: list[str]
) -> list[Entry]:
    """Take one of the lists; an entry that is none becomes a problem."""
    entries = []
    for position, entry in enumerate(document[name]):
        try:
            entries.append(kind.model_validate(entry))
        except ValidationError as error:
            called = entry.get("file_name") if isinstance(entry, dict) else None
            whose = f"{name}[{position}]" + (f" ({escaped(str(called))})" if called else "")
            for lack in error.errors():
                if lack["type"] == "missing":
                    problems.append(f"{whose} has no {'.'.join(map(str, lack['loc']))}")
                else:
                    key = ".".join(map(str, (f"{name}[{position}]", *lack["loc"])))
                    problems.append(f"{key}: {wanted(lack)} {got(lack)}")
    return entries


def _repeated(ids: Iterable[Hashable]) -> list[tuple[Hashable, int]]:
    return [(id_, count) for id_, count in Counter(ids).items() if count > 1]


def _images(listed: Sequence[_Image], folder: Path) -> tuple[list[CocoImage], list[str]]:
    """Find the images, and say what is wrong with their files."""
    root = absolute(folder)
    images = []
    problems = []
    for entry in listed:
        path = Path(os.path.normpath(root / entry.file_name))
        if ".." in PurePath(entry.file_name).parts or not path.is_relative_to(root):
            problems.append(f"{entry.file_name!r} lies outside the folder of images")
        else:
            images.append(CocoImage(entry.id, path, entry.height, entry.width))
    with ThreadPoolExecutor() as pool:
        looked_at = list(pool.map(_look_at, images))
    wrong = [None if isinstance(found, CocoImage) else found for found in looked_at]
    names = [str(image.path.relative_to(root)) for image in images]
    if _MISSING in wrong:  # where all are missing, one that lies elsewhere tells of the others
        first = wrong.index(_MISSING)
        wrong[first] = _MISSING + _where(names[first], root)
    told = zip(names, wrong, strict=True)
    problems += [f"{escaped(name)}: {problem}" for name, problem in told if problem]
    return [found for found in looked_at if isinstance(found, CocoImage)], problems


_MISSING = "is missing"


def _where(name: str, root: Path) -> str:
    """Say where an image was looked for in vain, and where one that is called so lies."""
    base = PureWindowsPath(name).name  # of whatever system the name is
    elsewhere = next(root.rglob(glob.escape(base)), None) if base else None
    said = f" in {escaped(str(root))}"
    return said if elsewhere is None else f"{said}; but there is {escaped(str(elsewhere))}"


def _look_at(image: CocoImage) -> CocoImage | str:
    """Decode an image to learn its bits; else say what is wrong with its file."""
    try:
        grey = read_grey(image.path)
    except FileNotFoundError:
        return _MISSING
    except Exception as error:  # a decoder lost in garbage may raise anything
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    height, width = grey.shape
    if (height, width) == (image.height, image.width):
        return replace(image, bits=8 * grey.itemsize)
    return f"is {height} x {width} pixels; the annotations say {image.height} x {image.width}"


def _instances(
    marked: Sequence[_Annotation],
    images: Mapping[int, _Image],
    order: Mapping[int, int],
    images_refused: bool,
    categories_refused: bool,
) -> tuple[dict[int, list[Instance]], dict[int, list[Instance]], list[str]]:
    """Turn annotations into instances and crowds, by image; say what is wrong with the others.

    Where images, or categories, were refused, an annotation may be of one of these.
    """
    instances: dict[int, list[Instance]] = defaultdict(list)
    crowds: dict[int, list[Instance]] = defaultdict(list)
    problems = []
    for position, mark in enumerate(marked):
        label = f"annotations[{position}]" if mark.id is None else f"annotation {mark.id}"
        image = images.get(mark.image_id)
        if image is None and not images_refused:
            problems.append(f"{label} is of image {mark.image_id}, which there is not")
        if mark.category_id not in order and not categories_refused:
            problems.append(f"{label} is of category {mark.category_id}, which there is not")
        if image is None or mark.category_id not in order:
            continue
        try:
            region = _region(mark.segmentation, image.height, image.width)
        except ValueError as error:
            problems.append(f"{label} on {escaped(image.file_name)}: {error}")
        else:
            kind = crowds if mark.iscrowd else instances
            kind[image.id].append(Instance(order[mark.category_id], region))
    return instances, crowds, problems


def _region(segmentation: Any, height: int, width: int) -> Region:
    """Turn polygons or run lengths into a region.

    Raises
    ------
    ValueError
        If they cannot be, or cover no pixel.
    """
    if isinstance(segmentation, dict) and {"size", "counts"} <= set(segmentation):
        if segmentation["size"] != [height, width]:
            raise ValueError(
                f"its run lengths are of {segmentation['size']} pixels; the image is "
                f"[{height}, {width}]"
            )
        if not isinstance(segmentation["counts"], list | str):
            raise ValueError("its counts are not run lengths")
        region = Region.of_counts(segmentation["counts"], height, width)
    elif segmentation and isinstance(segmentation, list):
        if all(map(_is_number, segmentation)):
            raise ValueError("a list of numbers; expected a list of polygons, [[x, y, x, y, ...]]")
        polygons = [_polygon(polygon, height, width) for polygon in segmentation]
        region = Region.of_union(polygons, height, width)
    else:
        raise ValueError("it has no segmentation; expected polygons or run lengths")
    if not region.area:
        raise ValueError("it covers no pixel")
    return region


def _polygon(polygon: Any, height: int, width: int) -> Region:
    """Rasterise a polygon that can be one."""
    if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
        raise ValueError(
            "a polygon with something that is not a number; expected [x, y, x, y, ...]"
        )
    points = np.array(polygon, np.float64)
    if points.size < 6 or points.size % 2:
        raise ValueError(f"a polygon of {points.size / 2:g} points; expected 3 at least")
    sides = np.array([width, height])
    if (np.abs(points.reshape(-1, 2) - sides / 2) > 1.5 * sides).any():
        raise ValueError("a polygon that reaches far beyond the image")  # each pixel costs time
    region = Region.of_polygon(polygon, height, width)
    if not region.area:
        raise ValueError("a polygon without area on the image")
    return region


def _is_number(value: Any) -> bool:
    """Whether a value is a number that is finite, and no more than an image could have pixels."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**32


def _refusal(path: Path, problems: Sequence[str]) -> AnnotationError:
    lines = "\n".join(f"  {line}" for line in first_of(problems))
    return AnnotationError(f"{path} cannot be used: {counted(len(problems), 'problems')}\n{lines}")
