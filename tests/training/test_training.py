import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from zarrmask.cli import cli
from zarrmask.coco import read_coco
from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.config import read_config
from zarrmask.detection.config_file import read_documents
from zarrmask.detection.detections import Detections
from zarrmask.detection.inputs import NetworkInput
from zarrmask.detection.load import load_detector
from zarrmask.detection.names import is_weight
from zarrmask.detection.network import build_model
from zarrmask.detection.weights import model_weights, norm_counters
from zarrmask.errors import (
    CheckpointError,
    OutputError,
    SettingsError,
    TrainingError,
)
from zarrmask.info import describe
from zarrmask.shipped import CONFIGS, DEFAULT_CHECKPOINT
from zarrmask.training import validation
from zarrmask.training.curves import Curves, read_metrics
from zarrmask.training.fine_tuning import annotated_lesson
from zarrmask.training.loop import Training, check_share, train
from zarrmask.training.recipe import interpret_training
from zarrmask.training.simulated import SimulatedBatches, numbered_slice, simulated_lesson
from zarrmask.training.world import World, joined


def figures(out):
    """Lines of figures without what the clock says."""
    lines = read_metrics(out / "metrics.json")
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def test_simulated_training_leaves_a_checkpoint_that_detects_and_goes_on(config, tmp_path):
    out = tmp_path / "out"
    steps = []
    lesson = simulated_lesson(config, iterations=2)
    checkpoint = train(lesson, out, workers=0, threads=1, progress=steps.append)
    assert "iteration 2 of 2" in str(steps[-1])
    assert np.isfinite(list(steps[-1].losses.values())).all()
    assert "loss_help" in steps[-1].losses
    image = np.full((80, 90), 100, np.uint8)
    assert len(load_detector(checkpoint).detect([image], [image.shape])) == 1
    first = checkpoint.read_bytes()
    longer = simulated_lesson(config, iterations=3)
    train(longer, out, workers=0, threads=1, progress=steps.append)
    train(longer, out, workers=0, threads=1, progress=steps.append)  # is done
    said = [one for one in steps if isinstance(one, str)]
    assert [one.iteration for one in steps if not isinstance(one, str)] == [2, 3]
    assert said[0] == "learns from simulated slices; begins from random weights (no --init); on cpu"
    assert "goes on after iteration 2" in said[1]
    assert "finished already" in said[-1]
    assert checkpoint.read_bytes() != first
    assert not list(out.glob(".*.partial"))
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    told = describe(out)
    assert told["training"] == "3 iterations, by metrics.json"
    assert told["weights"] == "model.safetensors, model_0000001.pth, model_0000002.pth"
    assert told["inspect"] == f"zarrmask checkpoint inspect {checkpoint}"
    assert told["curves"] == str(out / "curves.png")


def test_simulated_training_begins_from_a_checkpoint(config, tmp_path):
    first = train(simulated_lesson(config, iterations=1), tmp_path / "first", workers=0, threads=1)
    arguments = ["train", "--phantom", "--init", first, "--config", config, "--iterations", 1]
    arguments += ["--seed", 9, "--out", tmp_path / "second", "--workers", 0, "--threads", 1]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    before, after = (
        read_checkpoint(path).tensors for path in (first, tmp_path / "second/model.safetensors")
    )
    layer = "backbone.bottom_up.stem.conv1."
    assert torch.allclose(before[layer + "weight"], after[layer + "weight"], atol=1e-3)
    assert not torch.equal(before[layer + "norm.running_mean"], after[layer + "norm.running_mean"])


def test_simulated_training_takes_the_network_beside_the_weights(config, tmp_path):
    first = train(simulated_lesson(config, iterations=1), tmp_path / "first", workers=0, threads=1)
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text("SOLVER: {IMS_PER_BATCH: 2}\nINPUT: {MIN_SIZE_TRAIN: [64, 72]}\n")
    lesson = simulated_lesson(schedule, init=first)
    assert lesson.config == simulated_lesson(config).config
    assert lesson.recipe.batch == 2
    assert not lesson.warnings
    with pytest.raises(CheckpointError, match=r"MODEL\.BACKBONE\.NAME"):
        simulated_lesson(schedule)
    (warning,) = simulated_lesson(init=first).warnings
    assert "has another MODEL.RESNETS.STEM_OUT_CHANNELS" in warning
    assert f"--config {first.with_suffix('.yaml')}" in warning
    assert not simulated_lesson(init=DEFAULT_CHECKPOINT).warnings
    first.with_suffix(".yaml").write_text("SOLVER: {MAX_ITER: 5}\n")
    (warning,) = simulated_lesson(init=first).warnings
    assert "describes none to compare it with" in warning


def test_loss_falls_and_masks_get_better(plain, annotated, tmp_path):
    out = tmp_path / "out"
    lesson = annotated_lesson(*annotated, config=plain, validate_coco=annotated[0], iterations=120)
    lesson = replace(lesson, recipe=replace(lesson.recipe, period=40, flip="none"))
    train(lesson, out, workers=0, threads=1)
    lines = figures(out)
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert [line["iteration"] for line in lines if "total_loss" in line] == list(range(19, 120, 20))
    assert losses[-1] < 0.7 * losses[0]
    ious = [line["union_iou"] for line in lines if "union_iou" in line]
    assert len(ious) == 3
    assert max(ious) > ious[0]
    best = read_checkpoint(out / "model_best.pth")
    judged = [line["iteration"] for line in lines if line.get("union_iou") == max(ious)]
    assert best.metadata["iteration"] == judged[0]
    load_detector(out / "model_best.pth")  # by the config beside it


