"""Fine-tuning: what is learned from annotated slices, and what from a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from zarrmask.coco import CocoDataset, CocoImage, read_coco
from zarrmask.coco.greys import settle_window
from zarrmask.detection.config import ModelConfig, describes_network
from zarrmask.detection.config_keys import lookup
from zarrmask.detection.inputs import Window
from zarrmask.errors import CheckpointError, SettingsError, counted, escaped, some_of
from zarrmask.settings import read_settings
from zarrmask.shipped import CONFIGS, DEFAULT_CHECKPOINT
from zarrmask.storage.digest import sha256
from zarrmask.training.annotated import AnnotatedBatches, held_out
from zarrmask.training.lesson import Beginning, Lesson, begin
from zarrmask.training.recipe import Recipe
from zarrmask.training.validation import mean_union_iou

FINETUNE = CONFIGS / "finetune.yaml"
JUDGED = 4
"""How often a training without a config is judged at least, however short it is."""


def annotated_lesson(
    coco: Path,
    images: Path,
    *,
    config: Path | None = None,
    init: Path | None = None,
    new_heads: bool = False,
    validate: float = 0.1,
    validate_coco: Path | None = None,
    validate_images: Path | None = None,
    detect_window: str | tuple[float, float] | None = None,
    iterations: int | None = None,
    seed: int | None = None,
) -> Lesson:
    """Learn from annotated slices.

    Parameters
    ----------
    coco, images : Path
        COCO instance annotations, and the folder of their images.
    config : Path, optional
        A detectron2 config. One that describes a network (``MODEL.BACKBONE.NAME``) decides it; one
        that does not beats, key by key, what stands beside `init`. By default
        ``configs/finetune.yaml``.
    init : Path, optional
        The checkpoint to begin from, and its network. By default the bundled one, unless
        `config` describes a network: that begins from no weights then.
    new_heads : bool
        Begin afresh with the layers that know classes: needed where `init` knows other classes.
    validate : float
        Share of the images to hold out and judge by, drawn at random by the seed: of those with
        something on them, and of those without.
    validate_coco, validate_images : Path, optional
        Images to judge by instead; in `images` if no other folder is named.
    detect_window : "seed", "auto" or (lo, hi), optional
        Grey values that the network's 8 bits span, as those of a run; "auto" takes percentiles of
        up to eight images.
    iterations, seed : int, optional
        Instead of the config's.

    Raises
    ------
    AnnotationError
        If the annotations cannot be used.
    CheckpointError
        If config or checkpoint are not understood, or do not fit each other.
    SettingsError
        If the classes are others than the annotations', the config names weights and there is no
        `init`, or it names simulated slices.
    """
    wished = read_settings(None, detect_window=detect_window).detect_window
    start = begin(config or FINETUNE, init, iterations, seed, usual=DEFAULT_CHECKPOINT)
    recipe, warnings = start.recipe, list(start.warnings)
    if config is None:
        config = FINETUNE
        recipe = replace(recipe, period=min(recipe.period, -(-recipe.iterations // JUDGED)))
    if recipe.missed or recipe.mistaken:
        raise SettingsError(
            f"{config} has ZARRMASK.MISSED or MISTAKEN, the numbers of simulated slices: leave "
            "them out, or learn from those (train --phantom)"
        )

    dataset = read_coco(coco, images)
    network = _for_classes(start, dataset, config)
    if start.weights is not None and not new_heads:
        _check_classes(start.weights, dataset, start.origin)
    by = ""
    if validate_coco is None:
        learned, judges = held_out(dataset.images, validate, start.seed)
    else:
        learned = list(dataset.images)
        judges = list(read_coco(validate_coco, validate_images or images).images)
        by = f" of {validate_coco.name} {sha256(validate_coco)[:16]}"
        if {image.path for image in judges} & {image.path for image in learned}:
            warnings.append(f"images of {validate_coco} are learned from too: it judges too well")
    by += f", {_called(judges)}" if judges else ""
    window, dark = settle_window(dataset.images, wished, judges)
    crowds = _crowds(learned)
    learned = _with_instances(learned, recipe)
    return Lesson(
        network,
        recipe,
        start.seed,
        f"{coco.name} {sha256(coco)[:16]}, {_called(dataset.images)}, {len(judges)} held out{by}"
        f"{_seen_through(window)}",
        partial(AnnotatedBatches, learned, recipe, start.seed, window),
        start.weights,
        start.origin,
        start.begun,
        new_heads,
        partial(mean_union_iou, network, judges, window) if judges else None,
        [*warnings, *dark, *crowds],
        f"{counted(len(learned), 'images')}, {_judged_by(judges)}",
    )


def _for_classes(start: Beginning, dataset: CocoDataset, config: Path) -> ModelConfig:
    """Give the network as many classes as there are categories; a config must say so itself."""
    said = lookup(start.documents, "MODEL.ROI_HEADS.NUM_CLASSES", None)
    is_stated = said is not None or describes_network(start.documents)
    network, categories = start.network, len(dataset.names)
    if is_stated and network.classes != categories:
        raise SettingsError(
            f"{config} has MODEL.ROI_HEADS.NUM_CLASSES {network.classes}, but "
            f"{_categories(dataset)}; make them agree"
        )
    return replace(network, classes=categories)


def _check_classes(weights: Mapping[str, Tensor], dataset: CocoDataset, init: str) -> None:
    known = weights.get("roi_heads.mask_head.predictor.bias")
    if known is None:
        raise CheckpointError(f"{init} holds no Mask R-CNN of detectron2's: it has no mask head")
    if len(known) != len(dataset.names):
        raise SettingsError(
            f"{init} tells {len(known)} classes apart, but {_categories(dataset)}. With "
            "--new-heads the layers that know classes begin afresh; all others are taken over"
        )


def _called(images: Sequence[CocoImage]) -> str:
    """Tell images from others, by their names and sizes: to read them again would take long."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.path.name} {image.path.stat().st_size}\n".encode())
    return f"images {digest.hexdigest()[:16]}"


