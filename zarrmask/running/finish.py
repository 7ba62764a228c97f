"""What a run leaves when its voxels are written: metadata, pictures, report, project, record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zarrmask.errors import counted
from zarrmask.planning.plan import Plan
from zarrmask.progress import Reporter
from zarrmask.pyramid import Pyramid, link_label, write_metadata
from zarrmask.records.journal import Journal
from zarrmask.storage.flush import flush_all, flush_soon
from zarrmask.storage.place import is_local

METADATA = (".zgroup", ".zattrs", ".zarray", "zarr.json")
FOR_METADATA = "ome_zarr.writer"
FOR_REPORT = "zarrmask.report"
"""Modules that take about a second, and are wanted at the end."""


def write_pyramid_metadata(pyramids: Mapping[str, Pyramid], plan: Plan) -> None:
    """Give the pyramids their metadata: from here on viewers open them."""
    begin = (plan.first, *plan.origin[1:])
    z, y, x = (place + start for place, start in zip(plan.offset, begin, strict=True))
    for name, pyramid in pyramids.items():
        write_metadata(
            pyramid.path,
            name,
            len(pyramid.levels),
            voxel_size=plan.voxel_size,
            origin=(z, y, x),
            ngff=pyramid.format.ngff,
            reduce=pyramid.reduce,
        )


def flush_metadata(pyramids: Mapping[str, Pyramid]) -> None:
    """Bring metadata, which zarr does not, onto the disk: the record will call them finished."""
    for path in [one.path for one in pyramids.values() if isinstance(one.path, Path)]:
        folders = (path, *(child for child in path.iterdir() if child.is_dir()))
        flush_soon(*(folder / name for folder in folders for name in METADATA))
    flush_all()


def finish_run(
    journal: Journal,
    record: Mapping[str, Any],
    pyramids: Mapping[str, Pyramid],
    plan: Plan,
    reporter: Reporter,
) -> None:
    """Write all that a run leaves beside its voxels; the record last.

    Parameters
    ----------
    journal : Journal
        The run's.
    record : mapping
        What `run.json` is to hold.
    pyramids : mapping
        What was written, by name.
    plan : Plan
    reporter : Reporter
    """
    from zarrmask.report import (  # it takes its time, and a conversion needs none of it
        khartes_opens,
        read_views,
        write_khartes_project,
        write_overview,
        write_report,
    )

    place = journal.out
    write_pyramid_metadata(pyramids, plan)
    if isinstance(place, Path):  # elsewhere there are no links
        link_label(place / "masked.zarr", place / "mask.zarr")
    form = next(iter(pyramids.values())).format
    for_khartes = is_local(place) and form.ngff == "0.4"  # it opens folders, of zarr 2
    with reporter.stage("report", 2 + for_khartes, "files") as advance:
        views = read_views(place, record)
        write_overview(place, record, views)
        advance(1)
        write_report(place, record, views)
        advance(1)
        if isinstance(place, Path):
            project = place / "scroll.khprj"
            volumes = {name: place / f"{name}.zarr" for name in pyramids} if for_khartes else {}
            given = record["volume"] if for_khartes else None
            if given is not None and "://" not in given and khartes_opens(Path(given)):
                volumes["volume"] = Path(given)
            elif given is not None:
                reporter.say(
                    f"khartes does not open {given} as it is: the project holds the mask and the "
                    "masked volume (with --volume a volume is written that it opens)"
                )
            if for_khartes or project.exists():  # with none, what it listed is dropped
                write_khartes_project(project, volumes, voxel_size_um=plan.voxel_size)
            advance(for_khartes)
    if views.doubtful:
        z, worst = views.keyframes.z, views.doubtful[0].worst
        reporter.say(
            f"the report shows {counted(len(views.doubtful), 'suspicious ranges')} of keyframes, "
            f"the worst at z {z[worst]}"
        )
    flush_metadata(pyramids)
    journal.finish(record)
