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
from safetensors.torch import load_file, save_file
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of OTHER, from 0 to 1")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    one, other = load_file(options.one), load_file(options.other)
    if differing := {name for name in {**one, **other} if shape(one, name) != shape(other, name)}:
        parser.error(f"not of one network: {', '.join(sorted(differing)[:5])} differ")
    with safe_open(options.one, "pt") as file:
        metadata = file.metadata()
    save_file(mean(one, other, options.share), options.out, metadata=metadata)
    shutil.copyfile(options.one.with_suffix(".yaml"), options.out.with_suffix(".yaml"))


def shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


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
