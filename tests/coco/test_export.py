"""Keyframes for a person to correct, and back."""

import json
import shutil

import cv2
import numpy as np
import pytest
import tifffile
import zarr

import zarrmask as package
from zarrmask.coco import read_coco
from zarrmask.coco.evaluation import evaluate
from zarrmask.coco.export import annotate, suspicions
from zarrmask.coco.polygons import polygons_of
from zarrmask.correcting.redo import redo
from zarrmask.errors import OutputError
from zarrmask.masking import KeyframeStore
from zarrmask.masking.sketch import Sketch
from zarrmask.progress import Reporter


def copied(run, tmp_path, name="copy"):
    return shutil.copytree(run[0], tmp_path / name)


def test_a_run_comes_back(run, stack, tmp_path):
    """Run, export, read, detect again: the same masks, but for what polygons simplify."""
    out, _ = run
    store = KeyframeStore(out / "keyframes.zarr")
    numbers = annotate(out, tmp_path / "export", worst=None, png=True)
    assert sorted(numbers) == store.numbers()
    files = tmp_path / "export" / "annotations.json", tmp_path / "export" / "images"
    dataset = read_coco(*files)
    assert dataset.names == ("scroll",)
    for number, image in zip(numbers, dataset.images, strict=True):
        assert image.path.name == f"{number:05d}.png"
        seen = tifffile.imread(stack / f"{number:05d}.tif") >> 8
        np.testing.assert_array_equal(image.grey(), seen)
        mask = np.asarray(store.masks()[store.numbers().index(number)]) > 0
        true = image.true().mask()
        assert (true & mask).sum() >= 0.99 * (true | mask).sum()
    judged = evaluate(*files)
    assert judged["detected"]["true"] > 0
    assert judged["detected"]["iou"] > 0.99


def test_the_file_is_what_annotation_tools_read(run, tmp_path):
    annotate(run[0], tmp_path / "export", worst=2)
    content = json.loads((tmp_path / "export" / "annotations.json").read_text())
    assert content["categories"][0]["id"] == 1
    images = {image["id"]: image for image in content["images"]}
    assert sorted(images) == [1, 2]
    names = {path.name for path in (tmp_path / "export" / "images").iterdir()}
    assert names == {image["file_name"] for image in images.values()}
    assert all(name.endswith(".jpg") for name in names)
    assert content["annotations"]
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        (polygon,) = annotation["segmentation"]
        image = images[annotation["image_id"]]
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]
        assert all(isinstance(value, float) for value in polygon)
        assert annotation["area"] > 0


