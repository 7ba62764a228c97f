"""All that a run can be told, in one frozen, validated object; also what a YAML config holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from math import inf, isfinite
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from zarrmask.errors import SettingsError
from zarrmask.wording import got, wanted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]  # the workers' folder is another

DetectWindow = Literal["seed", "auto"] | tuple[float, float]
Window = Literal["auto"] | tuple[float, float]
SCORE = 0.1
"""Detections count above this."""
MOST_DILATED = 100
"""Percent of a slice's longer side."""
Range = tuple[int | None, int | None]


def _range(value: Any) -> object:
    """Read "A:B", either side open."""
    try:
        if isinstance(value, str):
            value = [end.strip() or None for end in value.split(":")]
        first, stop = (None if end is None else _whole(end) for end in _parts(value))
    except (TypeError, ValueError):
        raise ValueError(
            "write a range as A:B, B excluded, such as 1000:2000, :500 or 700:"
        ) from None
    return first, stop


def _parts(value: Any) -> list[Any]:
    """Take a text apart, or what holds several things; what is one stands alone."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, Mapping | bytes):
        raise TypeError
    return list(value) if isinstance(value, Iterable) else [value]


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, str) else index(value)


def _interval(value: object) -> object:
    """Read "auto", or a number of slices."""
    if value == "auto":
        return value
    try:
        slices = int(value) if isinstance(value, str | int) else 0
    except ValueError:
        slices = 0
    if slices < 1:
        raise ValueError("write auto, or a number of slices, at least 1")
    return slices


def _window(value: Any, info: ValidationInfo) -> object:
    """Read "LO HI"."""
    words = ("seed", "auto") if info.field_name == "detect_window" else ("auto",)
    if value is None or (isinstance(value, str) and value in words):
        return value
    try:
        low, high = (float(end) for end in _parts(value))
        if not isfinite(low) or not isfinite(high):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"write {', '.join(words)}, or two numbers LO HI") from None
    return low, high


def _numbers(value: Any) -> object:
    """Read "0 2", each number once; a number may stand alone."""
    if value is None:
        return value
    try:
        numbers = {_whole(number) for number in _parts(value)}
        if not numbers or min(numbers) < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError("write one class or more, counted from 0, such as 0 2") from None
    return tuple(sorted(numbers))


def _in(unit: str) -> BeforeValidator:
    """Read a number that may have this unit behind it."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return float(_ascii(value).removesuffix(unit))
        except ValueError:
            raise ValueError(f"write a number, as 7.91 or 7.91{unit}") from None

    return BeforeValidator(read)


def _ascii(text: str) -> str:
    """The text with a u where micro stands, be it the sign or the Greek letter."""
    return text.strip().replace("µ", "u").replace("μ", "u")


def _dilation(value: object) -> object:
    """Read "3", percent, or "150um"."""
    text = _ascii(value) if isinstance(value, str) else ""
    micrometres = text.endswith("um")
    try:
        number: Any = text.removesuffix("um" if micrometres else "%") or value
        length = float(number)
    except (TypeError, ValueError):
        length = -1.0
    if not (0 <= length < inf if micrometres else 0 <= length <= MOST_DILATED):
        raise ValueError(
            f"write percent of the longer side, 0 to {MOST_DILATED}, or micrometres, as 150um"
        )
    return f"{length:g}um" if micrometres else length


