"""COCO files: what they say is read, what is wrong with them is told at once."""

import json
import pickle
import sys

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as codec

from zarrmask.coco import Region, read_coco
from zarrmask.coco.region import decompressed
from zarrmask.errors import AnnotationError

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def square():
    mask = np.zeros((40, 50), bool)
    mask[5:25, 10:30] = True
    return mask


def counts(mask):
    """Uncompressed run lengths, by looking at every pixel."""
    lengths, inside = [0], False
    for pixel in mask.ravel(order="F").tolist():
        if pixel != inside:
            inside = pixel
            lengths.append(0)
        lengths[-1] += 1
    return lengths


def segmentations():
    compressed = codec.encode(np.asfortranarray(square(), np.uint8))["counts"].decode()
    return {
        "polygon": [[10, 5, 30, 5, 30, 25, 10, 25]],
        "two polygons": [[10, 5, 20, 5, 20, 25, 10, 25], [20, 5, 30, 5, 30, 25, 20, 25]],
        "run lengths": {"size": [40, 50], "counts": counts(square())},
        "compressed run lengths": {"size": [40, 50], "counts": compressed},
    }


@pytest.mark.parametrize("kind", segmentations())
def test_polygons_and_run_lengths(files, kind):
    files.first["segmentation"] = segmentations()[kind]
    marked, empty = read_coco(*files.write()).images
    (instance,) = marked.instances
    mask = instance.region.mask()
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, square())
    assert instance.region.box == (10, 5, 30, 25)
    assert instance.region.area == 400
    assert (marked.id, marked.height, marked.width) == (1, 40, 50)
    assert empty.instances == empty.crowds == ()
    assert not empty.true().mask().any()


def test_categories_of_any_ids_are_counted_in_their_order(files):
    files.content["categories"] = [
        {"id": 7, "name": "case"},
        {"id": -3, "name": "scroll"},
        {"id": 0, "name": "film"},
    ]
    files.first["category_id"] = 7
    files.mark(category_id=-3, segmentation=[[1, 1, 5, 1, 5, 5]])
    dataset = read_coco(*files.write())
    assert dataset.names == ("scroll", "film", "case")
    assert [one.category for one in dataset.images[0].instances] == [2, 0]


def test_crowds_are_kept_apart(files):
    files.mark(iscrowd=1, segmentation=[[32, 5, 45, 5, 45, 25, 32, 25]])
    dataset = read_coco(*files.write())
    image = dataset.images[0]
    assert len(image.instances) == len(image.crowds) == 1
    np.testing.assert_array_equal(image.true().mask(), square())
    assert image.ignored().mask().sum() == 13 * 20
    assert str(dataset) == (
        "2 images, 1 of them empty, with 1 instance of scroll; 1 crowd, ignored"
    )


@pytest.mark.parametrize(
    ("suffix", "dtype", "channels"),
    [
        *((suffix, np.uint8, channels) for suffix in ("png", "tif", "jpg") for channels in (1, 3)),
        ("png", np.uint16, 1),
        ("tif", np.uint16, 1),
    ],
)
def test_images_are_seen_as_a_run_sees_slices(files, suffix, dtype, channels):
    """16 bits by their high byte; colours, which some tools make of grey, are grey again."""
    name = f"deep/er/a.{suffix}"
    grey = np.full((40, 50), 0x3456 if dtype == np.uint16 else 0x34, dtype)
    files.pixels[name] = grey if channels == 1 else np.repeat(grey[..., None], 3, 2)
    files.content["images"][0]["file_name"] = name
    seen = read_coco(*files.write()).images[0].grey()
    assert seen.dtype == np.uint8
    assert abs(int(seen.min()) - 0x34) <= 1
    assert abs(int(seen.max()) - 0x34) <= 1


def test_a_window_of_grey_values(files):
    files.pixels["a.png"] = np.full((40, 50), 300, np.uint16)
    image = read_coco(*files.write()).images[0]
    assert image.grey((200, 600)).max() == 64
    assert image.grey().max() == 1


def test_an_absolute_name_within_the_folder(files):
    files.content["images"][0]["file_name"] = str(files.images / "a.png")
    assert read_coco(*files.write()).images[0].path == files.images / "a.png"


def test_a_dataset_travels_to_other_processes(files):
    dataset = read_coco(*files.write())
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def image(files, **entry):
    files.content["images"][0].update(entry)


def missing_image(files):
    image(files, file_name="gone.png")


def damaged_image(files):
    files.write()
    (files.images / "bad.png").write_bytes((files.images / "a.png").read_bytes()[:-30])
    image(files, file_name="bad.png")


def no_image(files):
    image(files, file_name="../annotations.json")


def outside(files):
    image(files, file_name="/etc/passwd")


def upwards(files):
    image(files, file_name="b/../a.png")


def other_size(files):
    image(files, height=41)


