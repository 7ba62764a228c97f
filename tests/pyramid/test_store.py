"""How arrays are opened decides what bytes are written."""

import numpy as np
import pytest
import zarr

from zarrmask.pyramid import Format, Pyramid
from zarrmask.pyramid.store import open_array, takes_direct_writes


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


@pytest.mark.parametrize("name", ["none", "blosc-lz4"])
@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_files_are_the_same_written_past_the_systems_memory(tmp_path, monkeypatch, name, ngff):
    data = np.random.default_rng(0).integers(0, 2**16, (130, 140, 150), np.uint16)
    written = {}
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr("zarrmask.pyramid.store.takes_direct_writes", lambda place: False)
        root = tmp_path / str(direct)
        form = Format(ngff=ngff, levels=1, compressor=name)
        pyramid = Pyramid(root / "a.zarr", root / "scratch", data.shape, "uint16", "mean", form)
        pyramid.create()
        pyramid.array(0)[:] = data
        files = [path for path in (root / "a.zarr/0").rglob("*") if path.is_file()]
        written[direct] = {path.relative_to(root): path.read_bytes() for path in files}
    assert written[True] == written[False]


def test_a_folder_that_is_none_takes_no_direct_writes(tmp_path):
    assert not takes_direct_writes(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
