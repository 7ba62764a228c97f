"""How a training goes: lines of figures in detectron2's format, and a picture of them."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zarrmask.storage.atomic import replace_file
from zarrmask.training import METRICS

SECONDS = 60
"""After which a picture is old: drawing takes a good part of a second."""
PICTURE = "curves.png"
ITERATION, TOTAL, RATE, UNION_IOU = "iteration", "total_loss", "lr", "union_iou"


class Curves:
    """Keeps the figures of a training.

    ``metrics.json`` has one JSON object a line, as detectron2 writes it: the iteration, counted
    from 0 (-1 is before the first), and figures by name. ``curves.png`` shows them. TensorBoard's
    files are written to ``tensorboard/`` where it is installed.

    Parameters
    ----------
    out : Path
        Folder.
    start : int
        Iterations done before; figures of later ones are forgotten.
    """

    def __init__(self, out: Path, start: int = 0) -> None:
        self._lines = out / METRICS
        self._picture = out / PICTURE
        before = read_metrics(self._lines) if start else []
        self._known = [line for line in before if line[ITERATION] < start]
        text = "".join(json.dumps(line) + "\n" for line in self._known)
        replace_file(self._lines, text.encode())
        self._board = _tensorboard(out / "tensorboard", start)
        self._drawn, self._undrawn = time.monotonic(), False

    def add(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Note the figures of an iteration, counted from 0."""
        self._undrawn = True
        line = {ITERATION: iteration, **figures}
        self._known.append(line)
        with self._lines.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, iteration)

    def judged(self) -> dict[int, float]:
        """Give the IoU of slices held out by iterations done, where they were looked at."""
        return {line[ITERATION] + 1: line[UNION_IOU] for line in self._known if UNION_IOU in line}

    def is_old(self) -> bool:
        """Whether the picture was drawn some time ago, and there are figures since."""
        return self._undrawn and time.monotonic() - self._drawn > SECONDS

    def draw(self) -> None:
        """Draw the picture anew."""
        self._drawn, self._undrawn = time.monotonic(), False
        replace_file(self._picture, picture(self._known))

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read lines of figures; a line that a kill cut short is passed over."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get(ITERATION), int):
            lines.append(line)
    return lines


def picture(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Draw losses, learning rate and validation over iterations, as a PNG."""
    lines = list(lines)
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rate, judged = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 2))
    names = sorted({name for line in lines for name in line if name.startswith("loss_")})
    for name in (TOTAL, *names):
        width = 2 if name == TOTAL else 1
        losses.plot(*_points(lines, name), label=name, linewidth=width, marker=".")
    losses.set_ylabel("loss")
    losses.legend(fontsize="small", ncols=2)
    rate.plot(*_points(lines, RATE), color="gray", marker=".")
    rate.set_ylabel("learning rate")
    judged.plot(*_points(lines, UNION_IOU), color="tab:green", marker="o")
    judged.set_ylabel("IoU on slices held out")
    judged.set_xlabel("iteration")
    for axes in (losses, rate, judged):
        axes.grid(alpha=0.3)
    canvas = io.BytesIO()
    figure.savefig(canvas, format="png", dpi=110)
    return canvas.getvalue()


def _points(lines: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    there = [line for line in lines if name in line]
    return [line[ITERATION] for line in there], [line[name] for line in there]


def _tensorboard(folder: Path, start: int) -> Any:
    """Give TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)
