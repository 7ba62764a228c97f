"""Dataclasses whose fields are keys of a detectron2 config: declared, checked, read and written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from reprlib import repr as short
from sys import float_info
from typing import Any, Generic, TypeAlias, TypeVar

from zarrmask.detection.config_file import Document

Check: TypeAlias = Callable[[Any], Any]
"""Gives a key's value as it is kept, or raises ValueError with what is expected."""

MISSING = object()

Values = TypeVar("Values")


@dataclass(frozen=True)
class Keys(Generic[Values]):
    """The keys that one of these dataclasses is read from, and what stands beside them.

    Attributes
    ----------
    values : type
        The dataclass.
    fixed : mapping of str to (default, value)
        Keys that must have the only value understood, with detectron2's default.
    others : mapping of str to set of str
        What else detectron2 has in each section; "" is the file itself.
    contradictions : callable
        Tells what of the values, each right by itself, do not go together.
    """

    values: type[Values]
    fixed: Mapping[str, tuple[Any, Any]]
    others: Mapping[str, set[str]]
    contradictions: Callable[[Values], Iterable[str]]

    @property
    def paths(self) -> set[str]:
        """Of all that is understood."""
        declared = fields(self.values)  # type: ignore[arg-type]
        return {one.metadata["path"] for one in declared} | set(self.fixed)

    def read(self, documents: Sequence[Document], problems: list[str]) -> Values | None:
        """Read the dataclass; what is wrong is added to `problems`."""
        found = list(unlike(documents, self.fixed))
        values = read_values(documents, fields(self.values), found)  # type: ignore[arg-type]
        if found:
            problems += found
            return None
        config = self.values(**values)
        problems += self.contradictions(config)
        return config


def key(path: str, default: Any, check: Check) -> Any:
    """Declare a field read from the config's `path`; `default` is detectron2's own."""
    return field(default=default, metadata={"path": path, "check": check})


def whole(least: int, most: int = 2**31 - 1) -> Check:
    """Whole numbers from `least` to `most`."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"a whole number of at least {least}")
        if value > most:
            raise ValueError(f"a whole number of at most {most:,}")
        return value

    return check


def choice(*allowed: Any) -> Check:
    """One of these values."""

    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(" or ".join(repr(one) for one in allowed))
        return value

    return check


def flag(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, which True and False are not."""
    # Not `isfinite`: it raises where a whole number is larger than any float.
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) <= float_info.max


def fraction(value: Any) -> float:
    """A number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1")
    return float(value)


def numbers(count: int, *, positive: bool = False) -> Check:
    """So many finite numbers."""

    def check(value: Any) -> tuple[float, ...]:
        right = isinstance(value, tuple) and len(value) == count and all(map(is_number, value))
        if not right or (positive and min(value) <= 0):
            raise ValueError(f"{count} numbers" + (" above 0" if positive else ""))
        return tuple(float(number) for number in value)

    return check


def lookup(documents: Sequence[Document], path: str, default: Any) -> Any:
    """Find a key in nested mappings, the first of which takes precedence."""
    for document in documents:
        value: Any = document
        for name in path.split("."):
            value = value.get(name, MISSING) if isinstance(value, Mapping) else MISSING
        if value is not MISSING:
            return value
    return default


def read_values(
    documents: Sequence[Document], wanted: Iterable["Field[Any]"], problems: list[str]
) -> dict[str, Any]:
    """Read some fields of a dataclass; what is wrong is added to `problems`.

    A field that is not stated has its default; only a default of None is not checked.
    """
    values: dict[str, Any] = {}
    for declared in wanted:
        path, check = declared.metadata["path"], declared.metadata["check"]
        found = lookup(documents, path, MISSING)
        if found is MISSING and declared.default is None:
            values[declared.name] = None
            continue
        found = declared.default if found is MISSING else found
        try:
            values[declared.name] = check(found)
        except ValueError as expected:
            problems.append(f"{path} is {short(found)}, must be {expected}")
    return values


def unlike(documents: Sequence[Document], fixed: Mapping[str, tuple[Any, Any]]) -> Iterable[str]:
    """Say which keys differ from the only value understood; `fixed` gives default and value."""
    for path, (default, expected) in fixed.items():
        found = lookup(documents, path, default)
        if found != expected:
            yield f"{path} is {short(found)}, must be {expected!r}"


def unknown_keys(documents: Sequence[Document], *understood: Keys[Any]) -> Iterable[str]:
    """Find keys that detectron2 does not know either: a slip of the pen is not passed over."""
    known = {path for keys in understood for path in keys.paths}
    sections = {section: None for keys in understood for section in keys.others}
    for section in sections:
        besides = {name for keys in understood for name in keys.others.get(section, ())}
        for document in documents:
            content = lookup([document], section, {}) if section else document
            if not isinstance(content, Mapping):
                yield f"{section} is {short(content)}, must be a section with keys"
                continue
            for name in content:
                path = f"{section}.{name}" if section else name
                if path not in known and path not in sections and name not in besides:
                    yield f"{path} is not a key that zarrmask knows; correct or remove it"


def as_document(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Nest values by the dots in their paths, tuples as lists, as YAML has them.

    Examples
    --------
    >>> as_document({"INPUT.FORMAT": "BGR", "SOLVER.STEPS": (30, 40)})
    {'INPUT': {'FORMAT': 'BGR'}, 'SOLVER': {'STEPS': [30, 40]}}
    """
    document: dict[str, Any] = {}
    for path, value in stated.items():
        *sections, name = path.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = _lists(value)
    return document


def stated(values: Any) -> dict[str, Any]:
    """Give the keys of a dataclass whose values are not the defaults, by path."""
    return {
        declared.metadata["path"]: getattr(values, declared.name)
        for declared in fields(values)
        if getattr(values, declared.name) != declared.default
    }


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
