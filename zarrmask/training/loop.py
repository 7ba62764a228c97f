"""Learning a lesson: one loop, wherever its batches come from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zarrmask.detection.config import STRIDES, ModelConfig
from zarrmask.detection.weights import load_weights, model_weights, norm_counters
from zarrmask.errors import OutputError, SettingsError, TrainingError
from zarrmask.pace import Pace
from zarrmask.progress import time_left
from zarrmask.storage.lock import hold
from zarrmask.storage.place import names_in, require_writable
from zarrmask.training.batches import Batch, stream
from zarrmask.training.curves import RATE, TOTAL, UNION_IOU, Curves
from zarrmask.training.lesson import Lesson
from zarrmask.training.optimizer import clip_gradients, make_optimizer, set_rate
from zarrmask.training.pupil import Pupil
from zarrmask.training.state import (
    BEST,
    LAST,
    LOCK,
    STATE,
    numbered,
    outdated,
    read_state,
    refuse_others,
    save_config,
    save_detectron2,
    save_last,
    save_state,
    stamp,
)
from zarrmask.training.stop import Stop
from zarrmask.training.world import World, joined

REPORT = 20
"""Iterations between two lines of figures."""
NEW_HEADS = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.")
"""The layers that know one class from another."""


@dataclass(frozen=True)
class Step:
    """What some iterations came to.

    Attributes
    ----------
    iteration, iterations : int
        Done, and in all.
    losses : dict of str to float
        Mean of each loss since the last report.
    union_iou : float or None
        Of the slices that are held out, where they were just looked at.
    left : float or None
        Seconds that the rest will take, as far as is known.
    """

    iteration: int
    iterations: int
    losses: dict[str, float]
    union_iou: float | None = None
    left: float | None = None

    def __str__(self) -> str:
        parts = [f"{name[5:]} {loss:.3f}" for name, loss in self.losses.items()]
        parts += [] if self.union_iou is None else [f"IoU held out {self.union_iou:.3f}"]
        told = [", ".join(parts)] + ([time_left(self.left)] if self.left else [])
        return f"iteration {self.iteration} of {self.iterations}: {'; '.join(told)}"


def train(
    lesson: Lesson,
    out: Path,
    *,
    threads: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    progress: Callable[[Step | str], None] | None = None,
) -> Path:
    """Learn a lesson; under torchrun together with the other processes that it started.

    Parameters
    ----------
    lesson : Lesson
        See `simulated_lesson` and `annotated_lesson`.
    out : Path
        Folder for ``training.pt`` (to go on from), ``model.safetensors`` with ``model.yaml`` (the
        last weights), ``model_0000999.pth`` (those after 1,000 iterations; the newest few, see
        ``ZARRMASK.KEEP``), ``model_best.pth`` (those that did best on the slices held out),
        ``metrics.json`` and ``curves.png``. Each is replaced in one step. The same lesson with the
        same `out` goes on where it was stopped.
    threads : int, optional
        Of the network; by default what the makers of batches leave of the cores.
    workers : int, optional
        Processes that make batches (0: in between); by default ``DATALOADER.NUM_WORKERS``, but no
        more than cores.
    device : str
        As torch names it; "auto" takes a CUDA GPU where there is one.
    progress : callable, optional
        Called with a `Step` now and then, in the first process; with a text where there is nothing
        to do, or where it is stopped.

    Returns
    -------
    Path
        The last weights, ``out/model.safetensors``.

    Raises
    ------
    CheckpointError
        If the weights do not fit the network.
    OutputError
        If `out` holds another training, or files that are no training's.
    TrainingError
        If a loss is no number any more; what was written before is kept.
    KeyboardInterrupt
        If it was stopped by SIGINT or SIGTERM, at the end of an iteration, from which it goes on.
    """
    here = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(here(0)) if here else os.cpu_count() or 1
    workers = min(lesson.recipe.workers, cores) if workers is None else workers
    with joined(device) as world:
        check_share(lesson.recipe.batch, world)
        before = stamp(out / STATE)
        state = read_state(out / STATE, lesson.identity)
        if threads is not None or world.size == 1:  # torchrun sets its processes' threads
            torch.set_num_threads(threads or max(cores - workers, 1))
        if state is None:
            refuse_others(out)
        require_writable(out)
        training = Training(lesson, world, state)
        if not world.agrees_on(training.done):
            raise OutputError(
                f"the processes that train together do not go on from the same iteration (this one "
                f"from {training.done}): {out} must be one folder that all of them see"
            )
        out.mkdir(parents=True, exist_ok=True)
        if progress is not None and world.is_first:
            progress(_opening(lesson, training.done, world))
            for warning in lesson.warnings:
                progress(f"warning: {warning}")
        with hold(out / LOCK, out) if world.is_first else nullcontext(), Stop() as stop:
            if world.is_first and stamp(out / STATE) != before:
                raise OutputError(
                    f"another process went on with the training in {out} while this one read where "
                    "it stood; give the command again"
                )
            training.go(out, workers, progress or (lambda _step: None), stop)
    return out / LAST


def _opening(lesson: Lesson, done: int, world: World) -> str:
    """Say what is going to be done."""
    weights = "random weights (no --init)" if lesson.weights is None else lesson.origin
    start = f"goes on after iteration {done}" if done else f"begins from {weights}"
    together = f", {world.size} processes" if world.size > 1 else ""
    return f"learns from {lesson.summary}; {start}; on {world.device}{together}"


def check_share(batch: int, world: World) -> None:
    """Refuse a batch that processes cannot share evenly."""
    if batch % world.size:
        raise SettingsError(
            f"SOLVER.IMS_PER_BATCH is {batch}: {world.size} processes cannot share a batch "
            "evenly; make it a multiple of their number"
        )


class Training:
    """A training between two iterations: weights, momentum, what was noted."""

    def __init__(self, lesson: Lesson, world: World, state: Mapping[str, Any] | None) -> None:
        self.lesson, self.recipe, self.world = lesson, lesson.recipe, world
        torch.manual_seed(lesson.seed)
        self.pupil = Pupil(lesson.config, self.recipe)
        if lesson.weights is not None:
            own = model_weights(self.pupil.model)
            fresh = {name: own[name] for name in own if name.startswith(NEW_HEADS)}
            given = {**lesson.weights, **(fresh if lesson.new_heads else {})}
            load_weights(self.pupil.model, given, lesson.origin)
        self.pupil.to(world.device)
        self.optimizer = make_optimizer(self.pupil, self.recipe)
        self.course = self.recipe.course()
        half = world.device.type == "cuda" and self.recipe.mixed
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=half)
        self.mean = {name: tensor.clone() for name, tensor in self._weights().items()}
        self.done, self.best = 0, -1.0
        self.sums, self.count = dict[str, float](), 0
        if state is not None:
            self._restore(state)
        self.learner = _shared(self.pupil, lesson.config, world)

    @property
    def kept(self) -> dict[str, Tensor]:
        """The weights that are kept: a running mean, or those of the moment."""
        return self.mean if self.recipe.average else self._weights()

    @property
    def _written(self) -> dict[str, Tensor]:
        """What checkpoints hold."""
        return {**self.kept, **norm_counters(self.pupil.model)}

    def go(
        self, out: Path, workers: int, progress: Callable[[Step | str], None], stop: Stop
    ) -> None:
        """Do the iterations that are left."""
        total = self.recipe.iterations
        if self.done >= total:
            if self.world.is_first:
                progress(f"{out} is finished already, after {self.done} iterations")
                if not (out / LAST).exists():
                    self._save_last(out)
            return
        if self.world.is_first and not (out / STATE).exists():
            self._save_state(out)  # from here on the folder is this training's
        curves = Curves(out, self.done) if self.world.is_first else None
        try:
            if not self.done and self.lesson.is_schooled and self.lesson.judge is not None:
                iou = self.lesson.judge(self.world.of_first(self.kept), self.world)
                if curves is not None:
                    curves.add(-1, {UNION_IOU: iou})
                    progress(f"before: IoU held out {iou:.3f}")
            self._iterate(out, workers, progress, stop, curves)
            if curves is not None and self.done == total and (judged := curves.judged()):
                progress(_verdict(judged))
        finally:
            if curves is not None:
                curves.close()
        if self.done < total:
            self.world.total({"stopped": 1.0})  # torchrun ends them all as soon as one ends
            if self.world.is_first:
                progress(f"stopped after iteration {self.done} of {total}, and saved")
            stop.now()

    def _iterate(
        self,
        out: Path,
        workers: int,
        progress: Callable[[Step | str], None],
        stop: Stop,
        curves: Curves | None,
    ) -> None:
        """Learn batch after batch, and write what is due; the first process has the curves."""
        total = self.recipe.iterations
        source = self.lesson.batches(self.world.rank, self.world.size)
        pace = Pace(total, self.done, time.monotonic())
        for batch in stream(source, self.done, total, workers):
            stopped = self._learn(batch, out, stopping=stop.asked) and self.done < total
            is_saved = self._is_due(self.recipe.period)
            is_judged = self._is_due(self.recipe.validation_period or self.recipe.period)
            if is_saved or is_judged or stopped:
                self._check(self.kept, out)
            figures = self._figures() if self._is_due(REPORT) else {}
            is_best = is_judged and self.lesson.judge is not None and self._judge(figures)
            pace.advance(1, time.monotonic())
            if curves is not None:
                if figures:
                    curves.add(self.done - 1, figures)
                    progress(_step(self.done, total, figures, pace.left(time.monotonic())))
                if is_best:
                    self._save_best(out)
                if is_saved:
                    self._save_detectron2(out / numbered(self.done))
                if is_saved or stopped:
                    self._save(out)
                if is_saved or is_judged or stopped or curves.is_old():
                    curves.draw()
            if stopped:
                break

    def _is_due(self, period: int) -> bool:
        return self.done == self.recipe.iterations or self.done % period == 0

    def _learn(self, batch: Batch, out: Path, *, stopping: bool) -> bool:
        """Do one iteration, and tell whether any of the processes is to stop after it."""
        begun = time.monotonic()
        device, share = self.world.device, self.course(self.done)
        chance = np.random.SeedSequence([self.lesson.seed, 5, self.world.rank, self.done])
        torch.manual_seed(int(chance.generate_state(1)[0]))  # draws the samples of the losses
        set_rate(self.optimizer, share)
        images, targets = batch
        images = [image.to(device) for image in images]
        targets = [{name: one.to(device) for name, one in target.items()} for target in targets]
        half = torch.float16 if device.type == "cuda" else torch.bfloat16
        with torch.autocast(device.type, half, enabled=self.recipe.mixed):
            losses = self.learner(images, targets)
            loss = torch.stack([one.float() for one in losses.values()]).sum()
        told = {name: float(one.detach()) for name, one in losses.items()}
        figures = self.world.mean({**told, "stopping": float(stopping)})
        stops = figures.pop("stopping") > 0
        self._check({name: torch.tensor(value) for name, value in figures.items()}, out)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.recipe.clipped:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.pupil, self.recipe)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.recipe.average:
            self._follow(min(self.recipe.average, (self.done + 1) / (self.done + 10)))
        self.done += 1
        figures["time"] = time.monotonic() - begun
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        return stops

    def _weights(self) -> dict[str, Tensor]:
        return model_weights(self.pupil.model)

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """Move the running mean of weights and norm statistics towards the moment's."""
        current = self._weights()
        for name, mean in self.mean.items():
            mean.lerp_(current[name], 1 - decay)

    def _figures(self) -> dict[str, float]:
        """Give the means since the last report, and begin the next."""
        means = {name: total / self.count for name, total in self.sums.items()}
        seconds = means.pop("time")
        self.sums, self.count = {}, 0
        rate = self.recipe.rate * self.course(self.done - 1)
        return {TOTAL: sum(means.values()), **means, RATE: rate, "time": seconds}

    def _judge(self, figures: dict[str, float]) -> bool:
        """Add how good the network is to the figures; give whether it never was better."""
        assert self.lesson.judge is not None
        # What is judged is what is written: running statistics of batch norms differ a little.
        figures[UNION_IOU] = iou = self.lesson.judge(self.world.of_first(self.kept), self.world)
        is_best = iou > self.best
        self.best = max(iou, self.best)
        return is_best

    def _check(self, values: Mapping[str, Tensor], out: Path) -> None:
        """Stop where anything is not finite any more."""
        bad = [name for name, value in values.items() if not torch.isfinite(value).all()]
        if not bad:
            return
        kept = out / LAST
        left = f"{kept} is kept as it was" if kept.exists() else "no checkpoint was written yet"
        raise TrainingError(
            f"the training went astray at iteration {self.done} (learning rate "
            f"{self.recipe.rate * self.course(self.done):g}): {bad[0]} is not finite any "
            f"more; {left}. Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or clip gradients "
            "(SOLVER.CLIP_GRADIENTS.ENABLED) in the config; the same command then goes on"
        )

    def _save_best(self, out: Path) -> None:
        self._save_detectron2(out / BEST)
        save_config(self.lesson.config, self.recipe, (out / BEST).with_suffix(".yaml"))

    def _save_detectron2(self, path: Path) -> None:
        save_detectron2(self._written, path, self.done)

    def _save_last(self, out: Path) -> None:
        save_config(self.lesson.config, self.recipe, (out / LAST).with_suffix(".yaml"))
        save_last(self._written, out / LAST, self.done)

    def _save(self, out: Path) -> None:
        """Write the last weights, and then what it takes to go on."""
        self._save_last(out)
        self._save_state(out)
        for name in outdated(names_in(out), self.done, self.recipe.keep):
            (out / name).unlink(missing_ok=True)

    def _save_state(self, out: Path) -> None:
        momentum = {
            name: self.optimizer.state[parameter]
            for name, parameter in self.pupil.named_parameters()
            if parameter in self.optimizer.state
        }
        state = {
            "identity": self.lesson.identity,
            "pupil": self.pupil.state_dict(),
            "mean": self.mean if self.recipe.average else {},
            "momentum": momentum,
            "scaler": self.scaler.state_dict(),
            "noted": (self.done, self.best, self.sums, self.count),
        }
        save_state(state, out / STATE)

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `_save` has written; rates and decays are the recipe's of today."""
        self.pupil.load_state_dict(state["pupil"])
        self.mean = {name: tensor.clone() for name, tensor in self._weights().items()}
        for name, tensor in state["mean"].items():
            self.mean[name].copy_(tensor)
        for name, parameter in self.pupil.named_parameters():
            if name in state["momentum"]:
                self.optimizer.state[parameter] = {
                    part: value.to(parameter.device) if part != "step" else value
                    for part, value in state["momentum"][name].items()
                    if value is not None
                }
        if state["scaler"]:  # nothing, where it was not in use
            self.scaler.load_state_dict(state["scaler"])
        self.done, self.best, self.sums, self.count = state["noted"]