def _compressor(value: object) -> object:
    """Read "NAME", "NAME:LEVEL" or a pair of these."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        value = "none" if tuple(value) == ("none", 0) else f"{value[0]}:{value[1]}"
    name, colon, level = value.partition(":") if isinstance(value, str) else ("", "", "")
    if name == "none" and not colon:
        return name, 0
    if name not in COMPRESSORS or (colon and level not in map(str, range(1, 10))):
        raise ValueError(
            "write none, or one of " + ", ".join(COMPRESSORS) + ", with a level from 1 to 9 behind "
            "a colon if it is to be another: blosc-zstd:3"
        )
    return name, int(level) if level else COMPRESSORS[name]


COMPRESSORS = {"blosc-lz4": 5, "blosc-zstd": 3}
"""Compressors with their usual level."""


class Settings(BaseModel):
    """What decides a run's result. Workers, schedulers and the like do not, and are not here.

    Attributes
    ----------
    checkpoint : Path or None
        Weights of the detector; None is the checkpoint that ships with zarrmask.
    model : Path or None
        detectron2 config of those weights; None takes the YAML beside the checkpoint, or reads the
        architecture off the weights.
    backend : "torchvision" or "detectron2"
        What runs them: zarrmask's own network, or the detectron2 that is installed.
    precision : "full" or "fast"
        float32, which gives the same masks wherever it runs; or bfloat16 where most of the time
        goes, on processors and accelerators that have it.
    device : "auto", "cpu", "cuda" or "mps"
        Where: "auto" takes GPUs if any worker sees one. What that comes to when a run begins is
        part of its identity: elsewhere the last digits differ.
    threads : int
        Of each detector, where it works on a processor: sums depend on how many there are.
    batch : int
        Slices that go through an accelerator together; a processor takes each alone.
    mirrored : bool
        Whether a keyframe's three mirror images are looked at too, which takes four times as long.
    overlap : bool or None
        Whether bricks are written while the detector still looks at slices further on, which takes
        memory for both; None does so where detectors run on GPUs. The outputs are the same, and it
        is no part of a run's identity.
    z : (int or None, int or None)
        Slice numbers, the second excluded; None is open.
    y, x : (int or None, int or None)
        Rows and columns that are written, likewise; the detector sees whole slices.
    every : "auto" or int
        A keyframe every so many slices; "auto" places them where masks change.
    every_max, every_min : int
        With "auto", keyframes stand so many slices apart at first, and so many at the least.
    tolerance : float
        With "auto", a slice half-way between two keyframes is seen too where their masks differ by
        more: what is in one of them only, percent of what is in either.
    mend : bool
        Whether keyframes that contradict those around them are detected anew, and not used where
        that does not help.

        Where `propagate` is "hold", by default `every` is 10, and nothing is mended: as in the
        replaced scripts.
    score : float
        A detection counts above this score.
    classes : tuple of int, or None
        Classes of the detector, counted from 0, whose detections count; None is all.
    propagate : "field" or "hold"
        How slices between keyframes get their masks: by signed distances to the keyframes' edges,
        interpolated; or as in the scripts that zarrmask replaces, which hold a keyframe's mask.
    dilate : float or str
        Twice by how much a mask grows on each side: percent of the slice's longer side, or
        micrometres, as "150um". It is the side of the square kernel where masks are held.
    detect_window : "seed", "auto" or (lo, hi)
        How the detector's 8 bits are taken from 16: the high byte (of int16 and float32, of what is
        written), percentiles of the keyframes, or the given grey values.
    dtype : str or None
        "uint8" or "uint16": what volume and masked volume are written as; None is as the stack is,
        uint16 for a stack of int16 or float32.
    window : "auto", (lo, hi) or None
        Grey values that become all of those of `dtype`, what is beyond is clipped; "auto" takes
        percentiles of the keyframes; None leaves grey values as they are.
    ngff : str
        Version of OME-NGFF that is written: "0.4" (zarr format 2; what khartes reads) or "0.5"
        (zarr format 3, sharded).
    chunk : int
        Side of a chunk, voxels.
    levels : int
        Levels of a pyramid, at most.
    compressor : (name, level)
        "none", "blosc-lz4" or "blosc-zstd"; the mask is always compressed.
    voxel_size : float or None
        Side of a voxel in micrometres; None takes what the stack states.
    volume : bool or None
        Whether the unmasked volume is written too; None writes it unless the stack is itself an
        OME-Zarr that serves as it.
    links : bool
        Whether the masked volume shares with the volume, by hard links, the chunks of levels 0
        and 1 that lie wholly inside the mask, where the disk has such links.
    allow_missing : bool
        Whether missing slice numbers are read as zeros.
    on_bad_slice : "stop" or "interpolate"
        What becomes of a slice that cannot be read: the run stops, and goes on when it is repaired;
        or it is interpolated from the slices around it. It is no part of a run's identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    checkpoint: AbsolutePath | None = None
    model: AbsolutePath | None = None
    backend: Literal["torchvision", "detectron2"] = "torchvision"
    precision: Literal["full", "fast"] = "full"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1, le=64)
    mirrored: bool = False
    overlap: bool | None = None
    z: Annotated[Range, BeforeValidator(_range)] = (None, None)
    y: Annotated[Range, BeforeValidator(_range)] = (None, None)
    x: Annotated[Range, BeforeValidator(_range)] = (None, None)
    every: Annotated[Literal["auto"] | int, BeforeValidator(_interval)] = "auto"
    every_max: int = Field(64, ge=1)
    every_min: int = Field(8, ge=1)
    tolerance: Annotated[float, _in("%")] = Field(15.0, ge=0, le=100)
    mend: bool = True
    score: float = Field(SCORE, ge=0, le=1)
    classes: Annotated[tuple[int, ...] | None, BeforeValidator(_numbers)] = None
    propagate: Literal["field", "hold"] = "field"
    dilate: Annotated[float | str, BeforeValidator(_dilation)] = 3.0
    detect_window: Annotated[DetectWindow, BeforeValidator(_window)] = "seed"
    dtype: Literal["uint8", "uint16"] | None = None
    window: Annotated[Window | None, BeforeValidator(_window)] = None
    ngff: Literal["0.4", "0.5"] = "0.4"
    chunk: int = Field(128, ge=16, le=512)
    levels: int = Field(6, ge=1, le=20)
    compressor: Annotated[tuple[str, int], BeforeValidator(_compressor)] = ("blosc-lz4", 5)
    voxel_size: Annotated[float | None, _in("um")] = Field(None, gt=0, allow_inf_nan=False)
    volume: bool | None = None
    links: bool = True
    allow_missing: bool = False
    on_bad_slice: Literal["stop", "interpolate"] = "stop"

    @model_validator(mode="before")
    @classmethod
    def _as_the_replaced_scripts(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Held masks come from keyframes at a fixed interval, whatever is on them."""
        held = given.get("propagate") == "hold"
        return ({"every": 10, "mend": False} if held else {}) | given

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        if self.every_min > self.every_max:
            raise ValueError(f"every_min {self.every_min} is more than every_max {self.every_max}")
        for name in ("z", "y", "x"):
            first, stop = getattr(self, name)
            if first is not None and stop is not None and first >= stop:
                raise ValueError(f"{name} {first}:{stop} is empty; the second is excluded")
        if self.model is not None and self.checkpoint is None:
            raise ValueError(
                f"{self.model} describes a network, whose weights are not named; give them with "
                "--checkpoint"
            )
        if self.backend == "detectron2" and self.precision == "fast":
            raise ValueError(
                "precision fast needs the torchvision backend; detectron2 has full only"
            )
        if self.backend == "detectron2" and self.batch > 1:
            raise ValueError(
                "a batch above 1 needs the torchvision backend; detectron2 takes slices one by one"
            )
        if self.chunk & (self.chunk - 1):
            raise ValueError(f"chunk {self.chunk} is not a power of two; take 64, 128 or 256")
        for name in ("detect_window", "window"):
            window = getattr(self, name)
            if isinstance(window, tuple) and window[0] >= window[1]:
                raise ValueError(f"{name} {window} is empty; write the lower first")
        return self


def read_settings(config: Path | None = None, **options: Any) -> Settings:
    """Settings from a config file and options; an option that is not None beats the file.

    Parameters
    ----------
    config : Path, optional
        A YAML of zarrmask settings, or a detectron2 config: then it becomes `model`, and its score
        threshold, where it states one, the default score.
    **options
        Fields of `Settings`.

    Raises
    ------
    SettingsError
        All that is wrong, at once.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**{**(_read_config(config) if config else {}), **given})
    except ValidationError as error:
        problems = "\n".join(
            f"  {_name(problem['loc'])}: {_reason(problem)}"
            + (f" {got(problem)}" if problem["loc"] else "")
            for problem in error.errors()
        )
        source = f" in {config} or the options" if config else ""
        raise SettingsError(f"these settings{source} cannot be used:\n{problems}") from None


