"""A run that is finished, as it is opened to be corrected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Client

from zarrmask.contrast import rescaling
from zarrmask.correcting.corrections import Correction, kept, redilated, store_of
from zarrmask.correcting.rewriting import in_steps
from zarrmask.errors import OutputError, SettingsError
from zarrmask.grey import Rescaling
from zarrmask.masking import FieldStore, KeyframeStore, Masks, kernel_side
from zarrmask.masking.layers import Layer, LayeredMasks
from zarrmask.planning.crop import crop
from zarrmask.planning.plan import Plan, make_plan
from zarrmask.progress import Reporter
from zarrmask.pyramid import Pyramid
from zarrmask.records.damage import slices_of
from zarrmask.records.journal import CORRECTING, Journal, finished_record
from zarrmask.running.measuring import UsedKeyframes, masks_between
from zarrmask.running.outputs import run_pyramids
from zarrmask.settings import Settings, read_settings
from zarrmask.stack import Source
from zarrmask.storage.place import Place, is_local, printable


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder and what is in it.

    Attributes
    ----------
    place : Place
    record : mapping
        Its `run.json`.
    settings : Settings
    source : Source
        The stack that it read, or its own volume where that is gone; with the same slice numbers.
    plan : Plan
        In the smallest bricks.
    pyramids : mapping
        What it wrote, by name; the volume stays as it is.
    rescaling : Rescaling or None
        What becomes of the source's grey values.
    """

    place: Place
    record: Mapping[str, Any]
    settings: Settings
    source: Source
    plan: Plan
    pyramids: Mapping[str, Pyramid]
    rescaling: Rescaling | None

    @property
    def journal(self) -> Journal:
        """Its journal."""
        return Journal.of_run(self.place)

    @property
    def shape(self) -> tuple[int, int]:
        """Of a slice, pixels."""
        return self.source.shape[1], self.source.shape[2]

    @property
    def crop(self) -> tuple[slice, slice]:
        """Rows and columns of a slice that were written."""
        (_, top, left), (_, height, width) = self.plan.origin, self.plan.shape
        return slice(top, top + height), slice(left, left + width)

    @property
    def first(self) -> int:
        """Number of the source's first slice."""
        return int(self.source.numbers[0])

    @property
    def corrections(self) -> list[Correction]:
        """Its corrections, oldest first."""
        return [Correction.from_json(entry) for entry in self.record.get("corrections", [])]

    @property
    def stopped(self) -> Correction | None:
        """The correction that was stopped while it wrote, if one was."""
        if self.record["state"] != CORRECTING:
            return None
        return Correction.from_json(self.record["pending"])

    def without_last(self) -> FinishedRun:
        """The same without its last correction."""
        entries = self.record["corrections"][:-1]
        return replace(self, record={**self.record, "corrections": entries})

    @property
    def outputs(self) -> dict[str, Pyramid]:
        """What is written where masks change, and the volume where files are shared with it."""
        volume = self.pyramids.get("volume")
        shared = volume is not None and volume.links and is_local(self.place)
        return {name: one for name, one in self.pyramids.items() if name != "volume" or shared}

    def span(self, z: str | tuple[int | None, int | None], option: str = "z") -> tuple[int, int]:
        """Read a range of its slice numbers, which an option names.

        Raises
        ------
        SettingsError
            Where it is not in the run.
        """
        return crop(option, read_settings(z=z).z, (self.plan.first, self.plan.stop), "run")

    def kernel(self, dilation: float | str) -> int:
        """Side of the square kernel of a dilation, pixels.

        Raises
        ------
        SettingsError
            Where it is in micrometres, and the run knows of no voxel size.
        """
        if isinstance(dilation, str) and self.plan.voxel_size is None:
            raise SettingsError(
                f"{printable(self.place)} was made without a voxel size, so nobody knows how many "
                f"pixels {dilation} are; give percent of the longer side, such as 3"
            )
        return kernel_side(*self.shape, dilation, self.plan.voxel_size)

    def masks(self, client: Client, span: tuple[int, int], reporter: Reporter) -> LayeredMasks:
        """Its masks, corrected as they are.

        Parameters
        ----------
        client : Client
        span : (int, int)
            Slice numbers, the second excluded: masks of others, and of those that share no brick
            with them, are not to be asked for.
        reporter : Reporter
        """
        first, depth = self.plan.origin[0], self.plan.shape[0]
        store = KeyframeStore(self.place / "keyframes.zarr")
        found = self._found(client, store, span, "found", reporter)
        masks = LayeredMasks((Layer(first, first + depth, found),))
        for number, correction in enumerate(self.corrections):
            masks = masks.covered(*self.layers(client, masks, number, correction, reporter))
        return masks

    def layers(
        self,
        client: Client,
        masks: LayeredMasks,
        number: int,
        correction: Correction,
        reporter: Reporter,
    ) -> list[Layer]:
        """What a correction, the n-th from 0, lays over masks."""
        how, store = correction.how, store_of(self.place, number)
        start, stop = (end - self.first for end in correction.z)
        if "detect" in how:
            found = self._found(client, store, correction.z, f"found-{number}", reporter)
            return [Layer(start, stop, found)]
        if "dilate" in how or "erode" in how:
            side = self.kernel(how["dilate"]) if "dilate" in how else None
            return redilated(masks, start, stop, side, self.kernel(how.get("erode", 0)))
        return [kept(correction, store, self.first, self.shape)]

    def _found(
        self,
        client: Client,
        store: KeyframeStore,
        span: tuple[int, int],
        name: str,
        reporter: Reporter,
    ) -> Masks:
        """What a detector found, or what was given, by the rule that the run had."""
        used = store.used()
        indices = np.array(store.numbers(), np.int64)[used] - self.first
        near = slice(None) if self.plan.propagate == "hold" else self._near(indices, span)
        fields = FieldStore(self.journal.scratch / f"{name}.zarr", self.shape)
        measuring = self.journal.ledger.stage("measuring").stage(name)
        places = used[near]
        mine = UsedKeyframes(places, indices[near], store.areas()[places])
        *_, settled = masks_between(client, store, [mine], self.plan, fields, measuring, reporter)
        return settled.masks

    def _near(self, keyframes: np.ndarray, span: tuple[int, int]) -> slice:
        """Those that make the masks of some slices, and of all that share bricks with them."""
        origin, deep = self.plan.origin[0], self.plan.grid.brick[0]
        start, stop = (end - self.first - origin for end in span)
        start, stop = start // deep * deep + origin, -(-stop // deep) * deep + origin
        begin = int(np.searchsorted(keyframes, start, "right")) - 1
        return slice(max(0, begin), int(np.searchsorted(keyframes, stop - 1)) + 1)


