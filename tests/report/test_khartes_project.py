"""The khartes project, rule by rule as khartes reads it."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from zarrmask.errors import OutputError
from zarrmask.pyramid import write_metadata
from zarrmask.report import khartes_opens, write_khartes_project

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\dZ")


@pytest.fixture
def volumes(tmp_path):
    paths = {name: tmp_path / f"{name}.zarr" for name in ("volume", "mask", "masked")}
    for path in paths.values():
        path.mkdir()
    return paths


@pytest.fixture
def project(tmp_path):
    return tmp_path / "scroll.khprj"


def read(path: Path):
    return json.loads(path.read_bytes().decode("ascii"))


def test_the_project_file_has_what_khartes_asks_for(project, volumes):
    write_khartes_project(project, volumes, voxel_size_um=3.24)
    info = read(project / "project.json")
    assert set(info) == {"created", "modified", "name", "version", "voxel_size_um"}
    assert info["name"] == "scroll"
    assert info["version"] == 1.0
    assert info["voxel_size_um"] == 3.24
    assert TIME.fullmatch(info["created"])
    assert info["created"] == info["modified"]


def test_its_folders_are_there(project, volumes):
    write_khartes_project(project, volumes, voxel_size_um=None)
    assert (project / "fragments").is_dir()
    assert {path.name for path in project.iterdir()} == {
        "project.json",
        "views.json",
        "volumes",
        "fragments",
    }


def test_each_volume_has_a_file(project, volumes):
    write_khartes_project(project, volumes, voxel_size_um=None)
    files = {path.name: read(path) for path in (project / "volumes").iterdir()}
    assert set(files) == {"volume.volzarr", "mask.volzarr", "masked.volzarr"}
    header = files["mask.volzarr"]
    assert TIME.fullmatch(header.pop("khartes_created"))
    assert TIME.fullmatch(header.pop("khartes_modified"))
    assert header == {
        "khartes_version": "1.0",
        "khartes_from_vc_render": False,
        "zarr_dir": str(volumes["mask"]),
        "max_width": 240,
    }


def test_folders_are_named_absolutely(project, volumes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_khartes_project(Path("scroll.khprj"), {"mask": Path("mask.zarr")}, voxel_size_um=None)
    assert read(project / "volumes" / "mask.volzarr")["zarr_dir"] == str(volumes["mask"])


def test_an_unknown_voxel_size_is_khartes_own(project, volumes):
    write_khartes_project(project, volumes, voxel_size_um=None)
    assert read(project / "project.json")["voxel_size_um"] == 7.91


@pytest.mark.parametrize(
    ("names", "first"),
    [(("volume", "mask", "masked"), "masked"), (("mask", "volume"), "volume"), (("a",), "a")],
)
def test_a_new_project_opens_with_the_masked_stack(project, names, first):
    write_khartes_project(project, {n: project / n for n in names}, voxel_size_um=None)
    assert read(project / "views.json")["project"]["cur_volume"] == first


def test_a_project_without_volumes_is_one(project):
    write_khartes_project(project, {}, voxel_size_um=None)
    assert read(project / "views.json") == {"project": {}, "volumes": {}}


def test_what_a_person_made_is_kept(project, volumes, tmp_path):
    write_khartes_project(project, volumes, voxel_size_um=None)
    kept = {
        project / "fragments" / "all.json": b'[{"drawn": "by hand"}]',
        project / "fragments" / "mesh.obj": b"v 0 0 0",
        project / "fragments_prev" / "all.json": b"[]",
        project / "views.json": b'{"project": {"cur_volume": "mask"}}',
        project / "volumes" / "other scan.volzarr": b'{"zarr_dir": "/elsewhere/not/mounted.zarr"}',
        project / "volumes" / "old.volzarr": b"zarr_dir\t/data/old.zarr\n",
        project / "volumes" / "small.nrrd": b"NRRD0004",
    }
    for path, content in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    info = read(project / "project.json")
    info |= {"created": "2020-01-02T03:04:05.06Z", "name": "my scroll", "voxel_size_um": 2.5}
    (project / "project.json").write_text(json.dumps(info))
    volume = read(project / "volumes" / "mask.volzarr")
    time.sleep(0.02)
    write_khartes_project(project, volumes, voxel_size_um=None)
    assert {path: path.read_bytes() for path in kept} == kept
    after = read(project / "project.json")
    assert after["modified"] > info["modified"]
    assert after | {"modified": ""} == info | {"modified": ""}
    again = read(project / "volumes" / "mask.volzarr")
    assert again["khartes_created"] == volume["khartes_created"]
    assert again["khartes_modified"] > volume["khartes_modified"]


def test_a_known_voxel_size_replaces_the_old(project, volumes):
    write_khartes_project(project, volumes, voxel_size_um=7.91)
    write_khartes_project(project, volumes, voxel_size_um=3.24)
    assert read(project / "project.json")["voxel_size_um"] == 3.24


def test_a_volume_of_the_run_that_is_gone_is_dropped(project, volumes):
    write_khartes_project(project, volumes, voxel_size_um=None)
    volumes.pop("volume").rmdir()
    write_khartes_project(project, volumes, voxel_size_um=None)
    assert {path.stem for path in (project / "volumes").iterdir()} == {"mask", "masked"}


def test_a_broken_project_file_is_written_anew(project, volumes):
    project.mkdir()
    (project / "project.json").write_text("{")
    write_khartes_project(project, volumes, voxel_size_um=None)
    assert read(project / "project.json")["name"] == "scroll"


@pytest.mark.parametrize(
    "odd",
    ['it\'s "a" scroll', "two\nlines", "χάρτης", "[x]*?", "<b>%20", os.fsdecode(b"latin-\xe9")],
    ids=range(6),
)
def test_odd_names_are_read_back_whole(tmp_path, odd):
    folder = tmp_path / odd
    folder.mkdir()
    write_khartes_project(folder / "scroll.khprj", {odd: folder / "a.zarr"}, voxel_size_um=None)
    # khartes reads these files in the locale's encoding: ASCII is the same in each.
    header = read(folder / "scroll.khprj" / "volumes" / f"{odd}.volzarr")
    assert header["zarr_dir"] == str(folder / "a.zarr")


def test_what_khartes_could_not_open_is_refused_all_at_once(tmp_path, volumes):
    with pytest.raises(OutputError) as caught:
        write_khartes_project(tmp_path / "scroll", {"a/b": tmp_path, "": tmp_path}, voxel_size_um=1)
    assert all(word in str(caught.value) for word in (".khprj", "'a/b'", "''"))
    assert not (tmp_path / "scroll").exists()
    file = tmp_path / "scroll.khprj"
    file.write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        write_khartes_project(file, volumes, voxel_size_um=None)
    assert file.read_text() == "mine"


def test_what_a_run_no_longer_leaves_is_dropped_and_what_a_person_added_stays(project, volumes):
    write_khartes_project(project, volumes, voxel_size_um=None)
    (project / "volumes" / "mine.volzarr").write_text('{"zarr_dir": "/elsewhere/mine.zarr"}')
    write_khartes_project(project, {"mask": volumes["mask"]}, voxel_size_um=None)
    assert {path.stem for path in (project / "volumes").iterdir()} == {"mask", "mine"}


def image(path, shapes, names="0123"):
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name, shape in zip(names, shapes, strict=False):
        group.create_array(name, shape=shape, dtype=np.uint8)
    write_metadata(path, "image", len(shapes), voxel_size=8, origin=(3, 0, 0))
    attributes = read(path / ".zattrs")
    for dataset, name in zip(attributes["multiscales"][0]["datasets"], names, strict=False):
        dataset["path"] = name
    (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def test_pyramids_that_khartes_opens(tmp_path):
    """By its rules: levels "0", "1", ..., of scale 1, 2, ..., halved and rounded up, in zarr 2."""
    halves = [(9, 12, 13), (5, 6, 7), (3, 3, 4)]
    good = image(tmp_path / "good.zarr", halves)
    assert khartes_opens(good)
    assert not khartes_opens(image(tmp_path / "named.zarr", halves, ["s0", "s1", "s2"]))
    assert not khartes_opens(image(tmp_path / "floor.zarr", [(9, 12, 13), (4, 6, 6)]))
    attributes = read(good / ".zattrs")
    for dataset in attributes["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"][0]["scale"] = [7.91 * 2 ** int(dataset["path"])] * 3
    (good / ".zattrs").write_text(json.dumps(attributes))
    assert not khartes_opens(good)
    zarr.open_group(tmp_path / "new.zarr", mode="w", zarr_format=3)
    assert not khartes_opens(tmp_path / "new.zarr")
