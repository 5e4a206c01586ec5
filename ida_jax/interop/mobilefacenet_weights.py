"""MobileFaceNet's weights from PyTorch: a state dict as NumPy arrays, an .npz file for example.

The names are those of the public PyTorch implementation: `conv1.0.weight`,
`features.3.conv.1.1.running_mean`, `gdconv.depthwise.weight`, …. Its 1×1 convolutions are Dense
layers here.
"""

from collections.abc import Mapping

import numpy as np

from ida_jax.interop.state_dict import LEAVES, variables_of
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
    return variables_of(MobileFaceNet(), 112, state, _torch_name, what="MobileFaceNet")


def _torch_name(path: tuple[str, ...]) -> str:
    """("params", "features_3", "expand", "kernel") → "features.3.conv.0.0.weight"."""
    _, *modules, leaf = path
    if len(modules) == 2:
        prefix = modules[0].replace("_", ".") + ".conv." + _RESIDUAL_MODULES[modules[1]]
    else:
        prefix = _MODULES[modules[0]]
    return f"{prefix}.{LEAVES[leaf]}"