def no_size(files):
    del files.content["images"][0]["height"]


def vast_size(files):
    image(files, height=10**9)


def float_pixels(files):
    files.pixels["f.tif"] = np.zeros((40, 50), np.float32)
    image(files, file_name="f.tif")


def signed_pixels(files):
    files.pixels["f.tif"] = np.zeros((40, 50), np.int8)
    image(files, file_name="f.tif")


def two_points(files):
    files.mark(segmentation=[[1, 1, 5, 5]])


def odd_numbers(files):
    files.mark(segmentation=[[1, 1, 5, 5, 9, 9, 3]])


def a_line(files):
    files.mark(segmentation=[[1, 1, 30, 30, 15, 15]])


def not_a_number(files):
    files.mark(segmentation=[[1, 1, 5, 1, 5, float("nan")]])


def infinite(files):
    files.mark(segmentation=[[1, 1, 5, 1, 5, float("inf")]])


def words(files):
    files.mark(segmentation=[[1, 1, 5, 1, 5, "5"]])


def far_away(files):
    files.mark(segmentation=[[1, 1, 5, 1, 5, 1e9]])


def beside_the_image(files):
    files.mark(segmentation=[[60, 1, 70, 1, 70, 9]])


def no_segmentation(files):
    files.mark(bbox=[1, 1, 9, 9])


def empty_segmentation(files):
    files.mark(segmentation=[])


def run_lengths_of_another_size(files):
    files.mark(segmentation={"size": [50, 40], "counts": [0, 2000]})


def too_few_run_lengths(files):
    files.mark(segmentation={"size": [40, 50], "counts": [0, 1999]})


def too_many_run_lengths(files):
    files.mark(segmentation={"size": [40, 50], "counts": [0, 9999]})


def negative_run_lengths(files):
    files.mark(segmentation={"size": [40, 50], "counts": [2001, -1]})


def torn_run_lengths(files):
    files.mark(segmentation={"size": [40, 50], "counts": "o"})


def empty_run_lengths(files):
    files.mark(segmentation={"size": [40, 50], "counts": [2000]})


def counts_of_nothing(files):
    files.mark(segmentation={"size": [40, 50], "counts": {}})


def unknown_image(files):
    files.mark(image_id=9, segmentation=[[1, 1, 5, 1, 5, 5]])


def unknown_category(files):
    files.mark(category_id=9, segmentation=[[1, 1, 5, 1, 5, 5]])


def same_annotation(files):
    files.content["annotations"].append(dict(files.first))


def same_image(files):
    image(files, id=2)
    files.first["image_id"] = 2


def same_category(files):
    files.content["categories"].append({"id": 1, "name": "again"})


def same_file(files):
    files.content["images"][1]["file_name"] = "./a.png"


def several_pages(files):
    image(files, file_name="f.tif")
    files.images.mkdir()
    tifffile.imwrite(files.images / "f.tif", np.zeros((2, 40, 50), np.uint8))


def zero_is_white(files):
    image(files, file_name="f.tif")
    files.images.mkdir()
    tifffile.imwrite(files.images / "f.tif", np.zeros((40, 50), np.uint8), photometric="miniswhite")


def one_flat_polygon(files):
    files.first["segmentation"] = [1, 1, 9, 1, 9, 9]


def no_annotations(files):
    files.content["annotations"] = []


def only_crowds(files):
    files.first["iscrowd"] = 1


def nothing_listed(files):
    del files.content["annotations"]


def entries_of_words(files):
    files.content["images"][0] = "a.png"


