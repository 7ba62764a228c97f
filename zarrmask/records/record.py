"""What a run keeps of itself in `run.json`."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from zarrmask import __version__
from zarrmask.contrast import Contrast
from zarrmask.errors import listed
from zarrmask.planning.plan import Plan
from zarrmask.settings import Settings
from zarrmask.stack import Source
from zarrmask.storage.place import written_command

PACKAGES = ("dask", "distributed", "numpy", "ome-zarr", "tifffile", "torch", "torchvision", "zarr")


def warnings_of(record: Mapping[str, Any]) -> list[str]:
    """What a person should look at, from what `zarrmask.running.looking.record_of` gives."""
    warnings = []
    empty = record["without_detection"]
    if empty and len(empty) == record["used"]:
        warnings.append(
            f"nothing was found on any of {record['used']} keyframes: the mask is empty. Where "
            "there is an object, look closer (--every 4), at other grey values (--detect-window "
            "auto), count what is less sure (--score 0.03), or detect with weights of your own "
            "(--checkpoint)"
        )
    elif empty:
        warnings.append(
            f"nothing was found on {len(empty)} of {record['used']} keyframes; look at these, "
            f"unless the object ends there: {listed(empty)}"
        )
    if replaced := [one["z"] for one in record["replaced"]]:
        warnings.append(
            f"{len(replaced)} of {record['count']} keyframes contradict those around them, however "
            f"they are looked at, and are not used (--no-mend uses them): {listed(replaced)}"
        )
    if redone := [one["z"] for one in record["redone"]]:
        warnings.append(
            f"{len(redone)} of {record['count']} keyframes contradicted those around them, and do "
            f"not since they were detected anew: {listed(redone)}"
        )
    return warnings


def run_record(
    source: Source,
    settings: Settings,
    plan: Plan,
    checkpoint: Path | None,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """What of a finished run's record was known before it began."""
    return {
        "zarrmask": __version__,
        "state": "finished",
        "identity": identity,
        "input": stack_record(source),
        "settings": json.loads(settings.model_dump_json()),
        "z": [plan.first, plan.stop],
        "shape": list(plan.shape),
        "voxel_size_um": plan.voxel_size,
        "dilation_pixels": plan.side,
        "checkpoint": checkpoint and {"path": str(checkpoint), "sha256": identity["checkpoint"]},
        "versions": _versions(settings),
    }


def _versions(settings: Settings) -> dict[str, str]:
    packages = (*PACKAGES, "detectron2") if settings.backend == "detectron2" else PACKAGES
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):  # of a cluster's workers alone
            versions[package] = version(package)
    return versions


def written_by(command: Sequence[str]) -> dict[str, str]:
    """The command line that a run is, if it is one; secrets in its URLs are left out."""
    return {"command": written_command(command)} if command else {}


def outcome(plan: Plan, volume: str | None, contrast: Contrast, kept: int) -> dict[str, Any]:
    """What a run came to: where its volume is, its windows, how many voxels are inside the mask."""
    total = prod(plan.shape)
    return {
        "volume": volume,
        "detect_window": contrast.detected,
        "window": contrast.written,
        "voxels": {"total": total, "kept": kept, "removed": total - kept},
    }


def stack_record(source: Source) -> dict[str, Any]:
    """What a run keeps of its stack."""
    return {
        "path": source.path,
        "kind": source.kind,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "voxel_size_um": source.voxel_size,
        "missing": list(source.missing),
    }