def test_a_training_tells_where_it_began_and_which_weights_did_best(plain, annotated, tmp_path):
    first, out, said = tmp_path / "first", tmp_path / "out", []
    checkpoint = train(
        annotated_lesson(*annotated, config=plain, iterations=1), first, workers=0, threads=1
    )
    lesson = annotated_lesson(*annotated, config=plain, init=checkpoint, iterations=22)
    lesson = replace(lesson, recipe=replace(lesson.recipe, period=11))
    train(lesson, out, workers=0, threads=1, progress=lambda told: said.append(str(told)))
    assert "4 images, 1 to judge by (" in said[0]
    assert re.fullmatch(r"before: IoU held out \d\.\d{3}", said[1])
    assert re.fullmatch(r"iteration 20 of 22: .*; 0:00:0\d left", said[3])
    assert said[-1].startswith("best on the slices held out: model_best.pth, IoU ")
    judged = [line["iteration"] for line in figures(out) if "union_iou" in line]
    assert judged == [-1, 10, 21]


def test_a_short_training_is_judged_as_often_as_a_long_one(plain, annotated):
    """As long as no config says how often."""
    assert annotated_lesson(*annotated, iterations=200).recipe.period == 50
    assert annotated_lesson(*annotated).recipe.period == 250
    assert annotated_lesson(*annotated, config=plain, iterations=2).recipe.period == 3


def test_resumed_equals_unresumed(config, annotated, tmp_path):
    weights = {}
    for name, stops in {"whole": (7,), "parts": (3, 7)}.items():
        for stop in stops:
            lesson = annotated_lesson(*annotated, config=config, iterations=7)
            # as if stopped: the schedule is that of the whole
            lesson = replace(lesson, recipe=replace(lesson.recipe, period=3))
            if stop == 3:
                with pytest.raises(KeyboardInterrupt):
                    train(stopped(lesson, 4), tmp_path / name, workers=0, threads=1)
            else:
                train(lesson, tmp_path / name, workers=0, threads=1)
        weights[name] = torch.load(tmp_path / name / "model_0000006.pth", weights_only=True)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    for name, tensor in weights["whole"]["model"].items():
        assert torch.equal(tensor, weights["parts"]["model"][name]), name
    files = [sorted(path.name for path in (tmp_path / n).glob("*")) for n in ("whole", "parts")]
    assert files[0] == files[1]


class Stopping:
    """Batches that a person stops with Ctrl-C."""

    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def __getitem__(self, iteration):
        if iteration == self.at:
            raise KeyboardInterrupt
        return self.batches[iteration]


def stopped(lesson, at):
    return replace(lesson, batches=lambda rank, size: Stopping(lesson.batches(rank, size), at))


class Signalling(Stopping):
    """Batches during which this process is asked to end."""

    def __getitem__(self, iteration):
        if iteration == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.batches[iteration]


def test_who_is_asked_to_stop_saves_first(config, annotated, tmp_path):
    """After the iteration, wherever the next checkpoint would be; and ends with the same bits."""
    lesson = annotated_lesson(*annotated, config=config, iterations=6)
    asked = replace(lesson, batches=lambda *who: Signalling(lesson.batches(*who), 3))
    handler, told = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(KeyboardInterrupt):
        train(asked, tmp_path / "parts", workers=0, threads=1, progress=told.append)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert told[-1] == "stopped after iteration 4 of 6, and saved"
    train(lesson, tmp_path / "parts", workers=0, threads=1)
    train(lesson, tmp_path / "whole", workers=0, threads=1)
    whole, parts = (
        read_checkpoint(tmp_path / name / "model.safetensors").tensors
        for name in ("whole", "parts")
    )
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_a_folder_is_a_trainings_from_its_first_iteration_on(plain, annotated, tmp_path):
    """It may be killed before the first checkpoint, and have judged by then."""
    lesson = annotated_lesson(*annotated, config=plain, iterations=6)
    lesson = replace(lesson, recipe=replace(lesson.recipe, period=50, validation_period=1))
    killed = replace(lesson, batches=lambda *who: Broken(lesson.batches(*who), 3))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="broken"):
        train(killed, out, workers=0, threads=1)
    assert (out / "model_best.pth").exists()
    assert not (out / "model.safetensors").exists()
    with pytest.raises(OutputError, match=r"Name another folder\.\n[^-]*seed was 0, is 5"):
        train(annotated_lesson(*annotated, config=plain, seed=5), out, workers=0, threads=1)
    train(lesson, out, workers=0, threads=1)
    assert [line["iteration"] for line in figures(out) if "union_iou" in line] == list(range(6))


class Broken(Stopping):
    """Batches one of which cannot be made."""

    def __getitem__(self, iteration):
        if iteration == self.at:
            raise ValueError("broken")
        return self.batches[iteration]


