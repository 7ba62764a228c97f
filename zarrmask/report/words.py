"""Figures as people read them, and a run's record read leniently: what is missing is a dash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from zarrmask.errors import sized

DASH = "–"


def pick(record: Any, *keys: str) -> Any:
    """Follow keys into nested mappings.

    Returns
    -------
    object or None
        None where a key is missing or what it would be looked up in is not a mapping.

    Examples
    --------
    >>> pick({"voxels": {"kept": 3}}, "voxels", "kept")
    3
    >>> pick({"voxels": None}, "voxels", "kept") is None
    True
    """
    for key in keys:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record


def number(value: Any) -> float | None:
    """Give a finite number as a float and anything else (a text, a flag, nan) as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def plain(value: Any) -> str:
    """Write any value of the record in one line.

    Examples
    --------
    >>> plain(None), plain(27000), plain(0.05), plain((1, 2)), plain({"a": [1]})
    ('–', '27,000', '0.05', '1, 2', '{"a": [1]}')
    """
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.10g}"
    if isinstance(value, Mapping):
        return json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        known = any(one is not None for one in value)
        return ", ".join(plain(one) for one in value) if known else DASH
    return str(value)


def short(value: float) -> str:
    """Write a number to three digits, with thousands separators.

    Examples
    --------
    >>> short(1234.5), short(12.345), short(0.012345), short(0)
    ('1,234', '12.3', '0.0123', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def large(value: Any) -> str:
    """Write a large count in words.

    Examples
    --------
    >>> large(1.728e12), large(239_616_000), large(740), large(None)
    ('1.73 trillion', '240 million', '740', '–')
    """
    count = number(value)
    if count is None:
        return DASH
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:,.3g} {word}"
    return f"{count:,.0f}"


def percent(part: Any, whole: Any) -> str:
    """Write a share of a whole.

    Examples
    --------
    >>> percent(1, 3), percent(0, 3), percent(1, 10**6), percent(999_999, 10**6), percent(1, 0)
    ('33.3 %', '0 %', '< 0.1 %', '> 99.9 %', '–')
    """
    a, b = number(part), number(whole)
    if a is None or not b:
        return DASH
    share = 100 * a / b
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.3g} %"


def duration(seconds: Any) -> str:
    """Write a time span.

    Examples
    --------
    >>> duration(3.21), duration(75), duration(3600 * 7 + 180), duration(None), duration(0.004)
    ('3.2 s', '1 min 15 s', '7 h 3 min', '–', '< 0.1 s')
    """
    span = number(seconds)
    if span is None:
        return DASH
    if span < 0.05:
        return "< 0.1 s"
    if span < 59.95:
        return f"{span:.1f} s"
    whole = round(span)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(span / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: Any) -> str:
    """Write a number of bytes.

    Examples
    --------
    >>> size(2_340_000_000), size(1_000), size(None)
    ('2.3 GB', '1.0 kB', '–')
    """
    found = number(count)
    return DASH if found is None else sized(round(found))


def runs(chosen: Sequence[int], among: Sequence[int]) -> str:
    """Write some of a series of slice numbers, neighbours in the series as a range.

    Parameters
    ----------
    chosen : sequence of int
        The slice numbers to write.
    among : sequence of int
        The ascending series that they belong to.

    Examples
    --------
    >>> runs([0, 10, 20, 50], [0, 10, 20, 30, 40, 50])
    '0–20, 50'
    """
    places = {z: place for place, z in enumerate(among)}
    groups: list[list[int]] = []
    for z in sorted(chosen):
        last = groups[-1][-1] if groups else None
        if last is not None and z in places and places[z] == places.get(last, -2) + 1:
            groups[-1].append(z)
        else:
            groups.append([z])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups)


def bad_slices(record: Any) -> list[tuple[int, str, str]]:
    """Give the slices that a run could not read: number, how they were treated, and what was wrong.

    Examples
    --------
    >>> entry = {"z": 3, "why": "gone", "treated": "interpolated", "from": [2, 4]}
    >>> bad_slices({"bad_slices": [entry]})
    [(3, 'interpolated from 2 and 4', 'gone')]
    """
    entries = pick(record, "bad_slices")
    told = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        z, others = pick(entry, "z"), pick(entry, "from")
        if type(z) is int:
            known = isinstance(others, list | tuple) and others
            tail = f" from {' and '.join(map(str, others))}" if known else ""
            told.append((z, plain(pick(entry, "treated")) + tail, plain(pick(entry, "why"))))
    return told
