"""Shift how sure the mask head has to be of a pixel.

    python benchmarks/calibrate.py CHECKPOINT [--slices 100]
    python benchmarks/calibrate.py CHECKPOINT --shift 1.2 --out OUT

A pixel counts where its logit is above 0; a shift is taken off the last bias. The first
command prints what some shifts do to masks of simulated slices, before and after the default
dilation; the second writes a checkpoint with one. CHECKPOINT is .safetensors, its config beside it.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from checkpoint import after_dilation, finder, iou
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zarrmask.phantom import simulate

BIAS = "roi_heads.mask_head.predictor.bias"
SHIFTS = np.arange(0.0, 2.01, 0.4).round(1)
SEED = 20261124  # neither training's nor `checkpoint.py`'s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--slices", type=int, default=100, help="simulated slices to draw")
    parser.add_argument("--shift", type=float)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (options.shift is None) != (options.out is None):
        parser.error("--shift and --out go together")
    if options.out:
        shifted(options.checkpoint, options.shift, options.out)
    else:
        print_table(options.checkpoint, options.slices)


def print_table(checkpoint: Path, count: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    slices = []
    for number in range(count):
        image, pieces = simulate(np.random.default_rng([SEED, number]), 320, empty=0.0)
        slices.append((image, np.any(pieces, axis=0)))
    print("| shift | IoU: mean | 10th percentile | lost after dilation | kept beyond it |")
    print("|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for shift in SHIFTS.tolist():
            find = finder(shifted(checkpoint, shift, Path(folder) / "tried.safetensors"))
            masks = [(find(image), truth) for image, truth in slices]
            found = [iou(mask, truth) for mask, truth in masks]
            lost, surplus = np.mean([after_dilation(*pair) for pair in masks], axis=0)
            print(
                f"| {shift} | {np.mean(found):.3f} | {np.percentile(found, 10):.3f} "
                f"| {lost:.2%} | {surplus:.2%} |",
                flush=True,
            )


def shifted(checkpoint: Path, shift: float, out: Path) -> Path:
    """Write a checkpoint, and its config, whose masks need logits higher by `shift`; give `out`."""
    tensors = load_file(checkpoint)
    tensors[BIAS] = tensors[BIAS] - shift
    with safe_open(checkpoint, "pt") as file:
        save_file(tensors, out, metadata=file.metadata())
    shutil.copyfile(checkpoint.with_suffix(".yaml"), out.with_suffix(".yaml"))
    return out


if __name__ == "__main__":
    main()
