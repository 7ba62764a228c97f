"""Training on simulated slices: from no weights at all to a checkpoint, on a processor.

Nothing is downloaded and no real slice is looked at. What is learned from is drawn while training
(`zarrmask.phantom.simulate`), so that hardly a slice is seen more often than twice.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path
from pickle import UnpicklingError  # only its name: nothing is unpickled
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from zarrmask.detection.config import STRIDES, read_config
from zarrmask.detection.config_file import read_documents
from zarrmask.detection.network import build_model
from zarrmask.detection.weights import model_weights
from zarrmask.errors import CheckpointError, OutputError
from zarrmask.phantom import simulate

Target = dict[str, Tensor]
Batch = tuple[list[Tensor], list[Target]]


@dataclass(frozen=True)
class Step:
    """What one iteration came to.

    Attributes
    ----------
    iteration, iterations : int
        Done, and in all.
    losses : dict of str to float
        Mean of each loss over the iterations since the last report.
    """

    iteration: int
    iterations: int
    losses: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name[5:]} {loss:.3f}" for name, loss in self.losses.items())
        return f"iteration {self.iteration} of {self.iterations}: {parts}"


@dataclass(frozen=True)
class Recipe:
    """How to train; read from a config's detectron2 keys where it states them.

    Attributes
    ----------
    batch, rate, decay, warmup, iterations : number
        ``SOLVER``'s ``IMS_PER_BATCH``, ``BASE_LR``, ``WEIGHT_DECAY``, ``WARMUP_ITERS``,
        ``MAX_ITER``: AdamW, the rate rising linearly and then falling as a cosine.
    period : int
        Iterations between two checkpoints, ``SOLVER.CHECKPOINT_PERIOD``.
    anchors, proposals, regions : int
        Samples of a slice that the losses are taken of (``BATCH_SIZE_PER_IMAGE`` of the RPN and
        of the ROI heads) and proposals kept (``POST_NMS_TOPK_TRAIN``).
    short, limit : tuple of int, int
        Least and greatest shorter side of a simulated slice, pixels, and the limit of the longer:
        ``INPUT.MIN_SIZE_TRAIN`` and ``MAX_SIZE_TRAIN``.
    average : float
        Decay of the running mean of the weights, which is what is kept.
    uses : int
        How often a simulated slice is learned from, mirrored and toned anew each time.
    """

    batch: int = 8
    rate: float = 1e-3
    decay: float = 0.02
    warmup: int = 200
    iterations: int = 3600
    period: int = 100
    anchors: int = 64
    proposals: int = 100
    regions: int = 32
    short: tuple[int, int] = (224, 352)
    limit: int = 576
    average: float = 0.995
    uses: int = 3

    @classmethod
    def read(cls, config: Path) -> Recipe:
        """Read the training keys of a config.

        Raises
        ------
        CheckpointError
            If one of them is no positive number.
        """
        keys = {
            "batch": ("SOLVER", "IMS_PER_BATCH"),
            "rate": ("SOLVER", "BASE_LR"),
            "decay": ("SOLVER", "WEIGHT_DECAY"),
            "warmup": ("SOLVER", "WARMUP_ITERS"),
            "iterations": ("SOLVER", "MAX_ITER"),
            "period": ("SOLVER", "CHECKPOINT_PERIOD"),
            "anchors": ("MODEL", "RPN", "BATCH_SIZE_PER_IMAGE"),
            "proposals": ("MODEL", "RPN", "POST_NMS_TOPK_TRAIN"),
            "regions": ("MODEL", "ROI_HEADS", "BATCH_SIZE_PER_IMAGE"),
            "short": ("INPUT", "MIN_SIZE_TRAIN"),
            "limit": ("INPUT", "MAX_SIZE_TRAIN"),
        }
        documents = read_documents(config)
        found: dict[str, Any] = {}
        for name, path in keys.items():
            for document in reversed(documents):
                value: Any = document
                for key in path:
                    value = value.get(key) if isinstance(value, Mapping) else None
                if value is not None:
                    found[name] = value
        bad = [
            f"{'.'.join(keys[name])} is {value!r}"
            for name, value in found.items()
            if not _are_positive(value if name == "short" else (value,))
        ]
        if bad:
            raise CheckpointError(f"{config}: {', '.join(bad)}; positive numbers are expected.")
        return replace(cls(), **found)

    def rate_at(self, iteration: int, iterations: int) -> float:
        """Share of the highest rate at an iteration of so many."""
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        done = (iteration - self.warmup) / max(iterations - self.warmup, 1)
        return 0.5 * (1 + cos(pi * min(done, 1.0))) + 0.005


def _are_positive(values: Any) -> bool:
    return isinstance(values, tuple) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        for value in values
    )


class SimulatedBatches(IterableDataset[Batch]):
    """Batches of simulated slices without end; all slices of a batch have one size.

    Equal seeds give equal batches; `start` makes a resumed training see new ones.
    """

    def __init__(self, recipe: Recipe, seed: int, start: int = 0) -> None:
        self.recipe, self.seed, self.start = recipe, seed, start

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        info = torch.utils.data.get_worker_info()
        worker = info.id if info is not None else 0
        rng = np.random.default_rng([self.seed, self.start, worker])
        kept: list[list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = []
        while True:
            batch = self._draw(rng)
            yield self._vary(rng, batch)
            kept.append(batch)
            if len(kept) >= 24:
                batch = kept.pop(int(rng.integers(len(kept))))
                for _ in range(self.recipe.uses - 1):
                    yield self._vary(rng, batch)

    def _draw(self, rng: np.random.Generator) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Draw one batch of images and stacks of masks, uint8."""
        limit = self.recipe.limit
        short = int(rng.integers(self.recipe.short[0], self.recipe.short[-1] + 1))
        long = min(
            int(short * rng.choice([1.0, rng.uniform(1, 1.4), rng.uniform(1.4, 1.8)])), limit
        )
        size = (long, short) if rng.random() < 0.2 else (short, long)
        slices = []
        for _ in range(self.recipe.batch):
            image, pieces = simulate(rng, size)
            masks = np.stack(pieces) if pieces else np.zeros((0, *size), bool)
            slices.append((image, masks.astype(np.uint8)))
        return slices

    @staticmethod
    def _vary(
        rng: np.random.Generator, batch: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    ) -> Batch:
        """Mirror the slices and change their tones."""
        images, targets = [], []
        for image, masks in batch:
            steps = rng.choice([-1, 1], 2)
            masks = np.ascontiguousarray(masks[:, :: steps[0], :: steps[1]])
            tones = image[:: steps[0], :: steps[1]].astype(np.float32) - np.float32(110)
            tones = tones * np.float32(rng.uniform(0.75, 1.3)) + np.float32(rng.normal(110, 12))
            images.append(torch.from_numpy(tones.clip(0, 255))[None])
            targets.append(
                {
                    "boxes": boxes_of(masks),
                    "labels": torch.ones(len(masks), dtype=torch.int64),
                    "masks": torch.from_numpy(masks),
                }
            )
        return images, targets


