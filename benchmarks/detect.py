"""Detecting: what each way to run the same network takes, and how far they agree.

    python benchmarks/detect.py [--model shipped] [--side 2048] [--rounds 5] [--device cuda]

Each way has processes of its own, which load the weights and wait; then they take turns, round by
round after one to warm up, on the same simulated slices. The ways are detectron2's DefaultPredictor
(where detectron2 is installed), zarrmask's backends and precisions on slices of the network's size
in memory, the whole path from uint16 TIFF slices on disk to coarse distances from their masks'
edges, and one process with all cores against a process a core. `shipped` is the bundled checkpoint,
`r101` a mask_rcnn_R_101_FPN with random weights: its time is right, its masks mean nothing. With
the shipped one, fast and full precision are also compared on many slices of several sizes, real
ones too where ZARRMASK_SHARED names them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from conversion.findings import Findings, between, number
from convert import describe_machine
from dask.system import CPU_COUNT as CORES
from numpy.typing import NDArray
from real_slices import frames, grey

from zarrmask.detection.detections import union_mask
from zarrmask.detection.inputs import NetworkInput, to_8bit
from zarrmask.masking.field import cell_side, coarse_mask, signed_distance
from zarrmask.masking.overlap import Overlap
from zarrmask.phantom import simulate
from zarrmask.shipped import CONFIGS, DEFAULT_CHECKPOINT
from zarrmask.stack import Source, open_source

DRAWN = 800
"""Pixels: larger slices are drawn in this size and enlarged."""
SCORE = 0.1
MB = 1e6
Mask = NDArray[np.uint8]
Detect = Callable[[int], Mask]


@dataclass(frozen=True)
class Way:
    """A way to detect.

    Attributes
    ----------
    name : str
    start : callable
        Of a device, a checkpoint and a stack, what gives the mask of slice n; what is not to be
        measured is done by then.
    processes, threads : int
        That work at the same time, and the threads of each.
    """

    name: str
    start: Callable[[str, Path, Path], Detect]
    processes: int = 1
    threads: int = 1


def on_network(backend: Any, precision: Any, device: str, checkpoint: Path, stack: Path) -> Detect:
    """Detect on slices that are in memory, in the network's size."""
    from zarrmask.detection.load import load_detector

    detector = load_detector(
        checkpoint, backend=backend, precision=precision, device=device, score_threshold=SCORE
    )
    images = [detector.network_input.prepare(to_8bit(image)) for image in slices(stack)]

    def detect(n: int) -> Mask:
        shape = images[n].shape[:2]
        (found,) = detector.detect([images[n]], [shape])
        return union_mask(found, shape)

    return detect


def on_disk(precision: Any, device: str, checkpoint: Path, stack: Path) -> Detect:
    """Read slices, make them 8 bits, shrink them, detect, paste masks of their size, measure those.

    As a run does that looks once, to the distance of each coarse cell to the mask's edge.
    """
    from zarrmask.detection.load import load_detector

    detector = load_detector(checkpoint, precision=precision, device=device, score_threshold=SCORE)
    source = open_source(stack)
    shape = (source.shape[1], source.shape[2])

    def detect(n: int) -> Mask:
        (found,) = detector.detect([prepared(source, detector.network_input, n)], [shape])
        mask = union_mask(found, shape)
        signed_distance(coarse_mask(mask, cell_side(*shape)))
        return mask

    return detect


def prepared(source: Source, network_input: NetworkInput, n: int) -> NDArray[np.uint8]:
    """Read a slice from disk and make it what the network sees."""
    image = np.asarray(source[n : n + 1, 0 : source.shape[1], 0 : source.shape[2]])[0]
    return network_input.prepare(to_8bit(image))


def predictor(device: str, checkpoint: Path, stack: Path) -> Detect:
    """Let detectron2's DefaultPredictor detect; it shrinks slices and pastes masks itself."""
    from detectron2.engine import DefaultPredictor

    from zarrmask.detection.load import load_detector

    own: Any = load_detector(checkpoint, backend="detectron2", device=device, score_threshold=SCORE)
    config = own.config.clone()
    config.MODEL.WEIGHTS = ""
    config.DATASETS.TEST = ()
    predict = DefaultPredictor(config)
    predict.model = own.model  # filled by zarrmask, which reads weights of any format
    images = [
        np.repeat(own.network_input.prepare(to_8bit(image))[..., None], 3, axis=2)
        for image in slices(stack)
    ]

    def detect(n: int) -> Mask:
        found = predict(images[n])["instances"].pred_masks
        return np.asarray(found.any(0).cpu().numpy(), np.uint8)

    return detect