def test_who_read_where_a_training_stood_before_another_went_on_leaves_it(
    plain, annotated, tmp_path, monkeypatch
):
    lesson, out = annotated_lesson(*annotated, config=plain, iterations=2), tmp_path / "out"
    longer = replace(lesson, recipe=replace(lesson.recipe, iterations=4))
    train(lesson, out, workers=0, threads=1)
    begin = Training.__init__

    def late(training, *given):
        begin(training, *given)
        monkeypatch.setattr(Training, "__init__", begin)
        train(longer, out, workers=0, threads=1)

    monkeypatch.setattr(Training, "__init__", late)
    with pytest.raises(OutputError, match="another process went on"):
        train(longer, out, workers=0, threads=1)
    assert torch.load(out / "training.pt", weights_only=True)["noted"][0] == 4


def test_a_file_is_no_folder_to_train_in(plain, annotated, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="out is a file; name a folder"):
        train(annotated_lesson(*annotated, config=plain), tmp_path / "out", workers=0, threads=1)


def test_a_folder_of_others_is_left_as_it_is(plain, annotated, tmp_path):
    """Such as that of a training of detectron2's."""
    names = ("model_0000001.pth", "metrics.json", "model_final.pth")
    for name in names:
        (tmp_path / "d2" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d2" / name).write_text(name)
    lesson = annotated_lesson(*annotated, config=plain, iterations=2)
    with pytest.raises(OutputError, match=r"metrics\.json, model_0000001\.pth, .*name another"):
        train(lesson, tmp_path / "d2", workers=0, threads=1)
    assert {path.name: path.read_text() for path in (tmp_path / "d2").iterdir()} == {
        name: name for name in names
    }


@pytest.mark.parametrize("what", ["init", "new_heads", "validate_coco", "images"])
def test_another_beginning_is_another_training(plain, annotated, tmp_path, what):
    coco, images = annotated
    first, second = tmp_path / "first", tmp_path / "second"
    lesson = partial(annotated_lesson, coco, images, config=plain, iterations=2)
    train(lesson(), first, workers=0, threads=1)
    init = first / "model.safetensors"
    others = tmp_path / "others.json"
    content = json.loads(coco.read_text())
    others.write_text(json.dumps({**content, "info": "others"}))
    before, after = {
        "init": ({}, {"init": init}),
        "new_heads": ({"init": init}, {"init": init, "new_heads": True}),
        "validate_coco": ({"validate_coco": coco}, {"validate_coco": others}),
        "images": ({}, {}),
    }[what]
    train(lesson(**before), second, workers=0, threads=1)
    if what == "images":
        first_image = next(images.glob("*.png"))
        cv2.imwrite(str(first_image), 255 - cv2.imread(str(first_image)))
    with pytest.raises(OutputError, match=r"begun from|learned from"):
        train(lesson(**after), second, workers=0, threads=1)


def test_what_simulated_slices_do_not_heed_is_refused(config):
    text = config.read_text()
    text = text.replace("\nINPUT:", "\nINPUT:\n  RANDOM_FLIP: none\n  CROP: {ENABLED: true}")
    text = text.replace("NUM_CLASSES: 1", "NUM_CLASSES: 3").replace("range", "choice")
    config.write_text(text.replace("\nTEST:", "\nTEST:\n  EVAL_PERIOD: 5"))
    with pytest.raises(SettingsError) as caught:
        simulated_lesson(config)
    for key in ("NUM_CLASSES 3", "CROP", "RANDOM_FLIP", "SAMPLING choice", "EVAL_PERIOD"):
        assert key in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_is_told_of(plain, annotated, tmp_path, workers):
    coco, images = annotated
    moved = shutil.copytree(images, tmp_path / "moved")
    lesson = annotated_lesson(coco, moved, config=plain, iterations=9, validate=0)
    shutil.rmtree(moved)
    with pytest.raises(FileNotFoundError, match=f"directory: '{moved}"):
        train(lesson, tmp_path / "out", workers=workers, threads=1)


def test_batches_made_by_other_processes_are_the_same(plain, annotated, tmp_path):
    lesson = annotated_lesson(*annotated, config=plain, iterations=2)
    for workers in (0, 2):
        train(lesson, tmp_path / str(workers), workers=workers, threads=1)
    one, other = (read_checkpoint(tmp_path / n / "model_0000001.pth").tensors for n in ("0", "2"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_written_has_the_names_of_detectron2(plain, annotated, tmp_path):
    out = tmp_path / "out"
    train(annotated_lesson(*annotated, config=plain, iterations=4), out, workers=0, threads=1)
    expected = model_weights(build_model(read_config(out / "model.yaml")))
    content = torch.load(out / "model_0000002.pth", weights_only=True)
    assert content.keys() == {"model", "iteration"}
    assert content["iteration"] == 2
    counters = set(norm_counters(build_model(read_config(out / "model.yaml"))))
    for checkpoint in ("model_0000002.pth", "model_0000003.pth", "model.safetensors"):
        tensors = read_checkpoint(out / checkpoint).tensors
        assert tensors.keys() == expected.keys() | counters
        assert {tensors[name].dtype for name in counters} == {torch.int64}
        assert {name: value.shape for name, value in tensors.items() if is_weight(name)} == {
            name: value.shape for name, value in expected.items()
        }
        load_detector(out / checkpoint, out / "model.yaml")


def test_a_loss_that_is_no_number_stops_and_keeps_what_was(plain, annotated, tmp_path):
    out = tmp_path / "out"
    train(annotated_lesson(*annotated, config=plain, iterations=3), out, workers=0, threads=1)
    kept = {path.name: path.read_bytes() for path in out.glob("model*")}
    good = plain.read_text()
    plain.write_text(
        good.replace("BASE_LR: 0.02", "BASE_LR: 1.0e+30").replace("PERIOD: 3", "PERIOD: 9")
    )
    wild = annotated_lesson(*annotated, config=plain, iterations=8)
    wild = replace(wild, recipe=replace(wild.recipe, clipped=False))
    with pytest.raises(
        TrainingError, match=r"iteration \d \(learning rate .*e\+(29|30)\).*is kept"
    ):
        train(wild, out, workers=0, threads=1)
    assert {path.name: path.read_bytes() for path in out.glob("model*")} == kept
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        train(wild, tmp_path / "new", workers=0, threads=1)
    plain.write_text(good)
    train(annotated_lesson(*annotated, config=plain, iterations=5), out, workers=0, threads=1)
    assert (out / "model_0000004.pth").exists()


def test_another_network_or_other_data_are_not_gone_on_with(plain, annotated, tmp_path):
    out = tmp_path / "out"
    train(annotated_lesson(*annotated, config=plain, iterations=1), out, workers=0, threads=1)
    plain.write_text(plain.read_text().replace("FC_DIM: 8", "FC_DIM: 6"))
    annotated[0].write_text(annotated[0].read_text() + " ")
    with pytest.raises(OutputError) as error:
        train(
            annotated_lesson(*annotated, config=plain, iterations=2, seed=4),
            out,
            workers=0,
            threads=1,
        )
    for difference in ("learned from was", "seed was 0, is 4", "FC_DIM was 8, is 6", "--init"):
        assert difference in str(error.value)
    (out / "training.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="Name another folder"):
        train(annotated_lesson(*annotated, config=plain), out, workers=0, threads=1)


@pytest.mark.parametrize(
    ("key", "other", "difference"),
    [
        ("    DEPTH: 18", "    DEPTH: 50", "MODEL.RESNETS.DEPTH was 18, is detectron2's default"),
        (
            "EVEN_CONTRAST: false",
            "EVEN_CONTRAST: true",
            "ZARRMASK.EVEN_CONTRAST was detectron2's default, is True",
        ),
        (
            "PIXEL_MEAN: [110.0, 110.0, 110.0]",
            "PIXEL_MEAN: [103.53, 116.28, 123.675]",
            "MODEL.PIXEL_MEAN was (110.0, 110.0, 110.0), is detectron2's default",
        ),
    ],
)
def test_what_is_left_to_detectron2s_default_is_another_network_too(
    plain, annotated, tmp_path, key, other, difference
):
    out = tmp_path / "out"
    train(annotated_lesson(*annotated, config=plain, iterations=1), out, workers=0, threads=1)
    text = plain.read_text()
    assert key in text
    plain.write_text(text.replace(key, other))
    with pytest.raises(OutputError, match=re.escape(difference)):
        train(annotated_lesson(*annotated, config=plain), out, workers=0, threads=1)


def test_weights_that_a_config_names_have_to_be_given(plain, annotated):
    text = plain.read_text()
    plain.write_text(text.replace("MODEL:\n", "MODEL:\n  WEIGHTS: detectron2://R-50.pkl\n", 1))
    for lesson in (partial(annotated_lesson, *annotated), simulated_lesson):
        with pytest.raises(SettingsError, match=r"MODEL.WEIGHTS detectron2://R-50.pkl.*--init"):
            lesson(config=plain)
        lesson(config=plain, init=DEFAULT_CHECKPOINT)


def test_stages_that_stay_at_random_are_warned_of(plain, annotated):
    assert not annotated_lesson(*annotated, config=plain).warnings
    plain.write_text(plain.read_text().replace("FREEZE_AT: 0", "FREEZE_AT: 2"))
    for lesson in (partial(annotated_lesson, *annotated), simulated_lesson):
        (warning,) = lesson(config=plain).warnings
        assert "MODEL.BACKBONE.FREEZE_AT 2" in warning
        assert not lesson(config=plain, init=DEFAULT_CHECKPOINT).warnings


def test_a_checkpoint_without_its_config_is_warned_of(annotated, tmp_path):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(DEFAULT_CHECKPOINT, alone)
    (warning,) = annotated_lesson(*annotated, init=alone).warnings
    assert "stands alone, without its config" in warning


def test_images_with_crowds_alone_are_left_out(plain, annotated, tmp_path):
    document = json.loads(annotated[0].read_text())
    by_image = Counter(mark["image_id"] for mark in document["annotations"])
    crowd, mixed = sorted(by_image)[:2]
    for mark in document["annotations"]:
        mark["iscrowd"] = int(mark["image_id"] == crowd)
    document["annotations"].append(
        {**document["annotations"][-1], "id": 10**6, "image_id": mixed, "iscrowd": 1}
    )
    annotated[0].write_text(json.dumps(document))
    empty = "DATALOADER:\n  FILTER_EMPTY_ANNOTATIONS: false\n"
    plain.write_text(plain.read_text().replace("DATALOADER:\n", empty))
    lesson = annotated_lesson(*annotated, config=plain, validate=0, iterations=1)
    assert len(lesson.batches(0, 1).images) == len(document["images"]) - 1
    said = []
    train(lesson, tmp_path / "out", workers=0, threads=1, progress=said.append)
    assert "none to judge by" in said[0]
    assert said[1].startswith("warning: crowds")
    assert "1 images with crowds and objects" in said[1]
    assert "1 with crowds alone" in said[1]


def test_grey_values_are_seen_through_a_window(plain, annotated, tmp_path):
    meant, _ = annotated_lesson(*annotated, config=plain, iterations=1).batches(0, 1)[0]
    for path in annotated[1].iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16)
        cv2.imwrite(str(path), 20_000 + grey)
    (warning,) = annotated_lesson(*annotated, config=plain).warnings
    assert "--detect-window auto" in warning
    own, auto = (
        annotated_lesson(*annotated, config=plain, iterations=1, detect_window=window)
        for window in ((20_000, 20_255), "auto")
    )
    assert not own.warnings
    assert not auto.warnings
    seen, _ = own.batches(0, 1)[0]
    assert all(torch.equal(one, other) for one, other in zip(seen, meant, strict=True))
    judges = tmp_path / "judges"
    shutil.copytree(annotated[1], judges)
    for path in judges.iterdir():
        cv2.imwrite(str(path), np.full((80, 90), 9, np.uint8))
    with pytest.raises(SettingsError, match=r"has 8 bits and .* has 16 bits: no window suits both"):
        annotated_lesson(
            *annotated,
            config=plain,
            validate_coco=annotated[0],
            validate_images=judges,
            detect_window="auto",
        )
    spread, _ = auto.batches(0, 1)[0]
    assert spread[0].max() > meant[0].max() + 40
    out = tmp_path / "out"
    train(own, out, workers=0, threads=1)
    assert "union_iou" in read_metrics(out / "metrics.json")[-1]
    with pytest.raises(OutputError, match=r"learned from was .*grey values 20000 to 20255"):
        train(auto, out, workers=0, threads=1)


def test_what_is_found_in_crowds_is_not_judged(plain, annotated):
    """What stands out here is a crowd, and there is nothing else to find."""
    document = json.loads(annotated[0].read_text())
    for mark in document["annotations"]:
        mark["iscrowd"] = int(mark["image_id"] == 0)
    annotated[0].write_text(json.dumps(document))
    image = read_coco(*annotated).images[0]
    y, x = (slice(side.min(), side.max() + 1) for side in np.nonzero(image.ignored().mask()))

    class Finds:
        network_input = NetworkInput(80, 90)

        def detect(self, images, sizes):
            box = np.array([[x.start, y.start, x.stop, y.stop]], np.float32)
            patch = np.ones((1, 28, 28), np.float32)
            return [Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64), patch)]

    assert validation.union_iou(Finds(), image, "seed") == 1


def test_what_is_held_out_is_judged_as_a_run_would(plain, annotated, tmp_path, monkeypatch):
    """Whatever score the config asks for."""
    plain.write_text(plain.read_text().replace("SCORE_THRESH_TEST: 0.1", "SCORE_THRESH_TEST: 0.7"))
    lesson = annotated_lesson(*annotated, config=plain, iterations=1)
    seen = []
    made = validation.MaskRCNNDetector
    monkeypatch.setattr(
        validation,
        "MaskRCNNDetector",
        lambda config, *rest: seen.append(config.score_threshold) or made(config, *rest),
    )
    train(lesson, tmp_path / "out", workers=0, threads=1)
    assert seen == [0.1]


def test_a_category_of_nothing_is_named(plain, annotated):
    """As some annotation tools list one above all others."""
    coco, images = annotated
    content = json.loads(coco.read_text())
    content["categories"].insert(0, {"id": 0, "name": "all"})
    coco.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"2 categories .* of which nothing is a all: take out"):
        annotated_lesson(coco, images, config=plain)


