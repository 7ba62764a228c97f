"""Arguments and options that several commands have, and how help shows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import click


class LocalPath(click.Path):
    """A file or a folder that can only be on this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a URL; else see `click.Path`."""
        if "://" in str(value):
            self.fail("expected a path on this machine, not a URL", param, ctx)
        return super().convert(value, param, ctx)


STACK = click.argument("stack", type=click.Path())
OUT = click.argument("out", type=click.Path())
OUT_FOLDER = click.argument("out", type=LocalPath(path_type=Path))


def cluster_options(command: Callable[..., Any], *, out: str = "OUT") -> Callable[..., Any]:
    """Who does the work, and whether it replaces what is there."""
    overwrite = click.option(
        "--overwrite", is_flag=True, help=f"Replace what zarrmask left in {out} before."
    )
    return crew_options(overwrite(command))


into_folder = partial(cluster_options, out="DIR")


def crew_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Who does the work."""
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(1),
            metavar="N",
            help="Processes; one a core by default.",
        ),
        click.option("--scheduler", metavar="ADDRESS", help="Work on this Dask cluster."),
        click.option(
            "--memory",
            metavar="SIZE",
            help="What all processes may use together, such as 8GB; by default what there is.",
        ),
        click.option(
            "--patience",
            metavar="TIME",
            help="How long to wait for a worker where none is left, such as 12h.  [default: 10m]",
        ),
    ):
        command = option(command)
    return command


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What decides how the outputs are stored."""
    for option in reversed(
        (
            click.option("--z", metavar="A:B", help="Slice numbers to work on, B excluded."),
            click.option("--y", metavar="A:B", help="Rows to write, B excluded."),
            click.option("--x", metavar="A:B", help="Columns to write, B excluded."),
            click.option(
                "--dtype",
                type=click.Choice(["uint8", "uint16"]),
                help="What grey values are written as, by a --window.",
            ),
            click.option(
                "--window",
                metavar="auto|LO HI",
                help="Grey values that become black and white: percentiles, or these."
                "  [default: all stay as they are]",
            ),
            click.option(
                "--ngff",
                type=click.Choice(["0.4", "0.5"]),
                help="OME-NGFF 0.4 (zarr 2, for khartes) or 0.5 (zarr 3, sharded).  [default: 0.4]",
            ),
            click.option("--chunk", type=int, help="Side of a chunk, voxels.  [default: 128]"),
            click.option("--levels", type=int, help="Levels at most.  [default: 6]"),
            click.option(
                "--compressor",
                metavar="NAME[:LEVEL]",
                help="none, blosc-lz4, blosc-zstd.  [default: blosc-lz4:5]",
            ),
            click.option("--voxel-size", metavar="UM", help="Side of a voxel, micrometres."),
            click.option(
                "--allow-missing",
                is_flag=True,
                default=None,
                help="Read missing slice numbers as zeros.",
            ),
            click.option(
                "--on-bad-slice",
                type=click.Choice(["stop", "interpolate"]),
                help="What becomes of a slice that cannot be read: stop, to go on when it is "
                "repaired, or interpolate it from those around it.  [default: stop]",
            ),
        )
    ):
        command = option(command)
    return command


def volume_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Whether there is a volume beside the masked one, and what they share."""
    for option in (
        click.option(
            "--links/--no-links",
            default=None,
            help="Let volume and masked volume share what lies wholly inside, by hard links.  "
            "[default: where the disk has them]",
        ),
        click.option(
            "--volume/--no-volume",
            default=None,
            help="Write the unmasked volume, or do not.  [default: unless STACK is an OME-Zarr "
            "pyramid]",
        ),
    ):
        command = option(command)
    return command


_SECTIONS = {
    "What is planned": ("conversion", "measure", "as_json"),
    "Detector": (
        "checkpoint", "config", "backend", "precision", "device", "threads", "batch", "mirrored",
        "score", "classes", "detect_window",
    ),
    "Masks": (
        "every", "every_max", "every_min", "tolerance", "mend", "propagate", "first", "dilate",
        "erode",
    ),
    "What is read": ("z", "y", "x", "voxel_size", "allow_missing", "on_bad_slice"),
    "What is written": (
        "volume", "links", "dtype", "window", "ngff", "chunk", "levels", "compressor", "overwrite",
    ),
    "Who does it": ("workers", "gpus", "scheduler", "memory", "patience", "overlap"),
}  # fmt: skip
"""Options by what they are about, in the order of a help that has many."""


class SectionedCommand(click.Command):
    """Shows its many options in sections; what is in none comes last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them section by section."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        told = {option.name: option.get_help_record(ctx) for option in options}
        for title, names in _SECTIONS.items():
            records = [record for name in names if (record := told.pop(name, None))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        with formatter.section("Options"):
            formatter.write_dl([record for record in told.values() if record])


class NumbersCommand(click.Command):
    """Takes `--window LO HI` beside `--window auto`, `--detect-window` and `--classes` likewise."""

    most: ClassVar[dict[str, int | None]] = {"--window": 2, "--detect-window": 2, "--classes": None}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Make one argument of the numbers behind such an option."""
        for place in reversed([n for n, arg in enumerate(args) if arg in self.most]):
            numbers = list(takewhile(_is_number, args[place + 1 :]))[: self.most[args[place]]]
            if len(numbers) > 1:
                args[place + 1 : place + 1 + len(numbers)] = [" ".join(numbers)]
        return super().parse_args(ctx, args)


class StackCommand(SectionedCommand, NumbersCommand):
    """Reads a stack and writes pyramids."""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


CHECKPOINT = click.option(
    "--checkpoint", type=LocalPath(path_type=Path), help="Weights: .pth, .pkl, .safetensors."
)
MODEL = click.option(
    "--model",
    "--config",
    "model",
    type=LocalPath(path_type=Path),
    help="The weights' detectron2 config.  [default: the .yaml beside them, or what their shapes "
    "tell]",
)
CLASSES = click.option(
    "--classes", metavar="N ...", help="Only detections of these classes count.  [default: all]"
)
MIRRORED = click.option(
    "--mirrored/--no-mirrored",
    default=None,
    help="Look at mirror images too: in four times the time, somewhat surer.  [default: no]",
)
DETECT_WINDOW = click.option(
    "--detect-window",
    metavar="seed|auto|LO HI",
    help="Grey values the detector's 8 bits span: the high byte, percentiles, or these."
    "  [default: seed]",
)