def slices(stack: Path) -> list[NDArray[Any]]:
    return [tifffile.imread(path) for path in sorted(stack.iterdir())]


NETWORK = (
    Way("zarrmask, full", partial(on_network, "torchvision", "full")),
    Way("zarrmask, fast", partial(on_network, "torchvision", "fast")),
)
DETECTRON2 = (
    Way("detectron2's DefaultPredictor", predictor),
    Way("--backend detectron2", partial(on_network, "detectron2", "full")),
)
WHOLE = (
    Way("whole path, full", partial(on_disk, "full")),
    Way("whole path, fast", partial(on_disk, "fast")),
)


def ways(model: str) -> Iterator[Way]:
    """All that take turns."""
    known = model == "r101" and find_spec("detectron2")  # it builds no network as thin as ours
    for way in (*(DETECTRON2 if known else ()), *NETWORK):
        yield way
        if CORES > 1:
            yield replace(way, threads=CORES)
    yield from WHOLE
    if CORES > 1:
        for way in NETWORK:
            yield replace(way, processes=CORES)


def label(way: Way) -> str:
    return f"{way.name}, {way.processes} x {way.threads}"


class Team:
    """Processes that wait for their turn.

    Attributes
    ----------
    way : Way
    seconds : list of float
        A slice, turn by turn.
    peak : int
        Most bytes that one of the processes ever held.
    masks : list of ndarray of uint8
        Of the first turn.
    """

    def __init__(self, way: Way, connections: Sequence[Connection], count: int) -> None:
        self.way = way
        self.seconds: list[float] = []
        self.peak = 0
        self.masks: list[Mask] = []
        self._connections = connections
        self._count = count

    def warm_up(self) -> None:
        """Take a turn that does not count, and keep the masks."""
        self.masks, *_ = self._all("masks")

    def turn(self) -> None:
        """Detect on all slices in every process, at the same time.

        Once before without counting: who follows a team of threads would else pay for what these
        leave behind in the caches and, spinning, on the cores.
        """
        self._all("turn")
        start = time.perf_counter()
        peaks = self._all("turn")
        seconds = time.perf_counter() - start
        self.seconds.append(seconds / (self._count * self.way.processes))
        self.peak = max(peaks)

    def _all(self, word: str) -> list[Any]:
        """Say it to every process, and wait for their answers."""
        for connection in self._connections:
            connection.send(word)
        return [connection.recv() for connection in self._connections]


