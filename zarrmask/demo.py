"""A simulated scroll to try zarrmask on, and how well it was masked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zarrmask.errors import OutputError
from zarrmask.masking import KeyframeStore
from zarrmask.masking.overlap import Overlap
from zarrmask.phantom import write_phantom
from zarrmask.progress import Reporter
from zarrmask.pyramid import Shape
from zarrmask.records.journal import Journal
from zarrmask.running.pipeline import run
from zarrmask.storage.atomic import whole_folder

LABEL = "phantom.json"
"""Lies in a finished phantom and says what it is."""


def make_phantom(
    out: Path, shape: Shape, *, seed: int = 0, reporter: Reporter | None = None
) -> None:
    """Write a phantom, whole or not at all, and show how it comes along; see `write_phantom`."""
    with whole_folder(out) as half:
        with (reporter or Reporter()).stage("simulating a scroll", shape[0], "slices") as advance:
            write_phantom(half, shape, seed=seed, progress=advance)
        (half / LABEL).write_text(json.dumps({"shape": shape, "seed": seed}) + "\n")


def demo(
    out: Path, shape: Shape, *, overwrite: bool = False, **options: Any
) -> tuple[dict[str, Any], float]:
    """Make a simulated scroll in `out/stack` and mask it into `out`.

    Parameters
    ----------
    out : Path
        Folder to make.
    shape : (z, y, x)
        Voxels of the simulated stack.
    overwrite : bool
        Replace what an earlier demo left.
    **options
        See `zarrmask.run`.

    Returns
    -------
    record : dict
        See `zarrmask.run`.
    agreement : float
        Intersection over union of the keyframes' masks, not dilated, with the truth.
    """
    out = out.absolute()
    stack = out / "stack"
    reporter = options.setdefault("reporter", Reporter())
    journal = Journal.of_run(out)
    with journal.lock():
        record = journal.read()
        if record is None:
            journal.check({}, overwrite=overwrite)
            journal.start(None)
        elif record["identity"] and not (overwrite or (stack / LABEL).is_file()):
            raise OutputError(
                f"{out} holds a run of another stack; name another output, or replace it with "
                "--overwrite"
            )
        _simulate(stack, shape, overwrite, reporter)
    record = run(stack, out, overwrite=overwrite, **options)
    return record, _agreement(KeyframeStore(out / "keyframes.zarr"), stack / "truth")


def _simulate(stack: Path, shape: Shape, overwrite: bool, reporter: Reporter) -> None:
    """Make the stack unless it is there; one that was stopped half-way is not."""
    label = stack / LABEL
    if label.is_file():
        there = tuple(json.loads(label.read_text())["shape"])
        if there == shape:
            return
        if not overwrite:
            raise OutputError(
                f"{stack} holds a simulated scroll of {there}, not of {shape}; name another "
                "output, or replace it with --overwrite"
            )
        shutil.rmtree(stack)
    make_phantom(stack, shape, reporter=reporter)


def _agreement(store: KeyframeStore, truth: Path) -> float:
    """Intersection over union of the masks of all keyframes that are used with the truth."""
    masks, numbers = store.masks(), store.numbers()
    overlap = Overlap(0, 0, 0)
    for position in store.used().tolist():
        true = np.asarray(Image.open(truth / f"{numbers[position]:05d}.png")) > 0
        overlap += Overlap.of_masks(true, np.asarray(masks[position]) > 0)
    return overlap.iou
