"""Shift how sure a checkpoint has to be: the mask head of a pixel, the box head of a piece.

    python benchmarks/calibrate.py CHECKPOINT [--slices 100]
    python benchmarks/calibrate.py CHECKPOINT --pixels 0.4 --pieces 1.0 --out OUT

A pixel counts where its logit is above 0, a piece where its score is above 0.1; shifts are taken
off the last biases. The first command prints what some shifts do on simulated slices, with papyrus
and without; the second writes a checkpoint with some. CHECKPOINT is .safetensors, its config beside
it.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from checkpoint import after_dilation, finder, iou
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zarrmask.phantom import simulate

PIXELS = "roi_heads.mask_head.predictor.bias"
PIECES = "roi_heads.box_predictor.cls_score.bias"
SHIFTS = (
    *((pixels, 0.0) for pixels in (0.0, 0.4, 0.8, 1.2)),
    *((0.0, n) for n in (0.75, 1.5, 3.0)),
)
SEED = 20261124  # neither training's nor `checkpoint.py`'s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--slices", type=int, default=100, help="simulated slices to draw")
    parser.add_argument("--pixels", type=float, default=0.0, help="shift of the mask head")
    parser.add_argument("--pieces", type=float, default=0.0, help="shift of the box head")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.out:
        shifted(options.checkpoint, options.pixels, options.pieces, options.out)
    elif options.pixels or options.pieces:
        print_table(options.checkpoint, options.slices, [(options.pixels, options.pieces)])
    else:
        print_table(options.checkpoint, options.slices, SHIFTS)


def print_table(checkpoint: Path, count: int, shifts: Iterable[tuple[float, float]]) -> None:
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
    print("| pixels, pieces | IoU: mean | 10th percentile | lost after dilation ", end="")
    print(f"| kept beyond it | of {count} without papyrus |\n|---|---|---|---|---|---|")
    for pixels, pieces in shifts:
        with TemporaryDirectory() as folder:
            find = finder(shifted(checkpoint, pixels, pieces, Path(folder) / "tried.safetensors"))
        masks = [(find(image), truth) for image, truth in slices]
        found = [iou(mask, truth) for mask, truth in masks]
        lost, surplus = np.mean([after_dilation(*pair) for pair in masks], axis=0)
        print(
            f"| {pixels}, {pieces} | {np.mean(found):.3f} | {np.percentile(found, 10):.3f} "
            f"| {lost:.2%} | {surplus:.2%} | {sum(find(image).any() for image in empty)} |",
            flush=True,
        )


def shifted(checkpoint: Path, pixels: float, pieces: float, out: Path) -> Path:
    """Write a checkpoint, and its config, that has to be surer by some logits; give `out`."""
    tensors = load_file(checkpoint)
    tensors[PIXELS] = tensors[PIXELS] - pixels
    tensors[PIECES] = tensors[PIECES].clone()
    tensors[PIECES][:-1] -= pieces  # the last is the background's
    with safe_open(checkpoint, "pt") as file:
        save_file(tensors, out, metadata=file.metadata())
    shutil.copyfile(checkpoint.with_suffix(".yaml"), out.with_suffix(".yaml"))
    return out


if __name__ == "__main__":
    main()
