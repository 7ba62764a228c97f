"""Shift how sure a checkpoint has to be (of a pixel, of a piece), and how large its boxes are.

    python benchmarks/calibrate.py CHECKPOINT [--slices 100]
    python benchmarks/calibrate.py CHECKPOINT --pixels 0.4 --pieces 1.0 --boxes 0.05 --out OUT

A pixel counts where its logit is above 0, a piece where its score is above 0.1; shifts are taken
off the last biases. Boxes grow by a share of their sides: a mask cannot reach beyond its box. The
first command prints what some shifts do on simulated slices, with papyrus and without; the second
writes a checkpoint with some. CHECKPOINT is .safetensors, its config beside it.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from average import save_like
from checkpoint import after_dilation, finder, iou
from safetensors.torch import load_file

from zarrmask.detection.config import read_config
from zarrmask.phantom import simulate

PIXELS = "roi_heads.mask_head.predictor.bias"
PIECES = "roi_heads.box_predictor.cls_score.bias"
BOXES = "roi_heads.box_predictor.bbox_pred.bias"


@dataclass(frozen=True)
class Shift:
    """Logits that are taken off pixels and pieces, and the share by which boxes grow."""

    pixels: float = 0.0
    pieces: float = 0.0
    boxes: float = 0.0


SHIFTS = (
    *(Shift(pixels=pixels) for pixels in (0.0, 0.4, 0.8, 1.2)),
    *(Shift(pieces=pieces) for pieces in (0.75, 1.5, 3.0)),
    *(Shift(boxes=boxes) for boxes in (0.02, 0.05, 0.1)),
)
SEED = 20261124  # neither training's nor `checkpoint.py`'s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--slices", type=int, default=100, help="simulated slices to draw")
    parser.add_argument("--pixels", type=float, default=0.0, help="shift of the mask head")
    parser.add_argument("--pieces", type=float, default=0.0, help="shift of the box head")
    parser.add_argument("--boxes", type=float, default=0.0, help="share by which boxes grow")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shift = Shift(options.pixels, options.pieces, options.boxes)
    if options.out:
        shifted(options.checkpoint, shift, options.out)
    else:
        chosen = SHIFTS if shift == Shift() else (shift,)
        print_table(options.checkpoint, options.slices, chosen)


def print_table(checkpoint: Path, count: int, shifts: Iterable[Shift]) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    slices = []
    for number in range(count):
        image, parts = simulate(np.random.default_rng([SEED, number]), 320, empty=0.0)
        slices.append((image, np.any(parts, axis=0)))
    empty = [
        simulate(np.random.default_rng([SEED, 1, number]), 320, empty=1.0)[0]
        for number in range(count)
    ]
    print("| pixels, pieces, boxes | IoU: mean | 10th percentile | lost after dilation ", end="")
    print(f"| kept beyond it | of {count} without papyrus |\n|---|---|---|---|---|---|")
    for shift in shifts:
        with TemporaryDirectory() as folder:
            find = finder(shifted(checkpoint, shift, Path(folder) / "tried.safetensors"))
        masks = [(find(image), truth) for image, truth in slices]
        found = [iou(mask, truth) for mask, truth in masks]
        lost, surplus = np.mean([after_dilation(*pair) for pair in masks], axis=0)
        false = sum(find(image).any() for image in empty)
        print(
            f"| {shift.pixels}, {shift.pieces}, {shift.boxes} | {np.mean(found):.3f} "
            f"| {np.percentile(found, 10):.3f} | {lost:.2%} | {surplus:.2%} | {false} |",
            flush=True,
        )


def shifted(checkpoint: Path, shift: Shift, out: Path) -> Path:
    """Write a checkpoint, and its config, that is shifted; give `out`."""
    tensors = load_file(checkpoint)
    tensors[PIXELS] = tensors[PIXELS] - shift.pixels
    tensors[PIECES] = tensors[PIECES].clone()
    tensors[PIECES][:-1] -= shift.pieces  # the last is the background's
    sides = tensors[BOXES].clone().view(-1, 4)  # of each class: x, y, log width, log height
    weights = torch.tensor(read_config(checkpoint.with_suffix(".yaml")).box_weights)
    sides[:, 2:] += weights[2:].to(sides) * log(1 + shift.boxes)
    tensors[BOXES] = sides.flatten()
    save_like(checkpoint, tensors, out)
    return out


if __name__ == "__main__":
    main()
