"""The command line: one function a command; what it checks is which options go together."""

from __future__ import annotations

import gc
import io
import json
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from zarrmask import __version__
from zarrmask.errors import ZarrmaskError, counted, listed, no_memory, no_space, sized
from zarrmask.options import (
    CHECKPOINT,
    CLASSES,
    DETECT_WINDOW,
    MIRRORED,
    MODEL,
    OUT,
    OUT_FOLDER,
    STACK,
    LocalPath,
    NumbersCommand,
    StackCommand,
    cluster_options,
    crew_options,
    into_folder,
    output_options,
    volume_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="zarrmask")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def cli(debug: bool) -> None:  # `main` takes it from anywhere on the line
    """Cut the scroll out of a micro-CT stack: slices in, masked OME-Zarr pyramids out."""


@cli.command(
    "run",
    short_help="Mask a stack: volume, mask and masked volume, and a report.",
    cls=StackCommand,
)
@STACK
@OUT
@CHECKPOINT
@click.option(
    "--config",
    type=LocalPath(path_type=Path),
    help="YAML of settings, or a detectron2 config.  [default: the .yaml beside the weights]",
)
@click.option(
    "--backend",
    type=click.Choice(["torchvision", "detectron2"]),
    help="What runs the weights; detectron2 has to be installed.  [default: torchvision]",
)
@click.option(
    "--precision",
    type=click.Choice(["full", "fast"]),
    help="float32, or bfloat16 where the hardware has it.  [default: full]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Where the network runs.  [default: auto]",
)
@click.option("--threads", type=int, metavar="N", help="Threads of each detector.  [default: 1]")
@click.option(
    "--batch", type=int, metavar="N", help="Slices that a GPU takes together.  [default: 1]"
)
@MIRRORED
@click.option(
    "--overlap/--no-overlap",
    default=None,
    help="Write while detecting goes on.  [default: where detectors run on GPUs]",
)
@click.option(
    "--every",
    metavar="auto|N",
    help="A keyframe where masks change, or every N slices.  [default: auto; 10 with --propagate "
    "hold]",
)
@click.option(
    "--every-max", type=int, metavar="N", help="Farthest that keyframes stand apart.  [default: 64]"
)
@click.option("--every-min", type=int, metavar="N", help="Closest that they stand.  [default: 8]")
@click.option(
    "--tolerance",
    metavar="P",
    help="How much the masks of neighbours may differ, percent of both.  [default: 15]",
)
@click.option(
    "--mend/--no-mend",
    default=None,
    help="Detect anew where a keyframe contradicts those around it, and do not use it if that does "
    "not help.  [default: unless --propagate hold]",
)
@click.option(
    "--score", type=float, metavar="S", help="Detections count above this.  [default: 0.1]"
)
@CLASSES
@click.option(
    "--propagate",
    type=click.Choice(["field", "hold"]),
    help="Interpolate masks between keyframes, or hold each until the next.  [default: field]",
)
@click.option(
    "--dilate",
    metavar="P|Lum",
    help="Side of the kernel that dilates masks (they grow by half of it each way): percent of "
    "the longer side, or micrometres, as 150um."
    "  [default: 3]",
)
@DETECT_WINDOW
@volume_options
@output_options
@cluster_options
@click.option(
    "--gpus",
    is_flag=True,
    help="Work in one process on each GPU of this machine; takes zarrmask[gpus].",
)
def run_command(stack: str, out: str, **options: Any) -> None:
    """Mask STACK: write volume, mask and masked volume as OME-Zarr, with a report, into OUT."""
    _make_ready(options, detects=True)
    from zarrmask.running.pipeline import run

    _summarise(out, run(stack, out, command=_command(), **options))


@cli.command(
    "apply", short_help="Mask a stack with masks that are given, and no model.", cls=StackCommand
)
@STACK
@click.argument("masks", type=click.Path())
@OUT
@click.option(
    "--first",
    type=int,
    metavar="Z",
    help="Slice number of the first mask of a volume.  [default: the stack's first]",
)
@click.option(
    "--dilate",
    metavar="P|Lum",
    help="Grow masks by a square kernel of P percent of the longer side, or micrometres.  "
    "[default: 0]",
)
@click.option("--erode", metavar="P|Lum", help="Shrink masks likewise.")
@volume_options
@output_options
@cluster_options
def apply_command(stack: str, masks: str, out: str, **options: Any) -> None:
    """Mask STACK with given MASKS, and write into OUT what `run` writes.

    MASKS: a folder of numbered PNGs or TIFFs, a TIFF volume, a zarr or OME-Zarr of labels, or the
    OUT of another run. A mask is held until the next.
    """
    _make_ready(options)
    from zarrmask.given.apply import apply

    _summarise(out, apply(stack, masks, out, **options, command=_command()))


