"""What training does on a GPU, on one that is pretended."""

import pytest
import torch
from pretended import pretended

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.training.fine_tuning import annotated_lesson
from zarrmask.training.loop import train


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_training_there_learns_what_it_learns_here(plain, annotated, tmp_path, device, monkeypatch):
    def learned(out, device):
        for iterations in (3, 5):  # it stops, and goes on
            lesson = annotated_lesson(*annotated, config=plain, iterations=iterations, validate=0.4)
            train(lesson, tmp_path / out, workers=0, threads=1, device=device)
        return read_checkpoint(tmp_path / out / "model.safetensors").tensors

    here = learned("here", "cpu")
    with pretended(monkeypatch):
        there = learned("there", device)
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert torch.allclose(tensor.float(), there[name].float(), atol=1e-3), name


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_mixed_precision_averages_and_help_go_there_too(
    config, annotated, tmp_path, device, monkeypatch
):
    with pretended(monkeypatch):
        for iterations in (2, 3):
            lesson = annotated_lesson(*annotated, config=config, iterations=iterations)
            train(lesson, tmp_path / "out", workers=0, threads=1, device=device)
    weights = read_checkpoint(tmp_path / "out" / "model.safetensors").tensors
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    state = torch.load(tmp_path / "out" / "training.pt")
    assert bool(state["scaler"]) == (device == "cuda")  # float16 there, bfloat16 elsewhere
