"""Which compressor is the default, and why: size and speed of each on a simulated scroll.

    python benchmarks/compressors.py [--shape 256 512 512] [--rounds 5]

Each writes the same arrays, in chunks of 128^3, through the same pipeline, on one thread, and reads
them back: a simulated scroll (real ones compress as badly: what a scanner adds is noise), the same
masked, and its mask. Times are medians; the order of the compressors changes from round to round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # before zarrs starts its threads

import numpy as np

from zarrmask.phantom import Phantom
from zarrmask.pyramid import Format, Pyramid

COMPRESSORS = [
    ("none", 0),
    ("blosc-lz4", 1),
    ("blosc-lz4", 5),
    ("blosc-lz4", 9),
    ("blosc-zstd", 1),
    ("blosc-zstd", 3),
]


def measure(data: np.ndarray, folder: Path, name: str, level: int) -> tuple[float, float, int]:
    """Seconds to write and to read an array, and bytes of its files."""
    form = Format(levels=1, compressor=name, compression=level)
    shape = (data.shape[0], data.shape[1], data.shape[2])
    pyramid = Pyramid(folder / "a.zarr", folder / "scratch", shape, str(data.dtype), "mean", form)
    pyramid.create()
    array = pyramid.array(0)
    start = time.perf_counter()
    array[:] = data
    written = time.perf_counter()
    read = array[:]
    end = time.perf_counter()
    assert np.array_equal(read, data)
    files = (folder / "a.zarr").rglob("*")
    return written - start, end - written, sum(f.stat().st_size for f in files if f.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 512, 512), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up")
    options = parser.parse_args()
    phantom = Phantom(tuple(options.shape))
    slices = [phantom.slice(z) for z in range(options.shape[0])]
    volume = np.array([image for image, _ in slices])
    mask = np.array([inside for _, inside in slices]).astype(np.uint8) * np.uint8(255)
    for name, data in {"volume": volume, "masked": volume * (mask > 0), "mask": mask}.items():
        figures: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
        for turn in range(options.rounds + 1):
            for step in range(len(COMPRESSORS)):
                chosen = COMPRESSORS[(turn + step) % len(COMPRESSORS)]
                with tempfile.TemporaryDirectory() as folder:
                    measured = measure(data, Path(folder), *chosen)
                if turn:
                    figures.setdefault(chosen, []).append(measured)
        rows = [
            [
                f"{chosen[0]}:{chosen[1]}",
                f"{data.nbytes / figures[chosen][0][2]:.2f}",
                f"{data.nbytes / statistics.median(f[0] for f in figures[chosen]) / 1e6:,.0f}",
                f"{data.nbytes / statistics.median(f[1] for f in figures[chosen]) / 1e6:,.0f}",
            ]
            for chosen in COMPRESSORS
        ]
        print(f"\n| {name}, {data.nbytes / 1e6:,.0f} MB | times smaller | write MB/s | read MB/s |")
        print("|---|---|---|---|")
        for row in rows:
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
