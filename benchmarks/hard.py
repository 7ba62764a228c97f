"""Find the simulated slices that a checkpoint fails on, to train it on with these shown more often.

    python benchmarks/hard.py CHECKPOINT [--config CONFIG] [--first 0] [--slices 12000]

Draws numbered slices as a training by that config draws them, and prints a config that is based on
it and names those it fails on (`ZARRMASK.MISSED`: an IoU below 0.9; `ZARRMASK.MISTAKEN`: without
papyrus, and something is found that scores above 0.05). Every core looks.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from checkpoint import iou
from dask.system import CPU_COUNT as CORES

from zarrmask.detection.config_file import read_documents
from zarrmask.detection.detections import union_mask
from zarrmask.detection.load import load_detector
from zarrmask.detection.protocol import Detector, detect_one
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.training.recipe import Recipe, interpret_training
from zarrmask.training.simulated import PHANTOM, numbered_slice

SCORE, UNSURE, GOOD = 0.1, 0.05, 0.9
AT_ONCE = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--config", type=Path, default=PHANTOM, help="of the training")
    parser.add_argument("--first", type=int, default=0, help="number to begin with")
    parser.add_argument("--slices", type=int, default=12000, help="how many to look at")
    options = parser.parse_args()
    _, recipe = interpret_training(read_documents(options.config), str(options.config))
    numbers = range(options.first, options.first + options.slices)
    found: dict[str, list[int]] = {"MISSED": [], "MISTAKEN": []}
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        look = partial(failure, options.checkpoint, recipe)
        for number, name in zip(numbers, pool.map(look, numbers, chunksize=AT_ONCE), strict=True):
            if name:
                found[name].append(number)
    config = {"_BASE_": str(options.config.resolve()), "ZARRMASK": found}
    print(yaml.safe_dump(config, default_flow_style=None, width=160, sort_keys=False), end="")


def failure(checkpoint: Path, recipe: Recipe, number: int) -> str | None:
    """How a checkpoint fails on a slice, if it does: the key that its number belongs to."""
    detector = loaded(checkpoint)
    image, pieces = numbered_slice(recipe, number)
    shape = (image.shape[0], image.shape[1])
    found = detect_one(detector, image)
    if not len(pieces):
        return "MISTAKEN" if len(found) else None
    good = iou(union_mask(found.above(SCORE), shape) > 0, np.any(pieces, axis=0)) >= GOOD
    return None if good else "MISSED"


@cache
def loaded(checkpoint: Path) -> Detector:
    """Load it, once a process, which it has for itself on one core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return load_detector(checkpoint, score_threshold=UNSURE)


if __name__ == "__main__":
    main()
