"""How well masks come to all slices, against how many slices the detector sees; and mistakes.

    python benchmarks/keyframes.py OUT [--depths 14376 3000] [--detector 3000] [--film MP4]

Simulated scrolls with their ends, as deep as Scroll 1 and less: keyframes at a fixed interval
whose masks are held, as the replaced scripts do; at a fixed interval, interpolated; and placed
where masks change. The truth stands for a perfect detector; keyframes of it are spoiled on purpose,
too. Then the shipped detector looks. With a film of slices (1 frame a slice), its masks of every
frame stand for the truth; and then what it says of most of the frames around, since there are a few
that it gets wrong. Prints Markdown, and leaves `keyframes.json` and `keyframes.png` in OUT.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from zarrmask.detection.detections import union_mask
from zarrmask.detection.inputs import to_8bit
from zarrmask.detection.load import load_detector
from zarrmask.detection.protocol import detect_one
from zarrmask.masking import Answer, Ask, Placing, Sighting, dilate, kernel_side, seek
from zarrmask.masking.field import UNITS, between, parts_apart, signed_distance
from zarrmask.masking.overlap import Overlap
from zarrmask.masking.sighting import REPLACED
from zarrmask.phantom import Phantom
from zarrmask.phantom.mistakes import MISTAKES
from zarrmask.shipped import DEFAULT_CHECKPOINT

HELD, INTERPOLATED, ADAPTIVE = "every {}, held", "every {}, interpolated", "adaptive, {} %"
INTERVALS = (10, 20, 40, 64)
TOLERANCES = (5, 10, 15, 20)
TOLERANCE = 15
LEAST, MOST = 8, 64
DILATION = 3.0
SIZE, DETECTED_SIZE = (96, 128), (240, 320)
BIG = 0.02
"""Slices count among the big that hold this share of the most that any slice holds."""
SPOILED, SPOILINGS = 0.05, 6
AROUND = 15
"""Frames on either side of one, of which most know better."""

Mask = NDArray[np.bool_]
Masks = Callable[[int], Mask]
Image = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Score:
    """What a way of placing keyframes, and of filling the slices between them, comes to.

    Attributes
    ----------
    way : str
    detections : int
    mean, worst, worst_big : float
        IoU with the truth, no mask dilated: mean over slices, of the worst, and of the worst that
        is not a last crumb of an end.
    lost : float
        Share of the truth of such a slice that is outside the dilated mask, at the most.
    """

    way: str
    detections: int
    mean: float
    worst: float
    worst_big: float
    lost: float


def remembered(draw: Masks) -> Masks:
    """Draw each slice once, and keep it packed."""
    kept: dict[int, tuple[tuple[int, ...], NDArray[np.uint8]]] = {}

    def mask(z: int) -> Mask:
        if z not in kept:
            drawn = draw(z)
            kept[z] = drawn.shape, np.packbits(drawn)
        shape, bits = kept[z]
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)

    return mask


def sighting(mask: Mask) -> Sighting:
    """What a detector that is sure of itself says."""
    scores = np.ones(int(mask.any()), np.float32)
    boxes = np.zeros((len(scores), 4), np.float32)
    return Sighting.of_mask(mask.view(np.uint8) * np.uint8(255), boxes, scores)


def placed(placing: Placing, found: Masks) -> list[int]:
    """Slices that are seen, ascending."""

    def look(position: int) -> Sighting:
        return sighting(found(int(placing.candidates[position])))

    *_, seen = seek(placing, partial(_looks, look), mends=False)
    slices: list[int] = placing.candidates[seen.positions].tolist()
    return slices


def score(way: str, depth: int, truth: Masks, found: Masks, used: list[int], held: bool) -> Score:
    """Compare the masks of all slices with the truth."""
    height, width = truth(0).shape
    side = kernel_side(height, width, DILATION)
    ious, lost, areas = np.ones(depth), np.zeros(depth), np.zeros(depth)
    for one, other in pairwise([*used, depth]):
        slices = range(one, other)
        pairs = (
            _held(found(one), len(slices), side)
            if held or other == depth
            else _interpolated(found(one), found(other), len(slices), side)
        )
        for z, (mask, grown) in zip(slices, pairs, strict=True):
            true = truth(z)
            areas[z] = np.count_nonzero(true)
            ious[z] = Overlap.of_masks(true, mask).iou
            lost[z] = np.count_nonzero(true & ~grown) / max(areas[z], 1)
    big = areas > BIG * areas.max()
    return Score(way, len(used), ious.mean(), ious.min(), ious[big].min(), lost[big].max())


def _held(mask: Mask, count: int, side: int) -> list[tuple[Mask, Mask]]:
    return [(mask, dilate(mask.view(np.uint8), side) > 0)] * count


def _interpolated(one: Mask, other: Mask, count: int, side: int) -> list[tuple[Mask, Mask]]:
    """Masks from one keyframe to before another, and grown: as `FieldStore` and its readers do."""
    fields = signed_distance(one), signed_distance(other)
    apart = parts_apart(one, other, fields)
    kept = signed_distance(apart) if apart.any() else None
    slices = [between(*fields, n / count, kept) for n in range(count)]
    return [(field > 0, field > -side / 2 * UNITS) for field in slices]


def compare(depth: int, truth: Masks, found: Masks) -> list[Score]:
    """Score all ways."""
    there = np.arange(depth)
    scores = []
    for every in INTERVALS:
        fixed = Placing.fixed(there, every).candidates.tolist()
        scores.append(score(HELD.format(every), depth, truth, found, fixed, True))
        last = sorted({*fixed, depth - 1})
        scores.append(score(INTERPOLATED.format(every), depth, truth, found, last, False))
    for tolerance in TOLERANCES:
        used = placed(Placing.adaptive(there, LEAST, MOST, tolerance), found)
        way = ADAPTIVE.format(tolerance)
        scores.append(score(way, depth, truth, found, used, False))
    return scores


def finder() -> Callable[[Image], Mask]:
    """The shipped detector, on one thread."""
    torch.set_num_threads(1)
    detector = load_detector(DEFAULT_CHECKPOINT, device="cpu", score_threshold=0.1)

    def find(image: Image) -> Mask:
        found = detect_one(detector, to_8bit(image))
        return union_mask(found, (image.shape[0], image.shape[1])) > 0

    return find


def film_masks(film: Path, find: Callable[[Image], Mask]) -> list[Mask]:
    """What is found on every frame, at half the size."""
    frames, masks = cv2.VideoCapture(str(film)), []
    while (read := frames.read())[0]:
        mask = find(cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY))
        masks.append(mask[::2, ::2].copy())
    return masks


def usual_masks(masks: Sequence[Mask]) -> list[Mask]:
    """What most masks show of those around each."""
    usual = []
    for n in range(len(masks)):
        near = masks[max(0, n - AROUND) : n + AROUND + 1]
        usual.append(np.asarray(np.mean(near, axis=0) > 0.5))
    return usual


def _looks(
    look: Callable[[int], Sighting], ask: Callable[[], Sequence[Ask]]
) -> Iterator[tuple[Ask, Answer]]:
    """Look at all that is asked for; a second look sees nothing else."""
    while asks := ask():
        for one in asks:
            yield one, look(one) if isinstance(one, int) else None


def spoil(depth: int, truth: Masks, placing: Placing) -> Counter[str]:
    """Count the keyframes that are spoiled, and those that are taken for it; by kind."""
    tally: Counter[str] = Counter()
    for seed in range(SPOILINGS):
        spoiled: dict[int, str] = {}

        def look(position: int, seed: int = seed, spoiled: dict[int, str] = spoiled) -> Sighting:
            rng = np.random.default_rng([seed, position])
            mask = truth(int(placing.candidates[position]))
            if rng.random() < SPOILED:
                kind = str(rng.choice(list(MISTAKES)))
                mistaken = MISTAKES[kind](mask, rng)
                if (mistaken != mask).any():
                    mask, spoiled[position] = mistaken, kind
            return sighting(mask)

        *_, found = seek(placing, partial(_looks, look), mends=True)
        replaced = set(found.positions[found.states == REPLACED].tolist())
        tally.update(spoiled.values())
        tally.update(f"{kind}, caught" for n, kind in spoiled.items() if n in replaced)
        tally["good"] += len(found.positions) - len(spoiled)
        tally["good, touched"] += len(replaced - set(spoiled))
    return tally


def draw(figures: dict[str, list[Score]], path: Path) -> None:
    """Draw IoU over detections, a column a scroll: above the mean, below the worst slice."""
    figure = Figure(figsize=(4.2 * len(figures), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(figures), squeeze=False, sharex="col")
    for column, (name, scores) in enumerate(figures.items()):
        for row, (value, label) in enumerate(
            (("mean", "mean IoU"), ("worst_big", "IoU of the worst slice"))
        ):
            plot = axes[row][column]
            for kind, marker in (("held", "s"), ("interpolated", "o"), ("adaptive", "D")):
                chosen = sorted(
                    (one for one in scores if kind in one.way), key=lambda one: one.detections
                )
                counts = [one.detections for one in chosen]
                plot.plot(
                    counts, [getattr(one, value) for one in chosen], marker, ls="-", label=kind
                )
            plot.set_xscale("log")
            plot.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            plot.xaxis.set_minor_formatter(NullFormatter())
            plot.grid(alpha=0.3, which="both")
            plot.set_ylabel(label)
            if not row:
                plot.set_title(name, fontsize=10)
        axes[1][column].set_xlabel("detections")
    axes[0][0].legend()
    figure.savefig(path, dpi=90)


def table(scores: list[Score]) -> str:
    """Write scores as Markdown."""
    lines = [
        "| | detections | mean IoU | worst | worst, no crumbs | most lost, dilated |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.way} | {one.detections:,} | {one.mean:.4f} | {one.worst:.3f} | "
        f"{one.worst_big:.3f} | {one.lost:.1%} |"
        for one in scores
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--depths", type=int, nargs="*", default=[14376, 3000])
    parser.add_argument("--detector", type=int, default=3000, help="slices; 0 for none")
    parser.add_argument("--film", type=Path, help="of slices, such as scroll1.mp4")
    parser.add_argument("--seed", type=int, default=4)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[Score]] = {}
    mistakes: dict[str, Counter[str]] = {}

    def tell(name: str, scores: list[Score]) -> None:
        figures[name] = scores
        print(f"\n{name}\n\n{table(scores)}", flush=True)

    for depth in options.depths:
        truth = remembered(Phantom((depth, *SIZE), options.seed).truth)
        tell(f"{depth:,} simulated slices, truth", compare(depth, truth, truth))
        for name, placing in (
            ("every 10", Placing.fixed(np.arange(depth), 10)),
            ("adaptive", Placing.adaptive(np.arange(depth), LEAST, MOST, TOLERANCE)),
        ):
            tally = mistakes[f"{depth:,} slices, {name}"] = spoil(depth, truth, placing)
            count, caught = (
                sum(tally[kind + end] for kind in MISTAKES) for end in ("", ", caught")
            )
            print(
                f"\n{depth:,} slices, {name}: {caught} of {count} spoiled keyframes caught, "
                f"{tally['good, touched']} of {tally['good']} good ones touched: {dict(tally)}",
                flush=True,
            )
    if options.detector or options.film:
        find = finder()
    if depth := options.detector:
        phantom = Phantom((depth, *DETECTED_SIZE), options.seed)
        found = remembered(lambda z: find(phantom.slice(z)[0]))
        tell(
            f"{depth:,} simulated slices, detector",
            compare(depth, remembered(phantom.truth), found),
        )
    if options.film:
        masks = film_masks(options.film, find)
        for name, true in (("each", masks), ("most", usual_masks(masks))):
            tell(
                f"{len(masks)} real slices, {name}",
                compare(len(masks), true.__getitem__, masks.__getitem__),
            )
    draw(figures, options.out / "keyframes.png")
    content = {
        "scores": {name: [asdict(one) for one in scores] for name, scores in figures.items()},
        "mistakes": mistakes,
    }
    (options.out / "keyframes.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
