"""Mean of two checkpoints of one network, tensor by tensor.

    python benchmarks/average.py ONE OTHER --share 0.3 --out OUT

OTHER's share is `--share`, ONE's is the rest. All are .safetensors; ONE's config, beside it, goes
along. Weights that were trained on from common ones can be averaged so ("model soups", Wortsman et
al. 2022); shift biases (`calibrate.py`) afterwards, since the mean of shifts is none of either.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.names import is_weight
from zarrmask.detection.weights import Misfit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of OTHER, from 0 to 1")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    one, other = read_checkpoint(options.one), read_checkpoint(options.other)
    expected = {name: shape for name, shape in one.shapes.items() if is_weight(name)}
    if misfit := Misfit.of(other.shapes, expected):
        parser.error("not of one network:\n" + "\n".join(misfit.lines()))
    save_like(options.one, mean(one.tensors, other.tensors, options.share), options.out)


def save_like(model: Path, tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write tensors with what else a checkpoint says, and its config."""
    with safe_open(model, "pt") as file:
        save_file(dict(tensors), out, metadata=file.metadata())
    shutil.copyfile(model.with_suffix(".yaml"), out.with_suffix(".yaml"))


def mean(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Of tensors of the same names; numbers of batches are the first's."""
    return {
        name: tensor.double().lerp(other[name].double(), share).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in one.items()
    }


if __name__ == "__main__":
    main()
