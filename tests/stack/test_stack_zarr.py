"""Zarrs: which are stacks, and their voxel size."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from zarrmask.errors import StackError
from zarrmask.planning.memory import decoding_bytes
from zarrmask.stack import open_source, open_stack
from zarrmask.stack.ngff import described
from zarrmask.stack.voxels import sides_of, voxel_size


def write_image(path: Path, multiscale: dict[str, Any], shape: tuple[int, ...] = (3, 4, 5)) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=shape, dtype="u1")
    group.attrs.update({"multiscales": [multiscale]})
    return path


def scale(*factors: float) -> list[dict[str, Any]]:
    return [{"type": "scale", "scale": list(factors)}]


def axes(unit: str | None, names: str = "zyx") -> list[dict[str, Any]]:
    return [{"name": n, "type": "space"} | ({"unit": unit} if unit else {}) for n in names]


@pytest.mark.parametrize(
    ("level", "whole", "offset"),
    [
        ([], [], (0, 0, 0)),
        ([("scale", [2.0] * 3), ("translation", [4.0, 6, 8])], [], (2, 3, 4)),
        (
            [("scale", [1.0] * 3)],
            [("scale", [7.91] * 3), ("translation", [79.1, 0, 0])],
            (10, 0, 0),
        ),
        ([("translation", [3.0, 0, 0])], [("scale", [20.0, 5, 5])], (3, 0, 0)),
        ([("scale", [1.0, 1, 2, 2, 2]), ("translation", [9.0, 9, 2, 4, 0])], [], (1, 2, 0)),
        ([("scale", [0.0, 1, 1]), ("translation", [1.0, 1, 1])], [], (0, 0, 0)),
        ([("translation", [float("nan")] * 3)], [], (0, 0, 0)),
    ],
)
def test_where_the_first_voxel_lies(level: Any, whole: Any, offset: Any) -> None:
    """Scales and translations count one after the other, the image's after the level's."""
    first, image = (
        {"coordinateTransformations": [{"type": kind, kind: values} for kind, values in steps]}
        for steps in (level, whole)
    )
    assert described({"datasets": [{"path": "0", **first}], **image}).offset == offset


@pytest.mark.parametrize(
    ("unit", "of_dataset", "of_image", "expected"),
    [
        ("micrometer", [1, 1, 1], [7.91] * 3, 7.91),
        ("micrometer", [7.91] * 3, None, 7.91),
        ("nanometer", [2, 2, 2], [1620] * 3, 3.24),
        ("millimeter", [0.00324] * 3, None, 3.24),
        ("micrometer", [1, 1, 1], None, 1.0),
        (None, [1, 1, 1], None, None),
        (None, [3.24] * 3, None, 3.24),
        ("micrometer", [2, 1, 1], None, None),
        ("parsec", [2, 2, 2], None, None),
    ],
)
def test_voxel_size(
    tmp_path: Path,
    unit: str | None,
    of_dataset: list[float],
    of_image: list[float] | None,
    expected: float | None,
) -> None:
    image: dict[str, Any] = {
        "axes": axes(unit),
        "datasets": [{"path": "0", "coordinateTransformations": scale(*of_dataset)}],
    }
    if of_image:
        image["coordinateTransformations"] = scale(*of_image)
    stack = open_stack(write_image(tmp_path / "a.zarr", image))
    assert stack.attrs.get("voxel_size_um") == expected


@pytest.mark.parametrize(
    ("scale", "units", "told"),
    [
        ((20, 7.91, 7.91), [None] * 3, "20 x 7.91 x 7.91, not cubic"),
        ((20, 7.91, 7.91), ["micrometer"] * 3, "20 x 7.91 x 7.91 micrometer, not cubic"),
        (
            (1, 1, 1),
            ["millimeter", "micrometer", "micrometer"],
            "1 millimeter x 1 micrometer x 1 micrometer, not cubic",
        ),
        ((2, 2, 2), ["furlong"] * 3, "2 x 2 x 2 furlong, of no unit that is known (furlong)"),
        ((1, 1, 1), ["pixel"] * 3, ""),
    ],
)
def test_sides_that_are_no_voxel_size_are_told(
    scale: tuple[float, ...], units: list[str | None], told: str
) -> None:
    assert voxel_size(np.array(scale, float), units) is None
    assert sides_of(np.array(scale, float), units) == told


@pytest.mark.parametrize("unit", ["um", "micron", "\u00b5m", "\u03bcm", "micrometre"])
def test_units_as_people_write_them(unit: str) -> None:
    assert voxel_size(np.full(3, 7.91), [unit] * 3) == 7.91


@pytest.mark.parametrize("names", ["yx", "cyx", "ZYX"])
def test_axes_that_are_not_understood_are_named(tmp_path: Path, names: str) -> None:
    steps = [{"type": "scale", "scale": [2.0] * len(names)}]
    image = {
        "axes": [{"name": name, "type": "space"} for name in names],
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }
    place = write_image(tmp_path / "a.zarr", image)
    with pytest.raises(StackError, match=rf"axes {', '.join(names)}; expected z, y, x last"):
        open_source(place)


def test_voxel_size_of_mixed_units() -> None:
    units = ["micrometer", "nanometer", "millimeter"]
    assert voxel_size(np.array([2.0, 2000.0, 0.002]), units) == 2.0


@pytest.mark.parametrize(
    "image", [{"datasets": [{"path": "0"}]}, {"axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}]
)
def test_old_metadata_without_transformations(tmp_path: Path, image: dict[str, Any]) -> None:
    source = open_source(write_image(tmp_path / "old.zarr", image))
    assert source.kind == "OME-Zarr"
    assert source.voxel_size is None


@pytest.mark.parametrize(
    ("shape", "dtype", "what"),
    [
        ((4, 5), "u1", "4 x 5; expected slices x rows x columns"),
        ((2, 3, 4, 5), "u1", "2 x 3 x 4 x 5; expected"),
        ((0, 4, 5), "u1", "0 x 4 x 5; expected"),
        ((3, 4, 5), "f8", "float64 pixels; expected uint8, uint16, int16 or float32"),
        (
            (3, 4, 5),
            "i4",
            "int32 pixels; expected uint8, uint16, int16 or float32: shift or rescale it to uint16",
        ),
        ((3, 4, 5), "?", "bool pixels"),
    ],
)
def test_arrays_that_are_no_stack(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, what: str
) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype=dtype)
    with pytest.raises(StackError, match=r"a\.zarr") as caught:
        open_source(tmp_path / "a.zarr")
    assert what in str(caught.value)


def test_a_plain_group_says_what_it_holds(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("raw", shape=(3, 4, 5), dtype="u1")
    group.create_group("other")
    with pytest.raises(StackError) as caught:
        open_source(tmp_path / "g.zarr")
    assert "other (group), raw (3 x 4 x 5 array)" in str(caught.value)
    assert "Give the path of an array or image inside it" in str(caught.value)
    assert open_source(tmp_path / "g.zarr" / "raw").shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ({}, "OME metadata is damaged"),
        ({"datasets": []}, "OME metadata is damaged"),
        ({"datasets": [{"path": "nowhere"}]}, "'nowhere'|nowhere"),
        ({"datasets": [{"path": "../../secret"}]}, "OME metadata is damaged"),
        ({"datasets": [{"path": "0"}], "axes": ["c", "y", "x"]}, "axes c, y, x"),
        (
            {"datasets": [{"path": "0", "coordinateTransformations": scale("no")}]},  # type: ignore[arg-type]
            "OME metadata is damaged",
        ),
    ],
)
def test_damaged_image_metadata(tmp_path: Path, image: dict[str, Any], what: str) -> None:
    with pytest.raises(StackError, match=what):
        open_source(write_image(tmp_path / "bad.zarr", image))


@pytest.mark.parametrize(
    ("name", "content"),
    [(".zarray", "{garbage"), ("zarr.json", '{"zarr_format": 3, "node_type": "array"}')],
)
def test_damaged_metadata(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StackError, match="metadata cannot be read"):
        open_source(tmp_path)


def test_a_path_with_colons_is_no_chain_of_urls(tmp_path: Path) -> None:
    place = tmp_path / "second::try" / "a.zarr"
    zarr.create_array(LocalStore(place), shape=(3, 4, 5), chunks=(1, 4, 5), dtype="u1")[:] = 7
    np.testing.assert_array_equal(open_source(place)[1], np.full((4, 5), 7))


def test_damaged_chunk_and_fingerprint(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(3, 4, 5), chunks=(1, 4, 5), dtype="u1")
    array[:] = 1
    source = open_source(tmp_path / "a.zarr")
    before = source.fingerprint()
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(b"torn")
    assert source.fingerprint() != before
    with pytest.raises(StackError, match="slices 1 to 1"):
        source[1]
    np.testing.assert_array_equal(source[2], np.ones((4, 5)))


def test_an_array_that_is_gone_is_not_taken_for_empty(tmp_path: Path) -> None:
    """zarr reads chunks that it does not find as zeros."""
    for version in (2, 3):
        path, away = tmp_path / f"{version}.zarr", tmp_path / "away"
        array = zarr.create_array(path, shape=(3, 4, 5), dtype="u1", zarr_format=version)
        array[:2] = 1
        source = open_source(path)
        path.rename(away)
        with pytest.raises(StackError, match=r"is gone from .*unmounted"):
            source[:]
        away.rename(path)
        assert source[:].tolist() == array[:].tolist()


def test_a_region_is_decoded_where_it_is_wanted(tmp_path: Path) -> None:
    """What is predicted of a task's memory knows of no second copy of the region."""
    shape, chunks = (128, 128, 1024), (64, 64, 64)
    stored = np.random.default_rng(0).integers(0, 9, (1, *shape)).astype(">u2")
    array = zarr.create_array(
        tmp_path / "a", shape=stored.shape, chunks=(1, *chunks), dtype=stored.dtype, zarr_format=2
    )
    array[:] = stored
    source = open_source(tmp_path / "a")
    out = np.empty(shape, np.uint16)
    whole = [slice(0, side) for side in shape]
    source.read_into(out[:1, :1, :1], *[slice(0, 1)] * 3)  # imports
    tracemalloc.start()
    source.read_into(out, *whole)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(out, stored[0])
    assert peak < decoding_bytes(shape, chunks, 2) < out.nbytes


