import hashlib
import os
import pickle
import struct
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from zarrmask.detection import checkpoint
from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.errors import CheckpointError
from zarrmask.storage.digest import sha256

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2)}
TENSORS = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}


def assert_weights(checkpoint, dtype=torch.float64):
    assert set(checkpoint.tensors) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert np.array_equal(checkpoint.tensors[name].numpy(), value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        {"model": TENSORS, "iteration": 50_999, "__author__": "somebody"},
        TENSORS,
        OrderedDict(TENSORS),
        {"model": {f"module.{name}": value for name, value in TENSORS.items()}},
    ],
    ids=["model", "bare", "ordered", "several GPUs"],
)
def test_torch_files(tmp_path, content, legacy):
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint)
    if "iteration" in content:
        assert checkpoint.metadata == {"iteration": 50_999, "__author__": "somebody"}


def test_a_trainer_s_file(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = {"base_lrs": [0.1], "last_epoch": 3, "milestones": [1, 2]}
    content = {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler,
        "iteration": 3,
    }
    torch.save(content, tmp_path / "model_0000003.pth")
    checkpoint = read_checkpoint(tmp_path / "model_0000003.pth")
    assert torch.equal(checkpoint.tensors["weight"], layer.weight)
    assert checkpoint.metadata == {"iteration": 3}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["C", "F", ">", "read-only"])
def test_model_zoo_files(tmp_path, protocol, kind):
    path = tmp_path / "model_final.pkl"
    model = {name: value.copy() for name, value in WEIGHTS.items()}
    for name, value in model.items():
        if kind == "F":
            model[name] = np.asfortranarray(value)
        elif kind == ">":
            model[name] = value.astype(value.dtype.newbyteorder(">"))
        value.flags.writeable = kind != "read-only"
    content = {"model": OrderedDict(model), "__author__": "zoo", "epoch": np.float32(3)}
    path.write_bytes(pickle.dumps(content, protocol))
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint)
    assert checkpoint.metadata["__author__"] == "zoo"


@pytest.mark.parametrize("raw", [b"\x80\xff\x00\x01", bytes(range(256)) * 2])
def test_a_pickle_of_python_2_with_old_numpy_names(tmp_path, raw):
    """As the model zoo's: protocol 2, bytes as latin1 text, numpy.core."""
    values = np.frombuffer(raw, np.uint8)
    body = (
        b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00w"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + b"M" + struct.pack("<H", len(raw)) + b"\x85"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tbss."
    )
    (tmp_path / "old.pkl").write_bytes(body)
    tensors = read_checkpoint(tmp_path / "old.pkl").tensors
    assert np.array_equal(tensors["w"].numpy(), values)


def test_safetensors_files(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"iteration": "7"})
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint)
    assert checkpoint.metadata == {"iteration": "7"}


def attacks(marker) -> dict[str, bytes]:
    """Pickles that would make a file if they were run, by the opcode that calls."""
    command = f"touch {marker}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    short = lambda name: b"\x8c" + bytes([len(name)]) + name  # noqa: E731
    system = b"cposix\nsystem\n"
    return {
        "GLOBAL, REDUCE": b"\x80\x02" + system + text + b"\x85R.",
        "STACK_GLOBAL, REDUCE": b"\x80\x04" + short(b"posix") + short(b"system") + b"\x93" + text
        + b"\x85R.",
        "INST": b"\x80\x02(" + text + b"iposix\nsystem\n.",
        "OBJ": b"\x80\x02(" + system + text + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n]" + text + b"a\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + short(b"subprocess") + short(b"Popen") + b"\x93" + text
        + b"\x85}\x92.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}X\x04\x00\x00\x00__xxcposix\nsystem\nsb.",
        "eval": b"\x80\x02c__builtin__\neval\n" + b"X" + struct.pack("<I", len(marker_code(marker)))
        + marker_code(marker) + b"\x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cnumpy\nndarray\nX\x03\x00\x00\x00osxtR.",
        "inside a model": b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00w" + system + text
        + b"\x85Rss.",
        "numpy's own loader": b"\x80\x02cnumpy\nload\n" + text + b"\x85R.",
        "dotted name": b"\x80\x04" + short(b"numpy") + short(b"ndarray.__class__") + b"\x93.",
        "memmap": b"\x80\x02cnumpy\nmemmap\n(" + text + b"X\x01\x00\x00\x00bX\x02\x00\x00\x00w+tR.",
    }  # fmt: skip


def marker_code(marker) -> bytes:
    return f"open({str(marker)!r}, 'w')".encode()


@pytest.mark.parametrize("name", list(attacks("x")))
@pytest.mark.parametrize("suffix", [".pkl", ".pth", "zipped.pth"])
def test_nothing_in_a_pickle_runs(tmp_path, name, suffix):
    marker = tmp_path / "executed"
    attack = attacks(marker)[name]
    path = tmp_path / f"model{suffix}"
    if suffix == "zipped.pth":
        torch.save({"model": TENSORS}, tmp_path / "honest.pth")
        reader = torch._C.PyTorchFileReader(str(tmp_path / "honest.pth"))
        writer = torch._C.PyTorchFileWriter(str(path))
        for record in reader.get_all_records():
            content = attack if record == "data.pkl" else reader.get_record(record)
            writer.write_record(record, content, len(content))
        writer.write_end_of_file()
    else:
        path.write_bytes(attack)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert not marker.exists()
    if suffix == ".pkl":
        assert "asks to import" in str(error.value)
        assert "Nothing in it was run" in str(error.value)


