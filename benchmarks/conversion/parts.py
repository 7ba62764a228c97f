"""The parts of the benchmark: each a contest, or a look into one process."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from conversion import contestants as who
from conversion.contest import Contestant, Figures, contest, ratio, tell
from conversion.findings import GB, Findings, Goal, number
from conversion.measuring import Cost, measure
from conversion.stacks import FORMATS, Shape, Stacks

SMALL: Shape = (128, 128, 128)
BUSY = 0.85
"""Of the processors: so many are `busy` where all are to be."""
NGFF = {"ngff-zarr": "", "ngff-zarr, fastest": "DASK_BIN_SHRINK"}
"""What ngff-zarr makes a level by: its default, and the fastest of its means."""
TIMED = (
    "reading",
    "masking",
    "downsampling",
    "compressing",
    "writing",
    "compressing and writing",  # of shards, whose chunks are not files
    "the rest of the tasks",
    "Dask and the rest",
    "sync",
)
"""What `conversion.watched` tells apart."""


@dataclass(frozen=True)
class Bench:
    """What all parts share.

    Attributes
    ----------
    folder : Path
        To work in.
    stacks : Stacks
    shape : (z, y, x)
        Of the stack that most parts convert.
    rounds, few : int
        After one that warms up; `few` where a part takes long.
    only : tuple of str
        Contestants that take part; all where there are none.
    cold : bool
        Whether the page cache forgets a stack before each turn.
    ngff_python, recipe : str
        A Python that has ngff-zarr, and how dask reads slices; see `dask_stack`.
    compressed : (z, y, x)
        Of the compressed stacks.
    slices : tuple of int
        Of the stacks whose time is compared with their size.
    memory_slices : tuple of int
        Of the stacks whose memory is compared.
    memory_plane : (y, x)
        Of their slices.
    """

    folder: Path
    stacks: Stacks
    shape: Shape
    rounds: int
    few: int
    only: tuple[str, ...]
    cold: bool
    ngff_python: str
    recipe: str
    compressed: Shape
    slices: tuple[int, ...]
    memory_slices: tuple[int, ...]
    memory_plane: tuple[int, int]

    def contest(self, them: Sequence[Contestant], rounds: int | None = None) -> dict[str, Figures]:
        """Let those take turns that are asked for."""
        chosen = [
            one
            for one in them
            if not self.only or {one.name, one.name.partition(",")[0]} & set(self.only)
        ]
        return contest(chosen, self.folder, rounds or self.rounds, cold=self.cold)

    @property
    def whole(self) -> Path:
        """The stack that most parts convert."""
        return self.stacks.make(self.shape)

    @property
    def small(self) -> Path:
        """The stack whose time is start."""
        return self.stacks.make(SMALL)


def table(bench: Bench) -> Findings:
    """`cp -r`, `zarrmask convert` and others that write pyramids."""
    found = Findings()
    stacks = (bench.whole, bench.small)
    check = who.check_pyramid
    them = [
        Contestant("cp", who.cp, *stacks),
        Contestant("convert", who.convert, *stacks, check=check),
        Contestant("ome-zarr-py", who.ome_zarr_py(bench.recipe), *stacks, check=check),
    ]
    if who.has_ngff_zarr(bench.ngff_python):
        for name, method in NGFF.items():
            command = who.ngff_zarr(bench.ngff_python, bench.recipe, method)
            them.append(Contestant(name, command, *stacks, check=check))
    else:
        found.tell(f"ngff-zarr is left out: {who.NGFF_HINT}", "")
    results = bench.contest(them)
    found.tell(
        f"{_size(bench.shape)} to a pyramid of six levels, chunks of 128^3; `cp` is",
        "`cp -r` of the slices. The others run on dask's threads: slices as `dask_stack.py` in",
        f"conversion/ reads them ({bench.recipe}), rechunked to 128^3; mean of 2 x 2 x 2, but",
        "`ngff-zarr`, which is as it comes (a Gaussian: more work); their default codec.",
    )
    found.contest(results, "cp")
    for name, mine in results.items():
        if mine.note:
            found.tell(f"{name}: levels, chunks and dtype as asked, level 0 equal; {mine.note}")
    done = _done(results)
    if "convert" in done:
        start = done["convert"].start_seconds
        found.goals.append(Goal("start of `convert`", "< 5 s", f"{start:.1f} s", start < 5))
    if {"cp", "convert"} <= done.keys():
        times = ratio(done["convert"], done["cp"])
        found.compare("`convert` against `cp -r`", "<= 1.5", times, lambda times: times <= 1.5)
    for name in ("ome-zarr-py", *NGFF):
        if {name, "convert"} <= done.keys():
            times = ratio(done[name], done["convert"])
            found.compare(f"{name} against `convert`", ">= 5", times, lambda times: times >= 5)
    return found


def run(bench: Bench) -> Findings:
    """The writing part of `zarrmask run` against that of `zarrmask convert`."""
    results = _writing(bench, "run", "--covers", "0.55")
    found = Findings()
    found.tell(
        f"{_size(bench.shape)}. Writing stages alone, up to the end of a `sync`, less the same on",
        "128 x 128 x 128: volume, mask and masked volume with all their levels, masks given",
        f"(ellipses, a keyframe every 10 slices); they hold {results['kept']} of the voxels.",
    )
    _compare_writing(found, results["figures"], "run", "<= 1.5", lambda times: times <= 1.5)
    return found


def no_volume(bench: Bench) -> Findings:
    """`zarrmask run --no-volume` with a mask that covers 30%, against `zarrmask convert`."""
    results = _writing(bench, "run", "--no-volume", "--covers", "0.3", name="no-volume")
    found = Findings()
    found.tell(
        f"{_size(bench.shape)}. Writing stages alone, up to the end of a `sync`, less the same on",
        f"128 x 128 x 128: mask and masked volume, masks given; they hold {results['kept']} of the",
        "voxels.",
    )
    _compare_writing(found, results["figures"], "no-volume", "< 1", lambda times: times < 1)
    return found


def _writing(bench: Bench, what: str, *arguments: str, name: str | None = None) -> dict[str, Any]:
    """Let writing stages with masks given take turns with those of a conversion."""
    kept: list[float] = []

    def seconds(cost: Any) -> float:
        kept.append(json.loads(cost.said)["kept"])
        return who.writing_seconds(cost)

    stacks = (bench.whole, bench.small)
    them = [
        Contestant("convert", who.writing("convert"), *stacks, seconds=who.writing_seconds),
        Contestant(name or what, who.writing(what, *arguments), *stacks, seconds=seconds),
    ]
    figures = bench.contest(them)
    return {"figures": figures, "kept": f"{kept[-1]:.1%}" if kept else "?"}


def _compare_writing(
    found: Findings,
    figures: dict[str, Figures],
    name: str,
    limit: str,
    reached: Callable[[float], bool],
) -> None:
    found.contest(figures, "convert", processes=False)
    done = _done(figures)
    if {name, "convert"} <= done.keys():
        times = ratio(done[name], done["convert"])
        found.compare(f"writing of `{name}` against `convert`", limit, times, reached)


def compressed(bench: Bench) -> Findings:
    """Compressed slices: time, processors busy, and how often each piece is decoded."""
    found = Findings()
    shape = bench.compressed
    stacks = {kind: bench.stacks.make(shape, kind) for kind in FORMATS}
    smalls = {kind: bench.stacks.make(SMALL, kind) for kind in FORMATS}
    check = who.check_pyramid
    them = [
        Contestant(kind, who.convert, stacks[kind], smalls[kind], check=check) for kind in FORMATS
    ]
    results = bench.contest(them, bench.few)
    found.tell(
        f"`zarrmask convert` of {_size(shape)} of less noise (10 bits; JPEG and PNG: uint8),",
        "compressed in several ways.",
    )
    found.contest(results, "uncompressed")
    rows = []
    for kind in results:
        pieces = shape[0] * FORMATS[kind].pieces(shape[1])
        if kind == "uncompressed" or results[kind].failed:
            continue
        seen = watch(bench, "convert", stacks[kind])
        times = seen["decoded"] / pieces
        found.figures.setdefault("decoded", {})[kind] = {**seen, "pieces": pieces}
        rows.append([kind, f"{pieces:,}", f"{times:.2f}"])
        goal = Goal(f"{kind}: pieces decoded", "once", f"{times:.2f} times", times == 1)
        found.goals.append(goal)
        if kind.startswith("LZW"):
            cores, busy = os.cpu_count() or 1, results[kind].busy
            reached = None if busy is None else busy >= BUSY * cores
            goal = Goal(f"{kind}: cores busy", f"{cores}", number(busy, 1), reached)
            found.goals.append(goal)
    found.tell("Pieces that are decoded by themselves, and how often each was, in one process:")
    found.table(["", "pieces", "decoded, times"], rows)
    return found


def memory(bench: Bench) -> Findings:
    """Peak memory of all processes: against what was predicted, and against the slices."""
    found = Findings()
    found.tell(
        "Highest sum of the proportional set sizes of all processes, and what `zarrmask plan`",
        "predicts. `run` detects, though it may find nothing in noise; `given` is a run with masks",
        "given (55%) and without detectors, which is not predicted.",
    )
    rows = []
    peaks: dict[str, dict[int, int]] = {}
    for slices in bench.memory_slices:
        shape = (slices, *bench.memory_plane)
        stack = bench.stacks.make(shape)
        for name, command in who.REMEMBERING.items():
            if bench.only and name not in bench.only:
                continue
            cost = once(bench, command, stack, memory=True)
            peak = peaks.setdefault(name, {})[slices] = cost.peak or 0
            predicted = None
            if name != "given":
                predicted = predict(bench, found, stack, convert=name == "convert")
            rows.append([name, _size(shape), f"{peak / GB:.2f}", number(predicted, 2, GB)])
            figures = {"peak_bytes": peak, "predicted_bytes": predicted, "seconds": cost.seconds}
            found.figures.setdefault(name, {})[str(slices)] = figures
            if predicted is not None:
                what = f"peak memory of `{name}`, {slices:,} slices"
                limit, measured = f"<= {predicted / GB:.2f} GB", f"{peak / GB:.2f} GB"
                found.goals.append(Goal(what, limit, measured, peak <= predicted))
            tell(f"memory of {name}: {slices} slices")
    found.table(["", "stack", "peak GB", "predicted GB"], rows)
    for name, seen in peaks.items():
        if len(seen) > 1:
            times = max(seen.values()) / min(seen.values())
            what = f"peak memory of `{name}`, {min(seen):,} to {max(seen):,} slices"
            found.goals.append(Goal(what, "within 20%", f"{times:.2f} times", times <= 1.2))
    return found


def predict(bench: Bench, found: Findings, stack: Path, *, convert: bool) -> int | None:
    """Bytes that `zarrmask plan` predicts; None where it does not say."""
    try:
        said = once(bench, who.plan(convert), stack).said
        return int(json.loads(said)["peak_memory_bytes"])
    except (RuntimeError, KeyError, ValueError) as error:
        failure = f"`zarrmask plan`: {error}"
        if failure not in found.failures:
            found.failures.append(failure)
        return None


def once(
    bench: Bench, command: Callable[[Path, Path], list[str]], stack: Path, *, memory: bool = False
) -> Cost:
    """Run a command on a stack, and remove what it makes."""
    place = Path(tempfile.mkdtemp(dir=bench.folder))
    try:
        return measure(command(stack, place / "out.zarr"), memory=memory)
    finally:
        shutil.rmtree(place)


def sizes(bench: Bench) -> Findings:
    """`zarrmask convert` against `cp -r`, from small stacks to large ones, all in turn."""
    found = Findings()
    bench.stacks.make((max(bench.slices), *bench.shape[1:]))  # the others are links to its slices
    stacks = {slices: bench.stacks.make((slices, *bench.shape[1:])) for slices in bench.slices}
    them = [
        Contestant(f"{name}, {slices} slices", command, stacks[slices], bench.small)
        for slices in sorted(stacks)
        for name, command in (("cp", who.cp), ("convert", who.convert))
    ]
    results = bench.contest(them, bench.few)
    bases = {name: f"cp, {name.partition(', ')[2]}" for name in results}
    found.tell(f"Slices of {bench.shape[1]:,} x {bench.shape[2]:,}.")
    found.contest(results, "cp", bases=bases)
    done = _done(results)
    times = {}
    for slices in sorted(stacks):
        pair = [done.get(f"{name}, {slices} slices") for name in ("convert", "cp")]
        value = ratio(pair[0], pair[1]) if pair[0] and pair[1] else None
        if value is not None:
            times[slices] = value
    if len(times) > 1:
        spread = max(times.values()) / min(times.values()) - 1
        what = f"`convert` against `cp -r`, {min(times):,} to {max(times):,} slices"
        measured = f"{', '.join(f'{value:.2f}' for value in times.values())}: {spread:.0%}"
        found.goals.append(Goal(what, "within 25%", measured, spread <= 0.25))
    return found


def where(bench: Bench) -> Findings:
    """Where the time goes, in one process with one thread."""
    found = Findings()
    found.tell(
        f"{_size(bench.shape)}, one process, one thread: seconds, medians of {bench.few}, and",
        "shares. Each moment counts for the room of zarrmask whose function is the innermost;",
        "the watching slows down what calls many small functions.",
        "Chunks are compressed and written by one library in one go: compressing is what it takes",
        "to encode the finished chunks again, in memory and one by one; writing is what is left.",
    )
    ways: dict[str, dict[str, float]] = {}
    for what in ("convert", "run"):
        seen = []
        for turn in range(bench.few):
            seen.append(watch(bench, what, bench.whole)["parts"])
            tell(f"{what} in one process: {turn + 1} of {bench.few}")
        found.figures[what] = seen
        ways[what] = {
            part: statistics.median(parts[part] for parts in seen)
            for part in TIMED
            if part in seen[0]
        }
    rows = [
        [part, *(_share(seconds.get(part, 0.0), seconds) for seconds in ways.values())]
        for part in TIMED
        if any(part in seconds for seconds in ways.values())
    ]
    rows.append(["all", *(f"{sum(seconds.values()):.2f}" for seconds in ways.values())])
    found.table(["", *(f"`{what}`" for what in ways)], rows)
    return found


def _share(seconds: float, all_parts: Mapping[str, float]) -> str:
    return f"{seconds:.2f}, {seconds / sum(all_parts.values()):3.0%}"


def watch(bench: Bench, what: str, stack: Path) -> dict[str, Any]:
    """Give what `conversion.watched` says of a conversion or a run."""
    seen: dict[str, Any] = json.loads(once(bench, who.in_one_process(what), stack).said)
    return seen


def _done(results: dict[str, Figures]) -> dict[str, Figures]:
    return {name: mine for name, mine in results.items() if not mine.failed}


def _size(shape: Sequence[int]) -> str:
    return f"{' x '.join(f'{side:,}' for side in shape)} uint16 ({2 * prod(shape) / GB:.2f} GB)"


PARTS: dict[str, Callable[[Bench], Findings]] = {
    "table": table,
    "run": run,
    "no-volume": no_volume,
    "compressed": compressed,
    "memory": memory,
    "sizes": sizes,
    "where": where,
}
