import json
import pickle
import pickletools
from itertools import permutations

import numpy as np
import pytest
import torch

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.conversion import convert_checkpoint
from zarrmask.detection.load import load_detector
from zarrmask.detection.network import build_model
from zarrmask.detection.shapes import infer_config
from zarrmask.detection.weights import model_weights
from zarrmask.errors import CheckpointError, OutputError

SUFFIXES = (".pth", ".pkl", ".safetensors")


def odd_weights() -> dict[str, torch.Tensor]:
    """Numbers of every kind, among them those that only their bits tell apart."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 60, np.uint32).view(np.float32)  # NaNs with payloads among them
    bits[:3] = np.array([0x7FC00001, 0xFFA00000, 0x80000000], np.uint32).view(np.float32)
    return {
        "a.weight": torch.from_numpy(bits.reshape(3, 4, 5)),
        "a.turned": torch.arange(12.0).reshape(3, 4).T,
        "a.part": torch.arange(100.0)[10:20:3],
        "a.half": torch.tensor([1.5, -0.0, 6e-8]).half(),
        "a.double": torch.tensor(1 / 3, dtype=torch.float64),
        "a.count": torch.tensor([2**62, -1]),
        "a.none": torch.zeros(0, 4),
    }


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


@pytest.mark.parametrize(("first", "second"), list(permutations(SUFFIXES, 2)))
def test_there_and_back_bit_for_bit(tmp_path, first, second):
    weights = odd_weights()
    torch.save({"model": weights, "iteration": 50_999, "__author__": "me"}, tmp_path / "model.pth")
    steps = [tmp_path / f"{n}{suffix}" for n, suffix in enumerate((first, second, first, ".pth"))]
    source = tmp_path / "model.pth"
    for target in steps:
        convert_checkpoint(source, target)
        written = read_checkpoint(target)
        assert_same_bits(written.tensors, weights)
        assert (written.iteration, written.metadata["__author__"]) == (50_999, "me")
        source = target
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["model.pth", *(path.name for path in steps)]
    )


def test_what_is_left_out(tmp_path, tiny_weights):
    besides = {
        "pixel_mean": torch.ones(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4),
    }
    layer = torch.nn.Linear(1, 1)
    content = {
        "model": {**tiny_weights, **besides},
        "optimizer": torch.optim.SGD(layer.parameters(), 0.1).state_dict(),
        "scheduler": {"last_epoch": 3},
        "iteration": 7,
    }
    torch.save(content, tmp_path / "model.pth")
    for suffix in SUFFIXES:
        convert_checkpoint(tmp_path / "model.pth", tmp_path / f"out{suffix}")
        assert_same_bits(read_checkpoint(tmp_path / f"out{suffix}").tensors, tiny_weights)
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(loaded) == {"model", "iteration", "__author__"}
    assert loaded["iteration"] == 7


def test_batch_norms_keep_their_counters(tmp_path):
    """detectron2 misses those of norms that it has frozen."""
    norm = torch.nn.BatchNorm2d(3)
    norm(torch.ones(1, 3, 2, 2))
    torch.save({"model": norm.state_dict()}, tmp_path / "a.pth")
    source = tmp_path / "a.pth"
    for target in ("a.safetensors", "b.pkl", "b.pth"):
        convert_checkpoint(source, tmp_path / target)
        source = tmp_path / target
    model = as_detectron2_loads(source)["model"]
    assert model.keys() == norm.state_dict().keys()
    assert model["num_batches_tracked"] == 1
    assert model["num_batches_tracked"].dtype == torch.int64


def as_detectron2_loads(path) -> dict:
    """What detectron2's checkpointer makes of a file: {"model": {name: tensor}, ...}."""
    if path.suffix == ".pkl":
        content = pickle.loads(path.read_bytes(), encoding="latin1")
        assert "__author__" in content  # else it is taken for a file of Caffe2's
        model = {name: torch.from_numpy(value) for name, value in content["model"].items()}
        return {**content, "model": model}
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_network_takes_what_is_written(tmp_path, tiny, checkpoint, suffix):
    target = tmp_path / f"out{suffix}"
    convert_checkpoint(checkpoint, target)
    content = as_detectron2_loads(target)
    assert set(content["model"]) == set(model_weights(build_model(tiny)))
    assert "iteration" not in content
    assert load_detector(target, checkpoint.with_suffix(".yaml")).config.classes == 2


