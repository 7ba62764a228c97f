"""The object of a run, found on keyframes and cut out of the stack."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from distributed import Client

from zarrmask.contrast import Contrast
from zarrmask.masking import FieldStore, Keyframes, KeyframeStore
from zarrmask.running.looking import detect_keyframes
from zarrmask.running.measuring import UsedKeyframes, masks_between
from zarrmask.running.session import Session
from zarrmask.stack import Source
from zarrmask.workers.ahead import ahead, last
from zarrmask.workers.blocks import let_go
from zarrmask.workers.detectors import Detectors


@dataclass(frozen=True)
class Cutout:
    """What a session that has been started makes of its stack.

    Attributes
    ----------
    client : Client
    session : Session
    detectors : Detectors
    contrast : Contrast
        As the session settled it.
    """

    client: Client
    session: Session
    detectors: Detectors
    contrast: Contrast

    def written(self, source: Source) -> tuple[Keyframes, int]:
        """Detect, and write the pyramids, the one before the other or beside it.

        Parameters
        ----------
        source : Source
            What `Session.bridging` gives.

        Returns
        -------
        Keyframes
            All of them.
        int
            Voxels inside the masks.
        """
        session, plan, journal = self.session, self.session.plan, self.session.journal
        store, ledger = KeyframeStore(journal.out / "keyframes.zarr"), journal.ledger
        seeking = detect_keyframes(
            self.client,
            source,
            plan,
            self.contrast.detected,
            self.detectors,
            store,
            ledger,
            session.reporter,
            shares=session.forecast.overlaps,
        )
        shape, measuring = (source.shape[1], source.shape[2]), ledger.stage("measuring")
        fields = FieldStore(journal.scratch / "fields.zarr", shape)
        newest: deque[Keyframes] = deque(maxlen=1)
        with self._running(seeking) as found:
            used = self._used(found, newest)
            masks = masks_between(
                self.client, store, used, plan, fields, measuring, session.reporter
            )
            kept = session.write(source, masks, self.contrast)
        return newest.pop(), kept

    def _running(self, seeking: Iterator[Keyframes]) -> AbstractContextManager[Iterator[Keyframes]]:
        """Let keyframes be found while bricks are written, or before that."""
        if self.session.forecast.overlaps:
            return ahead(seeking, partial(let_go, self.client))
        return last(seeking)

    def _used(
        self, found: Iterator[Keyframes], newest: deque[Keyframes]
    ) -> Iterator[UsedKeyframes]:
        """Those that make the masks, of what was found; which is left in `newest`."""
        for one in found:
            newest.append(one)
            indices = self.session.plan.keyframes[one.used]
            yield UsedKeyframes(one.used, indices, one.areas, one.complete)