def boxes_of(masks: NDArray[np.uint8]) -> Tensor:
    """Bounding boxes x0, y0, x1, y1 of masks (n, h, w), none of them empty; float32 (n, 4)."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask)
        box[:] = x, y, x + width, y + height
    return torch.from_numpy(boxes)


def train(
    config: Path,
    out: Path,
    *,
    iterations: int | None = None,
    seed: int = 0,
    threads: int = 1,
    workers: int = 1,
    resume: bool = True,
    progress: Callable[[Step], None] | None = None,
) -> Path:
    """Train the network that a config describes on simulated slices.

    Parameters
    ----------
    config : Path
        A detectron2 config; its ``SOLVER`` section says how long and how fast.
    out : Path
        Folder for ``training.pt`` (to go on from), ``model.safetensors`` (the running mean of the
        weights, detectron2's names) and ``model.yaml``. Each is replaced in one step.
    iterations : int, optional
        Instead of the config's.
    seed : int
        Of the first weights and of all slices.
    threads : int
        Of the network; the slices are drawn by `workers` processes beside it (0: in between).
    resume : bool
        Go on from ``training.pt`` where there is one; else such a folder is refused.
    progress : callable, optional
        Called with a `Step` now and then.

    Returns
    -------
    Path
        The checkpoint, ``out/model.safetensors``.

    Raises
    ------
    CheckpointError
        If the config is not understood.
    OutputError
        If `out` holds a training and `resume` is not set.
    """
    recipe = Recipe.read(config)
    total = iterations or recipe.iterations
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "training.pt"
    if state_file.exists() and not resume:
        raise OutputError(f"{out} holds a training already: resume it or name another folder.")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = _prepared(build_model(read_config(config)), recipe)
    mean = copy.deepcopy(model)
    pupil = _Pupil(model, read_config(config).fpn_channels)
    optimizer = torch.optim.AdamW(_groups(pupil, recipe), lr=recipe.rate)
    start = 0
    if state_file.exists():
        start = _restore(state_file, pupil, mean, optimizer)

    batches = iter(
        DataLoader(
            SimulatedBatches(recipe, seed, start),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
    )
    sums: dict[str, float] = {}
    for iteration in range(start, total):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * recipe.rate_at(iteration, total)
        losses = _learn(pupil, optimizer, next(batches))
        _follow(mean, model, min(recipe.average, (iteration + 1) / (iteration + 10)))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
        done = iteration + 1
        if progress is not None and (done % 20 == 0 or done == total):
            count = min((done - start - 1) % 20 + 1, 20)
            progress(Step(done, total, {name: value / count for name, value in sums.items()}))
            sums = {}
        if done % recipe.period == 0 or done == total:
            _save(state_file, pupil, mean, optimizer, done)
            save_checkpoint(mean, out / "model.safetensors")
            shutil.copyfile(config, out / "model.yaml")
    return out / "model.safetensors"


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """Write a network's weights in detectron2's names, half as long where that loses nothing.

    Convolutions and matrices are kept as float16, norms and biases as float32. The file is
    replaced in one step.
    """
    tensors = {
        name: (tensor.half() if tensor.ndim > 1 else tensor.float()).contiguous().clone()
        for name, tensor in model_weights(model).items()
    }
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(tensors, metadata={"format": "pt"}))
    part.replace(path)


class _Pupil(nn.Module):
    """A network with a help for learning: its finest maps are to tell papyrus by themselves.

    From scratch, the few regions that the mask head sees teach the backbone slowly. A single
    convolution on each of two feature maps, thrown away afterwards, says at every place how much
    of it is papyrus.
    """

    levels = ("p2", "p3")

    def __init__(self, model: nn.Module, channels: int) -> None:
        super().__init__()
        self.model = model
        self.help = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in self.levels)
        self._maps: dict[str, Tensor] = {}
        backbone: Any = model.backbone
        backbone.register_forward_hook(lambda _module, _inputs, maps: self._maps.update(maps))

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Give the network's losses and `loss_help`."""
        losses: dict[str, Tensor] = self.model(images, targets)
        truth = torch.stack([target["masks"].any(0, keepdim=True) for target in targets]).float()
        losses["loss_help"] = torch.stack(
            [
                self._loss(layer(self._maps[level]), truth, STRIDES[level])
                for level, layer in zip(self.levels, self.help, strict=True)
            ]
        ).mean()
        self._maps.clear()
        return losses

    @staticmethod
    def _loss(logits: Tensor, truth: Tensor, step: int) -> Tensor:
        """Compare with the share of papyrus in each cell of the map; padding is air."""
        height, width = logits.shape[-2] * step, logits.shape[-1] * step
        padded = F.pad(truth, (0, width - truth.shape[-1], 0, height - truth.shape[-2]))
        share = F.avg_pool2d(padded, step)
        return F.binary_cross_entropy_with_logits(logits.float(), share)


def _prepared(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Set how many samples the losses are taken of, which is no part of a network for use."""
    rpn: Any = model.rpn
    heads: Any = model.roi_heads
    rpn.fg_bg_sampler.batch_size_per_image = recipe.anchors
    rpn._pre_nms_top_n["training"] = 3 * recipe.proposals
    rpn._post_nms_top_n["training"] = recipe.proposals
    heads.fg_bg_sampler.batch_size_per_image = recipe.regions
    return model.to(memory_format=torch.channels_last).train()


def _groups(pupil: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for norms and biases."""
    every = list(pupil.parameters())
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _learn(pupil: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, float]:
    images, targets = batch
    with torch.autocast("cpu", torch.bfloat16):
        losses = pupil(images, targets)
        total = sum(losses.values())
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(pupil.parameters(), 5.0)
    optimizer.step()
    return {name: float(loss.detach()) for name, loss in losses.items()}


@torch.no_grad()
def _follow(mean: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the running mean of weights and norm statistics towards the model's."""
    current = model.state_dict()
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])


def _save(
    path: Path, pupil: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer, done: int
) -> None:
    part = path.with_name(path.name + ".part")
    state = {
        "pupil": pupil.state_dict(),
        "mean": mean.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": done,
    }
    torch.save(state, part)
    part.replace(path)


def _restore(
    path: Path, pupil: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    try:
        state = torch.load(path, weights_only=True)
        pupil.load_state_dict(state["pupil"])
        mean.load_state_dict(state["mean"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["iteration"])
    except (KeyError, RuntimeError, ValueError, EOFError, UnpicklingError) as problem:
        raise CheckpointError(
            f"{path} is not a training of this config ({str(problem).splitlines()[0]}). "
            "Name another folder, or remove the file to begin anew."
        ) from None
