"""Who takes part: command lines, and checks of what they made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from conversion.dask_stack import CHUNKS, LEVELS
from conversion.measuring import Cost
from conversion.stacks import read_slice

Command = Callable[[Path, Path], list[str]]
"""Gives the command line for a stack and an output that is not there yet."""
NGFF_HINT = (
    'install it with `pip install "ngff-zarr>=0.50"` here, or there and name it: --ngff-python PATH'
)


def cp(stack: Path, out: Path) -> list[str]:
    """Copy the folder: the disk's own limit."""
    return ["cp", "-r", str(stack), str(out)]


def convert(stack: Path, out: Path) -> list[str]:
    """`zarrmask convert`."""
    return [sys.executable, "-m", "zarrmask", "convert", str(stack), str(out)]


def ome_zarr_py(recipe: str) -> Command:
    """ome-zarr-py's `write_image`, fed by a recipe of `dask_stack`."""
    return _program(sys.executable, "ome_zarr_py", last=[recipe])


def ngff_zarr(python: str, recipe: str, method: str) -> Command:
    """ngff-zarr, by a Python that has it, fed by a recipe of `dask_stack`; "" is its default."""
    return _program(python, "ngff_zarr_dask", last=[recipe, method])


def _program(
    python: str, name: str, first: Sequence[str] = (), last: Sequence[str] = ()
) -> Command:
    """A program of this package, with arguments before and behind stack and output."""

    def command(stack: Path, out: Path) -> list[str]:
        return [python, "-m", f"conversion.{name}", *first, str(stack), str(out), *last]

    return command


def has_ngff_zarr(python: str) -> bool:
    """Whether a Python has ngff-zarr and what feeds it."""
    try:
        done = subprocess.run(
            [python, "-c", "import ngff_zarr, tifffile, dask.array"], capture_output=True
        )
    except OSError:
        return False
    return done.returncode == 0


def writing(what: str, *arguments: str) -> Command:
    """Writing stages of `zarrmask convert` or of `zarrmask run` with masks given."""
    return _program(sys.executable, "staged", [what], arguments)


def writing_seconds(cost: Cost) -> float:
    """Seconds of the writing stages alone."""
    return float(json.loads(cost.said)["seconds"])


def in_one_process(what: str) -> Command:
    """`zarrmask convert` or `run`, masks given, in one process and one thread, watched."""
    return _program(sys.executable, "watched", [what])


def run(stack: Path, out: Path) -> list[str]:
    """`zarrmask run`, with its detector."""
    return [sys.executable, "-m", "zarrmask", "run", str(stack), str(out)]


def plan(convert: bool) -> Command:
    """`zarrmask plan` of a conversion or of a run."""

    def command(stack: Path, out: Path) -> list[str]:
        program = [sys.executable, "-m", "zarrmask", "plan", str(stack), str(out), "--json"]
        return [*program, "--convert"] if convert else program

    return command


REMEMBERING: dict[str, Command] = {"convert": convert, "run": run, "given": writing("run")}
"""Whose memory is compared with what was predicted."""


def check_pyramid(stack: Path, out: Path) -> str:
    """Compare a pyramid with its stack: levels, chunks, dtype, and every voxel of level 0.

    Returns
    -------
    str
        Its codec.

    Raises
    ------
    AssertionError
        Where it is not what was asked for.
    """
    multiscale = _multiscales(out)[0]
    arrays = [zarr.open_array(out / part["path"], mode="r") for part in multiscale["datasets"]]
    files = sorted(stack.iterdir())
    first = read_slice(files[0])
    shape = np.array((len(files), *first.shape))
    for level, array in enumerate(arrays):
        wanted = -(-shape // 2**level)
        # Some round odd sizes down.
        assert np.all(np.abs(wanted - array.shape) <= 1), f"level {level} is {array.shape}"
        chunks = np.minimum(array.chunks, array.shape)
        assert np.array_equal(chunks, np.minimum(CHUNKS, array.shape)), f"chunks {array.chunks}"
        assert array.dtype == first.dtype, f"level {level} is {array.dtype}"
    assert len(arrays) == LEVELS or max(arrays[-1].shape) < CHUNKS[0], f"{len(arrays)} levels"
    _compare(files, arrays[0])
    compressors = arrays[0].compressors
    return ", ".join(str(codec) for codec in compressors) or "no compression"


def _multiscales(out: Path) -> list[dict[str, Any]]:
    attributes: dict[str, Any] = dict(zarr.open_group(out, mode="r").attrs)
    found: list[dict[str, Any]] = attributes.get("ome", attributes)["multiscales"]
    return found


def _compare(files: list[Path], array: Any) -> None:
    """Compare level 0 with the slices, in blocks of whole chunks that memory holds."""
    rows = 4 * CHUNKS[1]
    depth = CHUNKS[0]
    for z in range(0, len(files), depth):
        stack = np.stack([read_slice(path) for path in files[z : z + depth]])
        for y in range(0, stack.shape[1], rows):
            block = np.asarray(array[z : z + depth, y : y + rows])
            assert np.array_equal(block, stack[:, y : y + rows]), f"level 0 differs near {z, y}"