@contextmanager
def team(way: Way, device: str, checkpoint: Path, stack: Path) -> Iterator[Team]:
    """Start the processes of a way, and end them."""
    context = get_context("spawn")
    threads = {f"{name}_NUM_THREADS": str(way.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)  # what is spawned reads them
    ends = [context.Pipe() for _ in range(way.processes)]
    processes = [
        context.Process(target=serve, args=(end, way, device, checkpoint, stack), daemon=True)
        for _, end in ends
    ]
    for process in processes:
        process.start()
    for name, value in before.items():
        os.environ.pop(name)
        os.environ.update({name: value} if value is not None else {})
    for _, end in ends:
        end.close()
    try:
        yield Team(way, [connection for connection, _ in ends], len(list(stack.iterdir())))
    finally:
        for connection, _ in ends:
            connection.close()
        for process in processes:
            process.join()


def serve(connection: Connection, way: Way, device: str, checkpoint: Path, stack: Path) -> None:
    """Detect when told to, until nobody is there to tell."""
    import torch

    torch.set_num_threads(way.threads)
    cv2.setNumThreads(way.threads)
    count = len(list(stack.iterdir()))
    detect = way.start(device, checkpoint, stack)
    try:
        while True:
            told = connection.recv()
            masks = [detect(n) for n in range(count)]
            # Kibibytes on Linux.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            connection.send(masks if told == "masks" else peak)
    except EOFError:
        return


def contest(
    them: Iterable[Way], device: str, checkpoint: Path, stack: Path, rounds: int
) -> list[Team]:
    """Let ways take turns."""
    with ExitStack() as open_teams:
        teams = [open_teams.enter_context(team(way, device, checkpoint, stack)) for way in them]
        for one in teams:
            one.warm_up()
        for turn in range(rounds):
            for one in teams if turn % 2 else reversed(teams):
                one.turn()
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return teams


def make_stack(folder: Path, count: int, side: int) -> Path:
    """Write simulated slices as uint16 TIFF files."""
    folder.mkdir()
    for n in range(count):
        drawn = min(side, DRAWN)
        image, _ = simulate(np.random.default_rng([20261124, n]), (drawn, drawn), empty=0.0)
        large = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        tifffile.imwrite(folder / f"{n:03d}.tif", large.astype(np.uint16) << 8)
    return folder


def random_r101(folder: Path) -> Path:
    """Write a checkpoint of mask_rcnn_R_101_FPN with random weights that find something."""
    import torch
    from safetensors.torch import save_file

    from zarrmask.detection.config import read_config
    from zarrmask.detection.network import build_model
    from zarrmask.detection.weights import model_weights

    config = CONFIGS / "mask_rcnn_R_101_FPN.yaml"
    torch.manual_seed(0)
    weights = model_weights(build_model(read_config(config)))
    for name, tensor in weights.items():  # such that features neither grow nor fade
        if name.endswith("conv3.norm.weight"):
            tensor.fill_(0.25)
        elif "stem.conv1" in name and tensor.ndim == 4:
            tensor /= 64  # pixels come in as 0 to 255 less the mean
        elif "objectness_logits.weight" in name:
            torch.nn.init.normal_(tensor, std=1 / tensor[0].numel() ** 0.5)
    path = folder / "r101.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    path.with_suffix(".yaml").write_text(config.read_text())
    return path


MODELS: dict[str, Callable[[Path], Path]] = {
    "shipped": lambda folder: DEFAULT_CHECKPOINT,
    "r101": random_r101,
}


def told(teams: Sequence[Team]) -> Findings:
    """What a contest says."""
    found = Findings()
    by_name = {label(one.way): one for one in teams}
    full = by_name[f"{NETWORK[0].name}, 1 x 1"]
    head = ["", "processes x threads", "s a keyframe", "quartiles", "times full, 1 x 1"]
    rows = []
    for one in teams:
        pairs = list(zip(one.masks, full.masks, strict=True))
        comparable = all(a.shape == b.shape for a, b in pairs)  # whole slices are larger
        rows.append(
            [
                one.way.name,
                f"{one.way.processes} x {one.way.threads}",
                f"{statistics.median(one.seconds):.3f}",
                between(one.seconds),
                number(times(one, full)),
                f"{one.peak / MB:,.0f}",
                f"{min(overlap(a, b) for a, b in pairs):.4f}" if comparable else "-",
            ]
        )
    found.table([*head, "peak of a process, MB", "least IoU with full"], rows)
    found.figures["teams"] = {
        name: {"way": describe(one.way), "seconds": one.seconds, "peak_bytes": one.peak}
        for name, one in by_name.items()
    }
    compare(found, by_name)
    return found


def overlap(one: Mask, other: Mask) -> float:
    return Overlap.of_masks(one > 0, other > 0).iou


def describe(way: Way) -> dict[str, Any]:
    return {"name": way.name, "processes": way.processes, "threads": way.threads}


def compare(found: Findings, teams: dict[str, Team]) -> None:
    """Hold the ways against what they have to reach."""

    def ratio(one: str, other: str) -> float | None:
        return times(teams[one], teams[other]) if {one, other} <= set(teams) else None

    for threads in sorted({1, CORES}):
        found.compare(
            f"DefaultPredictor over fast, 1 x {threads}",
            "at least 2",
            ratio(f"{DETECTRON2[0].name}, 1 x {threads}", f"{NETWORK[1].name}, 1 x {threads}"),
            lambda value: value >= 2,
        )
    for whole, network in zip(WHOLE, NETWORK, strict=True):
        found.compare(
            f"{whole.name}, over the network alone",
            "at most 1.15",
            ratio(label(whole), label(network)),
            lambda value: value <= 1.15,
        )
    for way in NETWORK if CORES > 1 else ():
        found.compare(
            f"{way.name}: one process with {CORES} threads over {CORES} with one (the default)",
            "at least 1",
            ratio(label(replace(way, threads=CORES)), label(replace(way, processes=CORES))),
            lambda value: value >= 1,
        )


def times(one: Team, other: Team) -> float:
    """Median of the rounds' own ratios: they ran side by side."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


def agreement(count: int, device: str) -> Findings:
    """Compare fast with full precision on slices of several sizes."""
    from zarrmask.detection.load import load_detector

    detectors = [
        load_detector(DEFAULT_CHECKPOINT, precision=precision, device=device, score_threshold=SCORE)
        for precision in ("full", "fast")
    ]
    found = Findings()
    rows = []
    for kind, images in (("simulated", simulated(count)), ("real", real())):
        overlaps = []
        for image in images:
            shape = (image.shape[0], image.shape[1])
            seen = [one.network_input.prepare(image) for one in detectors]
            masks = [
                union_mask(one.detect([small], [shape])[0], shape)
                for one, small in zip(detectors, seen, strict=True)
            ]
            overlaps.append(overlap(*masks))
        if overlaps:
            middle, least = statistics.median(overlaps), min(overlaps)
            below = sum(value < 0.999 for value in overlaps)
            rows.append([kind, str(len(overlaps)), f"{middle:.5f}", f"{least:.5f}", str(below)])
            found.compare(
                f"IoU of fast with full, {kind}",
                "at least 0.999",
                least,
                lambda value: value >= 0.999,
                digits=5,
            )
            found.figures[kind] = overlaps
    found.table(["union IoU of fast with full", "slices", "median", "least", "below .999"], rows)
    return found


def simulated(count: int) -> Iterator[NDArray[np.uint8]]:
    for n in range(count):
        rng = np.random.default_rng([20261125, n])
        yield simulate(rng, int(rng.integers(330, 1101)), empty=0.0)[0]


def real() -> Iterator[NDArray[np.uint8]]:
    """Slice 07000, and every tenth frame of the film."""
    if "ZARRMASK_SHARED" not in os.environ:
        return
    folder = Path(os.environ["ZARRMASK_SHARED"]) / "data"
    yield grey(folder / "07000.jpg")
    yield from islice(frames(folder / "scroll1.mp4"), 0, None, 10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", action="append", choices=MODELS, help="may be given again; default: all")
    add("--side", type=int, default=2048, help="pixels of the slices that are written")
    add("--slices", type=int, default=3, help="of a turn")
    add("--compared", type=int, default=60, help="simulated slices that fast is compared on")
    add("--rounds", type=int, default=5, help="after one to warm up")
    add("--device", default="cpu", help="as of zarrmask run")
    add("--folder", type=Path, help="where to work")
    add("--json", type=Path, help="save the figures here too")
    options = parser.parse_args()
    if min(options.rounds, options.slices) < 1:
        parser.error("--rounds and --slices have to be at least 1")

    findings: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        machine = describe_machine(Path(name))
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        print(f"{machine['cpu']}, {machine['cores']} cores; {versions}")
        print(f"load before: {machine['load_before'][0]:.1f}; times are medians of rounds")
        stack = make_stack(Path(name) / "stack", options.slices, options.side)
        for model in options.model or MODELS:
            found = findings[model] = told(
                contest(
                    ways(model), options.device, MODELS[model](Path(name)), stack, options.rounds
                )
            )
            print(f"\n## {model}\n", *found.lines, sep="\n", flush=True)
        if "shipped" in findings and options.compared:
            findings["agreement"] = agreement(options.compared, options.device)
            print("\n## agreement\n", *findings["agreement"].lines, sep="\n")
    for model, found in findings.items():
        for goal in found.goals:
            print(f"{model}: {goal}")
    if options.json:
        content = {
            "machine": machine,
            "options": {key: value for key, value in vars(options).items() if key != "json"},
            "models": {model: asdict(found) for model, found in findings.items()},
        }
        options.json.write_text(json.dumps(content, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
