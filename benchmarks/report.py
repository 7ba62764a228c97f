"""What the report of the largest run takes: seconds, memory, bytes of the page.

    python benchmarks/report.py [--shape 27000 8096 8096] [--every 10] [--folder DIR]

The run is made up: levels that the report may read hold one chunk of noise, and a ball of a mask,
many times over by hard links; finer ones hold nothing.
"""

import argparse
import os
import resource
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray

from zarrmask.errors import sized
from zarrmask.report import read_views, write_overview, write_report

CHUNK = 128
LEVELS = 6
MOST = 2**34
"""Voxels of the finest level that holds anything: finer ones are never read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(27_000, 8_096, 8_096), metavar="N")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the run is made, and removed again")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as folder:
        out = Path(folder)
        shape = tuple(options.shape)
        noise = np.random.default_rng(0).normal(20_000, 3_000, (CHUNK,) * 3).astype(np.uint16)
        write_pyramid(out / "volume.zarr", shape, noise)
        (out / "masked.zarr").symlink_to(out / "volume.zarr")
        write_pyramid(out / "mask.zarr", shape, np.full((CHUNK,) * 3, 255, np.uint8))
        write_keyframes(out / "keyframes.zarr", shape, options.every)
        record = {"settings": {"every": options.every, "score": 0.1}, "z": [0, shape[0]]}
        start = time.perf_counter()
        views = read_views(out, record)
        read = time.perf_counter()
        write_overview(out, record, views)
        drawn = time.perf_counter()
        page = write_report(out, record, views)
        end = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"{shape}, a keyframe every {options.every} slices, {os.cpu_count()} cores")
        print(
            f"reading {read - start:.1f} s, overview {drawn - read:.1f} s, page {end - drawn:.1f} s"
        )
        print(f"peak memory {sized(peak)}, page {sized(page.stat().st_size)}")


def write_pyramid(
    path: Path, shape: tuple[int, ...], content: NDArray[np.uint8] | NDArray[np.uint16]
) -> None:
    """Levels of a shape, the coarse ones full of one chunk."""
    group = zarr.create_group(path, zarr_format=2)
    group.attrs["multiscales"] = [
        {
            "axes": [{"name": name, "type": "space"} for name in "zyx"],
            "datasets": [{"path": str(level)} for level in range(LEVELS)],
        }
    ]
    for level in range(LEVELS):
        array = group.create_array(
            str(level),
            shape=shape,
            chunks=(CHUNK,) * 3,
            dtype=content.dtype,
            compressors=Blosc(cname="lz4", clevel=5),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        if np.prod(shape) <= MOST:
            array[:CHUNK, :CHUNK, :CHUNK] = content[tuple(map(slice, shape))]
            link(path / str(level), tuple(-(-side // CHUNK) for side in shape))
        shape = tuple(-(-side // 2) for side in shape)


def write_keyframes(path: Path, shape: tuple[int, ...], every: int) -> None:
    """Keyframes with a disc on them, and now and then none."""
    z = np.arange(0, shape[0], every)
    group = zarr.create_group(path, zarr_format=2)
    disc = np.zeros((256, 256), np.uint8)
    cv2.circle(disc, (128, 128), 100, 255, -1)
    count = np.where(np.arange(len(z)) % 97, 1, 0)
    columns: dict[str, NDArray[Any]] = {
        "z": z,
        "state": np.ones(len(z), np.int8),
        "sketch": disc * count[:, None, None].astype(np.uint8),
        "count": count,
        "best_score": np.where(count, 0.9, np.nan),
        "area": np.full(len(z), np.count_nonzero(disc) * 1000) * count,
    }
    for name, column in columns.items():
        group.create_array(name, data=column)


def link(folder: Path, grid: tuple[int, ...]) -> None:
    """Fill a grid of chunks with the first one."""
    first = folder / "0" / "0" / "0"
    for place in product(*map(range, grid)):
        target = folder.joinpath(*map(str, place))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target != first:
            target.hardlink_to(first)


if __name__ == "__main__":
    main()
