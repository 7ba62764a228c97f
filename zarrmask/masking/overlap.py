"""How much of what is true was found, and what else. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Overlap:
    """Pixels of what is true and of what was found.

    Attributes
    ----------
    true, found, both : int
        In the one, in the other, in both.

    Examples
    --------
    >>> overlap = Overlap(true=100, found=110, both=90) + Overlap(true=0, found=0, both=0)
    >>> overlap.iou, overlap.lost, overlap.surplus
    (0.75, 0.1, 0.2)
    """

    true: int
    found: int
    both: int

    @classmethod
    def of_masks(
        cls,
        true: NDArray[np.bool_],
        found: NDArray[np.bool_],
        ignored: NDArray[np.bool_] | None = None,
    ) -> Overlap:
        """Count pixels of two masks (y, x); found ones that are ignored and not true do not count.

        Parameters
        ----------
        true, found : (y, x) bool
        ignored : (y, x) bool, optional
            By default no pixel is.
        """
        counted = found if ignored is None else found & (true | ~ignored)
        return cls(*(int(np.count_nonzero(mask)) for mask in (true, counted, true & counted)))

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.true + other.true, self.found + other.found, self.both + other.both)

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where nothing is true and nothing was found."""
        either = self.true + self.found - self.both
        return self.both / either if either else 1.0

    @property
    def lost(self) -> float | None:
        """True pixels that were not found, over the true ones; None where none is true."""
        return (self.true - self.both) / self.true if self.true else None

    @property
    def surplus(self) -> float | None:
        """Found pixels that are not true, over the true ones; None where none is true."""
        return (self.found - self.both) / self.true if self.true else None

    def record(self) -> dict[str, float | int | None]:
        """Give all of it for JSON."""
        return {"iou": self.iou, "lost": self.lost, "surplus": self.surplus, **vars(self)}
