"""Fakes of a finished run, small enough to be made for each test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from zarrmask.masking.sketch import Sketch


def halve(array: NDArray[Any], *, by: str) -> NDArray[Any]:
    """Half the size, rounded up: the maximum or the mean of 2 x 2 x 2 voxels."""
    padded = np.pad(array, [(0, side % 2) for side in array.shape], mode="edge")
    z, y, x = (side // 2 for side in padded.shape)
    blocks = padded.reshape(z, 2, y, 2, x, 2)
    return getattr(blocks, by)(axis=(1, 3, 5)).astype(array.dtype)


def write_pyramid(
    path: Path, array: NDArray[Any], *, by: str, voxel_size_um: float | None, levels: int = 3
) -> None:
    group = zarr.create_group(path, zarr_format=2)
    datasets = []
    for level in range(levels):
        chunks = tuple(min(side, 64) for side in array.shape)
        stored = group.create_array(
            str(level),
            shape=array.shape,
            chunks=chunks,
            dtype=array.dtype,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        stored[...] = array
        scale = [{"type": "scale", "scale": [float(2**level)] * 3}]
        datasets.append({"path": str(level), "coordinateTransformations": scale})
        array = halve(array, by=by)
    unit = {} if voxel_size_um is None else {"unit": "micrometer"}
    multiscale: dict[str, Any] = {
        "version": "0.4",
        "axes": [{"name": name, "type": "space", **unit} for name in "zyx"],
        "datasets": datasets,
    }
    if voxel_size_um is not None:
        whole = {"type": "scale", "scale": [voxel_size_um] * 3}
        multiscale["coordinateTransformations"] = [whole]
    group.attrs["multiscales"] = [multiscale]


def scroll(
    shape: tuple[int, int, int], seed: int = 0
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """A wound, tapering thing in a bright case, and its mask."""
    depth, height, width = shape
    random = np.random.default_rng(seed)
    z, y, x = np.ogrid[:depth, :height, :width]
    share = (z + 0.5) / depth
    taper = np.clip(np.minimum(share, 1 - share) * 6, 0, 1) ** 0.5
    v = (y - height * (0.5 + 0.05 * np.sin(6 * share))) / (height * 0.3)
    u = (x - width * (0.52 + 0.04 * np.cos(5 * share))) / (width * 0.32)
    angle, radius = np.arctan2(v, u), np.hypot(u, v)
    inside = radius < taper * (1 + 0.08 * np.sin(3 * angle + 4 * share))
    sheets = 0.5 + 0.5 * np.sin(radius * 70 + angle)
    around = np.hypot((y - height / 2) / (height * 0.47), (x - width / 2) / (width * 0.47))
    case = (around > 0.93) & (around < 1)
    value = np.where(inside, 14_000 + 16_000 * sheets, 5_000) + np.where(case, 22_000, 0)
    value = value + random.normal(0, 1_500, shape)
    return value.clip(0, 65_535).astype(np.uint16), (inside * 255).astype(np.uint8)


def write_keyframes(
    path: Path, mask: NDArray[np.uint8], *, first: int, every: int, missed: tuple[int, ...]
) -> None:
    z = np.arange(0, mask.shape[0], every)
    count = np.array([0 if k in missed or not mask[k].any() else 1 + k % 3 for k in z])
    random = np.random.default_rng(1)
    score = np.where(count > 0, 0.99 - random.exponential(0.03, len(z)), np.nan)
    boxes, scores = np.zeros((len(z), 3, 4), np.float32), np.full((len(z), 3), np.nan, np.float32)
    scores[:, 0] = score
    group = zarr.create_group(path, zarr_format=2)
    found = mask[z] * (count > 0)[:, None, None].astype(np.uint8)
    arrays = {
        "sketch": np.array([Sketch.of_mask(one).pixels for one in found]) * np.uint8(255),
        "state": np.ones(len(z), np.int8),
        "z": z + first,
        "count": count,
        "best_score": score.astype(np.float32),
        "area": np.count_nonzero(found, axis=(1, 2)),
        "boxes": boxes,
        "scores": scores,
    }
    for name, array in arrays.items():
        stored = group.create_array(name, shape=array.shape, dtype=array.dtype)
        stored[...] = array


def make_run(
    out: Path,
    shape: tuple[int, int, int] = (24, 40, 56),
    *,
    first: int = 100,
    every: int = 4,
    voxel_size_um: float | None = 7.91,
    empty: bool = False,
    volume: bool = True,
    missed: tuple[int, ...] = (8,),
    levels: int = 3,
    crop: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Leave in `out` what a finished run leaves; return what its run.json would hold."""
    out.mkdir(parents=True, exist_ok=True)
    image, mask = scroll(shape)
    if empty:
        mask[:] = 0
    missed = tuple(range(shape[0])) if empty else missed
    write_keyframes(out / "keyframes.zarr", mask, first=first, every=every, missed=missed)
    if crop:
        y, x = (slice(*side) for side in crop)
        image, mask = image[:, y, x], mask[:, y, x]
    pyramids = {
        "mask": (mask, "max"),
        "masked": (np.where(mask, image, 0).astype(np.uint16), "mean"),
    }
    if volume:
        pyramids["volume"] = (image, "mean")
    for name, (array, by) in pyramids.items():
        write_pyramid(
            out / f"{name}.zarr", array, by=by, voxel_size_um=voxel_size_um, levels=levels
        )
    kept = int(np.count_nonzero(mask))
    return {
        "zarrmask": "0.1.0",
        "command": f"zarrmask run stack {out.name} --every {every} --voxel-size 7.91",
        "input": {
            "path": "/data/scrolls/stack",
            "kind": "tiff folder",
            "shape": list(shape),
            "dtype": "uint16",
            "voxel_size_um": voxel_size_um,
            "missing": [],
        },
        "settings": {
            "every": every,
            "score": 0.1,
            "dilate": 3.0,
            "detect_window": "seed",
            **({"y": list(crop[0]), "x": list(crop[1])} if crop else {"y": [None, None]}),
        },
        "z": [first, first + shape[0]],
        "checkpoint": {"path": "checkpoints/phantom-r18.safetensors", "sha256": "9f" * 32},
        "versions": {"python": "3.11.7", "torch": "2.15.0", "zarr": "3.1.6", "dask": "2026.8.0"},
        "stages": [
            {"name": "detect", "seconds": 41.2, "items": -(-shape[0] // every), "unit": "slices"},
            {"name": "write", "seconds": 12.9, "items": 96, "unit": "bricks"},
            {"name": "report", "seconds": 0.0, "items": 1, "unit": "pages"},
        ],
        "peak_memory_bytes": 2_140_000_000,
        "voxels": {"total": image.size, "kept": kept, "removed": image.size - kept},
        "warnings": [],
        "keyframes": {"count": -(-shape[0] // every), "without_detection": []},
    }


@pytest.fixture
def fake_run() -> Callable[..., dict[str, Any]]:
    """`make_run(out, shape, ...)`, which leaves a finished run in `out` and returns its record."""
    return make_run
