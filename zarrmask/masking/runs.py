"""Runs of whole files in a region's columns. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence


def whole_files(
    reached: Sequence[bool], full: Sequence[bool], width: int, side: int, most: int
) -> list[tuple[slice, bool]]:
    """Cut the columns that masks reach into runs of files that are alike.

    Parameters
    ----------
    reached : (n,) bool
        Of each file along x, whether any mask may reach it.
    full : (n,) bool
        Of each, whether all of its voxels are inside.
    width : int
        Columns in all.
    side : int
        Columns of a file.
    most : int
        Columns of a run, at most; a multiple of `side`.

    Returns
    -------
    list of (slice, bool)
        Columns, and whether all of their voxels are inside.

    Examples
    --------
    >>> whole_files([False, True, True, True], [False, False, True, True], 45, 12, 24)
    [(slice(12, 24, None), False), (slice(24, 45, None), True)]
    """
    runs: list[tuple[slice, bool]] = []
    for place, (here, whole) in enumerate(zip(reached, full, strict=True)):
        if not here:
            continue
        start, stop = place * side, min((place + 1) * side, width)
        last, alike = runs[-1] if runs else (slice(0, 0), None)
        if last.stop == start and alike == whole and stop - last.start <= most:
            runs[-1] = slice(last.start, stop), bool(whole)
        else:
            runs.append((slice(start, stop), bool(whole)))
    return runs
