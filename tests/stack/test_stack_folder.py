"""Folders of slices: numbers, gaps, what is ignored, and every way to be bad."""

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.errors import StackError
from zarrmask.stack import open_source, open_stack
from zarrmask.stack.folder import missing_ranges, slice_number

Folder = Callable[..., Path]


def complaint(path: Path, **options: Any) -> str:
    with pytest.raises(StackError) as caught:
        open_source(path, **options)
    message = str(caught.value)
    message.encode()  # a message that cannot be printed helps nobody
    assert str(path)[-10:] in message
    return message


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("00012.tif", 12),
        ("scan2_00123.tif", 123),
        ("7.91um_53keV_0004_.png", 4),
        ("a1b2.c3.jpg", 3),
        ("9.tif", 9),
        ("-5.tif", 5),
        ("slice.tif", None),
        ("slice.2tif", None),
        ("\N{ARABIC-INDIC DIGIT ONE}.tif", None),
    ],
)
def test_number_in_a_name(name: str, number: int | None) -> None:
    assert slice_number(name) == number


@given(
    prefix=st.text(st.characters(exclude_characters="/\0"), max_size=5),
    number=st.integers(0, 10**9),
    width=st.integers(0, 12),
)
def test_number_is_found_behind_any_prefix(prefix: str, number: int, width: int) -> None:
    assert slice_number(f"{prefix}_{number:0{width}d}.tif") == number


@given(numbers=st.sets(st.integers(0, 60), min_size=1))
def test_missing_ranges(numbers: set[int]) -> None:
    gaps = missing_ranges(sorted(numbers))
    filled = {n for first, last in gaps for n in range(first, last + 1)}
    assert filled == set(range(min(numbers), max(numbers))) - numbers
    assert all(first <= last for first, last in gaps)


def test_order_is_numeric(tiff_folder: Folder, volume: np.ndarray) -> None:
    source = open_source(tiff_folder())  # 8, 9, 10, ...: 10 sorts before 8 as text
    np.testing.assert_array_equal(source.numbers, [8, 9, 10, 11, 12])
    np.testing.assert_array_equal(source[:], volume)


def test_other_entries_are_ignored(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    (folder / "notes.txt").write_text("not a slice")
    (folder / "._scan2_13.tif").write_bytes(b"what a Mac leaves")
    (folder / ".DS_Store").touch()
    (folder / "13.tif").mkdir()
    (folder / "13.tif" / "14.tif").touch()
    assert open_source(folder).shape[0] == 5


def test_a_single_slice_is_a_stack(tiff_folder: Folder, volume: np.ndarray) -> None:
    source = open_source(tiff_folder(data=volume[:1]))
    assert source.shape == (1, 37, 53)


def test_links_to_slices_are_slices(tiff_folder: Folder, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for path in tiff_folder().iterdir():
        (links / path.name).symlink_to(path)
    assert open_source(links).shape[0] == 5


def test_up_from_a_link_is_up_from_where_it_leads(tiff_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "inside").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "inside")
    tiff_folder().rename(tmp_path / "there" / "stack")
    assert open_source(tmp_path / "here" / "link" / ".." / "stack").shape[0] == 5


def test_gap(tiff_folder: Folder, volume: np.ndarray) -> None:
    folder = tiff_folder()
    (folder / "scan2_9.tif").unlink()
    (folder / "scan2_10.tif").unlink()
    assert "2 missing slice numbers: 9-10" in complaint(folder)
    source = open_source(folder, allow_missing=True)
    assert source.missing == (9, 10)
    np.testing.assert_array_equal(source.numbers, range(8, 13))
    np.testing.assert_array_equal(
        source[:, 3:9], np.where(np.isin(source.numbers, [9, 10])[:, None, None], 0, volume[:, 3:9])
    )
    assert open_stack(folder, allow_missing=True).attrs["missing"] == [9, 10]


def test_many_gaps_are_cut_short(tmp_path: Path) -> None:
    for number in range(0, 100, 2):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.zeros((2, 2), np.uint8))
    message = complaint(tmp_path)
    assert "49 missing slice numbers: 1, 3," in message
    assert "39 and 29 more" in message