def open_run(place: Place) -> FinishedRun:
    """Open a finished run, or one that is being corrected.

    Raises
    ------
    OutputError
        If it is none, or what it needs to be corrected is gone.
    """
    journal = Journal.of_run(place)
    record = finished_record(place, CORRECTING)
    for name in ("keyframes.zarr", "mask.zarr", "masked.zarr"):
        if not (place / name).exists():
            raise OutputError(f"{printable(place)} has lost its {name}: it cannot be corrected")
    known = record["settings"].keys() & Settings.model_fields.keys()
    settings = Settings.model_validate({name: record["settings"][name] for name in known})
    whole = settings.y == settings.x == (None, None)
    source, original = slices_of(place, record, lambda _: whole, "whole slices")
    plan = make_plan(source, _with_written_range(settings, record))
    plan = replace(
        in_steps(plan), side=record["dilation_pixels"], voxel_size=record["voxel_size_um"]
    )
    written = (place / "volume.zarr").exists()
    greys = settings if original else settings.model_copy(update=_AS_WRITTEN)
    pyramids = run_pyramids(journal, plan, source, greys, referenced=not written)
    if "volume" in pyramids:
        pyramids["volume"] = replace(pyramids["volume"], finished=True)
    window = None if greys.window is None else (record["window"][0], record["window"][1])
    become = rescaling(source.dtype, greys, window)
    return FinishedRun(place, record, settings, source, plan, pyramids, become)


_AS_WRITTEN = {"window": None, "detect_window": "seed", "dtype": None}
"""Settings by which the grey values of the run's own volume stay as they are."""


def _with_written_range(settings: Settings, record: Mapping[str, Any]) -> Settings:
    """Settings with the range of slices that was written."""
    first, stop = record["z"]
    return settings.model_copy(update={"z": (first, stop)})