def test_the_worst_come_first(run, tmp_path):
    """A mask that is like neither of its neighbours."""
    out = copied(run, tmp_path)
    store = KeyframeStore(out / "keyframes.zarr")
    mask = np.asarray(store.masks()[2])
    mask[:, mask.shape[1] // 2 :] = 0
    store.write_mask(2, mask)
    sketches = zarr.open_array(out / "keyframes.zarr" / "sketch", mode="r+")
    sketches[2] = Sketch.of_mask(mask).pixels * np.uint8(255)
    assert annotate(out, tmp_path / "export", worst=1) == [store.numbers()[2]]


def test_what_a_detector_scatters_is_no_annotation(run, tmp_path):
    """As the report does not count it as pieces."""
    out = copied(run, tmp_path)
    store = KeyframeStore(out / "keyframes.zarr")
    mask = np.asarray(store.masks()[2])
    clean = len(polygons_of(mask))
    mask[0, 0] = 255
    store.write_mask(2, mask)
    annotate(out, tmp_path / "export", worst=None)
    content = json.loads((tmp_path / "export" / "annotations.json").read_text())
    (image,) = [one["id"] for one in content["images"] if one["z"] == store.numbers()[2]]
    assert sum(one["image_id"] == image for one in content["annotations"]) == clean
    assert len(polygons_of(mask)) == clean + 1


def test_suspicion():
    fine = np.ones(5)
    outlier = suspicions(fine, [0.9, 0.2, 0.2, 0.9])
    assert outlier.argmax() == 2
    np.testing.assert_allclose(np.delete(outlier, 2), 0.1)
    doubtful = suspicions(np.array([1, 1, 0.4, 1, 1]), [0.9] * 4)
    assert doubtful.argmax() == 2
    beyond = suspicions(np.array([np.nan, np.nan, 0.9, 0.9, 0.9]), [1, 0, 0.9, 0.9])
    assert beyond[:2].tolist() == [0, 0]
    assert suspicions(np.array([0.75]), []).tolist() == [0.25]


def test_without_the_stack_the_volume_serves(run, stack, cluster, tmp_path):
    slices = shutil.copytree(stack, tmp_path / "slices")
    out = tmp_path / "out"
    package.run(slices, out, every=12, scheduler=cluster)
    annotate(out, tmp_path / "before", png=True)
    slices.rename(tmp_path / "elsewhere")
    annotate(out, tmp_path / "after", png=True)
    before, after = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "images").iterdir()}
        for name in ("before", "after")
    )
    assert before == after
    shutil.rmtree(out / "volume.zarr")
    with pytest.raises(OutputError, match=r"slices of .* are gone.*does not exist"):
        annotate(out, tmp_path / "gone")
    (tmp_path / "elsewhere").rename(slices)
    tifffile.imwrite(slices / "00100.tif", np.zeros((150, 170), np.uint16))
    with pytest.raises(OutputError, match="has changed since"):
        annotate(out, tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_the_window_of_the_run_is_taken(run, stack, cluster, tmp_path):
    out = tmp_path / "out"
    package.run(stack, out, every=12, detect_window=(0, 30_000), scheduler=cluster)
    annotate(out, tmp_path / "export", png=True, worst=1)
    (path,) = (tmp_path / "export" / "images").iterdir()
    slice_ = tifffile.imread(stack / f"{path.stem}.tif").astype(float)
    seen = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(seen, np.rint(slice_ * (255 / 30_000)).clip(0, 255))


def test_masks_that_were_given_for_slices_that_are_not_there(stack, cluster, tmp_path):
    """One of before the stack, which its first slices hold, and one of a missing slice."""
    slices = shutil.copytree(stack, tmp_path / "slices")
    (slices / "00104.tif").unlink()
    (tmp_path / "masks").mkdir()
    for number in (98, 104, 107):
        cv2.imwrite(str(tmp_path / f"masks/{number}.png"), np.full((150, 170), 255, np.uint8))
    options = {"allow_missing": True, "z": ":110", "scheduler": cluster}
    package.apply(slices, tmp_path / "masks", tmp_path / "out", **options)
    assert annotate(tmp_path / "out", tmp_path / "export") == [107]


def painted(folder, masks):
    folder.mkdir()
    for number, mask in masks.items():
        cv2.imwrite(str(folder / f"{number}.png"), mask)
    return folder


def block(height=150):
    mask = np.zeros((height, 170), np.uint8)
    mask[40:90, 30:120] = 255
    return mask


def exported(out, folder):
    """What is exported of a run, worst first: mask and suspicion by slice; and the warnings."""
    said = Reporter()
    numbers = annotate(out, folder, worst=None, png=True, reporter=said)
    images = read_coco(folder / "annotations.json", folder / "images").images
    listed = json.loads((folder / "annotations.json").read_text())["images"]
    masks = [image.true().mask() for image in images]
    found = {
        number: (mask, one["suspicion"])
        for number, mask, one in zip(numbers, masks, listed, strict=True)
    }
    return found, said.warnings


def test_corrected_slices_have_the_masks_that_they_were_given(run, cluster, tmp_path):
    """Before dilation, where one is known; also those that were no keyframes."""
    out = copied(run, tmp_path)
    before, warnings = exported(out, tmp_path / "before")
    assert sorted(before) == [100, 104, 108, 112, 116, 120, 122]
    assert warnings == []
    masks = painted(tmp_path / "masks", {109: block(), 111: block(), 112: block() * 0})
    redo(out, z="107:114", masks=masks, scheduler=cluster)
    after, warnings = exported(out, tmp_path / "after")
    # 107, 108 stay as they are
    assert sorted(after) == [100, 104, 108, 109, 111, 112, 116, 120, 122]
    assert warnings == []
    for number in (100, 104, 108, 116, 120, 122):
        np.testing.assert_array_equal(after[number][0], before[number][0])
    for number in (109, 111):
        np.testing.assert_array_equal(after[number][0], block() > 0)
    assert not after[112][0].any()
    assert [after[number][1] for number in (109, 111, 112)] == [0, 0, 0]
    assert set(list(after)[-3:]) == {109, 111, 112}
    redo(out, z="110:114", masks=masks, scheduler=cluster)  # 110 holds 109's
    redo(out, z="103:105", hold=100, scheduler=cluster)
    redo(out, z="111:117", erode=1, scheduler=cluster)
    left, (warning,) = exported(out, tmp_path / "left")
    assert sorted(left) == [100, 108, 109, 120, 122]
    assert "104 (mask of slice 100, dilated); 111, 112, 116 (dilated otherwise)" in warning
    redo(out, z="111:112", masks=masks, scheduler=cluster)
    again, (warning,) = exported(out, tmp_path / "again")
    np.testing.assert_array_equal(again[111][0], block() > 0)
    assert "; 112, 116 (dilated otherwise)" in warning
    redo(out, z=":", erode=1, scheduler=cluster)
    with pytest.raises(OutputError, match=r"nothing of .* is left to annotate: 100, "):
        annotate(out, tmp_path / "nothing")
    shutil.rmtree(out / "corrections" / "0000.zarr")
    with pytest.raises(OutputError, match=r"lost its 0000\.zarr"):
        annotate(out, tmp_path / "nothing")


def test_what_was_detected_anew_is_exported(run, cluster, tmp_path):
    out = copied(run, tmp_path)
    before, _ = exported(out, tmp_path / "before")
    redo(out, z="109:115", score=1.0, detect_every=2, scheduler=cluster)
    after, (warning,) = exported(out, tmp_path / "after")
    assert sorted(after) == [100, 104, 108, 109, 111, 113, 114, 116, 120, 122]
    assert not any(after[number][0].any() for number in (109, 111, 113, 114))
    np.testing.assert_array_equal(after[108][0], before[108][0])
    assert "112 (detected anew, on other slices)" in warning


def test_masks_of_a_part_or_of_a_run_are_no_annotations(stack, run, cluster, tmp_path):
    """A crop's lack what is outside; a run's are dilated."""
    every = painted(tmp_path / "every", {number: block() for number in (100, 104, 108)})
    out = tmp_path / "out"
    package.apply(stack, every, out, y="10:140", z="100:112", scheduler=cluster)
    part = painted(tmp_path / "part", {104: block(130)})
    redo(out, z="104:106", masks=part, scheduler=cluster)
    redo(out, z="108:110", masks=run[0], scheduler=cluster)
    left, (warning,) = exported(out, tmp_path / "left")
    assert sorted(left) == [100]
    assert "104 (mask given for what the run wrote, not for the whole slice)" in warning
    assert "108 (mask of a run, dilated)" in warning


def test_what_cannot_be_read_any_more_is_refused(stack, cluster, tmp_path):
    """A mask of before the slices that were written, which hold it, and no stack."""
    gone, out = shutil.copytree(stack, tmp_path / "stack"), tmp_path / "out"
    masks = painted(tmp_path / "masks", {100: block()})
    package.apply(gone, masks, out, z="104:112", scheduler=cluster)
    shutil.rmtree(gone)
    with pytest.raises(OutputError, match="masks for slices 100, but none of these can be read"):
        annotate(out, tmp_path / "export")


def test_a_run_at_a_url(run, s3, tmp_path):
    s3.files.put(str(run[0]), f"{s3.bucket}/annotated", recursive=True)
    annotate(s3.place("annotated"), tmp_path / "there", worst=2)
    annotate(run[0], tmp_path / "here", worst=2)
    here, there = (
        (tmp_path / name / "annotations.json").read_bytes() for name in ("here", "there")
    )
    assert here == there


def test_the_command(run, zarrmask, tmp_path):
    out, _ = run
    code, printed, told = zarrmask("annotate", out, tmp_path / "export", "--worst", 3)
    assert code == 0, told
    assert "annotations.json and 3 images" in printed
    code, _, told = zarrmask("annotate", out, tmp_path / "export")
    assert code == 1
    assert "not an empty folder" in told
    code, _, told = zarrmask("annotate", out, "b", "--worst", 3, "--every-keyframe")
    assert code == 2
    assert "exclude each other" in told


def test_what_is_no_finished_run(run, zarrmask, tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "nowhere"):
        code, _, told = zarrmask("annotate", folder, "export")
        assert code == 1
        assert "holds no finished run" in told
    out = copied(run, tmp_path)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "state": "unfinished"}))
    with pytest.raises(OutputError, match="is unfinished; to go on, do again"):
        annotate(out, tmp_path / "export")
    (out / "run.json").write_text(json.dumps(record))
    shutil.rmtree(out / "keyframes.zarr")
    with pytest.raises(OutputError, match=r"lost its keyframes\.zarr"):
        annotate(out, tmp_path / "export")
    assert not (tmp_path / "export").exists()
