"""`zarrmask plan`: what it prints, and that it leaves nothing behind."""

import json

import numpy as np
import pytest
import tifffile
import zarr

from zarrmask import convert
from zarrmask.progress import Reporter
from zarrmask.running.pipeline import foresee


@pytest.fixture
def scroll(tmp_path):
    """An array of a whole scroll's shape, of which nothing is written."""
    zarr.create_array(
        tmp_path / "scroll.zarr", shape=(27_000, 8_096, 8_096), dtype="u2", chunks=(128,) * 3
    )
    return tmp_path / "scroll.zarr"


@pytest.fixture
def small(tmp_path):
    """Some slices of noise."""
    (tmp_path / "stack").mkdir()
    for z, image in enumerate(np.random.default_rng(0).integers(0, 2**16, (6, 90, 80), np.uint16)):
        tifffile.imwrite(tmp_path / f"stack/{z}.tif", image)
    return tmp_path / "stack"


def test_a_scroll_is_planned_in_lines_that_fit_a_terminal(zarrmask, scroll, tmp_path):
    options = ("--memory", "16GB", "--workers", 2, "--compressor", "none")
    code, printed, told = zarrmask("plan", scroll, "out", *options)
    assert code == 0, told
    assert max(map(len, printed.splitlines())) <= 80
    for words in (
        "27,000 of 8,096 x 8,096, uint16: 3.5 TB",
        "423 to 3,376: as many as it takes",
        "3,392 (106 x 32 x 1), each 256 x 256 x 8,096 voxels, 1.1 GB",
        "988,348 files",
        "on the target",
        "of 16.0 GB",
        "--measure",
    ):
        assert words in printed
    assert [path.name for path in tmp_path.iterdir()] == ["scroll.zarr"]


def test_what_is_printed_is_what_the_json_holds(zarrmask, scroll):
    code, printed, _ = zarrmask("plan", scroll, "out.zarr", "--convert", "--json")
    assert code == 0
    plan = json.loads(printed)
    assert plan["slices"] == 27_000
    assert plan["keyframes"] == 0
    assert plan["tasks"]["writing"] == plan["bricks"]["count"]
    assert plan["files"] == {"volume": 988_348}
    assert plan["bytes_written"]["volume"] > 27_000 * 8_096**2 * 2
    assert 0 < plan["peak_memory_bytes_a_worker"] < plan["peak_memory_bytes"]
    assert plan["free_bytes"] > 0
    assert plan["hours"] is None


def test_options_of_run_are_options_of_plan(zarrmask, small):
    options = ("--every", 2, "--no-volume", "--z", "1:5", "--ngff", "0.5", "--window", 5, 900)
    code, printed, told = zarrmask("plan", small, "out", *options, "--json")
    assert code == 0, told
    plan = json.loads(printed)
    assert (plan["slices"], plan["keyframes"]) == (4, 3)
    assert set(plan["files"]) == {"mask", "masked", "keyframes"}
    code, _, told = zarrmask("plan", small, "out", "--every", 0)
    assert (code, "every" in told) == (1, True)


@pytest.mark.parametrize("conversion", [True, False])
def test_a_measurement_leaves_nothing_behind(zarrmask, small, cluster, tmp_path, conversion):
    options = ("--scheduler", cluster, *(["--convert"] if conversion else []))
    code, printed, told = zarrmask("plan", small, "deep/out.zarr", "--measure", *options, "--json")
    assert code == 0, told
    assert 0 < json.loads(printed)["hours"] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["stack"]


def test_what_is_left_of_an_unfinished_output(zarrmask, cluster, tmp_path, monkeypatch):
    class Stopping(Reporter):
        def stage(self, name, *arguments, **options):
            if name == "writing from level 2":
                raise KeyboardInterrupt
            return super().stage(name, *arguments, **options)

    small, out = tmp_path / "small.tif", tmp_path / "out.zarr"
    tifffile.imwrite(small, np.ones((5, 300, 20), np.uint8), photometric="minisblack")
    with pytest.raises(KeyboardInterrupt):
        convert(small, out, chunk=16, scheduler=cluster, reporter=Stopping())
    options = ("--convert", "--chunk", 16)
    _, _, told = zarrmask("plan", small, out, *options)
    assert "goes on with it, and 0% of its bricks are to be written" in told
    next((tmp_path / ".out.zarr.zarrmask").rglob("0-0-0.json")).unlink()
    assert "goes on with it, and 50% of its bricks" in zarrmask("plan", small, out, *options)[2]
    _, _, told = zarrmask("plan", small, out, *options, "--z", ":3")
    assert "is unfinished, and was begun with other settings or input: --z: : then, :3 now" in told
    assert "unfinished" not in zarrmask("plan", small, "elsewhere", *options)[2]
    # Room for a little more than the half that is left.
    least = foresee(small, out, conversion=True, chunk=16).forecast.least_bytes
    monkeypatch.setattr("zarrmask.planning.room.free_space", lambda place: int(0.6 * least))
    plan = {name: zarrmask("plan", small, name, *options, "--json")[1] for name in (out, "other")}
    assert json.loads(plan[out])["problems"] == []
    assert "are free" in json.loads(plan["other"])["problems"][0]
    convert(small, out, chunk=16, scheduler=cluster)
    code, printed, told = zarrmask("plan", small, out, *options)
    assert (code, "refused" in printed, "is finished already" in told) == (0, False, True)


def test_what_cannot_be_run_is_refused_with_what_would_do(zarrmask, small, tmp_path):
    code, _, told = zarrmask("run", small, "out", "--workers", 3, "--memory", "500MB")
    assert code == 1
    assert "--memory" in told
    assert "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["stack"]
    code, printed, _ = zarrmask("plan", small, "out", "--workers", 3, "--memory", "500MB")
    assert code == 0
    refused = " ".join(printed.partition("refused")[2].split())
    assert refused == told.partition("error: ")[2].strip()
    code, _, told = zarrmask("run", small, "out", "--memory", "plenty")
    assert (code, "--memory plenty is not a size" in told) == (1, True)
