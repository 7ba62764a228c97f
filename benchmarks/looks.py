"""Hold simulated slices against real ones: pictures side by side, histograms, spectra.

    ZARRMASK_SHARED=... python benchmarks/looks.py DIR [--slices 60] [--seed 7]

Writes `side_by_side.png` (two real slices, then simulated ones), `histograms.png` and `spectra.png`
into DIR, and prints the table of the model card. Real slices are not ours to publish, nor are the
pictures.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from real_slices import frames, grey

from zarrmask.phantom import simulate

SIDE = 320
"""Pixels of a slice's shorter side, as the network sees it: all are compared at that size."""
BANDS = ((1 / 128, 1 / 32), (1 / 32, 1 / 8), (1 / 8, 1 / 2))
"""Cycles a pixel, from shapes over sheets to noise."""
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Look:
    """A slice (h, w), and where its papyrus is."""

    image: Image
    inside: Mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slices", type=int, default=60, help="simulated slices to draw")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if "ZARRMASK_SHARED" not in os.environ:
        raise SystemExit("ZARRMASK_SHARED has to name the folder with the real slices")
    options.folder.mkdir(parents=True, exist_ok=True)
    real = list(real_looks(Path(os.environ["ZARRMASK_SHARED"]) / "data"))
    simulated = list(simulated_looks(options.slices, options.seed))
    draw_side_by_side(real, simulated, options.folder / "side_by_side.png")
    kinds = {"real": real, "simulated": simulated}
    draw_histograms(kinds, options.folder / "histograms.png")
    draw_spectra(kinds, options.folder / "spectra.png")
    print_table(kinds)


def real_looks(folder: Path) -> Iterator[Look]:
    """The two traced slices."""
    frame = list(frames(folder / "scroll1.mp4"))[150]
    for image, truth in (
        (grey(folder / "07000.jpg"), "07000_mask.png"),
        (frame, "scroll1_frame150_mask.png"),
    ):
        scale = SIDE / min(image.shape)
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        inside = cv2.resize(grey(folder / truth), size, interpolation=cv2.INTER_AREA) > 127
        shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        yield Look(np.asarray(shrunk, np.uint8), np.asarray(inside))


def simulated_looks(count: int, seed: int) -> Iterator[Look]:
    """Simulated slices with papyrus."""
    for number in range(count):
        image, pieces = simulate(np.random.default_rng([seed, number]), SIDE, empty=0.0)
        yield Look(image, np.any(pieces, axis=0))


def part(look: Look, inside: bool) -> NDArray[np.float64]:
    """Grey values inside, or outside, that are not at the ends of the range."""
    values: NDArray[np.float64] = look.image[look.inside == inside].astype(float)
    return values[(values > 0) & (values < 255)]


def spectrum(look: Look) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Power by frequency, cycles a pixel, in the middle of the papyrus; its sum is 1."""
    rows, columns = np.nonzero(look.inside)
    y, x = int(np.median(rows)), int(np.median(columns))
    crop = look.image[max(y - 64, 0) :, max(x - 64, 0) :][:128, :128].astype(float)
    side = min(crop.shape)
    window = np.hanning(side)[:, None] * np.hanning(side)
    power = np.abs(np.fft.fft2((crop[:side, :side] - crop.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    edges = np.geomspace(1 / 128, 1 / 2, 25)
    total, _ = np.histogram(radius, edges, weights=power)
    there = np.histogram(radius, edges)[0] > 0
    return np.sqrt(edges[1:] * edges[:-1])[there], total[there] / max(total.sum(), 1e-9)


def measures(look: Look) -> dict[str, float]:
    """What the table says of a slice."""
    inside, outside = part(look, True), part(look, False)
    frequency, power = spectrum(look)
    found = {
        "grey of papyrus, mean": inside.mean() if inside.size else np.nan,
        "grey of papyrus, deviation": inside.std() if inside.size else np.nan,
        "grey outside, mean": outside.mean() if outside.size else np.nan,
        "share of the slice that is papyrus": look.inside.mean(),
    }
    for low, high in BANDS:
        share = power[(frequency >= low) & (frequency < high)].sum()
        found[f"power from 1/{round(1 / low)} to 1/{round(1 / high)} cycles a pixel"] = share
    return {name: float(value) for name, value in found.items()}


def print_table(kinds: Mapping[str, Sequence[Look]]) -> None:
    """Each real slice, and where simulated ones lie."""
    real = [measures(look) for look in kinds["real"]]
    simulated = [measures(look) for look in kinds["simulated"]]
    print("| | 07000 | frame 150 | simulated: 5th, 50th, 95th percentile |\n|---|---|---|---|")
    for name in real[0]:
        low, middle, high = np.nanpercentile([found[name] for found in simulated], [5, 50, 95])
        cells = [f"{found[name]:.3g}" for found in real]
        print(f"| {name} | {' | '.join(cells)} | {low:.3g}, {middle:.3g}, {high:.3g} |")


def draw_side_by_side(real: Sequence[Look], simulated: Sequence[Look], path: Path) -> None:
    """Draw real slices, and as many rows of simulated ones, with papyrus outlined."""
    shown = [*real, *simulated[:10]]
    figure, axes = plt.subplots(3, 4, figsize=(16, 11))
    for axis, look in zip(axes.flat, shown, strict=False):
        axis.imshow(look.image, cmap="gray", vmin=0, vmax=255)
        axis.contour(look.inside, levels=[0.5], colors="orange", linewidths=0.8)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, ["real: 07000", "real: frame 150"], strict=False):
        axis.set_title(name)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_histograms(kinds: Mapping[str, Sequence[Look]], path: Path) -> None:
    """Draw grey values of papyrus and of all else."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, inside in zip(axes, (True, False), strict=True):
        for kind, looks in kinds.items():
            values = np.concatenate([part(look, inside) for look in looks])
            axis.hist(values, bins=64, range=(0, 256), density=True, histtype="step", label=kind)
        axis.set(title="papyrus" if inside else "all else", xlabel="grey value")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_spectra(kinds: Mapping[str, Sequence[Look]], path: Path) -> None:
    """Draw the power within papyrus by frequency."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for look in kinds["simulated"]:
        axis.loglog(*spectrum(look), color="tab:orange", alpha=0.15)
    for look in kinds["real"]:
        axis.loglog(*spectrum(look), color="tab:blue")
    axis.set(title="real (blue), simulated (orange)", xlabel="cycles a pixel", ylabel="power")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
