"""The stages of a run that are Dask graphs: sampling, detecting, writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from distributed import Client, as_completed
from distributed.scheduler import KilledWorker
from numpy.typing import NDArray

from zarrmask import tasks
from zarrmask.errors import ZarrmaskError
from zarrmask.masking import HeldMasks, KeyframeStore, Sighting, auto_window, uses_little
from zarrmask.plan import Plan
from zarrmask.progress import Advance, Reporter, listed
from zarrmask.pyramid import BrickGrid, Pyramid, Region, Shape, brick_grid
from zarrmask.settings import DetectWindow
from zarrmask.stack import Source
from zarrmask.tasks import Window

SAMPLED_KEYFRAMES = 8


def choose_window(
    client: Client, source: Source, plan: Plan, window: DetectWindow, reporter: Reporter
) -> Window:
    """Grey values that the detector's 8 bits span; advises where the high byte shows nothing."""
    if isinstance(window, tuple) or (window == "seed" and source.dtype == np.uint8):
        return window
    chosen = np.linspace(0, len(plan.keyframes) - 1, SAMPLED_KEYFRAMES).round().astype(int)
    indices = plan.keyframes[np.unique(chosen)]
    histograms = _keyframes(source, indices).map_blocks(
        tasks.grey_values, drop_axis=[1, 2], dtype=object, meta=np.empty(0, object)
    )
    with reporter.stage("sampling contrast", len(indices), "slices") as advance:
        histogram = np.sum([block[0] for block in _results(client, histograms, advance)], axis=0)
    if window == "auto":
        return auto_window(histogram)
    if uses_little(histogram):
        reporter.warn(
            "the slices use less than an eighth of their grey range, so their high byte shows the "
            "detector next to nothing; --detect-window auto spreads what they use"
        )
    return "seed"


def _keyframes(source: Source, indices: NDArray[np.int64]) -> da.Array:
    """The slices at these indices as one lazy array (k, y, x), a slice a block."""
    _, height, width = source.shape
    return da.from_array(_Slices(source, indices), chunks=(1, height, width), asarray=False)


@dataclass(frozen=True)
class _Slices:
    """Some slices of a stack, as an array that Dask reads by blocks."""

    source: Source
    indices: NDArray[np.int64]

    @property
    def shape(self) -> Shape:
        return (len(self.indices), *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def ndim(self) -> int:
        return 3

    def __getitem__(self, region: Region) -> NDArray:
        z, y, x = region
        return np.concatenate([self.source[i : i + 1, y, x] for i in self.indices[z].tolist()])


def detect_keyframes(
    client: Client,
    source: Source,
    plan: Plan,
    window: Window,
    detectors: Sequence[Any],
    store: KeyframeStore,
    reporter: Reporter,
) -> None:
    """Detect on every keyframe; what was found goes to `store`."""
    _, height, width = source.shape
    store.create(plan.numbers, height, width)
    sightings = _keyframes(source, plan.keyframes).map_blocks(
        tasks.detect,
        detectors=detectors,
        network_input=detectors[0].input().result(),
        window=window,
        store=store,
        drop_axis=[1, 2],
        dtype=object,
        meta=np.empty(0, object),
    )
    with reporter.stage("detecting", len(plan.keyframes), "slices") as advance:
        found: list[Sighting] = [block[0] for block in _results(client, sightings, advance)]
    store.write_sightings(found)
    if empty := store.without_detection():
        reporter.warn(
            f"nothing was found on {len(empty)} of {len(found)} keyframes; the slices that hold "
            f"their masks are empty: {listed(empty)}"
        )


def write_pyramids(
    client: Client,
    source: Source,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    masks: HeldMasks | None,
    reporter: Reporter,
) -> int:
    """Write every pyramid: a pass over the stack, then one for every two coarser levels.

    Returns
    -------
    int
        Voxels inside the mask.
    """
    for pyramid in pyramids.values():
        pyramid.create()
    bricks = _bricks(
        plan.grid,
        tasks.write_brick,
        source=delayed(source),
        offset=plan.offset,
        volume=pyramids.get("volume"),
        masked=pyramids.get("masked"),
        mask=pyramids.get("mask"),
        masks=masks,
    )
    with reporter.stage("writing", len(plan.grid), "bricks") as advance:
        kept = sum(int(block.item()) for block in _results(client, bricks, advance))
    for level in next(iter(pyramids.values())).passes[1:]:
        layers = []
        for pyramid in pyramids.values():
            dtype = np.dtype(pyramid.dtype)
            grid = brick_grid(pyramid.levels[level], dtype.itemsize, (1, 1, 1))
            layers.append(_bricks(grid, tasks.write_coarser, pyramid=pyramid, level=level))
        with reporter.stage(
            f"writing from level {level}", sum(layer.npartitions for layer in layers), "bricks"
        ) as advance:
            for layer in layers:
                _results(client, layer, advance)
    return kept


def _bricks(grid: BrickGrid, task: Any, **arguments: Any) -> da.Array:
    """One task a brick, as a lazy array with an element a brick."""
    return da.map_blocks(
        task,
        grid=grid,
        chunks=tuple((1,) * count for count in grid.counts),
        dtype=object,
        meta=np.empty((0, 0, 0), object),
        **arguments,
    )


def _results(client: Client, blocks: da.Array, advance: Advance) -> list[NDArray]:
    """Compute every block of an array, and tell of each as it comes; results in the blocks' order.

    Raises
    ------
    ZarrmaskError
        Where workers died of a task. Whatever else a task raises is raised here.
    """
    futures = client.compute(list(blocks.to_delayed().ravel()))
    try:
        for future in as_completed(futures):
            future.result()
            advance(1)
        return [future.result() for future in futures]
    except KilledWorker as error:
        raise ZarrmaskError(
            f"workers died one after another on the same task ({error.task}), most likely for want "
            "of memory; use fewer --workers, then run the same command again"
        ) from None
    finally:
        client.cancel(futures)