def test_the_attacks_are_real(tmp_path):
    """Else the test above would prove nothing."""
    for name in ("GLOBAL, REDUCE", "STACK_GLOBAL, REDUCE", "INST", "OBJ", "eval", "inside a model"):
        marker = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            pickle.loads(
                attacks(str(marker).replace(" ", r"\ "))[name]
                if name != "eval"
                else attacks(marker)[name]
            )
        assert marker.exists(), name


class Tempting:
    def __reduce__(self):
        return os.system, ("touch /nowhere/at/all",)


def test_what_it_wanted_to_import_is_named(tmp_path):
    torch.save({"model": TENSORS, "optimizer": Tempting()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"asks to import (posix|nt)\.system"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Tempting()}))
    with pytest.raises(CheckpointError, match=r"asks to import (posix|nt)\.system"):
        read_checkpoint(tmp_path / "a.pkl")


class Reduced:
    """Pickles as a call, and a state set on what it gives."""

    def __init__(self, *reduced):
        self._reduced = reduced

    def __reduce__(self):
        return self._reduced


FIELDS = {name: (np.dtype("O"), place) for name, place in {"a": 0, "b": 8}.items()}
"""Of addresses, in a type that says it holds none."""
HIDING = Reduced(np.dtype, ("V16",), (3, "|", None, ("a", "b"), FIELDS, 16, 1, 0))
SCALAR = np.float64(1).__reduce__()[0]


@pytest.mark.parametrize(
    "value",
    [
        Reduced(OrderedDict, ([Reduced(SCALAR, (HIDING, b"A" * 16))],)),
        Reduced(np.ndarray, ((1,), HIDING, b"A" * 16)),
        Reduced(np.ndarray, ((0,), "u1", b""), (1, (1,), HIDING, False, b"A" * 16)),
        Reduced(np.ndarray, ((40_000_000_000,), "<f4")),
        Reduced(np.ndarray, ((1,), "O", b"A" * 8)),
        np.array([None, "text"], object),
    ],
)
def test_a_pickle_makes_no_arrays_but_of_numbers(tmp_path, value):
    """NumPy would follow the addresses that a file gives, or take whatever memory it asks for."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"w": value}}, 4))
    with pytest.raises(CheckpointError, match=r"damaged|holds no weights"):
        read_checkpoint(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", [b"_codecs\nencode", b"numpy\nndarray", b"numpy\ndtype"])
def test_a_pickle_changes_nothing_of_ours(tmp_path, name):
    """A state that is set on a function, or a class, would last as long as the process."""
    before = {key: dict(vars(value)) for key, value in vars(checkpoint).items() if callable(value)}
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02c" + name + b"\nN}X\x07\x00\x00\x00changedK\x01s\x86b.")
    with pytest.raises(CheckpointError, match=r"damaged|asks to import"):
        read_checkpoint(path)
    after = {key: dict(vars(value)) for key, value in vars(checkpoint).items() if callable(value)}
    assert before == after


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors", "a"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"\x80\x02", b"hello, I am a text", b"\xff\xd8\xff\xe0 no picture", b"N."],
)
def test_files_that_are_no_checkpoint(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path, name, part):
    whole = tmp_path / f"whole{name}"
    tensors = {"w": torch.arange(10_000)}
    if name == "a.pkl":
        whole.write_bytes(pickle.dumps({"model": {"w": tensors["w"].numpy()}}))
    elif name == "a.pth":
        torch.save({"model": tensors}, whole)
    else:
        safetensors.torch.save_file(tensors, whole)
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=rf"{name} .*(damaged|its end is missing)"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": 3}, {"model": {}}, {"epoch": 1}, {"model": {"a": "b"}}, "text"]
)
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    for name in ("a.pth", "a.pkl"):
        with pytest.raises(CheckpointError, match="holds no weights"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (torch.ones(3).to(torch.float8_e4m3fn), "strided, float8_e4m3fn"),
        (torch.eye(3).to_sparse(), "sparse_coo, float32"),
        (torch.ones(3, device="meta"), "no values"),
    ],
)
def test_tensors_that_cannot_be_computed_with_are_named(tmp_path, odd, said):
    torch.save({"model": {"a.weight": torch.ones(2), "b.weight": odd}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"1 of its 2 tensors .* as b\.weight \({said}\)"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder, no checkpoint; and holds none"):
        read_checkpoint(tmp_path)
    for name in ("model.yaml", "model.safetensors", "model_0000999.pth"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"it: model\.safetensors, model_0000999\.pth$"):
        read_checkpoint(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_checkpoint(tmp_path / "a.pth")


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()