BAD_FILES = {
    missing_image: "gone.png: is missing",
    damaged_image: "bad.png: cannot be read",
    no_image: "'../annotations.json' lies outside the folder",
    outside: "'/etc/passwd' lies outside the folder",
    upwards: "'b/../a.png' lies outside the folder",
    other_size: "a.png: is 40 x 50 pixels; the annotations say 41 x 50",
    no_size: "images[0] (a.png) has no height",
    vast_size: "images[0].height: write a number below 65536 (got ",
    float_pixels: "f.tif: cannot be read: signed, or 32 bits a pixel; expected 8 or 16",
    signed_pixels: "f.tif: cannot be read: signed, or 32 bits a pixel; expected 8 or 16",
    two_points: "annotation 2 on a.png: a polygon of 2 points; expected 3 at least",
    odd_numbers: "a polygon of 3.5 points",
    a_line: "a polygon without area",
    not_a_number: "a polygon with something that is not a number",
    infinite: "a polygon with something that is not a number",
    words: "a polygon with something that is not a number",
    far_away: "far beyond the image",
    beside_the_image: "a polygon without area on the image",
    no_segmentation: "it has no segmentation",
    one_flat_polygon: "a list of numbers; expected a list of polygons, [[x, y, x, y, ...]]",
    empty_segmentation: "it has no segmentation",
    run_lengths_of_another_size: "run lengths are of [50, 40] pixels; the image is [40, 50]",
    too_few_run_lengths: "its counts come to 1,999 pixels; the image has 2,000",
    too_many_run_lengths: "its counts come to 9,999 pixels",
    negative_run_lengths: "its counts are not run lengths",
    torn_run_lengths: "its counts break off",
    empty_run_lengths: "it covers no pixel",
    counts_of_nothing: "its counts are not run lengths",
    same_file: "a.png is listed 2 times",
    several_pages: "f.tif: cannot be read: 2 images in a file",
    zero_is_white: "f.tif: cannot be read: zero is white",
    unknown_image: "annotation 2 is of image 9, which there is not",
    unknown_category: "annotation 2 is of category 9, which there is not",
    same_annotation: "annotation id 1 occurs 2 times",
    same_image: "image id 2 occurs 2 times",
    same_category: "category id 1 occurs 2 times",
    no_annotations: "no annotation at all",
    only_crowds: "all of the 1 annotations are crowds",
    nothing_listed: "not a COCO file of instances: expected lists of images, annotations",
    entries_of_words: "images[0]: write an object, {...} (got 'a.png')",
}


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_bad_files_are_refused(files, spoil):
    spoil(files)
    with pytest.raises(AnnotationError) as refusal:
        read_coco(*files.write())
    assert BAD_FILES[spoil] in str(refusal.value)
    assert str(files.json) in str(refusal.value)


def test_where_missing_images_lie_is_told(files):
    annotations, images = files.write()
    with pytest.raises(AnnotationError) as refusal:
        read_coco(annotations, images.parent)
    told = str(refusal.value)
    assert f"a.png: is missing in {images.parent}; but there is {images / 'a.png'}" in told
    assert told.count("but there is") == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[" * 100_000, '"images"', "\xff", "3"])
def test_what_is_no_coco_is_refused(files, content):
    files.write()
    files.json.write_text(content, encoding="latin-1")
    with pytest.raises(AnnotationError, match=r"annotations\.json is not "):
        read_coco(files.json, files.images)


def test_files_that_are_not_there(files):
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_coco(files.json, files.images)
    files.json.write_text(json.dumps(files.content))
    with pytest.raises(AnnotationError, match="is not a folder"):
        read_coco(files.json, files.images)


def test_without_pycocotools_the_extra_is_named(files, zarrmask, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("zarrmask.coco", "pycocotools"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    annotations, images = files.write()
    code, _, told = zarrmask("evaluate", "--coco", annotations, "--images", images)
    assert code == 1
    assert told.startswith("error: ")
    assert "pip install 'zarrmask[train]'" in told


def test_annotations_of_an_image_that_is_refused_are_not_blamed(files):
    no_size(files)
    with pytest.raises(AnnotationError, match="1 problem\n"):
        read_coco(*files.write())


def test_what_a_camera_notes_of_its_turn_counts(files):
    """As to detectron2: annotations are made on what a viewer shows."""
    turned = np.zeros((50, 40), np.uint8)
    turned[:10] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    annotations, images = files.write()
    Image.fromarray(turned).save(images / "a.png", exif=exif)
    grey = read_coco(annotations, images).images[0].grey()
    assert grey.shape == (40, 50)
    assert (grey[:, -10:] == 200).all()
    assert not grey[:, :-10].any()


def test_all_problems_are_told_at_once(files):
    for spoil in (missing_image, two_points, unknown_category, same_category, infinite):
        spoil(files)
    with pytest.raises(AnnotationError) as refusal:
        read_coco(*files.write())
    told = str(refusal.value)
    assert "5 problems" in told
    for spoil in (missing_image, two_points, same_category, infinite):
        assert BAD_FILES[spoil].partition(" on a.png")[0].removeprefix("annotation 2") in told


def test_many_problems_are_counted(files):
    for _ in range(30):
        two_points(files)
    with pytest.raises(AnnotationError) as refusal:
        read_coco(*files.write())
    told = str(refusal.value).splitlines()
    assert told[0].endswith("30 problems")
    assert told[-1] == "  ... and 10 more"
    assert len(told) == 22


@given(masks)
def test_a_region_is_the_mask_it_was_made_of(mask):
    region = Region.of_mask(mask)
    np.testing.assert_array_equal(region.mask(), mask)
    assert region.area == mask.sum()
    assert decompressed(region.counts) == counts(mask)
    assert Region.of_counts(region.counts, *mask.shape) == region
    assert Region.of_counts(counts(mask), *mask.shape) == region


@given(st.integers(1, 9), st.integers(1, 9), st.text(max_size=9) | st.binary(max_size=9))
def test_no_text_makes_a_region_that_is_not_the_images(height, width, text):
    try:
        region = Region.of_counts(text, height, width)
    except ValueError:
        return
    assert region.mask().shape == (height, width)
