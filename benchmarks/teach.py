"""How much fine-tuning teaches, and how much it makes a network forget.

    python benchmarks/teach.py [--iterations 120] [--slices 60] [--only NAME ...]

Two lessons from the bundled checkpoint, by configs/finetune.yaml and by variants of it:

- an object that it does not know: 16 annotated slices of a porous bone in a tube of foam, judged
  by other such slices;
- nothing new: the keyframes of a run on a simulated scroll, as that run saw them,
  judged by simulated slices of other scrolls. What is worse after that was forgotten.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from checkpoint import SIZES, drawn, finder, iou
from numpy.typing import NDArray

import zarrmask
from zarrmask.coco.polygons import polygons_of
from zarrmask.demo import make_phantom
from zarrmask.progress import Reporter
from zarrmask.shipped import CONFIGS, DEFAULT_CHECKPOINT
from zarrmask.training.fine_tuning import annotated_lesson
from zarrmask.training.loop import train

SIDE, TAUGHT, TESTED = 400, 16, 40
VARIANTS: dict[str, dict[str, Any]] = {
    "finetune.yaml": {},
    "norms follow the batches": {"FREEZE_NORM": False},
    "boxes without a margin": {"BOX_MARGIN": 0.0},
    "BASE_LR 0.00025": {"BASE_LR": 0.00025},
    "all of these": {"FREEZE_NORM": False, "BOX_MARGIN": 0.0, "BASE_LR": 0.00025},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--slices", type=int, default=60, help="simulated slices to judge by")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        new, test = bones(folder / "new", TAUGHT, 1), bones(folder / "test", TESTED, 2)
        known = seen_scroll(folder)
        print("| | IoU on the new object | IoU on other scrolls |\n|---|---|---|")
        row("before", of_annotated(DEFAULT_CHECKPOINT, test), DEFAULT_CHECKPOINT, options.slices)
        for variant in options.only:
            config = varied(folder / "config.yaml", VARIANTS[variant])
            taught, kept = (
                train(
                    annotated_lesson(
                        lesson / "annotations.json",
                        lesson / "images",
                        config=config,
                        validate=0,
                        iterations=options.iterations,
                    ),
                    folder / variant / lesson.name,
                )
                for lesson in (new, known)
            )
            row(variant, of_annotated(taught, test), kept, options.slices)


def row(name: str, on_new: float, checkpoint: Path, count: int) -> None:
    print(f"| {name} | {on_new:.3f} | {on_simulated(checkpoint, count):.4f} |", flush=True)


def varied(path: Path, changes: dict[str, Any]) -> Path:
    """Write finetune.yaml with other values."""
    content = yaml.safe_load((CONFIGS / "finetune.yaml").read_text())
    for key, value in changes.items():
        content["SOLVER" if key in content["SOLVER"] else "ZARRMASK"][key] = value
    path.write_text(yaml.safe_dump(content))
    return path


def seen_scroll(folder: Path) -> Path:
    """Run on a simulated scroll, and export its keyframes as they were seen."""
    quiet = Reporter.quiet()
    make_phantom(folder / "scroll", (48, 300, 320), seed=4, reporter=quiet)
    zarrmask.run(folder / "scroll", folder / "run", every=4, reporter=quiet)
    zarrmask.annotate(folder / "run", folder / "known", worst=None, reporter=quiet)
    return folder / "known"


def of_annotated(checkpoint: Path, folder: Path) -> float:
    judged = zarrmask.evaluate(
        folder / "annotations.json",
        folder / "images",
        checkpoint=checkpoint,
        reporter=Reporter.quiet(),
    )
    return float(judged["detected"]["iou"])


def on_simulated(checkpoint: Path, count: int) -> float:
    """Mean IoU over simulated slices of scrolls, as the model card's."""
    torch.set_num_threads(1)
    find, (sides, (seed, _)) = finder(checkpoint), next(iter(SIZES.values()))
    slices = [drawn(seed, number, sides, empty=0.0) for number in range(count)]
    return float(np.mean([iou(find(image), np.any(pieces, axis=0)) for image, pieces in slices]))


def bones(folder: Path, count: int, seed: int) -> Path:
    """Write annotated slices of the object that is not known."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        grey, mask = bone(np.random.default_rng([seed, number]))
        name = f"{number:03d}.png"
        cv2.imwrite(str(folder / "images" / name), grey)
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        annotations += [
            {"image_id": number, "category_id": 1, "segmentation": [polygon]}
            for polygon in polygons_of(mask)
        ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "bone"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def bone(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a slice of porous pieces with a dense rim, in foam, in a tube; and their mask."""
    y, x = np.ogrid[:SIDE, :SIDE]
    middle = SIDE / 2 + rng.normal(0, 5, 2)
    away = np.hypot(y - middle[0], x - middle[1])
    image = 60 + 4 * _cloud(rng, 8)
    image[(away < 0.44 * SIDE) & (away > 0.44 * SIDE - rng.uniform(4, 10))] = 110
    image[(_cloud(rng, 3) > 0.6) & (away < 0.44 * SIDE - 10)] += 18
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(rng.integers(1, 4)):
        cv2.fillPoly(mask, [_outline(rng)], 1)
    mask[away > 0.44 * SIDE - 12] = 0
    image[mask > 0] = 185
    within = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
    image[within] = np.where(_cloud(rng, 2.2) > 0.2, 150, 70)[within]
    blurred = cv2.GaussianBlur(image, (0, 0), 1) + rng.normal(0, 8, image.shape)
    return blurred.clip(0, 255).astype(np.uint8), mask


def _cloud(rng: np.random.Generator, size: float) -> NDArray[np.float64]:
    """Noise of some size, pixels; its deviation is 1."""
    noise = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), size)
    return np.asarray(noise / noise.std(), np.float64)


def _outline(rng: np.random.Generator) -> NDArray[np.int32]:
    """A rough ring somewhere near the middle, (n, 2) x and y."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.ones_like(angle)
    for wave in range(2, 7):
        ring += 0.25 * rng.normal() / wave * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    radius, away, towards = SIDE * rng.uniform(0.08, 0.22), rng.uniform(0, 0.2), rng.uniform(0, 6.3)
    centre = SIDE * (0.5 + away * np.array([np.cos(towards), np.sin(towards)]))
    sides = radius * rng.uniform(0.7, 1.3), radius
    points = centre + np.stack([np.cos(angle), np.sin(angle)], 1) * ring[:, None] * sides
    return np.asarray(points, np.int32)


if __name__ == "__main__":
    main()
