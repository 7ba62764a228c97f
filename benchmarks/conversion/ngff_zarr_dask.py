"""Convert a folder of TIFF slices as a user of ngff-zarr would: local mean, on dask.

    python -m conversion.ngff_zarr_dask STACK OUT RECIPE

It needs ngff-zarr, tifffile and none of zarrmask: a Python of its own will do.
"""

import sys

import ngff_zarr

from conversion.dask_stack import CHUNKS, LEVELS, open_slices


def main(stack: str, out: str, recipe: str) -> None:
    image = ngff_zarr.to_ngff_image(open_slices(stack, recipe), dims=["z", "y", "x"])
    methods = ngff_zarr.Methods
    # The fastest of its means: on dask since 0.50, before that in WebAssembly.
    method = getattr(methods, "DASK_BIN_SHRINK", methods.ITKWASM_BIN_SHRINK)
    factors = [2**level for level in range(1, LEVELS)]
    levels = ngff_zarr.to_multiscales(image, factors, method=method, chunks=CHUNKS[0])
    ngff_zarr.to_ngff_zarr(out, levels, version="0.4")


if __name__ == "__main__":
    main(*sys.argv[1:])
