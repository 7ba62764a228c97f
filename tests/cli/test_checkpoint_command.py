"""`zarrmask checkpoint`, as a person meets it."""

import json

import pytest
import torch

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.shipped import DEFAULT_CHECKPOINT


def test_inspect_fits_a_terminal(zarrmask):
    code, printed, told = zarrmask("checkpoint", "inspect", DEFAULT_CHECKPOINT)
    assert (code, told) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines() if line[:1].strip())
    assert lines["format"] == "safetensors"
    assert lines["network"] == "Mask R-CNN, ResNet-18 with FPN"
    assert lines["classes"] == "1"
    assert lines["fits"].startswith("yes")
    assert len(lines["sha256"]) == 64
    assert all(
        len(line) <= 80 for line in printed.splitlines() if str(DEFAULT_CHECKPOINT) not in line
    )


def test_inspect_for_machines(zarrmask):
    code, printed, _ = zarrmask("checkpoint", "inspect", "--json", DEFAULT_CHECKPOINT)
    record = json.loads(printed)
    assert (code, record["fits"], record["model"]["depth"]) == (0, True, 18)
    assert record["config"].endswith("phantom_r18.yaml")


def test_inspect_with_a_model_config_that_does_not_fit(zarrmask, tmp_path):
    (tmp_path / "other.yaml").write_text(
        DEFAULT_CHECKPOINT.with_suffix(".yaml").read_text().replace("DEPTH: 18", "DEPTH: 34")
    )
    code, printed, _ = zarrmask(
        "checkpoint", "inspect", DEFAULT_CHECKPOINT, "--model", "other.yaml"
    )
    assert code == 1
    assert "missing:" in printed
    assert "backbone.bottom_up.res2.2.conv1.weight" in printed


def test_convert_and_back(zarrmask, tmp_path):
    assert zarrmask("checkpoint", "convert", DEFAULT_CHECKPOINT, "a.pkl")[0] == 0
    code, printed, _ = zarrmask("checkpoint", "convert", "a.pkl", "a.safetensors")
    assert (code, printed.startswith("wrote ")) == (0, True)
    back, first = (read_checkpoint(p) for p in (tmp_path / "a.safetensors", DEFAULT_CHECKPOINT))
    assert set(back.tensors) == set(first.tensors)
    assert all(torch.equal(back.tensors[name], first.tensors[name]) for name in first.tensors)
    code, _, told = zarrmask("checkpoint", "convert", "a.pkl", "a.safetensors")
    assert (code, "--overwrite" in told) == (1, True)


@pytest.mark.parametrize("arguments", [("inspect", "a.pth"), ("convert", "a.pth", "b.pkl")])
def test_what_is_no_checkpoint(zarrmask, tmp_path, arguments):
    for content in (None, b"text"):
        if content:
            (tmp_path / "a.pth").write_bytes(content)
        code, printed, told = zarrmask("checkpoint", *arguments)
        assert (code, printed) == (1, "")
        assert told.startswith("error: a.pth")
        assert "Traceback" not in told


def test_classes_are_numbers_that_follow_each_other(zarrmask, tmp_path):
    for arguments, understood in (
        (("--classes", "0", "2", "5"), "classes 2, 5 are asked for"),
        (("--classes", "0,2 5"), "classes 2, 5 are asked for"),
        (("--classes", "2"), "classes 2 are asked for"),
    ):
        code, _, told = zarrmask("plan", *arguments, "nothing", "out")
        assert (code, understood in told) == (1, True)  # before the stack, which is not there
    code, _, told = zarrmask("plan", "--classes", "0", "nothing", "out")
    assert (code, "nothing" in told) == (1, True)
    code, _, told = zarrmask("plan", "nothing", "out", "--classes", "scroll")
    assert (code, "classes" in told) == (1, True)