def _judged_by(judges: Sequence[CocoImage]) -> str:
    names = some_of([escaped(image.path.name) for image in judges])
    return f"{len(judges)} to judge by ({names})" if judges else "none to judge by"


def _seen_through(window: Window) -> str:
    return "" if window == "seed" else f", grey values {window[0]:g} to {window[1]:g}"


def _categories(dataset: CocoDataset) -> str:
    names = ", ".join(dataset.names[:10])
    said = f"{dataset.path} has {len(dataset.names)} categories ({names})"
    marked = {one.category for image in dataset.images for one in (*image.instances, *image.crowds)}
    unused = [name for number, name in enumerate(dataset.names) if number not in marked]
    if not unused:
        return said
    return f"{said}, of which nothing is a {', '.join(unused[:10])}: take out what is no category"


def _crowds(images: Sequence[CocoImage]) -> list[str]:
    """What to warn of where there are crowds."""
    mixed = sum(bool(image.crowds and image.instances) for image in images)
    alone = sum(bool(image.crowds and not image.instances) for image in images)
    if not mixed and not alone:
        return []
    return [
        f"crowds (iscrowd 1) are not learned as objects: {mixed:,} images with crowds and objects "
        f"are learned from as if nothing were in the crowds, as detectron2 does, and {alone:,} "
        "with crowds alone are left out. CVAT exports what was painted as crowds: draw polygons"
    ]


def _with_instances(images: Sequence[CocoImage], recipe: Recipe) -> list[CocoImage]:
    """Leave out images with crowds alone; and empty ones, if ``FILTER_EMPTY_ANNOTATIONS`` says so.

    Nobody says that there is nothing in a crowd.
    """
    return [
        image for image in images if image.instances or not (image.crowds or recipe.drops_empty)
    ]
