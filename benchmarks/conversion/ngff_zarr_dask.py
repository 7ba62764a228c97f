"""Convert a folder of TIFF slices as a user of ngff-zarr would, on dask.

    python -m conversion.ngff_zarr_dask STACK OUT RECIPE METHOD

METHOD, by which a level is made of the one before, is a name of `ngff_zarr.Methods`, or "" for its
default.

It needs ngff-zarr, tifffile and none of zarrmask: a Python of its own will do.
"""

import sys

import ngff_zarr

from conversion.dask_stack import CHUNKS, LEVELS, open_slices


def main(stack: str, out: str, recipe: str, method: str) -> None:
    image = ngff_zarr.to_ngff_image(open_slices(stack, recipe), dims=["z", "y", "x"])
    by = ngff_zarr.Methods[method] if method else None
    factors = [2**level for level in range(1, LEVELS)]
    levels = ngff_zarr.to_multiscales(image, factors, method=by, chunks=CHUNKS[0])
    ngff_zarr.to_ngff_zarr(out, levels, version="0.4")


if __name__ == "__main__":
    main(*sys.argv[1:])