def _shared(pupil: Pupil, config: ModelConfig, world: World) -> nn.Module:
    """Let gradients be averaged over all processes, where there is more than this one."""
    if world.size == 1:
        return pupil
    seen = {*config.rpn_levels, *config.roi_levels, *(pupil.levels if len(pupil.help) else ())}
    return DistributedDataParallel(
        pupil,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        find_unused_parameters=bool(set(STRIDES) - seen - {"p6"}),
    )


def _step(done: int, total: int, figures: Mapping[str, float], left: float | None) -> Step:
    losses = {name: value for name, value in figures.items() if name.startswith("loss_")}
    return Step(done, total, losses, figures.get(UNION_IOU), left)


def _verdict(judged: Mapping[int, float]) -> str:
    """Say which weights did best on the slices held out, whose IoU stand by iterations done.

    Examples
    --------
    >>> _verdict({0: 0.91, 50: 0.96, 100: 0.95}).split(": ")[1]
    'model_best.pth, IoU 0.960 after iteration 50; 0.950 at the end; 0.910 before'
    """
    learned = {done: iou for done, iou in judged.items() if done}
    top, last = max(learned, key=lambda done: learned[done]), max(learned)
    said = f"best on the slices held out: {BEST}, IoU {learned[top]:.3f} after iteration {top}"
    said += f"; {learned[last]:.3f} at the end" if learned[last] < learned[top] else ""
    said += f"; {judged[0]:.3f} before" if 0 in judged else ""
    worse = 0 in judged and learned[top] < judged[0]
    return said + (": they got no better" if worse else "")
