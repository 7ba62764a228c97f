"""A khartes project (`NAME.khprj`) that holds a run's pyramids.

khartes reads `project.json`, every `volumes/*.volzarr` and, where it exists, `views.json`. What a
person drew lies in `fragments/` (and `fragments_prev*`, khartes' own backups): nothing here writes
there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from zarrmask.errors import OutputError
from zarrmask.pyramid import read_metadata
from zarrmask.report.levels import open_levels
from zarrmask.storage.atomic import replace_file

KHARTES_VOXEL_SIZE_UM = 7.91
"""What khartes assumes where a project names no voxel size."""

SHOWN_FIRST = ("masked", "volume", "mask")
"""The volume a new project opens with: the first of these that it holds."""

# Okabe and Ito's colours, told apart by colour-blind people too.
COLOURS = {"volume": "#56b4e9", "mask": "#e69f00", "masked": "#009e73"}


def khartes_time(moment: datetime) -> str:
    """Write a moment as khartes does: UTC, to the hundredth of a second.

    Examples
    --------
    >>> khartes_time(datetime(2026, 11, 22, 10, 0, 0, 129999, tzinfo=UTC))
    '2026-11-22T10:00:00.12Z'
    """
    utc = moment.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 10_000:02d}Z"


def khartes_opens(path: Path) -> bool:
    """Whether khartes shows an OME-Zarr, and all of it.

    It wants zarr format 2 and levels "0", "1", ... of scale 1, 2, 4, ..., and reads index i // 2^n
    of level n: each has to be half of the one before, rounded up.
    """
    if (path / "zarr.json").exists() or not (path / ".zgroup").exists():
        return False
    datasets = read_metadata(path)["datasets"]
    shapes = [np.array(level.shape) for level in open_levels(path).levels]
    named = all(
        dataset["path"] == str(n)
        and {"type": "scale", "scale": [2.0**n] * 3} in dataset.get("coordinateTransformations", [])
        for n, dataset in enumerate(datasets)
    )
    return named and all(((a + 1) // 2 == b).all() for a, b in pairwise(shapes))


def write_khartes_project(
    path: Path, volumes: Mapping[str, Path], *, voxel_size_um: float | None
) -> None:
    """Make or refresh a khartes project that opens the given pyramids.

    An existing project keeps its creation time, name, fragments, views and any volume a person
    added. An entry of a run's that is not given now is dropped, and one whose pyramid lay beside
    the project and is gone.

    Parameters
    ----------
    path : Path
        The project's folder, `NAME.khprj`; made where it is missing.
    volumes : mapping of str to Path
        The OME-Zarr folder of each volume by the name under which khartes lists it.
    voxel_size_um : float or None
        Side of a voxel in micrometres. None keeps what the project says, else khartes' 7.91.

    Raises
    ------
    OutputError
        `path` is no folder or does not end in `.khprj`, or a volume's name cannot be a file's name.
    """
    _check(path, volumes)
    now = khartes_time(datetime.now(UTC))
    for folder in (path, path / "volumes", path / "fragments"):
        folder.mkdir(parents=True, exist_ok=True)
    _drop_lost_volumes(path, COLOURS.keys() - volumes.keys())
    for name, pyramid in volumes.items():
        file = path / "volumes" / f"{name}.volzarr"
        _write_json(
            file,
            {
                "khartes_version": "1.0",
                "khartes_created": _read_json(file).get("khartes_created", now),
                "khartes_modified": now,
                "khartes_from_vc_render": False,
                "zarr_dir": str(pyramid.absolute()),
                "max_width": 240,
            },
        )
    if not (path / "views.json").exists():
        _write_json(path / "views.json", _first_views(volumes))
    before = _read_json(path / "project.json")
    # Last: with this file in place khartes takes the folder for a project.
    _write_json(
        path / "project.json",
        {
            "created": before.get("created", now),
            "modified": now,
            "name": before.get("name", path.stem),
            "version": 1.0,
            "voxel_size_um": voxel_size_um or before.get("voxel_size_um") or KHARTES_VOXEL_SIZE_UM,
        },
    )


def _check(path: Path, volumes: Mapping[str, Path]) -> None:
    problems = []
    if path.suffix != ".khprj":
        problems.append("khartes opens only folders whose name ends in .khprj")
    if path.exists() and not path.is_dir():
        problems.append("a file of that name is in the way; move it or choose another name")
    problems += [
        f"{name!r} cannot name a volume: it becomes a file's name, so it needs letters and no slash"
        for name in volumes
        if not name.strip() or "/" in name or "\0" in name
    ]
    if problems:
        raise OutputError(f"Cannot write the khartes project {path}: {'; '.join(problems)}.")


def _first_views(volumes: Mapping[str, Path]) -> dict[str, Any]:
    """Tell khartes what to open; zoom and position are left to its own defaults."""
    first = next((name for name in SHOWN_FIRST if name in volumes), next(iter(volumes), None))
    return {
        "project": {} if first is None else {"cur_volume": first},
        "volumes": {name: {"color": COLOURS[name]} for name in volumes if name in COLOURS},
    }


def _drop_lost_volumes(path: Path, names: Set[str]) -> None:
    """Drop entries of these names, and those of pyramids beside the project that are gone."""
    for file in (path / "volumes").glob("*.volzarr"):
        if file.stem in names:
            file.unlink()
            continue
        target = _read_json(file).get("zarr_dir")
        if not isinstance(target, str):
            continue
        pyramid = Path(target)
        if pyramid.parent == path.absolute().parent and not pyramid.is_dir():
            file.unlink()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    # Only ASCII (the default): khartes reads .volzarr files in the locale's encoding.
    replace_file(path, json.dumps(content, indent=4).encode("ascii"))
