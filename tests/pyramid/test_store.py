"""How arrays are opened decides what bytes are written."""

import numpy as np
import zarr

from zarrmask.pyramid.store import open_array


def test_shards_hold_the_same_bytes_each_time(tmp_path):
    data = np.random.default_rng(0).integers(0, 65535, (128, 128, 128), np.uint16)
    written = set()
    for n in range(5):
        path = tmp_path / str(n)
        zarr.create_array(
            path, shape=data.shape, dtype=data.dtype, chunks=(16,) * 3, shards=(128,) * 3
        )
        open_array(path, "r+")[:] = data
        written.add((path / "c/0/0/0").read_bytes())
    assert len(written) == 1
