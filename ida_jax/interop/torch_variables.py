"""A network's variables from a state dict's arrays, whose names are given.

O and I output and input channels, H and W a kernel's size.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.common.errors import UserError

# Our leaves' names in PyTorch; a PReLU's slope is a "weight" too.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_leaf(leaf: str) -> str:
    """The last part of the name in PyTorch of a leaf of ours: "kernel" → "weight"."""
    return _LEAVES[leaf]


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
      torch_name: from a variable's path, ("params", …, "kernel"), to its name in the state dict,
        with "*" for the number of each part of a stacked variable.
      what: the network's name in errors.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    expected = flatten_dict(
        jax.eval_shape(lambda images: network.init(jax.random.key(0), images, train=False), images)
    )
    names = {path: _names(torch_name(path), leaf.shape) for path, leaf in expected.items()}
    known = {name for several in names.values() for name in several}
    given = {name for name in state if not name.endswith("num_batches_tracked")}
    if missing := known - given:
        raise UserError(f"the {what} weights lack {_list(missing)}; give the whole state dict")
    if unknown := given - known:
        raise UserError(
            f"{_list(unknown)} is not among {what}'s weights; give its state dict alone"
        )
    variables = {}
    for path, leaf in expected.items():
        stacked = "*" in torch_name(path)
        shape = leaf.shape[1:] if stacked else leaf.shape
        parts = [
            _converted(name, state[name], shape, what, kernel=path[-1] == "kernel")
            for name in names[path]
        ]
        variables[path] = jnp.asarray(np.stack(parts) if stacked else parts[0], jnp.float32)
    return unflatten_dict(variables)


def _names(name: str, shape: tuple[int, ...]) -> list[str]:
    return [name.replace("*", str(part)) for part in range(shape[0] if "*" in name else 1)]


def _converted(
    name: str, value: np.ndarray, shape: tuple[int, ...], what: str, *, kernel: bool
) -> np.ndarray:
    """The array in our layout: of kernels OIHW → HWIO, OI11 and OI → IO."""
    value = np.asarray(value)
    if kernel and len(shape) == 2 and value.ndim == 2:
        value = value[:, :, None, None]
    hwio = (1, 1, *shape) if len(shape) == 2 else shape
    expected = tuple(hwio[axis] for axis in (3, 2, 0, 1)) if kernel else shape
    if value.shape != expected:
        raise UserError(
            f"the {what} weight {name!r} has shape {value.shape}; {expected} is expected"
        )
    return value.transpose(2, 3, 1, 0).reshape(shape) if kernel else value


def _list(names: set[str]) -> str:
    """The first names in order, and how many more."""
    first = ", ".join(repr(name) for name in sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
