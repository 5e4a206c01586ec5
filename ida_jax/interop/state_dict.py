"""PyTorch state dicts as NumPy arrays: from files, and into a network's variables.

O and I output and input channels, H and W a kernel's size. PyTorch's kernels are [O, I, H, W] and
its fully connected layers [O, I]; ours are [H, W, I, O] and [I, O].
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.common.errors import UserError
from ida_jax.common.files import load_npz, require_file

# Our leaves' names in PyTorch; a PReLU's slope is a "weight" too.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Where trainers' checkpoints keep the backbone's state dict (arcface_torch, Lightning).
_WRAPPERS = ("state_dict_backbone", "state_dict")
# What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
# The one name that each of our networks has but once; what stands before it is what a trainer's
# module calls its network ("model.", "backbone.").
_MARKS = re.compile(r"(|.+\.)(features\.running_var|gdconv\.depthwise\.weight)")


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a .pth, .pt, .ckpt, .npz or .safetensors file, by its names.

    A checkpoint that holds one under "state_dict_backbone" or "state_dict" is unwrapped, `module.`
    and `_orig_mod.` before the names removed, the counters `num_batches_tracked` left out. Where a
    trainer's module holds the network under a name of its own (Lightning's "model."), that name and
    the module's other parts are left out.

    Raises:
      UserError: no such file, a torn one, one that would run code when read, one in another format,
        or with several networks.
    """
    require_file(path, what="weights")
    match path.suffix:
        case ".pth" | ".pt" | ".ckpt":
            arrays = _read_torch(path)
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


def variables_of(
    network: nn.Module,
    image_size: int,
    state: Mapping[str, np.ndarray],
    torch_name: Callable[[tuple[str, ...]], str],
    *,
    what: str,
) -> dict:
    """A network's variables from a state dict, float32.

    Args:
      network: takes [B, H, W, 3] and `train`.
      image_size: H and W.
      state: by PyTorch's names, kernels [O, I, H, W]; 1×1 ones may stand for fully connected ones.
      torch_name: from a variable's path, ("params", …, "kernel"), to its name in the state dict.
      what: the network's name in errors.

    Raises:
      UserError: a name is missing or unknown, or an array has another shape; it is named.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    expected = flatten_dict(
        jax.eval_shape(lambda images: network.init(jax.random.key(0), images, train=False), images)
    )
    names = {path: torch_name(path) for path in expected}
    given = {name for name in state if not name.endswith("num_batches_tracked")}
    if missing := set(names.values()) - given:
        raise UserError(f"the {what} weights lack {_list(missing)}; give the whole state dict")
    if unknown := given - set(names.values()):
        raise UserError(
            f"{_list(unknown)} is not among {what}'s weights; give its state dict alone"
        )
    return unflatten_dict(
        {
            path: _converted(names[path], state[names[path]], leaf.shape, what)
            for path, leaf in expected.items()
        }
    )


def _converted(name: str, value: np.ndarray, shape: tuple[int, ...], what: str) -> jax.Array:
    """The array in our layout: OIHW → HWIO, OI11 and OI → IO."""
    value = np.asarray(value)
    if len(shape) == 2 and value.ndim == 2:
        value = value[:, :, None, None]
    hwio = (1, 1, *shape) if len(shape) == 2 else shape
    expected = tuple(hwio[axis] for axis in (3, 2, 0, 1)) if len(shape) > 1 else shape
    if value.shape != expected:
        raise UserError(
            f"the {what} weight {name!r} has shape {value.shape}; {expected} is expected"
        )
    if len(shape) > 1:
        value = value.transpose(2, 3, 1, 0).reshape(shape)
    return jnp.asarray(value, jnp.float32)


def _list(names: set[str]) -> str:
    """The first names in order, and how many more."""
    first = ", ".join(repr(name) for name in sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch: pip install ida_jax[interop]") from error
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; each means that the file is of no use
        reason = " ".join(str(error).strip().split("\n")[0].split())
        raise UserError(
            f"{path} is not a state dict alone ({reason}): save one by "
            "torch.save(network.state_dict(), PATH)"
        ) from error
    if isinstance(loaded, Mapping):
        for wrapper in _WRAPPERS:
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
