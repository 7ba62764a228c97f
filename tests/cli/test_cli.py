"""The command line as a person meets it: messages, exit codes, nothing written in vain."""

import errno
import json
import pickle
import re
import shutil
import zlib
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
import tifffile
import torch

from zarrmask.cli import cli


@pytest.fixture
def zarrmask(zarrmask):
    """Run a command line; gives its exit code and all that it printed."""

    def call(*arguments):
        code, printed, told = zarrmask(*arguments)
        return code, printed + told

    return call


def slices(folder, images, name="{:05d}.tif"):
    folder.mkdir(exist_ok=True)
    for z, image in images.items():
        tifffile.imwrite(folder / name.format(z), image)
    return folder


def grey(shape=(60, 70), dtype=np.uint16):
    return np.full(shape, 99, dtype)


def empty_folder(path):
    path.mkdir()


def mixed_shapes(path):
    slices(path, {0: grey(), 1: grey(), 2: grey((50, 70))})


def mixed_dtypes(path):
    slices(path, {0: grey(), 1: grey(), 2: grey(dtype=np.uint8)})


def truncated_tiff(path):
    slices(path, {0: grey(), 1: grey()})
    file = path / "00001.tif"
    file.write_bytes(file.read_bytes()[:-1000])


def gap(path):
    slices(path, {0: grey(), 3: grey()})


def duplicate_numbers(path):
    slices(path, {0: grey(), 1: grey()})
    slices(path, {1: grey()}, "{:03d}.tif")


def rgb(path):
    path.mkdir()
    tifffile.imwrite(path / "0.tif", np.zeros((9, 9, 3), np.uint8), photometric="rgb")


def floats(path):
    slices(path, {0: grey(dtype=np.float64)})


def unreadable_file(path):
    slices(path, {0: grey()})
    (path / "00001.tif").write_bytes(b"this is no image")


def truncated_jpeg(path):
    path.mkdir()
    cv2.imwrite(str(path / "0.jpg"), grey(dtype=np.uint8))
    file = path / "0.jpg"
    file.write_bytes(file.read_bytes()[:-20])


BAD_STACKS = {
    empty_folder: "slices",
    mixed_shapes: "00002.tif",
    mixed_dtypes: "00002.tif",
    truncated_tiff: "00001.tif",
    gap: "--allow-missing",
    duplicate_numbers: "001.tif",
    rgb: "0.tif",
    floats: "float64",
    unreadable_file: "00001.tif",
    truncated_jpeg: "0.jpg",
}


@pytest.mark.parametrize("make", BAD_STACKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["run", "convert"])
def test_bad_input_is_met_before_anything_is_written(zarrmask, tmp_path, make, command):
    make(tmp_path / "stack")
    code, printed = zarrmask(command, "stack", "out.zarr")
    assert code == 1
    assert printed.startswith("error: ")
    assert BAD_STACKS[make] in printed
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["stack"]


class Malice:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_malicious_checkpoint_does_not_run(zarrmask, cluster, tmp_path, suffix):
    slices(tmp_path / "stack", {0: grey()})
    evil = tmp_path / f"evil{suffix}"
    evil.write_bytes(pickle.dumps({"model": Malice(tmp_path / "ran")}))
    arguments = ("run", "stack", "out", "--checkpoint", evil, "--scheduler", cluster)
    code, printed = zarrmask(*arguments)
    assert code == 1
    assert evil.name in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--every", "0"), "every"),
        (("--every", "x"), "every: write auto, or a number"),
        (("--z", "5"), "A:B"),
        (("--detect-window", "dark"), "seed, auto"),
        (("--detect-window", "9", "3"), "detect_window"),
        (("--checkpoint", "none.pth"), "none.pth"),
        (("--config", "none.yaml"), "none.yaml"),
        (("--voxel-size", "-1"), "voxel_size"),
        (("--scheduler", "tcp://127.0.0.1:1"), "no Dask scheduler answers"),
    ],
)
def test_a_wrong_option_is_named(zarrmask, tmp_path, option, message, monkeypatch):
    monkeypatch.setattr("zarrmask.workers.cluster.TIMEOUT", "2s")
    slices(tmp_path / "stack", {0: grey()})
    code, printed = zarrmask("run", "stack", "out", *option)
    assert code != 0
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_stack_that_is_not_there(zarrmask):
    code, printed = zarrmask("run", "nowhere", "out")
    assert code == 1
    assert "nowhere" in printed