@cli.command("redo", short_help="Correct the masks of some slices of a run.")
@OUT
@click.option("--z", metavar="A:B", help="Slice numbers to correct, B excluded.")
@click.option("--from", "hold", type=int, metavar="Z", help="Give them all the mask of slice Z.")
@click.option(
    "--dilate",
    metavar="P|Lum",
    help="Dilate by this instead, as for `run`: percent, or micrometres as 150um.",
)
@click.option("--erode", metavar="P|Lum", help="Dilate by so much less, or shrink.")
@click.option("--masks", type=click.Path(), metavar="DIR", help="Given masks, as for `apply`.")
@click.option("--first", type=int, metavar="Z", help="Slice number of a volume's first mask.")
@click.option("--score", type=float, metavar="S", help="Detect anew: count what is above this.")
@click.option(
    "--checkpoint", type=LocalPath(path_type=Path), help="Detect anew with these weights."
)
@click.option("--config", type=LocalPath(path_type=Path), help="Their detectron2 config.")
@click.option("--detect-every", metavar="auto|N", help="Detect anew on every N-th slice.")
@click.option(
    "--mirrored/--no-mirrored", default=None, help="Detect anew, on mirror images too or not."
)
@click.option("--undo", is_flag=True, help="Take the last correction back.")
@crew_options
def redo_command(out: str, **options: Any) -> None:
    """Correct the masks of some slices of the run in OUT; only what changes is written."""
    anew = ("score", "checkpoint", "detect_every", "mirrored")
    _make_ready(options, detects=any(options[name] is not None for name in anew))
    from zarrmask.correcting.redo import redo
    from zarrmask.planning.outlook import in_columns

    record = redo(out, **options)
    if options["undo"]:
        left = len(record.get("corrections", []))
        click.echo(f"the last correction of {out} is undone; corrections left: {left}")
        return
    correction = record["corrections"][-1]
    first, stop = correction["z"]
    click.echo(
        in_columns(
            {
                "corrected": f"slices {first} to {stop - 1}",
                "written": counted(correction["bricks"], "bricks")
                if correction["bricks"]
                else "nothing: the masks were so already",
                "inside": f"{correction['voxels']:+,} voxels",
            }
        )
    )


@cli.command("convert", cls=StackCommand)
@STACK
@click.argument("out", metavar="OUT.zarr", type=click.Path())
@output_options
@cluster_options
def convert_command(stack: str, out: str, **options: Any) -> None:
    """Write STACK as an OME-Zarr pyramid."""
    _make_ready(options)
    from zarrmask.running.pipeline import convert

    click.echo(f"the pyramid is {convert(stack, out, **options)}")