def test_which_coarser_levels_there_are_counts(tmp_path: Path) -> None:
    """Keyframes may be seen on one; what is in it may be repaired."""
    datasets = [{"path": str(n), "coordinateTransformations": scale(*[2.0**n] * 3)} for n in (0, 1)]
    image = write_image(tmp_path / "a.zarr", {"axes": axes(None), "datasets": datasets}, (4, 4, 4))
    alone = open_source(image).fingerprint()
    coarse = zarr.open_group(image).create_array("1", shape=(2, 2, 2), dtype="u1")
    both = open_source(image).fingerprint()
    coarse[:] = 2
    assert open_source(image).fingerprint() == both != alone


def test_channels_are_named(tmp_path: Path) -> None:
    image = {
        "axes": [{"name": "c", "type": "channel"}, *axes("micrometer")],
        "datasets": [{"path": "0", "coordinateTransformations": scale(1.0, 8.0, 8.0, 8.0)}],
    }
    place = write_image(tmp_path / "a.zarr", image, (2, 3, 4, 5))
    with pytest.raises(StackError, match=r"axes c=2, z=3, y=4, x=5; .*each channel .*itself"):
        open_source(place)


def test_a_lazy_array_looks_at_no_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.walk", lambda folder: pytest.fail(f"{folder} was listed"))
    place = tmp_path / "a.zarr"
    zarr.create_array(place, data=np.arange(60, dtype="u1").reshape(3, 4, 5), zarr_format=2)
    stack = open_stack(place)
    assert stack.data.name == open_stack(place).data.name
    assert int(stack.sum()) == sum(range(60))
    os.utime(place / ".zarray", ns=(1, 1))
    assert open_stack(place).data.name != stack.data.name