def test_a_window_of_two_numbers_before_the_arguments(zarrmask, tmp_path):
    slices(tmp_path / "stack", {0: grey()})
    code, printed = zarrmask("run", "--detect-window", "9", "3", "stack", "out")
    assert code == 1
    assert "9.0, 3.0" in printed


def test_only_what_runs_write_goes_to_a_bucket(zarrmask, tmp_path):
    code, printed = zarrmask("phantom", "s3://bucket/scroll", "--shape", 4, 40, 48)
    assert code == 2
    assert "not a URL" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--checkpoint", "--config"])
def test_weights_are_on_this_machine_and_a_login_in_a_url_is_not_told(zarrmask, option):
    code, printed = zarrmask("run", "stack", "out", option, "https://me:s3cret@host/m.pth?key=abc")
    assert code == 2
    assert "not a URL" in printed
    assert "s3cret" not in printed
    assert "abc" not in printed


def test_debug_shows_where(zarrmask, tmp_path):
    code, printed = zarrmask("--debug", "run", "nowhere", "out")
    assert code == 1
    assert "Traceback" in printed
    assert "nowhere" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        cv2.error("OpenCV(4.10) alloc.cpp:73: error: Failed to allocate 88 bytes in function 'x'"),
    ],
)
def test_want_of_memory_is_no_bug(zarrmask, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("zarrmask.demo.make_phantom", fail)
    code, told = zarrmask("phantom", tmp_path / "stack", "--shape", 8, 64, 64)
    assert code == 1
    assert told.startswith("error: memory ran out (")
    assert "bug" not in told


def test_a_phantom_is_written_and_described(zarrmask, tmp_path):
    assert zarrmask("phantom", "scroll", "--shape", 4, 40, 48)[0] == 0
    code, printed = zarrmask("info", "scroll")
    assert code == 0
    assert "4 x 40 x 48 uint16" in printed
    truth = cv2.imread(str(tmp_path / "scroll/truth/00002.png"), cv2.IMREAD_UNCHANGED)
    assert truth.shape == (40, 48)


def test_a_phantom_does_not_mix_with_what_is_there(zarrmask, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, printed = zarrmask("phantom", ".", "--shape", 4, 40, 48)
    assert code == 1
    assert "not an empty folder" in printed


def test_info_says_that_something_is_nothing(zarrmask, tmp_path):
    (tmp_path / "text.txt").write_bytes(zlib.compress(b"nothing"))
    code, printed = zarrmask("info", "text.txt")
    assert code == 1
    assert "text.txt" in printed


def test_info_knows_weights_and_proxies(zarrmask, cluster, tmp_path):
    (tmp_path / "my model.pth").touch()
    code, printed = zarrmask("info", "my model.pth")
    assert (code, f"inspect '{tmp_path}/my model.pth'" in printed) == (0, True)
    slices(tmp_path / "stack", {5: grey(), 6: grey()})
    assert zarrmask("proxy", "stack", "small", "--scheduler", cluster)[0] == 0
    code, printed = zarrmask("info", "small")
    assert (code, "proxies of a stack" in printed, "2 x 60 x 70" in printed) == (0, True, True)


def test_convert_and_info(zarrmask, cluster, tmp_path):
    slices(tmp_path / "stack", {5: grey(), 6: grey()})
    code, printed = zarrmask(
        "convert", "stack", "out.zarr", "--voxel-size", 7.91, "--scheduler", cluster
    )
    assert code == 0
    assert f"the pyramid is {tmp_path / 'out.zarr'}" in printed
    code, printed = zarrmask("info", "out.zarr")
    assert "2 x 60 x 70 uint16" in printed
    assert "7.91 micrometer" in printed


def test_what_ome_zarr_does_not_read_is_a_stack_all_the_same(zarrmask, cluster, tmp_path):
    """NGFF 0.4 lets axes be without a type."""
    slices(tmp_path / "stack", {5: grey(), 6: grey()})
    assert zarrmask("convert", "stack", "v.zarr", "--scheduler", cluster)[0] == 0
    attributes = json.loads((tmp_path / "v.zarr/.zattrs").read_text())
    attributes["multiscales"][0]["axes"] = [{"name": name} for name in "zyx"]
    (tmp_path / "v.zarr/.zattrs").write_text(json.dumps(attributes))
    code, printed = zarrmask("info", "v.zarr")
    assert (code, "2 x 60 x 70 uint16" in printed) == (0, True)
    code, printed = zarrmask("plan", "v.zarr", "out", "--memory", "4GB")
    assert code == 0, printed


def test_info_tells_all_sides_of_a_voxel(zarrmask, cluster, tmp_path):
    slices(tmp_path / "stack", {5: grey(), 6: grey()})
    command = ("convert", "stack", "v.zarr", "--voxel-size", 7.91, "--scheduler", cluster)
    assert zarrmask(*command)[0] == 0
    attributes = json.loads((tmp_path / "v.zarr/.zattrs").read_text())
    scales = [{"type": "scale", "scale": [50.0, 7.91, 7.91]}]
    attributes["multiscales"][0]["coordinateTransformations"] = scales
    (tmp_path / "v.zarr/.zattrs").write_text(json.dumps(attributes))
    _, printed = zarrmask("info", "v.zarr")
    assert "50 micrometer x 7.91 micrometer x 7.91 micrometer" in printed


def test_demo_masks_a_scroll_of_its_own(zarrmask, cluster, tmp_path):
    arguments = ("demo", "demo-out", "--shape", 30, 96, 96, "--scheduler", cluster)
    code, printed = zarrmask(*arguments)
    assert code == 0, printed
    assert "IoU" in printed
    assert (tmp_path / "demo-out/report.html").is_file()
    assert (tmp_path / "demo-out/stack/00029.tif").is_file()
    code, printed = zarrmask(*arguments)
    assert code == 0
    assert "finished already" in printed
    code, printed = zarrmask("demo", "demo-out", "--shape", 31, 96, 96, "--scheduler", cluster)
    assert code == 1
    assert "--overwrite" in printed
    code, printed = zarrmask("run", "demo-out", "again")
    assert code == 1
    assert "demo-out/volume.zarr" in printed
    shutil.rmtree(tmp_path / "demo-out/stack")  # as if the run were of a stack elsewhere
    code, printed = zarrmask("demo", "demo-out", "--shape", 30, 96, 96)
    assert (code, "holds a run of another stack" in printed) == (1, True)
    assert not (tmp_path / "demo-out/stack").exists()


@pytest.mark.parametrize("name", ["run", "apply", "convert", "plan"])
def test_help_has_each_option_once_in_a_section(zarrmask, name):
    code, printed = zarrmask(name, "--help")
    assert code == 0
    told, rest = printed.split("\nOptions:\n")
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            shown = re.findall(rf"^  {option.opts[0]}(?=[ /\n])", told, re.MULTILINE)
            assert len(shown) == 1, option.name
    assert re.findall("--[a-z-]+", rest) == ["--help"]


def test_the_documented_options_of_a_run_are_those_it_has():
    text = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    named = set(re.findall(r"`(--[a-z-]+)", text)) - {"--help"}
    options = [one for one in cli.commands["run"].params if isinstance(one, click.Option)]
    assert all(named & {*one.opts, *one.secondary_opts} for one in options)
    assert named <= {flag for one in options for flag in (*one.opts, *one.secondary_opts)}
