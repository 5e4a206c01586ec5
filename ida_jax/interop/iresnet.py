"""iresnet's weights from PyTorch, by the names of InsightFace's arcface_torch state dicts.

`conv1.weight`, `layer3.13.bn2.running_var`, `layer1.0.downsample.0.weight`, `fc.weight`,
`features.bias`, …. PyTorch flattens the last map as [C, H, W], we as [H, W, C].

C channels, H and W the last map's size, D embedding.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.interop.state_dict import LEAVES, variables_of
from ida_jax.models import resnet

NETWORKS = ("iresnet_nano", "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200")
_MODULES = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "stem_prelu": "prelu",
    "output_bn": "bn2",
    "fc": "fc",
    "embedding_bn": "features",
    # Within a block.
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
}
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
# All four stages halve the map, rounding up.
_TOTAL_STRIDE = 16


class IResNetWeights(NamedTuple):
    """What a state dict says.

    Attributes:
      network: iresnet18 … iresnet200.
      options: the module's options for `ida_jax.artefacts.face_model.FaceModel`.
      image_size: 16 times the last map's size.
      variables: {"params": …, "batch_stats": …}, float32.
    """

    network: str
    options: dict[str, Any]
    image_size: int
    variables: dict[str, Any]


def iresnet_from_state(state: Mapping[str, np.ndarray]) -> IResNetWeights:
    """The network that a state dict belongs to, and its variables.

    Depth and widths follow from the blocks' names and shapes, D and the image size from `fc`. A
    scale of the last BatchNorm, 1 in InsightFace's networks and absent in ours, goes into `fc`.

    Args:
      state: float arrays by their names, as `ida_jax.interop.state_dict.read_state` gives them.

    Raises:
      UserError: not an iresnet, an unknown depth or width, or an image that is not square; a name
        is missing or unknown, or an array has another shape.
    """
    if "conv1.weight" not in state or "fc.weight" not in state:
        raise UserError(
            "the weights lack 'conv1.weight' or 'fc.weight': expected the state dict of an "
            "arcface_torch iresnet"
        )
    for name, axes in (("conv1.weight", 4), ("fc.weight", 2)):
        if state[name].ndim != axes:
            raise UserError(f"'{name}' has shape {state[name].shape}: expected {axes} axes")
    network = _network(state)
    widths = getattr(resnet, network)().widths
    width, flattened = state["fc.weight"].shape
    side = math.isqrt(flattened // widths[-1])
    if side * side * widths[-1] != flattened:
        raise UserError(
            f"'fc.weight' takes {flattened} values, not a square map of {widths[-1]} channels: "
            "networks of square images alone can be read"
        )
    state = dict(state)
    kernel = state["fc.weight"].reshape(width, widths[-1], side, side)
    state["fc.weight"] = kernel.transpose(0, 2, 3, 1).reshape(width, flattened)
    if (scale := state.pop("features.weight", None)) is not None:
        state["fc.weight"] = state["fc.weight"] * scale[:, None]
        for name in ("fc.bias", "features.running_mean"):
            if name in state:
                state[name] = state[name] * scale
    module = getattr(resnet, network)(embedding_dim=width)
    image_size = _TOTAL_STRIDE * side
    variables = variables_of(module, image_size, state, _torch_name, what=network)
    options = {"embedding_dim": width, "dropout_rate": 0.0}
    return IResNetWeights(network, options, image_size, variables)


def _network(state: Mapping[str, np.ndarray]) -> str:
    blocks = {(int(m[1]), int(m[2])) for name in state if (m := _BLOCK.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    sizes = tuple(sum(stage == s for s, _ in blocks) for stage in stages)
    stem = state["conv1.weight"].shape[0]
    for name in NETWORKS:
        module = getattr(resnet, name)()
        if (sizes, stem) == (module.stage_sizes, module.widths[0]):
            return name
    raise UserError(
        f"the weights are of stages of {list(sizes)} blocks after a stem of {stem} channels: "
        f"expected one of {', '.join(NETWORKS)}"
    )


def _torch_name(path: tuple[str, ...]) -> str:
    """("params", "stage3_block2", "bn1", "scale") → "layer3.1.bn1.weight"."""
    _, *modules, leaf = path
    parts = []
    if len(modules) == 2:
        stage, block = re.fullmatch(r"stage(\d+)_block(\d+)", modules[0]).groups()
        parts.append(f"layer{stage}.{int(block) - 1}")
    parts.append(_MODULES.get(modules[-1], modules[-1]))
    return ".".join([*parts, LEAVES[leaf]])
