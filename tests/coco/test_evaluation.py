"""A checkpoint judged: figures, pictures, and nothing written in vain."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zarrmask.coco.evaluation import as_table, evaluate
from zarrmask.coco.pictures import FOUND, IGNORED, STRIP, TRUE, picture
from zarrmask.coco.polygons import polygons_of
from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.errors import AnnotationError, CheckpointError, OutputError, SettingsError
from zarrmask.phantom import simulate
from zarrmask.shipped import DEFAULT_CHECKPOINT


@pytest.fixture
def simulated(files):
    """Three simulated slices with their true masks, and one without papyrus."""
    files.content["annotations"].clear()
    files.content["images"].clear()
    files.pixels.clear()
    for number in range(4):
        seed = np.random.default_rng([1, number])
        pixels, pieces = simulate(seed, 240, empty=float(number == 3))
        height, width = pixels.shape
        name = f"{number}.png"
        files.pixels[name] = pixels
        files.content["images"].append(
            {"id": number, "file_name": name, "height": height, "width": width}
        )
        for piece in pieces:
            for polygon in polygons_of(piece):
                files.mark(image_id=number, segmentation=[polygon])
    return files.write()


def test_a_detector_that_finds_most(simulated, tmp_path):
    record = evaluate(*simulated, out=tmp_path / "judged", worst=2)
    assert record == json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert record["images"] == len(record["by_image"]) == 4
    assert record["detected"]["iou"] > 0.8
    assert record["masks"]["AP50"] > 0.5
    assert record["boxes"]["AP50"] > 0.5
    detected, dilated = record["detected"], record["dilated"]
    assert dilated["lost"] < detected["lost"]
    assert dilated["surplus"] > detected["surplus"]
    worst = [image["detected"]["iou"] for image in record["by_image"]]
    assert worst == sorted(worst)
    assert record["mean_iou"] == pytest.approx(np.mean(worst))
    pictures = sorted(path.name for path in (tmp_path / "judged").glob("*.png"))
    files = [image["file"] for image in record["by_image"]]
    assert pictures == [f"worst_0{place}_{files[place - 1]}" for place in (1, 2)]


def test_mirror_images_are_looked_at_too_and_recorded(simulated):
    once, mirrored = (evaluate(*simulated, mirrored=mirrored) for mirrored in (None, True))
    assert (once["mirrored"], mirrored["mirrored"]) == (False, True)
    assert once["detected"]["both"] != mirrored["detected"]["both"]
    assert abs(once["mean_iou"] - mirrored["mean_iou"]) < 0.05


def test_the_overlap_of_all_is_that_of_their_pixels(simulated):
    record = evaluate(*simulated, dilate=0)
    assert record["detected"] == record["dilated"]
    for key in ("true", "found", "both"):
        parts = [image["detected"][key] for image in record["by_image"]]
        assert record["detected"][key] == sum(parts)


def test_what_is_found_in_crowds_does_not_count(simulated, files):
    def found_on_the_first():
        record = evaluate(*files.write(), dilate=0)
        (first,) = (image for image in record["by_image"] if image["id"] == 0)
        assert first["detected"]["true"] == 0
        return first["detected"]["found"]

    marks = files.content["annotations"]
    for mark in marks:
        mark["iscrowd"] = int(mark["image_id"] == 0)
    in_crowds = found_on_the_first()
    files.content["annotations"] = [mark for mark in marks if not mark["iscrowd"]]
    assert in_crowds < 0.1 * found_on_the_first()


def test_what_a_run_that_holds_masks_keeps(simulated, tmp_path):
    """A square kernel takes more than the growth by distance of a run that interpolates."""
    settings = tmp_path / "settings.yaml"
    settings.write_text("propagate: hold\n")
    usual, held = (evaluate(*simulated, model=model) for model in (None, settings))
    assert held["detected"] == usual["detected"]
    assert held["dilated"]["surplus"] > usual["dilated"]["surplus"]


def test_a_window_that_shows_nothing_is_refused(simulated):
    """Images of 8 bits went through one; their high bytes would be black."""
    with pytest.raises(SettingsError, match=r"20000 40000 leaves nothing to see: .* leave it out"):
        evaluate(*simulated, detect_window=(20_000, 40_000))


def test_a_window_of_16_bits_is_refused_on_images_of_8(simulated):
    """They would be all but black."""
    with pytest.raises(SettingsError, match=r"0 30000 leaves next to nothing to see: .* leave it"):
        evaluate(*simulated, detect_window=(0, 30_000))


def test_a_window_that_is_somewhat_wide_is_warned_of(simulated, zarrmask):
    command = ("evaluate", "--coco", simulated[0], "--images", simulated[1], "--detect-window")
    code, _, told = zarrmask(*command, -600, 400)
    assert (code, "an eighth of what" in told) == (0, False)
    for path in simulated[1].iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), 100 + grey // 8)
    code, _, told = zarrmask(*command, 0, 400)
    assert (code, "an eighth of what --detect-window 0 400 spans" in told) == (0, True)


def test_a_higher_score_finds_less_and_leaves_the_precision(simulated):
    low, high = (evaluate(*simulated, score=score) for score in (0.1, 1.0))
    assert high["detected"]["found"] == 0
    assert high["detected"]["lost"] == 1
    assert high["masks"] == low["masks"]
    assert high["boxes"] == low["boxes"]


def test_classes_that_differ_are_not_told_apart(simulated):
    annotations, images = simulated
    content = json.loads(annotations.read_text())
    content["categories"].append({"id": 5, "name": "case"})
    before = evaluate(annotations, images)
    annotations.write_text(json.dumps(content))
    after = evaluate(annotations, images)
    assert (before["by_category"], after["by_category"]) == (True, False)
    assert before["masks"] == after["masks"]


@pytest.fixture
def two_classes(tmp_path):
    """The shipped checkpoint with a second class, which is never found."""
    tensors = dict(read_checkpoint(DEFAULT_CHECKPOINT).tensors)
    for name in ("box_predictor.bbox_pred", "mask_head.predictor"):
        for part in (f"roi_heads.{name}.weight", f"roi_heads.{name}.bias"):
            tensors[part] = tensors[part].repeat(2, *[1] * (tensors[part].ndim - 1))
    for part, never in (("weight", 0), ("bias", -99)):
        rows = tensors[f"roi_heads.box_predictor.cls_score.{part}"]
        second = torch.full_like(rows[:1], never)
        tensors[f"roi_heads.box_predictor.cls_score.{part}"] = torch.cat(
            [rows[:1], second, rows[1:]]
        )
    path = tmp_path / "two.safetensors"
    save_file(tensors, path)
    text = DEFAULT_CHECKPOINT.with_suffix(".yaml").read_text()
    path.with_suffix(".yaml").write_text(text.replace("NUM_CLASSES: 1", "NUM_CLASSES: 2"))
    return path


def test_chosen_classes_alone_are_found_and_true(simulated, two_classes):
    annotations, images = simulated
    content = json.loads(annotations.read_text())
    content["categories"].append({"id": 5, "name": "case"})
    before = evaluate(annotations, images)
    annotations.write_text(json.dumps(content))
    first, second = (
        evaluate(annotations, images, checkpoint=two_classes, classes=chosen)
        for chosen in ((0,), "1")
    )
    assert first["classes"] == [0]
    assert first["detected"] == before["detected"]
    assert second["detected"]["true"] == second["detected"]["found"] == 0
    assert second["boxes"] == first["boxes"]
    with pytest.raises(SettingsError, match="classes 3 are asked for"):
        evaluate(annotations, images, checkpoint=two_classes, classes=(1, 3))


def test_grey_values_are_seen_through_a_window(simulated, zarrmask):
    annotations, images = simulated
    before = evaluate(annotations, images)["mean_iou"]
    eight = cv2.imread(str(images / "0.png"), cv2.IMREAD_GRAYSCALE)
    for path in images.iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16)
        cv2.imwrite(str(path), 20_000 + grey)
    command = ("evaluate", "--coco", annotations, "--images", images, "--json", "--detect-window")
    seen = {}
    for window in (["seed"], [20_000, 20_255], ["auto"], [10_000, 30_000]):
        code, printed, told = zarrmask(*command, *window)
        assert code == 0, told
        assert ("warning: the images use less" in told) == (window in (["seed"], [10_000, 30_000]))
        seen[window[0]] = json.loads(printed)
    assert seen["seed"]["mean_iou"] < 0.5
    assert seen[20_000]["mean_iou"] == pytest.approx(before, abs=1e-3)
    assert seen[20_000]["detect_window"] == [20_000, 20_255]
    low, high = seen["auto"]["detect_window"]
    assert 20_000 <= low < high <= 20_255
    assert seen["auto"]["mean_iou"] > 0.8
    cv2.imwrite(str(images / "0.png"), eight)
    code, _, told = zarrmask(*command, "auto")
    assert (code, "0.png has 8 bits and 1.png has 16 bits: no window" in told) == (1, True)


def test_average_precision_is_of_the_same_detections_whatever_the_score(simulated):
    low, usual = (evaluate(*simulated, score=score) for score in (0.0, 0.1))
    assert low["boxes"] == usual["boxes"]
    assert low["masks"] == usual["masks"]


def test_a_dilation_in_micrometres_wants_the_size_of_a_voxel(simulated, zarrmask):
    annotations, images = simulated
    command = ("evaluate", "--coco", annotations, "--images", images, "--dilate", "30um")
    code, _, told = zarrmask(*command)
    assert (code, "--voxel-size" in told) == (1, True)
    code, printed, told = zarrmask(*command, "--voxel-size", "5")
    assert code == 0, told
    assert "dilated by 30um" in printed


@pytest.mark.parametrize(
    "said",
    [{"backend": "detectron2"}, {"precision": "fast", "device": "cuda"}, {"mirrored": True}],
)
def test_settings_say_who_detects_and_how(simulated, tmp_path, monkeypatch, said):
    settings = tmp_path / "run.yaml"
    settings.write_text(json.dumps(said))
    asked = {}

    def ask(*_, **options):
        asked.update(options)
        raise SettingsError("asked")

    monkeypatch.setattr("zarrmask.detection.load.load_detector", ask)
    with pytest.raises(SettingsError, match="asked"):
        evaluate(*simulated, model=settings)
    assert asked.items() >= said.items()


def test_nothing_is_written_where_something_is_wrong(simulated, tmp_path):
    annotations, images = simulated
    out = tmp_path / "judged"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError):
        evaluate(annotations, images, checkpoint=tmp_path / "gone.pth", out=out)
    with pytest.raises(SettingsError, match="score"):
        evaluate(annotations, images, score=2, out=out)
    (images / "1.png").rename(images / "one.png")
    with pytest.raises(AnnotationError, match=r"1\.png: is missing"):
        evaluate(annotations, images, out=out)
    (images / "one.png").rename(images / "1.png")
    with pytest.raises(OutputError, match="not an empty folder"):
        evaluate(annotations, images, out=images)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("wished", "kind", "told"),
    [
        ({"checkpoint": Path("gone.pth")}, CheckpointError, "gone.pth: No such file"),
        ({"classes": (1,)}, SettingsError, "classes 1 are asked for, but .* knows one class, 0"),
    ],
)
def test_a_wrong_checkpoint_is_refused_before_any_image_is_read(tmp_path, wished, kind, told):
    with pytest.raises(kind, match=told):
        evaluate(tmp_path / "none.json", tmp_path / "none", **wished)


def test_figures_are_told_before_a_disk_can_refuse_them(simulated, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarrmask.coco.evaluation._draw", full)
    told = []
    with pytest.raises(OSError, match="No space"):
        evaluate(*simulated, out=tmp_path / "judged", told=told.append)
    assert told[0]["images"] == 4
    assert not (tmp_path / "judged").exists()


def test_the_command_prints_a_table_or_json(simulated, zarrmask, tmp_path):
    annotations, images = simulated
    arguments = ("evaluate", "--coco", annotations, "--images", images)
    code, printed, told = zarrmask(*arguments, "--out", tmp_path / "judged")
    assert code == 0, told
    record = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert printed == as_table(record) + "\n"
    assert max(map(len, printed.splitlines())) <= 80
    assert f"{record['detected']['iou']:.4f}" in printed
    code, printed, _ = zarrmask(*arguments, "--json", "--score", 0.1)
    assert json.loads(printed) == record
    (images / "0.png").unlink()
    code, printed, told = zarrmask(*arguments)
    assert (code, printed) == (1, "")
    assert told.startswith("error: ")
    assert "0.png: is missing" in told


@pytest.mark.parametrize("shape", [(90, 60), (1700, 2100)])
def test_a_picture_shows_all_outlines(shape):
    true, found, ignored = np.zeros((3, *shape), bool)
    height, width = shape
    true[height // 4 : height // 2, width // 4 : width // 2] = True
    found[height // 2 + 5 : height - 9, width // 2 + 5 : width - 9] = True
    ignored[height // 2 + 5 : height - 9, width // 8 : width // 4] = True
    png = picture(np.full(shape, 40, np.uint8), true, found, ignored, "words")
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[STRIP:]
    assert 800 <= max(image.shape) <= 1600
    for mask, colour in ((true, TRUE), (found, FOUND), (ignored, IGNORED)):
        rows, columns = np.nonzero((image == colour).all(-1))
        there = np.argwhere(mask) * (image.shape[0] / height)
        assert abs(rows.min() - there.min(0)[0]) < 5
        assert abs(columns.max() - there.max(0)[1]) < 25