def test_a_date_is_no_slice_number(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    (folder / "scan2_9.tif").rename(folder / "20260101120000123456789.tif")
    assert "no slice numbers?" in complaint(folder, allow_missing=True)


def test_numbers_twice_or_not_at_all(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    image = (folder / "scan2_8.tif").read_bytes()
    (folder / "0008.tif").write_bytes(image)
    (folder / "overview.tif").write_bytes(image)
    message = complaint(folder)
    twice = "slice number 8 (the last digits in a name) more than once: 0008.tif, scan2_8.tif"
    assert twice in message
    assert "overview.tif: no number in its name" in message


def test_mixed_extensions(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    (folder / "13.jpg").touch()
    assert "5 .tif, 1 .jpg" in complaint(folder)


def test_nothing_there(tmp_path: Path) -> None:
    assert "it is empty" in complaint(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    (tmp_path / "sub").mkdir()
    assert "2 .txt, 1 folders" in complaint(tmp_path)
    assert "does not exist" in complaint(tmp_path / "nowhere")
    assert "not a TIFF" in complaint(tmp_path / "a.txt")


def changed_tag(tiff: bytes, code: int, value: int) -> bytes:
    """Overwrite one tag's value in a little-endian TIFF."""
    data = bytearray(tiff)
    (ifd,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, ifd)
    for at in range(ifd + 2, ifd + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, at)[0] == code:
            struct.pack_into("<I", data, at + 8, value)
            return bytes(data)
    raise KeyError(code)


def circular(tiff: bytes) -> bytes:
    """Let the only page be followed by itself."""
    data = bytearray(tiff)
    (ifd,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, ifd)
    struct.pack_into("<I", data, ifd + 2 + 12 * count, ifd)
    return bytes(data)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda tiff: b"", "empty file"),
        (lambda tiff: b"garbage", "not a TIFF"),
        (lambda tiff: tiff[:6], "damaged"),
        (lambda tiff: tiff[:-1], "truncated"),
        (lambda tiff: tiff[:300], "truncated"),
        (lambda tiff: changed_tag(tiff, 256, 2**31), "wrong tags"),
        (lambda tiff: changed_tag(tiff, 257, 0), "shape (0, 53)"),
        (lambda tiff: changed_tag(tiff, 258, 12), "12 bits"),
        (lambda tiff: changed_tag(tiff, 259, 60000), "compression 60000"),
        (lambda tiff: changed_tag(tiff, 262, 0), "MINISWHITE"),
        (lambda tiff: changed_tag(tiff, 273, 0), "no bytes"),
        (lambda tiff: changed_tag(tiff, 273, 10**6), "truncated"),
        (lambda tiff: changed_tag(tiff, 277, 3), "3 samples"),
        (lambda tiff: changed_tag(tiff, 278, 3), "1 strips or tiles; expected 13"),
        (lambda tiff: changed_tag(tiff, 279, 10), "10 bytes of pixels; expected 3,922"),
        (circular, "circle"),
    ],
)
def test_damaged_tiff(tiff_folder: Folder, spoil: Callable[[bytes], bytes], what: str) -> None:
    folder = tiff_folder()
    path = folder / "scan2_10.tif"
    path.write_bytes(spoil(path.read_bytes()))
    message = complaint(folder)
    assert "1 problem\n" in message
    assert "scan2_10.tif: " in message
    assert what in message
    assert "37 x 53 uint16, as 4 of 5" in message


@pytest.mark.parametrize(
    ("image", "options", "what"),
    [
        (np.zeros((37, 54), np.uint16), {}, "37 x 54 uint16"),
        (np.zeros((37, 53), np.uint8), {}, "37 x 53 uint8"),
        (np.zeros((37, 53), np.float64), {}, "float64 pixels"),
        (np.zeros((37, 53), np.int32), {}, "int32 pixels"),
        (np.zeros((37, 53), bool), {}, "1 bits"),
        (np.zeros((37, 53, 3), np.uint8), {"photometric": "rgb"}, "greyscale"),
        (np.zeros((3, 37, 53), np.uint8), {"photometric": "rgb"}, "greyscale"),
        (
            np.zeros((37, 53), np.uint8),
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "palette",
        ),
        (np.zeros((5, 37, 53), np.uint16), {}, "5 images in one file"),
        (np.zeros((5, 37, 53), np.uint16), {"truncate": True}, "5 images in one file"),
        (np.zeros((5, 37, 53), np.uint16), {"imagej": True}, "5 images in one file"),
    ],
)
def test_another_image_among_the_slices(
    tiff_folder: Folder, image: np.ndarray, options: dict[str, Any], what: str
) -> None:
    folder = tiff_folder()
    tifffile.imwrite(folder / "scan2_10.tif", image, **options)
    message = complaint(folder)
    assert re.search(rf"scan2_10\.tif: [^\n]*{re.escape(what)}", message)
    assert "37 x 53 uint16, as 4 of 5" in message


def test_truncated_compressed_tiff(tiff_folder: Folder) -> None:
    folder = tiff_folder(compression="lzw", rowsperstrip=5)
    path = folder / "scan2_12.tif"
    path.write_bytes(path.read_bytes()[:-3])
    assert "scan2_12.tif: truncated" in complaint(folder)


def test_a_whole_stack_of_the_wrong_kind_is_said_once(tiff_folder: Folder) -> None:
    message = complaint(tiff_folder(data=np.zeros((5, 4, 4), np.float64)))
    assert "all 5 slices: float64 pixels" in message
    assert "expected uint8, uint16, int16 or float32: convert it to float32" in message


def test_every_bad_file_is_counted(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.tif").write_bytes(b"x" * (number % 2))
    tifffile.imwrite(tmp_path / "60.tif", np.zeros((2, 2), np.uint8))
    message = complaint(tmp_path)
    assert "60 problems" in message
    assert "... and 40 more" in message
    assert len(message.splitlines()) == 23


def test_names_that_cannot_be_printed(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    for name in (b"evil\n13.tif", b"\xff14.tif", b"\x1b[31m15.tif"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"")
    message = complaint(folder)
    assert len(message.splitlines()) == 5
    assert "'evil\\n13.tif'" in message
    assert "\\udcff14.tif" in message
    assert "\x1b" not in message


def test_odd_names_are_read(tmp_path: Path, volume: np.ndarray) -> None:
    names = ["a\nb1.tif", "größe 2.TIF", os.fsdecode(b"\xff3.tif"), "'\"$(x)`4.tif", "*?[5.tif"]
    for name, image in zip(names, volume, strict=True):
        with (tmp_path / name).open("wb") as file:
            tifffile.imwrite(file, image)
    np.testing.assert_array_equal(open_source(tmp_path)[:], volume)


def test_links_to_nowhere_and_pipes(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    (folder / "13.tif").symlink_to("nowhere")
    (folder / "14.tif").symlink_to("14.tif")
    os.mkfifo(folder / "15.tif")  # opening it would wait forever
    message = complaint(folder)
    for name in ("13.tif", "14.tif", "15.tif"):
        assert f"{name}: a broken link, or no regular file" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    (folder / "scan2_9.tif").chmod(0)
    assert "scan2_9.tif: cannot be read: Permission denied" in complaint(folder)


def image_folder(folder: Path, suffix: str, dtype: type = np.uint8) -> Path:
    image = (np.arange(37 * 53).reshape(37, 53) % 251).astype(dtype)
    for z in range(4):
        assert cv2.imwrite(str(folder / f"{z:03d}{suffix}"), image)
    return folder


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda image: b"", "empty file"),
        (lambda image: b"garbage", "not a "),
        (lambda image: image[:20], "truncated"),
        (lambda image: image[:-2], "truncated"),
        (lambda image: image[: len(image) // 2] + bytes(9), "truncated"),
    ],
)
def test_damaged_image(
    tmp_path: Path, suffix: str, spoil: Callable[[bytes], bytes], what: str
) -> None:
    path = image_folder(tmp_path, suffix) / f"002{suffix}"
    path.write_bytes(spoil(path.read_bytes()))
    message = complaint(tmp_path)
    assert f"002{suffix}: " in message
    assert what in message
    assert "37 x 53 uint8, as 3 of 4" in message


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_padding_after_the_end_is_tolerated(tmp_path: Path, suffix: str) -> None:
    path = image_folder(tmp_path, suffix) / f"002{suffix}"
    path.write_bytes(path.read_bytes() + bytes(512))
    source = open_source(tmp_path)
    np.testing.assert_array_equal(source[2], source[1])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_colour_image(tmp_path: Path, suffix: str) -> None:
    image_folder(tmp_path, suffix)
    cv2.imwrite(str(tmp_path / f"001{suffix}"), np.zeros((37, 53, 3), np.uint8))
    assert "expected greyscale" in complaint(tmp_path)


def test_one_bit_png(tmp_path: Path) -> None:
    image_folder(tmp_path, ".png")
    cv2.imwrite(
        str(tmp_path / "001.png"), np.zeros((37, 53), np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1]
    )
    assert "1 bits a pixel" in complaint(tmp_path)


def test_mixed_png_depths(tmp_path: Path) -> None:
    image_folder(tmp_path, ".png")
    cv2.imwrite(str(tmp_path / "001.png"), np.zeros((37, 53), np.uint16))
    assert "001.png: 37 x 53 uint16" in complaint(tmp_path)


def test_a_file_that_changed_after_the_check(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    source = open_source(folder)
    path = folder / "scan2_10.tif"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StackError, match=r"scan2_10.tif: slice 10 cannot be read"):
        source[2]
    path.unlink()
    with pytest.raises(StackError, match=r"scan2_10.tif: slice 10 cannot be read"):
        source[2]
    with pytest.raises(StackError, match=r"scan2_10.tif: No such file"):
        source.fingerprint()


def test_damaged_pixels(tiff_folder: Folder) -> None:
    folder = tiff_folder(compression="deflate")
    source = open_source(folder)
    path = folder / "scan2_10.tif"
    data = bytearray(path.read_bytes())
    data[-200:] = bytes(200)
    path.write_bytes(bytes(data))
    with pytest.raises(StackError, match=r"slice 10 cannot be read"):
        source[:]


def test_progress_counts_to_the_end(tiff_folder: Folder) -> None:
    seen: list[tuple[int, int]] = []
    open_source(tiff_folder(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]


def test_a_relative_path_is_made_absolute(
    tiff_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiff_folder()
    monkeypatch.chdir(folder.parent)
    assert open_source(folder.name).path == str(folder)


def test_a_description_left_from_a_stack_that_was_split(
    tiff_folder: Folder, volume: np.ndarray
) -> None:
    description = "ImageJ=1.54f\nimages=5\nslices=5\n"
    folder = tiff_folder(description=description, metadata=None)
    np.testing.assert_array_equal(open_source(folder)[:], volume)


def test_one_slice_with_an_enormous_number(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    for z in (9, 10, 11, 12):
        (folder / f"scan2_{z}.tif").unlink()
    (folder / "scan2_8.tif").rename(folder / f"{2**70}.tif")
    assert "no slice numbers?" in complaint(folder)
