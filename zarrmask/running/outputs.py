"""The pyramids that a run writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from zarrmask.contrast import output_dtype
from zarrmask.errors import OutputError, ZarrmaskError
from zarrmask.planning.plan import Plan, mask_format, output_format
from zarrmask.pyramid import Format, Pyramid, open_array, read_metadata
from zarrmask.records.journal import Journal
from zarrmask.settings import Settings
from zarrmask.stack import Source
from zarrmask.storage.place import Place, place_of


def run_pyramids(
    journal: Journal, plan: Plan, source: Source, settings: Settings, *, referenced: bool
) -> dict[str, Pyramid]:
    """The outputs of a run by name."""
    form, dtype = output_format(settings), output_dtype(source.dtype, settings)
    kinds = {
        "volume": (dtype, "mean", form),
        "mask": ("uint8", "max", mask_format(form)),
        "masked": (dtype, "mean", form),
    }
    return {
        name: _pyramid(journal.out / f"{name}.zarr", journal, plan, *kind, links=settings.links)
        for name, kind in kinds.items()
        if name != "volume" or (settings.volume is not False and not referenced)
    }


def converted_pyramids(
    journal: Journal, plan: Plan, source: Source, settings: Settings
) -> dict[str, Pyramid]:
    """The output of a conversion by name."""
    form, dtype = output_format(settings), output_dtype(source.dtype, settings)
    return {"volume": _pyramid(journal.out, journal, plan, dtype, "mean", form)}


def _pyramid(
    path: Place,
    journal: Journal,
    plan: Plan,
    dtype: str,
    reduce: str,
    form: Format,
    *,
    links: bool = False,
) -> Pyramid:
    return Pyramid(path, journal.scratch / path.name, plan.shape, dtype, reduce, form, links)


def referenced_volume(stack: object, source: Source, plan: Plan, settings: Settings) -> str | None:
    """Path of the input where it is itself a pyramid that serves as the volume, else None.

    It does where each of its levels is half of the one before along all axes, rounded up or down:
    report and exports go by that.
    """
    changed = settings.window is not None or plan.shape != source.shape
    if source.kind != "OME-Zarr" or settings.volume is not None or changed:
        return None
    if str(stack).rstrip("/") != source.path and "://" in source.path:
        return None  # what is recorded, without secrets, would not open it again
    try:
        multiscale = read_metadata(source.path)
    except ZarrmaskError:  # it lacks a level
        return None
    if "axes" not in multiscale or source.oblong:
        return None
    paths = [dataset["path"] for dataset in multiscale["datasets"]]
    if len(multiscale["axes"]) != 3 or len(paths) == 1:
        return None
    place = place_of(source.path)
    shapes = [open_array(place / path, "r", fast=False).shape for path in paths]
    halves = all(
        max(side // 2, 1) <= half <= (side + 1) // 2
        for finer, coarser in pairwise(shapes)
        for side, half in zip(finer, coarser, strict=True)
    )
    return source.path if halves else None


def require_outputs(out: Place, pyramids: Iterable[Pyramid], others: Sequence[Place] = ()) -> None:
    """Refuse a finished output of which a part is gone.

    Raises
    ------
    OutputError
        With what is gone.
    """
    arrays = (pyramid.path / "0" / pyramid.format.array_file for pyramid in pyramids)
    paths = [*arrays, *others]
    if gone := [str(path).removeprefix(f"{out}/") for path in paths if not path.exists()]:
        raise OutputError(
            f"{out} was finished, but {', '.join(gone)} is gone; --overwrite makes it anew"
        )
