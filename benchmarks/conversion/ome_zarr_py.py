"""Convert a folder of TIFF slices as a user of ome-zarr-py would: `write_image`, local mean.

python -m conversion.ome_zarr_py STACK OUT RECIPE
"""

import sys

import zarr
from ome_zarr.format import FormatV04
from ome_zarr.scale import Methods
from ome_zarr.writer import write_image

from conversion.dask_stack import CHUNKS, LEVELS, open_slices


def main(stack: str, out: str, recipe: str) -> None:
    group = zarr.open_group(out, mode="w", zarr_format=2)
    write_image(
        open_slices(stack, recipe),
        group,
        scale_factors=[dict.fromkeys("zyx", 2**level) for level in range(1, LEVELS)],
        method=Methods.LOCAL_MEAN,
        axes="zyx",
        fmt=FormatV04(),
        storage_options={"chunks": CHUNKS},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