def test_other_classes_want_new_heads(plain, annotate, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    singles, pairs = annotate(one, 1), annotate(two, 2)
    first = train(
        annotated_lesson(*singles, config=plain, iterations=1), tmp_path / "a", workers=0, threads=1
    )
    with pytest.raises(SettingsError, match=r"tells 1 classes apart.*2 categories.*--new-heads"):
        annotated_lesson(*pairs, init=first)
    with pytest.raises(SettingsError, match=r"NUM_CLASSES 1, but .* 2 categories \(scroll 0, scro"):
        annotated_lesson(*pairs, config=plain)
    lesson = annotated_lesson(*pairs, init=first, new_heads=True, iterations=1)
    fresh = Training(lesson, World(0, 1, torch.device("cpu")), None).pupil.model
    assert fresh.roi_heads.mask_predictor.mask_fcn_logits.weight.std() < 0.002
    lesson = replace(lesson, recipe=replace(lesson.recipe, rate=1e-12, decay=0.0))
    second = train(lesson, tmp_path / "b", workers=0, threads=1)
    before, after = (read_checkpoint(path).tensors for path in (first, second))
    name = "roi_heads.box_head.fc1.weight"
    assert torch.equal(before[name], after[name])
    assert after["roi_heads.box_predictor.cls_score.weight"].shape == (3, 8)
    assert load_detector(second).config.classes == 2


def test_a_checkpoint_of_another_network_is_refused_before_anything_is_written(
    plain, annotated, tmp_path
):
    first = train(
        annotated_lesson(*annotated, config=plain, iterations=1), tmp_path / "a", workers=0
    )
    plain.write_text(plain.read_text().replace("FC_DIM: 8", "FC_DIM: 6"))
    with pytest.raises(CheckpointError, match="of another shape"):
        train(
            annotated_lesson(*annotated, config=plain, init=first),
            tmp_path / "b",
            workers=0,
            threads=1,
        )
    assert not (tmp_path / "b").exists()


def test_begins_with_the_checkpoint_that_comes_along(annotated):
    lesson = annotated_lesson(*annotated)
    assert lesson.origin.endswith("phantom_r18.safetensors")
    assert (lesson.recipe.batch, lesson.recipe.steps, lesson.recipe.short) == (3, (), (288, 496))
    assert lesson.judge is not None
    assert annotated_lesson(*annotated, validate=0).judge is None


def test_a_config_beats_what_stands_beside_the_checkpoint(annotated, tmp_path):
    """Also in what it says of the network, without describing one."""
    config = tmp_path / "mine.yaml"
    config.write_text(
        "INPUT: {MIN_SIZE_TEST: 400}\n"
        "MODEL: {PIXEL_MEAN: [0, 0, 0], ROI_HEADS: {SCORE_THRESH_TEST: 0.9}}\n"
        "SOLVER: {BASE_LR: 0.5}\n"
    )
    beside = annotated_lesson(*annotated).config
    lesson = annotated_lesson(*annotated, config=config)
    said = {"min_size": 400, "pixel_mean": (0.0, 0.0, 0.0), "score_threshold": 0.9}
    assert lesson.config == replace(beside, **said)
    assert (lesson.recipe.rate, lesson.recipe.short) == (0.5, (288, 496))
    config.write_text("MODEL: {ROI_HEADS: {NUM_CLASSES: 2}}")
    with pytest.raises(SettingsError, match=r"mine.yaml has MODEL.ROI_HEADS.NUM_CLASSES 2"):
        annotated_lesson(*annotated, config=config)
    config.write_text("SLOVER: {BASE_LR: 1}\nMODEL: {RPN: {NMS_TRESH: 0.5}}\nSEED: x")
    with pytest.raises(CheckpointError) as error:
        annotated_lesson(*annotated, config=config)
    for key in ("SLOVER is not", "MODEL.RPN.NMS_TRESH is not", "SEED is 'x'", "phantom_r18.yaml"):
        assert key in str(error.value)


def test_a_lone_annotated_image_is_learned_from(annotated):
    """And nothing judges: who finds nothing would be right on all others."""
    document = json.loads(annotated[0].read_text())
    document["annotations"] = document["annotations"][:1]
    annotated[0].write_text(json.dumps(document))
    lesson = annotated_lesson(*annotated, validate=0.9)
    assert lesson.judge is None
    assert lesson.summary == "6 images, none to judge by"


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_newest_checkpoints_and_the_best_are_kept(plain, annotated, tmp_path, keep):
    lesson = annotated_lesson(*annotated, config=plain, iterations=5)
    lesson = replace(lesson, recipe=replace(lesson.recipe, period=2, keep=keep))
    for iterations in (3, 5):  # stopped and gone on with
        part = replace(lesson, recipe=replace(lesson.recipe, iterations=iterations))
        train(part, tmp_path / "out", workers=0, threads=1)
    numbers = {path.stem[-1] for path in (tmp_path / "out").glob("model_0*.pth")}
    assert numbers == {0: {"1", "2", "3", "4"}, 1: {"4"}, 2: {"3", "4"}}[keep]
    assert (tmp_path / "out/model_best.pth").exists()


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore")  # what its imports warn of is not ours to mend
def test_detectron2_loads_what_was_trained(annotated, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model as build

    class Checkpointer(DetectionCheckpointer):
        def _log_incompatible_keys(self, incompatible):
            self.incompatible = incompatible

    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(
        f"_BASE_: {CONFIGS / 'mask_rcnn_R_50_FPN.yaml'}\n"
        "MODEL:\n  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN}\n"
        "  FPN: {OUT_CHANNELS: 16}\n  ROI_HEADS: {NUM_CLASSES: 1}\n"
        "  ROI_BOX_HEAD: {FC_DIM: 16}\n  ROI_MASK_HEAD: {CONV_DIM: 16}\n"
        "INPUT: {MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 90}\nSOLVER: {IMS_PER_BATCH: 2}\n"
    )
    lesson = annotated_lesson(*annotated, config=config, iterations=2)
    train(lesson, out, workers=0, threads=1)
    cfg = get_cfg()
    cfg.merge_from_file(str(out / "model.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build(cfg)
    for name in ("model_0000001.pth", "model_best.pth"):
        checkpointer = Checkpointer(model)
        rest = checkpointer.load(str(out / name))
        assert rest["iteration"] in (0, 1)
        missing, unexpected, shapes = (
            getattr(checkpointer.incompatible, kind)
            for kind in ("missing_keys", "unexpected_keys", "incorrect_shapes")
        )
        assert not missing
        assert not unexpected
        assert not shapes
        weights, own = read_checkpoint(out / name).tensors, model.state_dict()
        assert all(torch.equal(own[key], weights[key]) for key in weights)


def test_frozen_stages_stay_as_they_are(plain, annotated, tmp_path):
    plain.write_text(plain.read_text().replace("FREEZE_AT: 0", "FREEZE_AT: 2"))
    lesson = annotated_lesson(*annotated, config=plain, iterations=2)
    out = tmp_path / "out"
    train(replace(lesson, recipe=replace(lesson.recipe, period=1)), out, workers=0, threads=1)
    first, last = (read_checkpoint(out / f"model_000000{n}.pth").tensors for n in (0, 1))
    same = {name.split(".")[2] for name in first if torch.equal(first[name], last[name])}
    differing = {name.split(".")[2] for name in first if not torch.equal(first[name], last[name])}
    assert {"stem", "res2"} <= same
    assert not {"stem", "res2"} & differing
    assert {"res3", "res4", "res5"} <= differing


def test_norms_keep_the_statistics_that_they_began_with(plain, annotated, tmp_path):
    """If they are to, and learn how to scale all the same."""
    plain.write_text(plain.read_text().replace("  HELP:", "  FREEZE_NORM: true\n  HELP:"))
    out = tmp_path / "out"
    lesson = annotated_lesson(*annotated, config=plain, iterations=2)
    train(replace(lesson, recipe=replace(lesson.recipe, period=1)), out, workers=0, threads=1)
    first, last = (read_checkpoint(out / f"model_000000{n}.pth").tensors for n in (0, 1))
    statistics = {name for name in first if "running" in name}
    assert statistics
    assert all(torch.equal(first[name], last[name]) for name in statistics)
    norm = "backbone.bottom_up.stem.conv1.norm.weight"
    assert not torch.equal(first[norm], last[norm])


TOGETHER = """
import hashlib, sys
from pathlib import Path
from zarrmask.training.fine_tuning import annotated_lesson
from zarrmask.training.loop import Training
from zarrmask.training.stop import Stop
from zarrmask.training.world import joined

coco, images, config, out = map(Path, sys.argv[1:])
lesson = annotated_lesson(coco, images, config=config, iterations=3)
with joined("cpu") as world, Stop() as stop:
    training = Training(lesson, world, None)
    training.go(out, 0, lambda step: None, stop)
    values = b"".join(one.detach().numpy().tobytes() for one in training.pupil.parameters())
    (out / f"weights{world.rank}").write_text(hashlib.sha256(values).hexdigest())
"""


def launch(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_train_as_one(plain, annotated, tmp_path):
    out = tmp_path / "out"
    coco, images = annotated
    arguments = ["--out", out, "--coco", coco, "--images", images, "--config", plain]
    arguments += ["--iterations", 40, "--workers", 0, "--device", "cpu"]
    assert launch("-m", "zarrmask", "train", *arguments).count("the last weights are in ") == 1
    losses = [line["total_loss"] for line in figures(out) if "total_loss" in line]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    kept = sorted(path.name for path in out.glob("model_0*.pth"))
    assert kept == ["model_0000035.pth", "model_0000038.pth", "model_0000039.pth"]


@pytest.mark.slow
def test_two_processes_have_the_same_weights(plain, annotated, tmp_path):
    script, out = tmp_path / "together.py", tmp_path / "out"
    script.write_text(TOGETHER)
    out.mkdir()
    launch(script, *annotated, plain, out)
    assert (out / "weights0").read_text() == (out / "weights1").read_text()


LEFT_ALONE = """
import os
from zarrmask.errors import TrainingError
from zarrmask.training.world import joined

try:
    with joined("cpu") as world:
        if world.rank == 1:
            os._exit(1)
        world.total({"loss": 1.0})
except TrainingError as error:
    print(error)
"""


def said_by_two(script, *arguments):
    """Run a script in two processes that find each other; gives what each of them prints."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **together, "RANK": rank},
        )
        for rank in "01"
    ]
    return [process.communicate(timeout=120)[0] for process in both]


def test_who_is_left_alone_says_so():
    said, _ = said_by_two(LEFT_ALONE)
    assert said.startswith("another of the processes that train together has failed")


def test_who_never_meets_the_others_is_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    alone = pytest.raises(SettingsError, match=r"one of 2 .* RANK expected.* unset WORLD_SIZE")
    with alone, joined("cpu"):
        pass


APART = """
import os, sys
from pathlib import Path
from zarrmask.errors import OutputError
from zarrmask.training.fine_tuning import annotated_lesson
from zarrmask.training.loop import train

coco, images, config, *outs = map(Path, sys.argv[1:])
out = outs[int(os.environ["RANK"])]
try:
    train(annotated_lesson(coco, images, config=config, iterations=3), out, workers=0, device="cpu")
except OutputError as error:
    print(error)
"""


def test_processes_that_do_not_see_one_folder_say_so(plain, annotated, tmp_path):
    outs = tmp_path / "a", tmp_path / "b"
    lesson = annotated_lesson(*annotated, config=plain, iterations=1)
    train(lesson, outs[0], workers=0, threads=1, device="cpu")
    for said, done in zip(said_by_two(APART, *annotated, plain, *outs), (1, 0), strict=True):
        assert f"this one from {done}" in said
        assert "must be one folder that all of them see" in said
    assert not outs[1].exists()


def test_a_batch_must_be_shared_evenly():
    with pytest.raises(SettingsError, match="3 processes cannot share a batch evenly"):
        check_share(4, World(0, 3, torch.device("cpu")))
    check_share(6, World(0, 3, torch.device("cpu")))


def test_a_device_that_is_not_there_is_named(plain, annotated, tmp_path):
    lesson = annotated_lesson(*annotated, config=plain, iterations=1)
    with pytest.raises(SettingsError, match="there is no device nonsense"):
        train(lesson, tmp_path / "out", device="nonsense")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "give --coco and --images, or --phantom alone"),
        (["--phantom", "--coco", "a.json", "--images", "."], "or --phantom alone"),
        (["--coco", "a.json"], "give --coco and --images"),
        (["--phantom", "--new-heads"], "--new-heads goes with --coco"),
        (["--coco", "nothing.json", "--images", "."], "nothing.json"),
    ],
)
def test_a_command_that_makes_no_sense_writes_nothing(arguments, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["train", "--out", "out", *arguments])
    assert result.exit_code != 0
    assert problem in f"{result.output} {result.exception}"
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_figures(plain, annotated, tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "out"
    train(annotated_lesson(*annotated, config=plain, iterations=1), out, workers=0, threads=1)
    assert list((out / "tensorboard").glob("events.out.*"))


def test_a_board_gets_what_the_lines_have_and_forgets_what_is_done_again(tmp_path, monkeypatch):
    told = []

    class Board:
        def __init__(self, folder, purge_step):
            told.append(("begun", purge_step))

        def add_scalar(self, name, value, iteration):
            told.append((name, value, iteration))

        def close(self):
            told.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for start in (0, 20):
        curves = Curves(tmp_path, start)
        curves.add(start + 19, {"total_loss": 1.5, "lr": 0.1})
        curves.close()
    assert told == [
        *(("begun", 0), ("total_loss", 1.5, 19), ("lr", 0.1, 19), "closed"),
        *(("begun", 20), ("total_loss", 1.5, 39), ("lr", 0.1, 39), "closed"),
    ]
    assert [line["iteration"] for line in read_metrics(tmp_path / "metrics.json")] == [19, 39]


def test_curves_are_drawn_as_they_come(tmp_path, monkeypatch):
    curves = Curves(tmp_path)
    assert not curves.is_old()
    curves.add(19, {"total_loss": 1.5})
    assert not curves.is_old()
    monkeypatch.setattr("zarrmask.training.curves.SECONDS", 0)
    assert curves.is_old()
    curves.draw()
    assert not curves.is_old()  # nothing has come since
    first = (tmp_path / "curves.png").read_bytes()
    curves.add(39, {"total_loss": 0.5, "union_iou": 0.8})
    curves.draw()
    assert (tmp_path / "curves.png").read_bytes() != first


def test_what_is_judged_is_drawn_at_once(plain, annotated, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Curves, "draw", lambda curves: drawn.append(curves._known[-1]))
    lesson = annotated_lesson(*annotated, config=plain, validate_coco=annotated[0], iterations=40)
    recipe = replace(lesson.recipe, period=1000, validation_period=20)
    train(replace(lesson, recipe=recipe), tmp_path / "out", workers=0, threads=1)
    assert [line["iteration"] for line in drawn if "union_iou" in line] == [19, 39]


def test_numbered_slices_are_shown_more_often(config):
    """Those that a network failed on; all of a batch have the size of one of them."""
    _, recipe = interpret_training(read_documents(config), "it")
    assert recipe.missed == recipe.mistaken == ()
    drawn = {number: numbered_slice(recipe, number) for number in range(40)}
    empty = next(n for n, (_, pieces) in drawn.items() if not len(pieces))
    full = next(n for n, (_, pieces) in drawn.items() if len(pieces))
    shown = replace(recipe, batch=8, missed=(full,), mistaken=(empty,))
    batches = [SimulatedBatches(shown, 0)[n] for n in range(12)]
    assert all(len(images) == len(targets) == 8 for images, targets in batches)
    images = [image[0].numpy() for images, _ in batches for image in images]
    of_full = sum(is_form_of(image, drawn[full][0]) for image in images)
    of_empty = sum(is_form_of(image, drawn[empty][0]) for image in images)
    assert 12 <= of_full <= 36  # of 96: a quarter
    assert 6 <= of_empty <= 28  # 0.175
    sizes = {drawn[number][0].shape for number in (full, empty)}
    assert sum(image.shape not in sizes for image in images) < 48
    again = SimulatedBatches(shown, 0)[3][0]
    assert all(torch.equal(*pair) for pair in zip(batches[3][0], again, strict=True))


def is_form_of(shown, image):
    """Tell whether something is an image, mirrored or not and in other tones."""
    if shown.shape != image.shape:
        return False
    forms = [image[::y, ::x] for y in (1, -1) for x in (1, -1)]
    return max(np.corrcoef(shown.ravel(), form.ravel())[0, 1] for form in forms) > 0.9


@pytest.mark.parametrize("name", ["MISSED", "MISTAKEN"])
def test_numbered_slices_are_no_images(config, annotated, name):
    config.write_text(config.read_text().replace("ZARRMASK:", f"ZARRMASK:\n  {name}: [3, 14]"))
    assert getattr(simulated_lesson(config).recipe, name.lower()) == (3, 14)
    with pytest.raises(SettingsError, match=r"MISSED or MISTAKEN, the numbers of simulated"):
        annotated_lesson(*annotated, config=config)


def test_numbered_slices_of_a_batch_are_of_one_size(config):
    """Or nearly: a batch is padded to its largest, and norms see what it is padded with."""
    _, recipe = interpret_training(read_documents(config), "it")
    missed, mistaken = tuple(range(600)), tuple(range(600, 800))
    shown = replace(recipe, batch=8, missed=missed, mistaken=mistaken)
    padding = []
    for iteration in range(10):
        shapes = [image.shape[1:] for image in SimulatedBatches(shown, 0)[iteration][0]]
        padding.append(1 - np.mean(np.prod(shapes, axis=1)) / np.prod(np.max(shapes, axis=0)))
    assert np.mean(padding) < 0.05
