"""Stacks at URLs: what a server gives is what the files hold, however it falters."""

import io
import multiprocessing
import os
import pickle
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import tifffile
import zarr

import zarrmask
from zarrmask.errors import StackError
from zarrmask.stack import Source, open_source, open_stack, remote
from zarrmask.storage.place import place_of

Server = Any


def folder(path: Path, data: np.ndarray, **options: Any) -> None:
    path.mkdir()
    for z, image in enumerate(data, start=8):
        tifffile.imwrite(path / f"{z} of 12.100%.{z}.tif", image, **options)


def pictures(path: Path, data: np.ndarray, suffix: str) -> None:
    path.mkdir()
    for z, image in enumerate(data):
        assert cv2.imwrite(str(path / f"{z:03d}{suffix}"), image)


def array(path: Path, data: np.ndarray, **options: Any) -> None:
    zarr.create_array(path, shape=data.shape, dtype=data.dtype, **options)[:] = data


def image(path: Path, data: np.ndarray, zarr_format: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.create_array("0", shape=data.shape, chunks=(2, 16, 16), dtype="u2")[:] = data
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    scale = [{"type": "scale", "scale": [3.24, 3.24, 3.24]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    attributes = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs.update({"ome": attributes} if zarr_format == 3 else attributes)


WRITERS: dict[str, tuple[str, Callable[..., None], dict[str, Any]]] = {
    "slices": ("a stack", folder, {}),
    "big-endian": ("stack", folder, {"byteorder": ">", "rowsperstrip": 7}),
    "lzw-strips": ("stack", folder, {"compression": "lzw", "rowsperstrip": 9}),
    "tiles": ("stack", folder, {"compression": "deflate", "tile": (16, 16)}),
    "png": ("stack", pictures, {"suffix": ".png"}),
    "jpeg": ("stack", pictures, {"suffix": ".jpg"}),
    "multipage": ("stack.tif", tifffile.imwrite, {"metadata": None}),
    "imagej": ("stack.tif", tifffile.imwrite, {"imagej": True}),
    "multipage-lzw": ("stack.tiff", tifffile.imwrite, {"compression": "lzw"}),
    "zarr2": ("stack.zarr", array, {"chunks": (2, 16, 16), "zarr_format": 2}),
    "zarr3-shards": ("stack", array, {"chunks": (1, 8, 8), "shards": (2, 16, 16)}),
    "ome4": ("stack.zarr", image, {"zarr_format": 2}),
    "ome5": ("stack.zarr", image, {"zarr_format": 3}),
}


@pytest.fixture(params=WRITERS)
def case(request: pytest.FixtureRequest, tmp_path: Path, volume: np.ndarray) -> tuple[Path, Source]:
    """A stack in the folder `web`, and its source there."""
    name, write, options = WRITERS[request.param]
    path = tmp_path / "web" / name
    path.parent.mkdir(exist_ok=True)
    write(path, (volume >> 8).astype(np.uint8) if request.param == "jpeg" else volume, **options)
    return path, open_source(path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait next to nothing before the next try."""
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setattr(remote, "LONGEST", 0.01)


def agree(source: Source, local: Source) -> None:
    assert source.shape == local.shape
    assert source.dtype == local.dtype
    assert source.kind == local.kind
    assert source.voxel_size == local.voxel_size
    np.testing.assert_array_equal(source.numbers, local.numbers)
    for key in (np.s_[:], np.s_[3], np.s_[::-2, 5:30:4, 11:50:3], np.s_[1:4, 9:11, 16:17]):
        np.testing.assert_array_equal(source[key], local[key])
    out = np.empty((2, 20, 30), source.dtype)
    source.read_into(out, slice(1, 3), slice(10, 30), slice(5, 35))
    np.testing.assert_array_equal(out, local[1:3, 10:30, 5:35])


def test_http(case: tuple[Path, Source], web: Server) -> None:
    path, local = case
    source = open_source(f"{web.url}/{path.name}")
    agree(source, local)
    assert source.path == f"{web.url}/{path.name}"
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        slices = list(pool.map(lambda z: again[z], range(5)))
    np.testing.assert_array_equal(slices, local[:])


def test_s3(case: tuple[Path, Source], s3: Any, request: pytest.FixtureRequest) -> None:
    path, local = case
    name = request.node.name
    s3.files.put(str(path), f"{s3.bucket}/{name}/{path.name}", recursive=path.is_dir())
    place = s3.place(f"{name}/{path.name}")
    agree(pickle.loads(pickle.dumps(open_source(place))), local)
    assert s3.secret not in repr(open_source(place)) + open_source(place).path
    stack = open_stack(place, chunks=(2, -1, -1))
    np.testing.assert_array_equal(stack[1:3].values, local[1:3])


def test_credentials_come_from_the_environment(
    s3: Any, monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, tmp_path: Path
) -> None:
    folder(tmp_path / "slices", volume)
    s3.files.put(str(tmp_path / "slices"), f"{s3.bucket}/environment/slices", recursive=True)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    np.testing.assert_array_equal(open_source(s3.url("environment/slices"))[:], volume)


@pytest.fixture
def slices(web: Server, volume: np.ndarray) -> str:
    """URL of uncompressed slices."""
    folder(web.folder / "slices", volume)
    return f"{web.url}/slices"


def test_headers_take_two_requests_a_slice_and_few_bytes(
    web: Server, tmp_path: Path, volume: np.ndarray
) -> None:
    large = np.tile(volume, (1, 10, 20))
    for name, options in {"plain": {}, "lzw": {"compression": "lzw"}}.items():
        folder(web.folder / name, large, **options)
        web.requests.clear()
        open_source(f"{web.url}/{name}").fingerprint()
        of_slices = [r for r in web.requests if r[1].endswith(".tif")]
        assert len(of_slices) == 2 * len(large) + 1  # one for the size of voxels
        assert {r[2] for r in of_slices if r[0] == "GET"} == {"bytes=0-16383"}


def test_only_the_rows_that_are_wanted_are_asked_for(
    web: Server, slices: str, volume: np.ndarray
) -> None:
    source = open_source(slices)
    assert source.block == (1, 1, 53)
    web.requests.clear()
    np.testing.assert_array_equal(source[1:3, 10:12, 7:9], volume[1:3, 10:12, 7:9])
    assert len(web.requests) == 2
    for method, _, part in web.requests:
        first, last = (int(n) for n in part.removeprefix("bytes=").split("-"))
        assert method == "GET"
        assert last - first + 1 == 2 * 53 * 2


def test_slices_are_asked_for_many_at_once(web: Server, slices: str) -> None:
    source = open_source(slices)
    waiting: list[str] = []

    def meet(method: str, path: str) -> None:
        waiting.append(path)
        for _ in range(500):
            if len(waiting) >= 5 or web.stopping.wait(0.01):
                return
        raise AssertionError("one after another")

    web.fault = meet
    source[:, 3:5]
    assert len(waiting) == 5


@pytest.mark.parametrize("fault", [503, "drop"])
@pytest.mark.usefixtures("quick")
def test_a_server_that_falters_now_and_then(
    case: tuple[Path, Source], web: Server, fault: Any
) -> None:
    path, local = case
    turn = count()
    web.fault = lambda method, path: fault if next(turn) % 3 == 0 else None
    source = open_source(f"{web.url}/{path.name}")
    np.testing.assert_array_equal(source[1:4, 2:30], local[1:4, 2:30])
    assert next(turn) > 6


@pytest.mark.parametrize("fault", [429, 500, "stall"])
@pytest.mark.usefixtures("quick")
def test_a_server_that_falters_otherwise(
    web: Server, slices: str, volume: np.ndarray, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE", 0.2)
    turn = count()
    web.fault = lambda method, path: fault if next(turn) % 3 == 0 else None
    np.testing.assert_array_equal(open_source(slices)[1:4, 2:30], volume[1:4, 2:30])
    assert next(turn) > 6


@pytest.mark.usefixtures("quick")
def test_shards_want_a_server_that_gives_parts(web: Server, volume: np.ndarray) -> None:
    """A shard would be taken for the part of it that was asked for."""
    array(web.folder / "zarr", volume, chunks=(2, 16, 16), shards=(4, 32, 32), zarr_format=3)
    np.testing.assert_array_equal(open_source(f"{web.url}/zarr")[:], volume)
    source = open_source(f"{web.url}/zarr")
    web.fault = lambda method, path: "whole"
    with pytest.raises(StackError, match="whole files only"):
        open_source(f"{web.url}/zarr")
    with pytest.raises(StackError, match="whole files only"):
        source[1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (503, "the server answers 503 (Service Unavailable); tried 8 times"),
        (429, "the server answers 429 (Too Many Requests); tried 8 times"),
        (403, "the server answers 403 (Forbidden)"),
        (401, "the server answers 401 (Unauthorized); give the login"),
        ("drop", "tried 8 times"),
        ("whole", "whole files only; expected one that answers range requests"),
    ],
)
@pytest.mark.parametrize("kind", ["slices", "zarr"])
@pytest.mark.usefixtures("quick")
def test_a_server_that_gives_out_is_named(
    web: Server, slices: str, volume: np.ndarray, fault: Any, said: str, kind: str
) -> None:
    array(web.folder / "zarr", volume, chunks=(2, 16, 16), zarr_format=2)
    if (fault, kind) == ("whole", "zarr"):
        pytest.skip("chunks are read whole")
    source = open_source(f"{web.url}/{kind}")
    web.requests.clear()
    web.fault = lambda method, path: fault
    with pytest.raises(StackError) as caught:
        source[1]
    assert said in str(caught.value)
    assert f"{web.url}/{kind}" in str(caught.value)
    assert max(Counter(web.requests).values()) <= 8
    if fault == "whole":
        return  # these are as small as a block
    web.requests.clear()
    web.fault = lambda method, path: None if path.endswith("/") else fault
    with pytest.raises(StackError):
        open_source(f"{web.url}/{kind}")
    assert max(Counter(web.requests).values()) <= 8


@pytest.mark.parametrize("fill", [0.0, np.nan, 7.0])
@pytest.mark.usefixtures("quick")
def test_an_array_that_is_gone_is_not_taken_for_empty(web: Server, fill: float) -> None:
    """zarr reads chunks that it does not find as what the array is filled with; xarray's, NaN."""
    floats = np.ones((4, 32, 32), np.float32)
    array(web.folder / "zarr", floats, chunks=(2, 16, 16), zarr_format=2, fill_value=fill)
    source = open_source(f"{web.url}/zarr")
    np.testing.assert_array_equal(source[:], floats)
    (web.folder / "zarr").rename(web.folder / "away")
    with pytest.raises(StackError, match=r"is gone from .*unmounted"):
        source[:]


@pytest.mark.usefixtures("quick")
def test_a_listing_as_caddy_writes_it(
    web: Server, slices: str, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each link begins with `./`."""

    def listed(request: Any, place: Path) -> io.BytesIO:
        links = "".join(f'<a href="./{quote(path.name)}">a file</a>' for path in place.iterdir())
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.send_header("Content-Length", str(len(links)))
        request.end_headers()
        return io.BytesIO(links.encode())

    monkeypatch.setattr(web.RequestHandlerClass, "list_directory", listed)
    np.testing.assert_array_equal(open_stack(slices).values, volume)


def test_a_server_that_is_not_there(web: Server, quick: None) -> None:
    web.server_close()
    with pytest.raises(StackError, match=r"127\.0\.0\.1.*tried 8 times"):
        open_source(web.url + "/slices")


def test_what_is_not_there(web: Server, s3: Any) -> None:
    with pytest.raises(StackError, match="nothing: is not there"):
        open_source(f"{web.url}/nothing")
    with pytest.raises(StackError, match=r"nothing\.tif: is not there"):
        open_source(f"{web.url}/nothing.tif")
    with pytest.raises(StackError, match="nothing: is not there"):
        open_source(s3.place("nothing"))
    (web.folder / "empty").mkdir()
    with pytest.raises(StackError, match="holds no slices"):
        open_source(f"{web.url}/empty")


def test_bad_slices_are_named_at_once(web: Server, slices: str) -> None:
    paths = sorted((web.folder / "slices").iterdir())
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    paths[2].write_text("no picture")
    with pytest.raises(StackError, match="3 problems") as caught:
        open_source(slices)
    for what in ("an empty file", "truncated: 1,000 bytes", "not a TIFF file"):
        assert what in str(caught.value)


def test_the_fingerprint_is_that_of_the_files(web: Server, slices: str) -> None:
    before = open_source(slices).fingerprint()
    assert open_source(slices).fingerprint() == before
    path = next((web.folder / "slices").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert open_source(slices).fingerprint() != before


def test_what_is_remembered_of_files_is_asked_for_anew(web: Server, slices: str) -> None:
    source = open_source(slices)
    before = source.fingerprint()
    path = next(web.folder.rglob("*.tif"))
    os.utime(path, ns=(0, 0))
    web.requests.clear()
    assert source.fingerprint() == before
    assert not web.requests
    source.forget()
    assert source.fingerprint() != before
    assert source.fingerprint() == open_source(slices).fingerprint()


def read(source: Source) -> int:
    return int(source[2, 5:9].sum())


@pytest.fixture
def process() -> Iterator[Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def test_secrets_stay_secret_and_open_doors(
    web: Server, slices: str, volume: np.ndarray, process: Any
) -> None:
    array(web.folder / "zarr", volume, chunks=(2, 16, 16), zarr_format=2)
    tifffile.imwrite(web.folder / "pages.tif", volume, metadata=None)
    web.password, web.query = "me:pa55word", "sig=a%2Bb%3D&more=1"
    for name in ("slices", "zarr", "pages.tif"):
        url = f"{web.url.replace('//', '//me:pa55word@')}/{name}?{web.query}"
        source = open_source(url)
        stack = open_stack(url, chunks=(2, -1, -1))
        assert process.apply(read, (source,)) == volume[2, 5:9].sum()
        np.testing.assert_array_equal(stack.values, volume)
        web.fault = lambda method, path: 403
        with pytest.raises(StackError) as caught:
            source[1]
        with pytest.raises(StackError) as at_opening:
            open_source(url)
        web.fault = lambda method, path: None
        for text in (
            repr(source),
            source.path,
            source.kind,
            repr(vars(source)),
            str(stack.attrs),
            str(stack.data.dask.keys()),
            *traceback.format_exception(caught.value),
            *traceback.format_exception(at_opening.value),
        ):
            assert "pa55word" not in text
            assert "sig=" not in text


@pytest.mark.parametrize("url", ["https://me:it's@host/my scan", "https://host/my scan?sig=it's&b"])
def test_a_url_is_shown_without_secrets_whatever_signs_it_holds(url: str) -> None:
    shown = remote.Remote(place_of(url)).shown
    assert "it's" not in shown
    assert "my scan" in shown


def test_a_conversion_from_a_server(
    web: Server, slices: str, volume: np.ndarray, cluster: str, tmp_path: Path
) -> None:
    turn = count()
    web.fault = lambda method, path: 503 if next(turn) % 5 == 0 else None
    out = zarrmask.convert(slices, tmp_path / "out.zarr", scheduler=cluster)
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], volume)
    shutil.rmtree(web.folder / "slices")


def test_a_stack_that_changes_on_its_server_is_told_of(
    web: Server, slices: str, cluster: str, tmp_path: Path
) -> None:
    first = sorted(web.folder.rglob("*.tif"))[0]

    def change(method: str, path: str) -> None:
        if not (web.requests[-1][2] or "bytes=0-").startswith("bytes=0-"):
            os.utime(first, ns=(0, 0))  # pixels are read, no headers any more

    web.fault = change
    with pytest.raises(StackError, match="was changed while it was read"):
        zarrmask.convert(slices, tmp_path / "out.zarr", scheduler=cluster)


def test_a_stack_of_another_protocol(tmp_path: Path, volume: np.ndarray) -> None:
    from upath import UPath

    folder(tmp_path / "slices", volume)
    for path in (tmp_path / "slices").iterdir():
        UPath(f"memory://slices/{path.name}").write_bytes(path.read_bytes())
    np.testing.assert_array_equal(open_source("memory://slices")[:], volume)
