"""Print the figures of a checkpoint's model card.

    python benchmarks/checkpoint.py [CHECKPOINT] [--slices 200] [--mirrored]

The rows on real slices need the folder that ZARRMASK_SHARED names.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from real_slices import frames, grey

from zarrmask.detection.detections import union_mask
from zarrmask.detection.load import load_detector
from zarrmask.detection.protocol import detect_one
from zarrmask.masking import kernel_side
from zarrmask.masking.field import grown
from zarrmask.phantom import simulate
from zarrmask.phantom.photograph import photograph
from zarrmask.settings import read_settings
from zarrmask.shipped import DEFAULT_CHECKPOINT

SEED_ALTERED, ALTERED = 20261127, 50
"""Of altered real slices; how many of each."""
FIELDS = (1.5, 2.0, 3.0)
"""Times as wide as a real slice: fields in which it is small."""
SIZES = {
    "of 330 to 1,100 pixels, as real ones are shown": ((330, 1100), (20261129, 20261130)),
    "of 320 pixels": ((320, 320), (20261122, 20261123)),
}
"""Of simulated slices: what they are called, their shorter sides from and to, and seeds that
training never uses, of those with papyrus and of those without."""
KINDS = {
    "as scrolls in their cases usually look": {"odd": 0.0},
    "odd, from a scroll's middle": {"odd": 1.0, "ends": 0.0},
    "odd, from near its ends": {"odd": 1.0, "ends": 1.0},
}
"""Of simulated slices with papyrus: what they are, and how `simulate` is told."""
Mask = NDArray[np.bool_]
Find = Callable[[NDArray[np.uint8]], Mask]
Traced = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""A slice, and its mask."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--slices", type=int, default=200, help="simulated slices to draw")
    parser.add_argument("--mirrored", action="store_true", help="look at mirror images too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    find = finder(arguments.checkpoint, mirrored=arguments.mirrored)

    print("| | |\n|---|---|")
    row("file", f"{arguments.checkpoint.stat().st_size / 1e6:.1f} MB")
    for name, value in (
        *on_simulated(find, arguments.slices),
        *on_kinds(find, arguments.slices // 2),
    ):
        row(name, value)
    if "ZARRMASK_SHARED" in os.environ:
        folder = Path(os.environ["ZARRMASK_SHARED"]) / "data"
        traced = list(traced_slices(folder))
        for name, value in (
            *on_real(find, folder),
            *in_fields(find, traced),
            *on_altered(find, traced, ALTERED),
        ):
            row(name, value)


def row(name: str, value: str) -> None:
    print(f"| {name} | {value} |", flush=True)


def finder(checkpoint: Path, *, mirrored: bool = False) -> Find:
    """Give a function from a slice (h, w) to its undilated union mask at score 0.1."""
    detector = load_detector(checkpoint, score_threshold=0.1, mirrored=mirrored)

    def find(image: NDArray[np.uint8]) -> Mask:
        return union_mask(detect_one(detector, image), (image.shape[0], image.shape[1])) > 0

    return find


def iou(found: Mask, truth: Mask) -> float:
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def on_simulated(find: Find, count: int) -> Iterator[tuple[str, str]]:
    """Slices with papyrus and without, of several sizes and of one."""
    for name, (sides, (seed, seed_empty)) in SIZES.items():
        scores, seconds = [], 0.0
        for number in range(count):
            image, pieces = drawn(seed, number, sides, empty=0.0)
            start = time.perf_counter()
            found = find(image)
            seconds += time.perf_counter() - start
            scores.append(iou(found, np.any(pieces, axis=0)))
        lower, middle = np.percentile(scores, [10, 50])
        yield (
            f"IoU on {count} simulated slices {name}: mean, median, 10th percentile",
            f"{np.mean(scores):.3f} / {middle:.3f} / {lower:.3f}",
        )
        false = sum(
            find(drawn(seed_empty, number, sides, empty=1.0)[0]).any() for number in range(count)
        )
        yield "such ones without papyrus on which something is found", f"{false} of {count}"
        yield "seconds a slice, one thread", f"{seconds / count:.2f}"


def drawn(
    seed: int, number: int, sides: tuple[int, int], *, empty: float
) -> tuple[NDArray[np.uint8], list[Mask]]:
    """Simulate one slice of a seed, whose shorter side is drawn as well where it may differ."""
    rng = np.random.default_rng([seed, number])
    first, last = sides
    side = first if first == last else int(rng.integers(first, last + 1))
    return simulate(rng, side, empty=empty)


def on_kinds(find: Find, count: int) -> Iterator[tuple[str, str]]:
    """Each kind of simulated slices by itself; what is in pieces, apart from what is whole."""
    for place, (kind, how) in enumerate(KINDS.items()):
        scores: dict[bool, list[float]] = {False: [], True: []}
        for number in range(count):
            rng = np.random.default_rng([20261128, place, number])
            image, pieces = simulate(rng, 320, empty=0.0, **how)
            scores[len(pieces) > 1].append(iou(find(image), np.any(pieces, axis=0)))
        for apart, some in scores.items():
            if some:
                name = f"IoU on {len(some)} {kind}, {'in pieces' if apart else 'in one piece'}"
                lower, middle = np.percentile(some, [10, 50])
                yield (
                    f"{name}: mean, median, 10th percentile",
                    f"{np.mean(some):.3f} / {middle:.3f} / {lower:.3f}",
                )


def on_real(find: Find, folder: Path) -> Iterator[tuple[str, str]]:
    """The hand-traced slices, and every frame of the film."""
    image = grey(folder / "07000.jpg")
    truth = grey(folder / "07000_mask.png") > 0
    yield from against_truth("real slice 07000", find(image), truth)
    truth = grey(folder / "scroll1_frame150_mask.png") > 0
    masks = [find(frame) for frame in frames(folder / "scroll1.mp4")]
    yield from against_truth("frame 150 of the film", masks[150], truth)
    areas = np.array([mask.mean() for mask in masks])
    jumps = np.abs(np.diff(areas)) / np.maximum(areas[:-1], 1e-9)
    yield "frames of the film without a detection", f"{(areas == 0).sum()} of {len(areas)}"
    yield (
        "area along the film over that of frame 150's truth: least, greatest",
        " / ".join(
            f"{value:.3f}" for value in (areas.min() / truth.mean(), areas.max() / truth.mean())
        ),
    )
    yield (
        "change of area from frame to frame: mean, greatest",
        (f"{jumps.mean():.2%} / {jumps.max():.2%}"),
    )
    yield (
        "least IoU of neighbouring frames' masks",
        (f"{min(iou(a, b) for a, b in pairwise(masks)):.3f}"),
    )


def in_fields(find: Find, slices: Sequence[Traced]) -> Iterator[tuple[str, str]]:
    """The traced slices as a scanner with a larger field of view would show them."""
    for times in FIELDS:
        said = []
        for image, traced in slices:
            field, truth = in_field(image, traced, times)
            found = find(field)
            lost, surplus = after_dilation(found, truth)
            said.append(f"{iou_but_for_band(found, truth):.3f} / {lost:.2%} / {surplus:.2%}")
        yield (
            f"both in a field {times:g} times as wide: IoU but for the band / lost / kept beyond",
            "; ".join(said),
        )


def in_field(
    image: NDArray[np.uint8], traced: NDArray[np.uint8], times: float
) -> tuple[NDArray[np.uint8], Mask]:
    """Put a slice in the middle of a field so many times as high and wide, of noisy air."""
    margins = [round(side * (times - 1) / 2) for side in image.shape]
    truth = np.pad(traced > 0, [(margin, margin) for margin in margins])
    air = np.random.default_rng(SEED_ALTERED).normal(0, 3, truth.shape)
    field = (air + np.percentile(image[traced == 0], 25)).round().astype(np.uint8)
    field[tuple(slice(margin, -margin) for margin in margins)] = image
    return field, truth


def traced_slices(folder: Path) -> Iterator[Traced]:
    """The real slices that were traced, and their masks."""
    yield grey(folder / "07000.jpg"), grey(folder / "07000_mask.png")
    frame = next(islice(frames(folder / "scroll1.mp4"), 150, None))
    yield frame, grey(folder / "scroll1_frame150_mask.png")


def on_altered(find: Find, slices: Sequence[Traced], count: int) -> Iterator[tuple[str, str]]:
    """The traced slices as others might show them: cropped, of other sizes, other contrast."""
    scores = []
    for image, traced in slices:
        for number in range(count):
            rng = np.random.default_rng([SEED_ALTERED, number])
            shown, truth = altered(rng, image, traced)
            scores.append(iou_but_for_band(find(shown), truth))
    lower, middle = np.percentile(scores, [10, 50])
    yield (
        f"IoU but for the band on {2 * count} altered forms of these two: mean, median, "
        "10th percentile, least",
        f"{np.mean(scores):.3f} / {middle:.3f} / {lower:.3f} / {min(scores):.3f}",
    )


def altered(
    rng: np.random.Generator, image: NDArray[np.uint8], traced: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], Mask]:
    """Crop up to a sixth off each side, bring to 330 to 1,100 pixels, and photograph."""
    height, width = image.shape
    top, bottom, left, right = rng.uniform(0, 1 / 6, 4) * (height, height, width, width)
    crop = slice(int(top), height - int(bottom)), slice(int(left), width - int(right))
    scale = rng.uniform(330, 1100) / min(image[crop].shape)
    flip = slice(None, None, int(rng.choice([-1, 1])))
    image, traced = (
        np.asarray(cv2.resize(part[crop], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        for part in (image, traced)
    )
    shown = photograph(rng, image.astype(np.float32) / np.float32(255))
    return np.ascontiguousarray(shown[:, flip]), traced[:, flip] > 127


def iou_but_for_band(found: Mask, truth: Mask) -> float:
    """IoU where the traced edge is not near."""
    sure = ~edge(truth, max(2.0, 0.005 * max(truth.shape)))
    return iou(found & sure, truth & sure)


def against_truth(name: str, found: Mask, truth: Mask) -> Iterator[tuple[str, str]]:
    """What a traced slice says of a mask, before and after the default dilation."""
    lost, surplus = after_dilation(found, truth)
    band = iou_but_for_band(found, truth)
    yield (
        f"IoU on {name}; but for a band along its traced edge",
        f"{iou(found, truth):.3f} / {band:.3f}",
    )
    yield "of its traced area lost after dilation; kept beyond it", f"{lost:.2%} / {surplus:.2%}"


def after_dilation(found: Mask, truth: Mask) -> tuple[float, float]:
    """What the dilated mask lacks, and what it has beyond the dilated truth, of the true area."""
    height, width = truth.shape
    side = kernel_side(height, width, read_settings().dilate)
    after, allowed = (grown(mask.astype(np.uint8), side / 2) > 0 for mask in (found, truth))
    area = max(truth.sum(), 1)
    return float((truth & ~after).sum() / area), float((after & ~allowed).sum() / area)


def edge(truth: Mask, width: float) -> Mask:
    """Pixels that lie no farther than `width` from the edge of a mask."""
    inner, outer = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for part in (truth, ~truth)
    )
    return np.asarray((inner + outer) <= width)


if __name__ == "__main__":
    main()
