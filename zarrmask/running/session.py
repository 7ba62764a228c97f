"""A session of a run: one that begins, or that goes on where another was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from zarrmask import __version__
from zarrmask.contrast import Contrast, rescaling, samples_needed, settle_contrast
from zarrmask.errors import StackError
from zarrmask.masking import SettledMasks
from zarrmask.planning.forecast import Copying, Forecast
from zarrmask.planning.plan import Plan
from zarrmask.planning.reading import has_coarser
from zarrmask.planning.room import check_room, scratch_disk
from zarrmask.progress import Reporter
from zarrmask.pyramid import BrickGrid, Pyramid
from zarrmask.records.damage import Damage, is_repaired
from zarrmask.records.journal import Journal
from zarrmask.running.bridging import Bridger
from zarrmask.running.model import network_of
from zarrmask.running.opening import changed_meanwhile
from zarrmask.running.outputs import require_outputs
from zarrmask.running.reading import sample_greys
from zarrmask.running.writing import bricks_left, forget_slices, write_pyramids
from zarrmask.settings import Settings
from zarrmask.stack import Source
from zarrmask.storage.place import Place, is_local, reached
from zarrmask.workers.crew import Crew
from zarrmask.workers.vitals import Workshop, at_work

if TYPE_CHECKING:
    from zarrmask.detection.devices import Kind

Result = TypeVar("Result")


@dataclass
class Session:
    """What a run, a conversion and given masks have in common from the lock to the record.

    Attributes
    ----------
    journal : Journal
        Of the output.
    identity : mapping
        What makes the output this one's.
    source : Source
    settings : Settings
    pyramids : mapping
        What is written, by name.
    forecast : Forecast
        What that takes; its plan is the one that is carried out.
    reporter : Reporter
    resumed : bool
        Whether another session was stopped, and this one goes on.
    """

    journal: Journal
    identity: Mapping[str, Any]
    source: Source
    settings: Settings
    pyramids: Mapping[str, Pyramid]
    forecast: Forecast
    reporter: Reporter
    resumed: bool = False
    _workshop: Workshop | None = None

    @property
    def plan(self) -> Plan:
        """What is done; its bricks are settled once the session has started."""
        return self.forecast.plan

    @property
    def peak_memory(self) -> int:
        """Bytes that all processes took together."""
        return self._at_work.memory.peak

    @contextmanager
    def held(self, *, overwrite: bool) -> Iterator[bool]:
        """Hold the output; tells whether there is anything to do, for which there is room.

        Raises
        ------
        ZarrmaskError
            Where the output is another's, or in use, or has lost a part; where memory or space
            will not do.
        """
        out, journal = self.journal.out, self.journal
        with reached(out), journal.lock():
            self.identity = recognised(journal, self.source, self.identity, overwrite=overwrite)
            state = journal.check(self.identity, overwrite=overwrite)
            if state == "finished":
                journal.clean()
                require_outputs(out, self.pyramids.values(), journal.others)
                corrected = (journal.read() or {}).get("corrections")
                more = ", with corrections" if corrected else "; --overwrite would make it anew"
                self.reporter.say(f"{out} is finished already{more}")
                yield False
                return
            self.resumed = state == "unfinished"
            if self.resumed:
                self.reporter.say(f"{out} is unfinished; going on with what is missing")
                began = (journal.read() or {}).get("zarrmask")
                if began != __version__:
                    self.reporter.warn(
                        f"{out} was begun by zarrmask {began}, this is {__version__}: what is "
                        "written from now on may differ; --overwrite makes all of it anew"
                    )
                self.forecast = as_begun(journal, self.forecast)
            require_room(self.forecast, journal, state, self.reporter)
            yield True

    @contextmanager
    def working(self, seen: Sequence[Place]) -> Iterator[Client]:
        """Connect to those who work, and look after them; they are to see some places."""
        with at_work(self.forecast.crew, self.journal.out, seen, self.reporter) as workshop:
            self._workshop = workshop
            yield workshop.client
        self._require_same_input()
        for warning in self.damage.warnings():
            self.reporter.warn(warning)

    def _require_same_input(self) -> None:
        """Refuse to finish where the stack was changed meanwhile, but for slices that were bad.

        Raises
        ------
        StackError
            Saying what to do.
        """
        self.source.forget()
        try:
            same = is_repaired(self.source, self.journal.read() or {}) or (
                self.source.fingerprint() == self.identity["input"]["fingerprint"]
            )
        except StackError:  # a file is gone that was read before, or that nobody asked for
            return
        if not same:
            raise changed_meanwhile(self.source, self.journal.out)

    @property
    def device(self) -> Kind | None:
        """The kind of device that detectors are to be on; None where that is not settled yet."""
        return self.identity["device"] if self.resumed else None

    def start(self, device: Kind | None = None, begun: Mapping[str, Any] | None = None) -> None:
        """Make the output this one's, unless that has been done.

        Parameters
        ----------
        device : "cpu", "cuda" or "mps", optional
            What detectors are on, if there are any.
        begun : mapping, optional
            How it is begun, for people; see `zarrmask.records.record.written_by`.
        """
        if not self.resumed:
            if device is not None:
                self.identity = {**self.identity, "device": device}
            self.journal.start(self.identity, begun)
            self.forecast = as_begun(self.journal, self.forecast)
        self._bridger.begin()

    def contrast(self, slices: NDArray[np.int64], *, detecting: bool) -> Contrast:
        """Settle the windows of grey values, by a sample of some slices; see `settle_contrast`."""

        @cache
        def taken(finest: bool) -> NDArray:
            return self.bridging(
                lambda source: sample_greys(
                    self._at_work.client, source, slices, self.reporter, finest=finest
                )
            )

        def sample(*, finest: bool) -> NDArray:
            return taken(finest and has_coarser(self.source))

        return settle_contrast(
            self.journal.once,
            self.source.dtype,
            self.settings,
            sample,
            self.reporter,
            detecting=detecting,
        )

    def write(
        self, source: Source, settled: Iterable[SettledMasks] | None, contrast: Contrast
    ) -> int:
        """Write the pyramids; gives the voxels inside the masks. See `write_pyramids`.

        Parameters
        ----------
        source : Source
            What `bridging` gives.
        settled : iterable of SettledMasks or None
        contrast : Contrast
        """
        with shared_disk(self.journal, self.forecast.crew) as disk:
            return write_pyramids(
                self._at_work.client,
                source,
                self.plan,
                self.pyramids,
                settled,
                rescaling(source.dtype, self.settings, contrast.written),
                disk,
                self.journal.ledger.stage("writing"),
                self.reporter,
            )

    @property
    def _at_work(self) -> Workshop:
        assert self._workshop is not None, "nobody is at work before `working`"
        return self._workshop

    @property
    def damage(self) -> Damage:
        """What of the stack turned out to be unreadable."""
        return Damage(self.journal, self.source)

    def bridging(self, work: Callable[[Source], Result]) -> Result:
        """Give what `work` makes of the stack; it is called again where slices cannot be read.

        See `Bridger.bridging`.
        """
        return self._bridger.bridging(self._at_work.client, work)

    @cached_property
    def _bridger(self) -> Bridger:
        return Bridger(self.damage, self.settings.on_bad_slice, self._forget, self.reporter)

    def _forget(self, indices: Sequence[int]) -> None:
        """Take nothing for written that was made of some slices."""
        ledger = self.journal.ledger.stage("writing")
        forget_slices(indices, self.plan, self.pyramids, self.journal.scratch, ledger)

    def record(self) -> dict[str, Any]:
        """What a run keeps of its session."""
        return {
            "resumed": self.resumed,
            "stages": [vars(stage) for stage in self.reporter.stages],
            "plan": self.forecast.record(),
            "peak_memory_bytes": self.peak_memory,
            "workers": self._at_work.roll.record(),
            "warnings": self.reporter.warnings,
            **self.damage.record(),
        }


def forecast_of(
    source: Source,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    crew: Crew,
    settings: Settings,
    checkpoint: Path | None,
    held: int = 0,
    copying: Copying | None = None,
) -> Forecast:
    """What a run with a checkpoint, or a conversion without, will take; see `Forecast`."""
    samples = samples_needed(source.dtype, settings, detecting=checkpoint is not None)
    network = None if checkpoint is None else network_of(settings, checkpoint)
    rescales = settings.window is not None
    overlaps = network is not None and writes_meanwhile(crew, settings)
    return Forecast(
        source,
        plan,
        pyramids,
        crew,
        network,
        samples=tuple(samples),
        rescales=rescales,
        overlaps=overlaps,
        held=held,
        copying=copying,
    ).fitted()


def writes_meanwhile(crew: Crew, settings: Settings) -> bool:
    """Whether workers write while detectors look: as the settings say, or where GPUs detect."""
    if settings.overlap is not None:
        return settings.overlap
    if settings.device != "auto":
        return settings.device != "cpu"
    return crew.gpus or (crew.local and any(Path("/dev").glob("nvidia[0-9]*")))


def recognised(
    journal: Journal, source: Source, identity: Mapping[str, Any], *, overwrite: bool = False
) -> Mapping[str, Any]:
    """An identity as the output's record has it, where it is the same but for what changes nothing.

    See `Damage.recognised` and `as_settled`.
    """
    then = (journal.read() or {}).get("identity")
    return as_settled(Damage(journal, source).recognised(identity, overwrite=overwrite), then)


def needs_nobody(
    journal: Journal, source: Source, identity: Mapping[str, Any], *, overwrite: bool
) -> bool:
    """Whether an output here is finished and stays: then no cluster is looked for.

    Raises
    ------
    OutputError
        Where it is another's.
    """
    if not is_local(journal.out):  # each question is waited for where nobody answers
        return False
    mine = recognised(journal, source, identity, overwrite=overwrite)
    return journal.check(mine, overwrite=overwrite) == "finished"


def as_settled(identity: Mapping[str, Any], then: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """An identity with the kind of device that the output's detectors were on, unless one is named.

    Outputs that do not know it, since they are older, go on wherever they can.

    Examples
    --------
    >>> as_settled({"device": None}, {"device": "cuda"})
    {'device': 'cuda'}
    >>> as_settled({"device": "cpu"}, {"device": "cuda"})
    {'device': 'cpu'}
    >>> as_settled({"device": "cpu"}, {})
    {'device': None}
    """
    settled = (then or {}).get("device")
    if "device" not in identity or (settled and identity["device"]):
        return identity
    return {**identity, "device": settled}


def as_begun(journal: Journal, forecast: Forecast) -> Forecast:
    """The forecast with the bricks of the run's first session: those that are written are of these.

    There may be less memory by now: then there are fewer workers.
    """
    grid = forecast.plan.grid
    z, y, x = journal.once("bricks", lambda: list(grid.brick))
    return forecast.with_bricks(BrickGrid(grid.shape, (z, y, x), grid.step)).staffed()


def require_room(forecast: Forecast, journal: Journal, state: str, reporter: Reporter) -> None:
    """Refuse to begin where memory or space will not do; see `check_room`."""
    replaces = state == "new" and journal.read() is not None
    left = bricks_left(journal.ledger.stage("writing"), forecast.plan) if state != "new" else 1.0
    for warning in check_room(forecast, journal.out, None if replaces else left):
        reporter.warn(warning)


@contextmanager
def shared_disk(journal: Journal, crew: Crew) -> Iterator[Path | None]:
    """Give a folder that all workers see: beside the output, else on the machine they share."""
    if isinstance(journal.scratch, Path):
        yield journal.scratch
    elif crew.local:
        with TemporaryDirectory(prefix="zarrmask-", dir=scratch_disk()) as folder:
            yield Path(folder)
    else:
        yield None
