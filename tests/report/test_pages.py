"""The overview picture and the HTML report of fake runs."""

import os
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from zarrmask.masking.sketch import Sketch
from zarrmask.report import read_views, write_overview, write_report
from zarrmask.report.charts import curves
from zarrmask.report.keyframes import KeyframeTable
from zarrmask.report.views import SUSPECTS

VOID = {"meta", "img", "input", "link", "br", "hr"}
RUNS = {
    "usual": {},
    "one slice": {"shape": (1, 40, 56), "missed": ()},
    "one voxel": {"shape": (1, 1, 1), "missed": ()},
    "thin": {"shape": (2, 90, 400), "missed": ()},
    "long": {"shape": (90, 20, 24)},
    "empty mask": {"empty": True},
    "no volume": {"volume": False, "voxel_size_um": None, "levels": 1},
}


class Page(HTMLParser):
    """Collect what a page holds; fail where its tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def overview(out, record):
    return write_overview(out, record, read_views(out, record))


def report(out, record):
    return write_report(out, record, read_views(out, record))


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf8"))


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_can_be_shown(tmp_path, fake_run, name):
    record = fake_run(tmp_path, **RUNS[name])
    drawn = overview(tmp_path, record)
    assert drawn == tmp_path / "overview.png"
    with Image.open(drawn) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1800
        assert 600 < picture.height < 4000
    page = read(report(tmp_path, record))
    seen = read_views(tmp_path, record)
    depth = record["input"]["shape"][0]
    side_by_side, in_turn = min(6, depth), min(72, depth)
    assert (len(seen.slices), len(seen.frames)) == (side_by_side, in_turn)
    beside = sum(len(planes) for _, planes in seen.suspects)
    sections = 2 if depth > 1 else 0
    assert len(page.all("img")) == side_by_side + in_turn + beside + sections
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert {path.name for path in tmp_path.iterdir()} - {"report.html", "overview.png"} == {
        *(["volume.zarr"] if name != "no volume" else []),
        *("mask.zarr", "masked.zarr", "keyframes.zarr"),
    }


def test_the_overview_shows_the_outline_where_the_mask_is(tmp_path, fake_run):
    def orange(out):
        with Image.open(overview(out, record)) as picture:
            red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
        return ((red > 240) & (abs(green - 176) < 20) & (blue < 40)).sum()

    record = fake_run(tmp_path / "masked")
    assert orange(tmp_path / "masked") > 3_000
    record = fake_run(tmp_path / "empty", empty=True)
    assert orange(tmp_path / "empty") == 0


def test_the_report_says_what_the_record_says(tmp_path, fake_run):
    record = fake_run(tmp_path, (24, 40, 56), missed=(4, 8, 16))
    zarr.open_array(tmp_path / "keyframes.zarr" / "state", mode="r+")[3] = 0
    record["warnings"] = ["the slices use less than an eighth of their grey range"]
    record |= {"detect_window": [120, 4_000], "window": [130.5, 3_000]}
    record["input"]["missing"] = [3, 4, 5, 9]
    text = " ".join(read(report(tmp_path, record)).text.split())
    for said in (
        "stack, masked",
        "slices z 100 to 123, 24 × 40 × 56 voxels",
        record["command"],
        "less than an eighth",
        "Keyframes without a detection: z 104–108, 116",
        "3 without a detection, 1 replaced",
        "2.1 GB",
        "41.2 s",
        "0.146 slices/s",
        "9f" * 32,
        "2026.8.0",
        "3–5, 9",
        "detect window used120, 4,000",
        "window used130.5, 3,000",
        "mask area, mm²",
        f"python khartes.py {tmp_path}/scroll.khprj",
        "its image 0 is slice z 100",
        "24 × 40 × 56, uint16, 3 levels",
    ):
        assert said in text


def test_keyframes_without_a_detection_are_all_listed_once(tmp_path, fake_run):
    record = fake_run(tmp_path, (24, 40, 56), missed=(4, 8, 16))
    record["warnings"] = ["nothing was found on 3 of 6 keyframes: 104, 108, 116"]
    assert "Keyframes without" not in read(report(tmp_path, record)).text
    record["warnings"] = ["nothing was found on 3 of 6 keyframes: 104, 108 and 1 more"]
    text = read(report(tmp_path, record)).text
    assert "Keyframes without a detection: z 104–108, 116" in text


def test_slices_that_could_not_be_read_are_listed_and_marked(tmp_path, fake_run):
    record = fake_run(tmp_path, (24, 40, 56))
    interpolated = {"z": 104, "why": "torn <b>", "treated": "interpolated", "from": [103, 105]}
    later = {"z": 9_000, "why": "gone", "treated": "read later", "from": []}
    record["bad_slices"] = [interpolated, "odd", {"z": None}, later]
    text = " ".join(read(report(tmp_path, record)).text.split())
    assert "z 104interpolated from 103 and 105torn <b> z 9000read latergone" in text
    for chart in curves(read_views(tmp_path, record), None):
        paths = {one.look: one.path for one in chart.series}
        (mark,) = paths["bad"].split("M")[1:]  # the other is not of this run
        assert f"M{mark.split()[0]} " in paths["axis"]  # 104 is a keyframe, too


def test_curves_of_any_stack_take_little(tmp_path, fake_run):
    seen = read_views(tmp_path, fake_run(tmp_path, (6, 20, 28)))
    count, random = 27_000, np.random.default_rng(0)
    found = random.random(count) < 0.5
    many = KeyframeTable(
        np.arange(count),
        found.astype(np.int64),
        np.where(found, random.random(count), np.nan),
        random.integers(0, 10**7, count) * found,
        np.ones(count, bool),
        tuple(Sketch.of_pixels(pixels) for pixels in random.random((count, 3, 4)) < 0.5),
    )
    charts = curves(replace(seen, keyframes=many, shape=(count, 20, 28)), 0.1)
    assert len(charts) == 5
    assert sum(len(one.path) for chart in charts for one in chart.series) < 3e6


def test_of_many_suspicious_ranges_the_worst_have_pictures_and_all_a_command(tmp_path, fake_run):
    count = SUSPECTS + 3
    record = fake_run(tmp_path, (32 * count, 40, 56), missed=range(16, 32 * count, 32))
    page = read(report(tmp_path, record))
    assert page.text.count(f"zarrmask redo {tmp_path} --z ") == count
    assert page.text.count("--detect-every 2") == 2  # at both ends
    assert f"There are pictures of the {SUSPECTS} worst." in page.text


def test_given_masks_are_not_left_to_the_detector(tmp_path, fake_run):
    record = fake_run(tmp_path, (320, 40, 56), missed=range(16, 320, 32))
    record["settings"]["propagate"] = "hold"
    record["masks"] = {"path": "masks"}
    text = read(report(tmp_path, record)).text
    assert text.count("--masks MORE") == 2  # at both ends
    assert "--detect-every" not in text
    assert "Each mask is held until the next" in text


@pytest.mark.parametrize(("propagate", "slices"), [("hold", "148:152"), ("field", "145:152")])
def test_a_suspicious_range_comes_with_the_command_that_corrects_it(
    tmp_path, fake_run, propagate, slices
):
    out = tmp_path / "my run"
    record = fake_run(out, (96, 40, 56), missed=(48,))
    record["settings"]["propagate"] = propagate
    text = read(report(out, record)).text
    assert f"zarrmask redo '{out}' --z {slices} --from 144" in text
    assert "Corrected since" not in text
    given = {"path": "/my/masks", "fingerprint": "fingerprint of masks"}
    weights = {"path": "/my/model.pth", "sha256": "hash of weights"}
    record["corrections"] = [
        {"z": [148, 152], "how": {"from": 144}, "voxels": -1_500_000},
        {"z": [160, 161], "how": {"masks": given}},
        {
            "z": [170, 180],
            "how": {"detect": {"score": 0.3, "checkpoint": weights}},
            "detected": {"without_detection": [172, 174]},
        },
    ]
    text = read(report(out, record)).text
    assert "corrected since" in text
    assert "suspicious ranges, 1 corrected" in text
    assert "--from 144" not in text
    assert "z 148 to 151: from 144" in text
    assert "1.5 million voxels fewer kept" in text
    assert "z 160 to 160: masks /my/masks" in text
    assert "z 170 to 179: score 0.3, checkpoint /my/model.pth" in text
    assert "nothing was found on 172, 174" in text
    assert not re.search("fingerprint of|hash of", text)


def test_an_empty_mask_is_warned_of(tmp_path, fake_run):
    record = fake_run(tmp_path, empty=True)
    assert "The mask is empty" in read(report(tmp_path, record)).text


def test_pictures_from_the_masked_stack_say_so(tmp_path, fake_run):
    record = fake_run(tmp_path, volume=False)
    assert "wrote no volume" in read(report(tmp_path, record)).text


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"input": None, "settings": [], "stages": None, "voxels": 3, "warnings": "no list"},
        {"stages": [None, {}, {"name": 3, "seconds": "x"}], "z": ["a"], "voxels": {"total": 0}},
        {"stages": [{"seconds": float("nan"), "items": float("inf")}], "input": {"path": ""}},
    ],
)
def test_a_record_that_lacks_things_shows_dashes(tmp_path, fake_run, record):
    fake_run(tmp_path, (6, 20, 28))
    if record == {}:
        overview(tmp_path, record)
    assert "–" in read(report(tmp_path, record)).text


def test_nothing_is_loaded_from_anywhere(tmp_path, fake_run):
    record = fake_run(tmp_path)
    page = read(report(tmp_path, record))
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert page.all("script") == [{}]
    loads = [
        value
        for _, attrs in page.tags
        for key, value in attrs.items()
        if key in ("src", "href", "xlink:href", "srcset", "action", "poster", "data")
    ]
    assert loads
    assert all(value.startswith("data:image/jpeg;base64,") for value in loads)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import", text)
    policies = [meta.get("content", "") for meta in page.all("meta")]
    (policy,) = [policy for policy in policies if "default-src 'none'" in policy]
    script = re.search("<script>(.*)</script>", text, re.DOTALL)[1]
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "{{ 7 * 7 }}{% raw %}",
    "two\nlines\tand $\\frac{1}$ % &amp; \x1b[31m",
    "χάρτης 卷軸 🗞 ‮",
    os.fsdecode(b"latin-\xe9"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_only_shown(tmp_path, fake_run, name):
    out = tmp_path / name.replace("/", "_")
    record = fake_run(out, (6, 20, 28))
    plain = read(report(out, record))
    record |= {"command": name, "warnings": [name], "zarrmask": name}
    record["input"] |= {"path": f"/data/{name}", "kind": name}
    record["settings"] |= {name: name, "score": name, "every": {name: [name]}}
    record["versions"] = {name: name}
    record["stages"] = [{"name": name, "seconds": 1, "items": 1, "unit": name}]
    record["checkpoint"] = {"path": name, "sha256": name}
    page = read(report(out, record))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"section", "ul", "li"}
    assert len(page.all("img")) == len(plain.all("img"))
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    shown = name.encode("utf8", "replace").decode("utf8")
    assert shown in page.text


def test_hostile_names_do_not_break_the_overview(tmp_path, fake_run):
    name = " ".join(HOSTILE)
    out = tmp_path / HOSTILE[-1]
    record = fake_run(out, (6, 20, 28))
    record |= {"zarrmask": name, "checkpoint": {"path": name}, "input": {"path": f"/data/{name}"}}
    assert overview(out, record).is_file()


def test_an_old_report_stays_until_the_new_one_is_whole(tmp_path, fake_run, monkeypatch):
    record = fake_run(tmp_path)
    path = report(tmp_path, record)
    before = path.read_bytes()
    record["warnings"] = ["something new"]

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            report(tmp_path, record)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.partial"))
    report(tmp_path, record)
    assert path.read_bytes() != before
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
