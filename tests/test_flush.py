"""What is finished is on the disk."""

import os
from pathlib import Path

import numpy as np
import pytest

from zarrmask.detection.detections import Detections
from zarrmask.detection.inputs import NetworkInput
from zarrmask.given.filling import copy_masks
from zarrmask.given.masks import GivenMasks
from zarrmask.masking import FieldStore, KeyframeStore
from zarrmask.records.ledger import Ledger
from zarrmask.running import tasks
from zarrmask.storage.flush import flush_all, flush_soon


def test_files_are_brought_onto_the_disk_before_they_count(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(os.fstat(file).st_ino), fsync(file)))
    files = [tmp_path / str(n) for n in range(5)]
    for file in files:
        file.write_bytes(b"x")
        flush_soon(file)
    flush_soon(tmp_path / "an empty chunk has no file")
    flush_all()
    assert sorted(seen) == sorted(file.stat().st_ino for file in files)


def test_a_disk_that_fails_is_told_of_once(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    (tmp_path / "file").write_bytes(b"x")
    flush_soon(tmp_path / "file")
    with pytest.raises(OSError, match="Input/output error"):
        flush_all()
    flush_all()


class Seeing:
    """A detector, and who knows where it is: it finds one thing that fills its box."""

    def nearest(self, turn):
        return self

    def detect(self, image, size):
        self.found = Detections(
            np.array([[1, 1, 7, 600]], np.float32),
            np.ones(1, np.float32),
            np.zeros(1, np.int64),
            np.ones((1, 4, 4), np.float32),
        )
        return self

    def result(self, timeout):
        return self.found


@pytest.fixture
def on_the_disk(monkeypatch):
    """Names of the files that were brought onto the disk, in that order."""
    names = []
    fsync = os.fsync

    def noting(file):
        names.append(Path(f"/proc/self/fd/{file}").readlink())
        fsync(file)

    monkeypatch.setattr(os, "fsync", noting)
    return names


def chunks(folder):
    return {path for path in folder.rglob("*") if path.is_file() and path.name[0].isdigit()}


def test_what_the_ledger_says_of_masks_is_on_the_disk(tmp_path, on_the_disk):
    store, ledger = KeyframeStore(tmp_path / "keyframes.zarr"), Ledger(tmp_path / "ledger")
    store.reserve(2, 700, 8)
    tasks.detect(
        np.zeros((1, 700, 8), np.uint8),
        np.full((1, 1, 1), 1, object),
        shape=(700, 8),
        detectors=Seeing(),
        network_input=NetworkInput(0, 0),
        window="seed",
        store=store,
        ledger=ledger,
    )
    masks = chunks(store.path / "mask")
    assert len(masks) == 2
    assert set(on_the_disk[:-1]) == masks
    assert on_the_disk[-1].parent == ledger.folder
    on_the_disk.clear()

    fields = FieldStore(tmp_path / "fields.zarr", (700, 8))
    fields.create(2)
    places = {"store": store, "positions": np.arange(2), "fields": fields}
    tasks.measure_fields(np.zeros(1, np.int64), ledger=ledger, **places)
    assert set(on_the_disk[:-1]) >= chunks(fields.path) > set()
    assert on_the_disk[-1].parent == ledger.folder
    on_the_disk.clear()

    given = GivenMasks(np.ones((1, 700, 8), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int64))
    part = np.array([[0, 1, 0, 700, 8]])
    copy_masks(part, given=given, shape=(700, 8), store=store, ledger=ledger)
    assert set(on_the_disk[:-1]) == chunks(store.path / "mask") - masks
    assert on_the_disk[-1].parent == ledger.folder
