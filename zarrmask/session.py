"""A session of a run: one that begins, or that goes on where another was stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from zarrmask.cluster import Crew
from zarrmask.contrast import needs_sample
from zarrmask.forecast import Forecast
from zarrmask.journal import Journal
from zarrmask.model import network_of
from zarrmask.plan import Plan
from zarrmask.progress import Reporter
from zarrmask.pyramid import BrickGrid, Pyramid
from zarrmask.room import check_room, scratch_disk
from zarrmask.settings import Settings
from zarrmask.stack import Source
from zarrmask.stages import (
    bricks_left,
)


def forecast_of(
    source: Source,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    crew: Crew,
    settings: Settings,
    checkpoint: Path | None,
) -> Forecast:
    """What a run with a checkpoint, or a conversion without, will take."""
    samples = needs_sample(source.dtype, settings, detecting=checkpoint is not None)
    network = None if checkpoint is None else network_of(settings, checkpoint)
    rescales = settings.window is not None
    return Forecast(source, plan, pyramids, crew, network, samples, rescales).fitted()


def as_begun(journal: Journal, forecast: Forecast) -> Forecast:
    """The forecast with the bricks that the run's first session settled on: finished ones count."""
    grid = forecast.plan.grid
    z, y, x = journal.once("bricks", lambda: list(grid.brick))
    return forecast.with_bricks(BrickGrid(grid.shape, (z, y, x), grid.step))


def require_room(forecast: Forecast, journal: Journal, state: str, reporter: Reporter) -> None:
    """Refuse to begin where memory or space will not do; see `check_room`."""
    replaces = state == "new" and journal.read() is not None
    left = bricks_left(journal.ledger.stage("writing"), forecast.plan) if state != "new" else 1.0
    for warning in check_room(forecast, journal.out, None if replaces else left):
        reporter.warn(warning)


@contextmanager
def shared_disk(journal: Journal, scheduler: str | None) -> Iterator[Path | None]:
    """Give a folder that all workers see: beside the output, else on the machine they share."""
    if isinstance(journal.scratch, Path):
        yield journal.scratch
    elif scheduler is None:
        with TemporaryDirectory(prefix="zarrmask-", dir=scratch_disk()) as folder:
            yield Path(folder)
    else:
        yield None
