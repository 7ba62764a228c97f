"""The object of a run, found on keyframes and cut out of the stack."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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


def found_and_written(
    client: Client, session: Session, detectors: Detectors, contrast: Contrast, source: Source
) -> tuple[Keyframes, int]:
    """Detect, and write a started session's pyramids: then, or meanwhile.

    Parameters
    ----------
    contrast : Contrast
        As the session settled it.
    source : Source
        What `Session.bridging` gives.

    Returns
    -------
    Keyframes
        All of them.
    int
        Voxels inside the masks.
    """
    plan, journal, overlaps = session.plan, session.journal, session.forecast.overlaps
    store, ledger = KeyframeStore(journal.out / "keyframes.zarr"), journal.ledger
    seeking = detect_keyframes(
        client,
        source,
        plan,
        contrast.detected,
        detectors,
        store,
        ledger,
        session.reporter,
        shares=overlaps,
    )
    shape, measuring = (source.shape[1], source.shape[2]), ledger.stage("measuring")
    fields = FieldStore(journal.scratch / "fields.zarr", shape)
    newest: deque[Keyframes] = deque(maxlen=1)

    def used(found: Iterator[Keyframes]) -> Iterator[UsedKeyframes]:
        """Those that make the masks, of what was found; which is left in `newest`."""
        for one in found:
            newest.append(one)
            yield UsedKeyframes(one.used, plan.keyframes[one.used], one.areas, one.complete)

    with ahead(seeking, partial(let_go, client)) if overlaps else last(seeking) as found:
        masks = masks_between(client, store, used(found), plan, fields, measuring, session.reporter)
        kept = session.write(source, masks, contrast)
    return newest.pop(), kept
