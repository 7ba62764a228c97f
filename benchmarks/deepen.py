"""Weights of a network as the beginning of a deeper one, which at first gives the same.

    python benchmarks/deepen.py CHECKPOINT --config CONFIG --out OUT

CONFIG describes the deeper network, with more residual blocks and else alike. What CHECKPOINT lacks
adds nothing to what passes it: the last norm of each new block has a scale of zero (as Goyal et
al., "Accurate, Large Minibatch SGD", 2017, begin with all blocks). `zarrmask train --init OUT`
lets them come in. CHECKPOINT and OUT are .safetensors.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.config import read_config
from zarrmask.detection.network import build_model
from zarrmask.detection.weights import Misfit, model_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights of new blocks")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    deeper = model_weights(build_model(read_config(options.config)))
    begun = read_checkpoint(options.checkpoint)
    common = {name: tuple(deeper[name].shape) for name in begun.shapes if name in deeper}
    if misfit := Misfit.of(begun.shapes, common):
        parser.error("more than blocks is to be added:\n" + "\n".join(misfit.lines()))
    save_file(deepened(begun.tensors, deeper), options.out)
    shutil.copyfile(options.config, options.out.with_suffix(".yaml"))


def deepened(begun: Mapping[str, Tensor], deeper: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the deeper network's weights: those there are, and blocks that add nothing."""
    return {
        name: begun[name].to(tensor.dtype)
        if name in begun
        else torch.zeros_like(tensor)
        if name.endswith(".conv2.norm.weight")
        else tensor.clone()
        for name, tensor in deeper.items()
    }


if __name__ == "__main__":
    main()