def test_a_pickle_names_nothing_that_only_some_numpy_has(tmp_path, checkpoint):
    target = tmp_path / "out.pkl"
    convert_checkpoint(checkpoint, target)
    opcodes = list(pickletools.genops(target.read_bytes()))
    texts = {argument for _, argument, _ in opcodes if isinstance(argument, str)}
    assert {text for text in texts if text.startswith("numpy")} == {"numpy"}
    arrays = pickle.loads(target.read_bytes())["model"]
    assert all(array.flags.writeable for array in arrays.values())


@pytest.mark.reference
def test_reference_checkpoints_keep_detectron2_s_keys(reference_checkpoint, shared, tmp_path):
    file = f"shapes_{reference_checkpoint.stem}.json"
    expected = json.loads((shared / "detectron2-reference" / file).read_text())
    source = reference_checkpoint
    original = read_checkpoint(source).tensors
    for suffix in (".safetensors", ".pkl", ".pth"):
        target = tmp_path / f"out{suffix}"
        convert_checkpoint(source, target)
        source = target
        tensors = read_checkpoint(target).tensors
        if suffix != ".safetensors":  # which detectron2 does not read
            tensors = as_detectron2_loads(target)["model"]
        assert {name: list(tensor.shape) for name, tensor in tensors.items()} == expected
        assert all(torch.equal(tensors[name], original[name]) for name in expected)
    own = model_weights(build_model(infer_config(expected, file)))
    assert {name: list(tensor.shape) for name, tensor in own.items()} == expected


def test_a_file_that_is_there_is_kept_unless_told(tmp_path, checkpoint):
    target = tmp_path / "out.pth"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists; name another file, or give --overwrite"):
        convert_checkpoint(checkpoint, target)
    assert target.read_bytes() == b"precious"
    convert_checkpoint(checkpoint, target, overwrite=True)
    assert read_checkpoint(target).format == "torch"
    convert_checkpoint(target, target, overwrite=True)  # onto itself
    assert_same_bits(read_checkpoint(target).tensors, read_checkpoint(checkpoint).tensors)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.onnx", r"ends in '\.onnx'; name a file that ends in \.pth, \.pkl, \.safetensors"),
        ("nowhere/out.pth", "there is no folder"),
        ("folder.pth", r"folder\.pth exists; name another file$"),
    ],
)
def test_targets_that_cannot_be(tmp_path, checkpoint, name, message):
    (tmp_path / "folder.pth").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=message):
        convert_checkpoint(checkpoint, tmp_path / name, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_numbers_that_numpy_lacks_go_everywhere_but_into_a_pickle(tmp_path):
    weights = {"w": torch.tensor([1.0, 3e38]).bfloat16()}
    torch.save(weights, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors").tensors["w"], weights["w"])
    with pytest.raises(CheckpointError, match=r"tensors of torch\.bfloat16"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.pkl")
    assert not (tmp_path / "a.pkl").exists()


def test_a_bad_source_leaves_nothing(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
    content = {"model": {"stem.conv1.weight": np.ones(3)}, "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="matching_heuristics"):
        convert_checkpoint(tmp_path / "R-50.pkl", tmp_path / "b.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R-50.pkl", "a.pth"]


@pytest.mark.parametrize("said", ["x", "-3", "9" * 5000, "1e3", ""])
def test_an_iteration_that_is_no_number_is_none(tmp_path, said):
    torch.save({"model": {"w": torch.ones(1)}, "iteration": said}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").iteration is None