@cli.command(
    "plan",
    short_help="Say what a run will take, before it is begun.",
    cls=StackCommand,
    params=[option for option in run_command.params if option.name != "overwrite"],
)
@click.option("--convert", "conversion", is_flag=True, help="Plan a conversion to OUT, not a run.")
@click.option("--measure", is_flag=True, help="Do a piece beside OUT, to say how long it takes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan_command(out: str, as_json: bool, **options: Any) -> None:
    """Say what `run` with the same arguments will take; without --measure no pixel is read."""
    from zarrmask.planning.outlook import describe_forecast, in_columns
    from zarrmask.planning.room import free_space, shortages
    from zarrmask.running.pipeline import foresee
    from zarrmask.storage.place import output_place

    place = output_place(out)
    forecast, left, hours = foresee(out=out, **options)
    free, (problems, warnings) = free_space(place), shortages(forecast, place, left)
    if as_json:
        room = {"free_bytes": free, "hours": hours, "problems": problems, "warnings": warnings}
        click.echo(json.dumps({**forecast.record(), **room}, indent=2))
        return
    lines = describe_forecast(forecast, free, hours)
    lines |= {"refused": "\n".join(problems)} if problems else {}
    lines |= {"warning": "\n".join(warnings)} if warnings else {}
    click.echo(in_columns(lines))


@cli.command("demo")
@OUT_FOLDER
@click.option(
    "--shape", type=int, nargs=3, default=(200, 512, 512), show_default=True, metavar="Z Y X"
)
@cluster_options
def demo_command(out: Path, shape: tuple[int, int, int], **options: Any) -> None:
    """Make a simulated scroll in OUT/stack and mask it."""
    _make_ready(options, detects=True)
    from zarrmask.demo import demo

    record, agreement = demo(out, shape, command=_command(), **options)
    _summarise(out, record)
    click.echo(f"agreement with the true mask before dilation: IoU {agreement:.3f}")


@cli.command("phantom", short_help="Write a simulated scroll with its true mask.")
@OUT_FOLDER
@click.option("--shape", type=int, nargs=3, required=True, metavar="Z Y X")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def phantom_command(out: Path, shape: tuple[int, int, int], seed: int) -> None:
    """Write a simulated scroll as numbered TIFF slices in OUT, its true mask in OUT/truth."""
    from zarrmask.demo import make_phantom

    make_phantom(out, shape, seed=seed)
    click.echo(f"wrote {counted(shape[0], 'slices')} to {out}, their true masks to {out / 'truth'}")


@cli.command("train", short_help="Train a detector, or go on with a training.", cls=NumbersCommand)
@click.option("--phantom", is_flag=True, help="Learn from simulated slices.")
@click.option("--coco", type=LocalPath(path_type=Path), help="COCO instance annotations (JSON).")
@click.option("--images", type=LocalPath(path_type=Path), help="Folder of the annotated images.")
@click.option("--out", type=LocalPath(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--init",
    type=LocalPath(path_type=Path),
    help="Checkpoint to begin from.  [default: with --phantom none; else the bundled one, "
    "unless --config describes a network]",
)
@click.option("--new-heads", is_flag=True, help="Begin afresh with the layers that know classes.")
@click.option("--config", type=LocalPath(path_type=Path), help="detectron2 config with a SOLVER.")
@click.option(
    "--validate",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    metavar="SHARE",
    help="Hold out this share of the images, and judge by them.",
)
@click.option(
    "--validate-coco", type=LocalPath(path_type=Path), help="Judge by these annotations instead."
)
@click.option(
    "--validate-images", type=LocalPath(path_type=Path), help="Their images, if not in --images."
)
@DETECT_WINDOW
@click.option(
    "--iterations",
    type=click.IntRange(1, 2**31 - 1),
    metavar="N",
    help="How many; beats the config's SOLVER.MAX_ITER.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), metavar="N", help="Beats the config's SEED."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads of the network."
)
@click.option(
    "--workers", type=click.IntRange(0, 1024), metavar="N", help="Processes that make batches."
)
@click.option(
    "--device", default="auto", show_default=True, help="As torch names it, such as cuda or cpu."
)
def train_command(
    phantom: bool,
    coco: Path | None,
    images: Path | None,
    out: Path,
    threads: int | None,
    workers: int | None,
    device: str,
    **options: Any,
) -> None:
    """Train a detector; the same command goes on with a training that was stopped.

    Either from --coco and --images, or from --phantom. For several GPUs: torchrun
    --nproc-per-node N -m zarrmask train ...
    """
    given = click.get_current_context().get_parameter_source
    if phantom == (coco is not None) or (coco is None) != (images is None):
        raise click.UsageError("give --coco and --images, or --phantom alone")
    from zarrmask.training.loop import train
    from zarrmask.training.world import is_first_process

    if coco is None or images is None:
        for name in ("new_heads", "validate", "validate_coco", "validate_images", "detect_window"):
            if given(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --coco")
            del options[name]
        from zarrmask.training.simulated import simulated_lesson

        lesson = simulated_lesson(**options)
    else:
        if options["validate_images"] is not None and options["validate_coco"] is None:
            raise click.UsageError("--validate-images goes with --validate-coco")
        if options["validate_coco"] and given("validate") is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--validate and --validate-coco exclude each other")
        from zarrmask.training.fine_tuning import annotated_lesson

        lesson = annotated_lesson(coco, images, **options)
    weights = train(
        lesson, out, threads=threads, workers=workers, device=device, progress=click.echo
    )
    if is_first_process():
        click.echo(f"the last weights are in {weights}")


@cli.command(
    "evaluate", short_help="Compare a checkpoint with annotated images.", cls=NumbersCommand
)
@click.option(
    "--coco",
    "annotations",
    type=LocalPath(path_type=Path),
    required=True,
    help="COCO annotations, a JSON.",
)
@click.option(
    "--images", type=LocalPath(path_type=Path), required=True, help="Folder of their images."
)
@CHECKPOINT
@MODEL
@click.option(
    "--score", type=float, metavar="S", help="Detections count above this.  [default: 0.1]"
)
@CLASSES
@click.option(
    "--dilate",
    metavar="P|Lum",
    help="Side of the kernel that dilates masks, as for `run`.  [default: 3]",
)
@click.option("--voxel-size", metavar="UM", help="Side of a pixel, micrometres.")
@DETECT_WINDOW
@MIRRORED
@click.option("--out", type=LocalPath(path_type=Path), help="Folder to make: figures and pictures.")
@click.option(
    "--worst",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Images that are drawn.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_command(annotations: Path, images: Path, as_json: bool, **options: Any) -> None:
    """Compare what a checkpoint finds on annotated images with what is on them."""
    from zarrmask.coco.evaluation import as_table, evaluate

    def told(record: Mapping[str, Any]) -> None:
        click.echo(json.dumps(record, indent=2) if as_json else as_table(record))

    evaluate(annotations, images, told=told, **options)


@cli.command("annotate", short_help="Write a run's worst keyframes as images and COCO JSON.")
@OUT
@click.argument("folder", metavar="DIR", type=LocalPath(path_type=Path))
@click.option("--every-keyframe", is_flag=True, help="Write all keyframes.")
@click.option(
    "--worst",
    type=click.IntRange(1),
    metavar="N",
    help="Write those that are most likely wrong.  [default: 20]",
)
@click.option("--png", is_flag=True, help="Write PNG, which loses nothing, instead of JPEG.")
def annotate_command(
    out: str, folder: Path, every_keyframe: bool, worst: int | None, png: bool
) -> None:
    """Write keyframes of the run in OUT as images and COCO annotations, to be corrected."""
    from zarrmask.coco.export import annotate

    if every_keyframe and worst is not None:
        raise click.UsageError("--every-keyframe and --worst exclude each other")
    numbers = annotate(out, folder, worst=None if every_keyframe else worst or 20, png=png)
    written = counted(len(numbers), "images")
    click.echo(f"wrote {folder / 'annotations.json'} and {written}; look first at z:")
    click.echo(listed(numbers))


@cli.command("export", cls=NumbersCommand)
@OUT
@click.argument("folder", metavar="DIR", type=LocalPath(path_type=Path))
@click.option(
    "--what",
    type=click.Choice(["masked", "mask", "volume"]),
    default="masked",
    show_default=True,
)
@click.option(
    "--format",
    type=click.Choice(["tif", "jpg", "png"]),
    default="tif",
    show_default=True,
    help="TIFF and PNG keep all bits, JPEG 8.",
)
@click.option("--lzw", is_flag=True, help="Compress TIFFs, without loss.")
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="Quality of JPEGs.",
)
@click.option(
    "--window",
    metavar="LO HI",
    help="Grey values of 16 bits that become a JPEG's 0 and 255.  [default: what the run's "
    "detector saw, or all]",
)
@click.option(
    "--level", type=click.IntRange(0), default=0, show_default=True, help="Level of the pyramid."
)
@click.option("--z", metavar="A:B", help="Slice numbers to write, B excluded.")
@into_folder
def export_command(out: str, folder: Path, **options: Any) -> None:
    """Write slices of the run in OUT as numbered images into DIR."""
    _make_ready(options)
    from zarrmask.images.export import export

    written = export(out, folder, **options)
    first, stop = written["identity"]["z"]
    click.echo(f"slices {first} to {stop - 1} are in {folder}: {sized(written['bytes'])}")


@cli.command("proxy", cls=NumbersCommand)
@STACK
@click.argument("folder", metavar="DIR", type=LocalPath(path_type=Path))
@click.option(
    "--side",
    type=click.IntRange(1),
    default=1600,
    show_default=True,
    metavar="PIXELS",
    help="Longer side, at most.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True)
@click.option(
    "--every", type=click.IntRange(1), default=1, show_default=True, help="Every N-th slice only."
)
@click.option(
    "--detect-window",
    metavar="seed|auto|LO HI",
    help="Grey values that the 8 bits span, as for `run`.  [default: seed]",
)
@click.option("--z", metavar="A:B", help="Slice numbers to write, B excluded.")
@click.option("--allow-missing", is_flag=True, default=None, help="Pass over missing slices.")
@into_folder
def proxy_command(stack: str, folder: Path, **options: Any) -> None:
    """Write small JPEGs of STACK's slices into DIR."""
    _make_ready(options)
    from zarrmask.images.proxy import proxy

    record = proxy(stack, folder, **options)
    slices, voxels = record["stack"]["slices"], record["stack"]["voxel_bytes"]
    click.echo(
        f"{counted(slices, 'slices')} in {folder}: {sized(record['bytes'])} instead of "
        f"{sized(voxels)} of voxels, {voxels / record['bytes']:.0f} times smaller"
    )


@cli.group("checkpoint", short_help="Look into a detector's weights, or convert them.")
def checkpoint_group() -> None:
    """Look into a detector's weights, or write them as another kind of file."""


@checkpoint_group.command("inspect", short_help="Say what a checkpoint is, and whether it fits.")
@click.argument("file", type=LocalPath(path_type=Path))
@MODEL
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(file: Path, model: Path | None, as_json: bool) -> None:
    """Say what FILE is, and whether its weights fit the network that its config describes.

    Exits with 1 where they do not.
    """
    from zarrmask.detection.inspection import inspect_checkpoint
    from zarrmask.planning.outlook import in_columns

    found = inspect_checkpoint(file, model)
    click.echo(json.dumps(found.record(), indent=2) if as_json else in_columns(found.lines()))
    if not found.fits:
        sys.exit(1)


@checkpoint_group.command("convert", short_help="Write weights as .pth, .pkl or .safetensors.")
@click.argument("source", metavar="IN", type=LocalPath(path_type=Path))
@click.argument("target", metavar="OUT", type=LocalPath(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
def convert_checkpoint_command(source: Path, target: Path, overwrite: bool) -> None:
    """Write the weights of IN as OUT: .pth or .pkl, as detectron2 loads them, or .safetensors."""
    from zarrmask.detection.conversion import convert_checkpoint
    from zarrmask.detection.files import config_file

    written = convert_checkpoint(source, target, overwrite=overwrite)
    click.echo(f"wrote {len(written.tensors):,} tensors to {target}")
    beside = target.with_suffix(".yaml")
    if (config := config_file(source)) and not beside.exists():
        click.echo(f"its config stays {config}; whoever reads {target.name} looks for {beside}")


@cli.command("info")
@click.argument("path", type=click.Path())
def info_command(path: str) -> None:
    """Say what PATH is: a stack, an OME-Zarr, a run's or a training's folder, exported images."""
    from zarrmask.info import describe

    for name, value in describe(path).items():
        for n, line in enumerate(value.splitlines()):
            click.echo(f"{'' if n else name:<12} {line}")


def _make_ready(options: Mapping[str, Any], *, detects: bool = False) -> None:
    """Let what workers need be imported while this process imports what it needs itself."""
    if options["scheduler"] is None and not options.get("gpus"):
        from zarrmask.workers.processes import DETECTING, WRITING, make_ready

        make_ready(DETECTING if detects else WRITING)


def _command() -> list[str]:
    return ["zarrmask", *sys.argv[1:]]


def _summarise(out: str | Path, record: dict[str, Any]) -> None:
    from zarrmask.storage.place import names_in, place_of

    place = place_of(out)
    voxels = record["voxels"]
    click.echo(
        f"kept {voxels['kept'] / voxels['total']:.1%} of {voxels['total']:,} voxels; in {out}:"
    )
    for name in sorted(names_in(place)):
        if not name.startswith("."):
            click.echo(f"  {name}")
    click.echo(f"look at {place / 'report.html'} first")


def _interrupt(*_: object) -> None:
    """Stop once: a second Ctrl-C does not disturb what closes the cluster."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Terminated(SystemExit):
    """Somebody ended this process: clusters are closed first."""


def _terminate(*_: object) -> None:
    raise _Terminated(143)


def _fail(text: str, code: int = 1) -> NoReturn:
    """Say what went wrong, without the secrets that libraries put into their messages."""
    from zarrmask.storage.place import redacted

    click.echo(redacted(text), err=True, nl=False)
    sys.exit(code)


def main() -> None:
    """Run the command line; a failure is one message, and an exit code that is not 0."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        cli(arguments, standalone_mode=False)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        _fail(told.getvalue(), error.exit_code)
    except (click.Abort, KeyboardInterrupt, _Terminated) as stop:
        click.echo("stopped; the same command goes on from what is kept, if anything is", err=True)
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    except Exception as error:
        if debug:
            _fail(traceback.format_exc())
        advice = no_space(error) or no_memory(error)
        if advice or isinstance(error, ZarrmaskError | OSError):
            _fail(f"error: {advice or error}\n")
        name = type(error).__name__
        _fail(f"error: {name}: {error}\nthis is a bug in zarrmask; --debug shows the traceback\n")
    finally:  # all is closed: a signal may end what is left of the process
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.freeze()  # or all objects are gone over once more before the process ends


if __name__ == "__main__":
    main()
