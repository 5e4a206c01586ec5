"""PyTorch state dicts: from files to NumPy arrays by their names.

Whose names they are is what `ida_jax.interop.torch_networks` knows.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import load_npz, require_file
from ida_jax.interop.torch_networks import MARKS

# Where trainers' checkpoints keep the backbone's state dict (arcface_torch, Lightning).
_WRAPPERS = ("state_dict_backbone", "state_dict")
# What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
# What stands before a network's mark is what a trainer's module calls it ("model.", "backbone.").
_MARKS = re.compile(rf"(|.+\.)({'|'.join(map(re.escape, MARKS))})")


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a .pth, .pt, .ckpt, .npz or .safetensors file, by its names.

    A checkpoint that holds one under "state_dict_backbone" or "state_dict" is unwrapped, `module.`
    and `_orig_mod.` before the names removed, the counters `num_batches_tracked` left out. Where a
    trainer's module holds the network under a name of its own (Lightning's "model."), that name and
    the module's other parts are left out.
    """
    require_file(path, what="weights")
    match path.suffix:
        case ".pth" | ".pt" | ".ckpt":
            arrays = read_torch(path)
        case ".npz":
            arrays = load_npz(path)
        case ".safetensors":
            arrays = _read_safetensors(path)
        case suffix:
            raise UserError(
                f"weights of suffix '{suffix}': expected .pth, .pt, .ckpt, .npz, .safetensors"
            )
    arrays = {_PREFIXES.sub("", name): value for name, value in arrays.items()}
    arrays = _one_network(path, arrays)
    if set(arrays) <= {"weight", "weight_mom"}:
        raise UserError(
            f"{path} holds one weight alone, class centres of partial FC: give the backbone's file"
        )
    return {name: value for name, value in arrays.items() if "num_batches_tracked" not in name}


def _one_network(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the network that a trainer's module holds, without its name for it."""
    prefixes = sorted({match[1] for name in arrays if (match := _MARKS.fullmatch(name))})
    if prefixes in ([], [""]):
        return arrays
    if len(prefixes) > 1:
        listed = ", ".join(repr(prefix) for prefix in prefixes)[:200]
        raise UserError(
            f"{path} holds several networks, under {listed}: save the state dict of one alone"
        )
    (prefix,) = prefixes
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def read_torch(path: Path, *, wrappers: Sequence[str] = _WRAPPERS) -> dict[str, np.ndarray]:
    """The tensors of a file of torch.save by their names; a single one is "weight".

    Args:
      path: the file, read by weights_only=True, which runs no code.
      wrappers: names under which a checkpoint may keep the wanted ones, from the outside inwards.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch: pip install 'ida_jax[interop]'") from error
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; each means that the file is of no use
        reason = " ".join(str(error).strip().split("\n")[0].split())
        raise UserError(
            f"{path} is not a state dict alone ({reason}): save one by "
            "torch.save(network.state_dict(), PATH)"
        ) from error
    if isinstance(loaded, Mapping):
        for wrapper in wrappers:
            inner = loaded.get(wrapper)
            loaded = inner if isinstance(inner, Mapping) else loaded
    if isinstance(loaded, torch.Tensor):
        loaded = {"weight": loaded}
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise UserError(f"{path} holds no state dict: expected tensors by name")
    arrays = {}
    for name, value in loaded.items():
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(
                f"{path}: '{name}' is sparse or quantised: save the network's own weights"
            )
        value = value.detach()  # of an nn.Parameter
        arrays[str(name)] = (value.float() if value.is_floating_point() else value).numpy()
    return arrays


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file of plain arrays: {error}"
        ) from error
