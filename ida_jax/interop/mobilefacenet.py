"""MobileFaceNet's weights from PyTorch: a state dict as NumPy arrays, an .npz file for example.

The names are those of the public PyTorch implementation: `conv1.0.weight`,
`features.3.conv.1.1.running_mean`, `gdconv.depthwise.weight`, …. Its 1×1 convolutions are Dense
layers here.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.errors import UserError
from ida_jax.models.mobilefacenet import MobileFaceNet

_MODULES = {
    "conv1": "conv1.0",
    "conv1_bn": "conv1.1",
    "dw_conv_depthwise": "dw_conv.depthwise",
    "dw_conv_bn1": "dw_conv.bn1",
    "dw_conv_pointwise": "dw_conv.pointwise",
    "dw_conv_bn2": "dw_conv.bn2",
    "conv2": "conv2.0",
    "conv2_bn": "conv2.1",
    "gdconv_depthwise": "gdconv.depthwise",
    "gdconv_bn": "gdconv.bn",
    "conv3": "conv3",
    "bn": "bn",
}
# Within features.N.conv, an inverted residual.
_RESIDUAL_MODULES = {
    "expand": "0.0",
    "expand_bn": "0.1",
    "depthwise": "1.0",
    "depthwise_bn": "1.1",
    "project": "2",
    "project_bn": "3",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def mobilefacenet_variables(state: Mapping[str, np.ndarray]) -> dict:
    """The variables of `MobileFaceNet()` for 112×112 images.

    Args:
      state: float arrays by their name in the PyTorch state dict, convolutions OIHW. The counters
        `num_batches_tracked` are ignored.

    Returns:
      {"params": …, "batch_stats": …}, float32.

    Raises:
      UserError: a name is missing or unknown, or an array has another shape; it is named.
    """
    images = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    expected = jax.eval_shape(
        lambda images: MobileFaceNet().init(jax.random.key(0), images, train=False), images
    )
    names = {path: _torch_name(path) for path in flatten_dict(expected)}
    given = {name for name in state if not name.endswith("num_batches_tracked")}
    if missing := set(names.values()) - given:
        raise UserError(
            f"the MobileFaceNet weights lack {_list(missing)}; give the whole state dict"
        )
    if unknown := given - set(names.values()):
        raise UserError(
            f"{_list(unknown)} is not among MobileFaceNet's weights; give its state dict alone"
        )
    return unflatten_dict(
        {
            path: _converted(names[path], state[names[path]], leaf.shape)
            for path, leaf in flatten_dict(expected).items()
        }
    )


def _torch_name(path: tuple[str, ...]) -> str:
    """("params", "features_3", "expand", "kernel") → "features.3.conv.0.0.weight"."""
    _, *modules, leaf = path
    if len(modules) == 2:
        prefix = modules[0].replace("_", ".") + ".conv." + _RESIDUAL_MODULES[modules[1]]
    else:
        prefix = _MODULES[modules[0]]
    return f"{prefix}.{_LEAVES[leaf]}"


def _converted(name: str, value: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """The array in our layout: kernels OIHW → HWIO, 1×1 ones OI11 → IO."""
    hwio = (1, 1, *shape) if len(shape) == 2 else shape
    expected = tuple(hwio[axis] for axis in (3, 2, 0, 1)) if len(shape) > 1 else shape
    if value.shape != expected:
        raise UserError(
            f"the MobileFaceNet weight {name!r} has shape {value.shape}; {expected} is expected: "
            "give the 112×112, 128-d network's"
        )
    if len(shape) > 1:
        value = value.transpose(2, 3, 1, 0).reshape(shape)
    return jnp.asarray(value, jnp.float32)


def _list(names: set[str]) -> str:
    """The first names in order, and how many more."""
    first = ", ".join(repr(name) for name in sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