def _reason(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        alike = get_close_matches(_name(problem["loc"]), Settings.model_fields, 1)
        return "there is no such setting" + (f"; did you mean {alike[0]}?" if alike else "")
    if problem["type"] in ("greater_than_equal", "less_than_equal"):
        bounds: dict[str, Any] = {}
        for one in Settings.model_fields[_name(problem["loc"])].metadata:
            bounds |= {name: getattr(one, name) for name in ("ge", "le") if hasattr(one, name)}
        if len(bounds) == 2:
            return "write a number from {ge:g} to {le:g}".format(**bounds)
    return wanted(problem)


def _name(location: tuple[int | str, ...]) -> str:
    return str(location[0]) if location else "together"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the config {path}: {error}") from None
    if _is_detectron2(text):
        keys = {line.partition(":")[0].replace("-", "_") for line in text.splitlines()}
        if mixed := sorted(keys & set(Settings.model_fields)):
            raise SettingsError(
                f"the config {path} mixes a detectron2 model with settings of a run "
                f"({', '.join(mixed)}); put these into a file of their own that names the model's "
                f"file: `model: {path.name}`"
            )
        return _from_detectron2(path)
    try:
        # As text: YAML reads 5:9 as a sexagesimal number; the settings know what they want.
        content = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  makes nothing but text
    except yaml.YAMLError as error:
        raise SettingsError(f"the config {path} is not valid YAML: {error}") from None
    if content is None or content == "":
        return {}
    if not isinstance(content, Mapping):
        raise SettingsError(f"the config {path} holds {type(content).__name__}, expected settings")
    settings = {
        str(key).replace("-", "_"): value
        for key, value in content.items()
        if value not in ("", "null", "~")
    }
    for key in ("checkpoint", "model"):  # relative to the file that names them
        if isinstance(settings.get(key), str):
            settings[key] = path.parent / settings[key]
    return settings


def _is_detectron2(text: str) -> bool:
    """Whether a YAML is a detectron2 config: plain, based on another, or dumped with its tags."""
    starts = ("_BASE_:", "MODEL:", "INPUT:", "!!python/object/new:detectron2.")
    return any(line.startswith(starts) for line in text.splitlines())


def _from_detectron2(path: Path) -> dict[str, Any]:
    from zarrmask.detection.config import read_fields
    from zarrmask.detection.config_file import read_documents

    (threshold,) = read_fields(read_documents(path), str(path), "score_threshold")
    return {"model": path} | ({} if threshold is None else {"score": threshold})
