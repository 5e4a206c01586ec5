"""Whose state dict it is, and our network's variables of it.

iresnet, mbf and ViT have arcface_torch's names: `layer3.13.bn2.running_var`; `layers.3.layers.0.…`,
`conv_sep.layers.0.weight`; `blocks.5.attn.qkv.weight`. IR-SE's are those of the older ArcFace zoo
in PyTorch, `body.7.res_layer.1.weight`; MobileFaceNet's those of the public implementation,
`features.3.conv.1.1.running_mean`.

PyTorch's kernels are [O, I, H, W] and its fully connected layers [O, I]; ours are [H, W, I, O] and
[I, O], 1×1 convolutions Dense layers. It flattens the last map as [C, H, W], we as [H, W, C].

O and I output and input channels, H and W a kernel's or the last map's size, C channels, D
embedding, L tokens.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ida_jax.artefacts.face_model import Preprocessing, build_network
from ida_jax.common.errors import UserError
from ida_jax.interop.torch_variables import torch_leaf, variables_of
from ida_jax.models import mbf

_IRESNETS = ("iresnet_nano", "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200")
_IRESNET_MODULES = {
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
_IRESNET_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
# Of iresnet, mbf and IR-SE: every halving rounds up.
_TOTAL_STRIDE = 16
_MOBILEFACENET_MODULES = {
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
_MBF_MODULES = {
    "stem": "layers.0.layers",
    "grouped": "layers.1.layers",
    "separate": "conv_sep.layers",
    "global": "features.layers.0.layers",
    "fc": "features.layers.2",
    "embedding": "features.layers.3",
    # Within a bottleneck.
    "expand": "0.layers",
    "depthwise": "1.layers",
    "project": "2.layers",
}
_VIT_MODULES = {
    "patch": "patch_embed.proj",
    "norm": "norm",
    "fc1": "feature.0",
    "fc1_bn": "feature.1",
    "fc2": "feature.2",
    "embedding_bn": "feature.3",
    # Within a block.
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "norm2": "norm2",
    "mlp1": "mlp.fc1",
    "mlp2": "mlp.fc2",
}
# PyTorch's epsilon there, and that of our BatchNorm.
_VIT_EPSILON, _EPSILON = 2e-5, 1e-5
_IR_SE_MODULES = {
    "stem_conv": "input_layer.0",
    "stem_bn": "input_layer.1",
    "stem_prelu": "input_layer.2",
    "output_bn": "output_layer.0",
    "fc": "output_layer.3",
    "embedding_bn": "output_layer.4",
    # Within body.N.
    "bn1": "res_layer.0",
    "conv1": "res_layer.1",
    "prelu": "res_layer.2",
    "conv2": "res_layer.3",
    "bn2": "res_layer.4",
    "gate": "res_layer.5",
    "shortcut_conv": "shortcut_layer.0",
    "shortcut_bn": "shortcut_layer.1",
}
# The public MobileFaceNet is trained on ImageNet's statistics.
_IMAGENET = Preprocessing(112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TorchWeights(NamedTuple):
    """A network from a state dict.

    Attributes:
      network: its name.
      options: the module's options for `ida_jax.artefacts.face_model.FaceModel`.
      preprocessing: what it was trained on, the image size from the weights.
      variables: {"params": …, "batch_stats": …}, float32.
    """

    network: str
    options: dict[str, Any]
    preprocessing: Preprocessing
    variables: dict[str, Any]


def network_of(state: Mapping[str, np.ndarray]) -> TorchWeights:
    """The network that a state dict belongs to, and its variables.

    Args:
      state: float arrays by their names, as `ida_jax.interop.state_dict.read_state` gives them.

    Raises:
      UserError: an unknown network's weights; or a known one's with a name that is missing or
        unknown, an array of another shape, or for an image that is not square.
    """
    for mark, convert in MARKS.items():
        if mark in state:
            return convert(state)
    first = ", ".join(f"'{name}' {list(value.shape)}" for name, value in list(state.items())[:3])
    raise UserError(
        f"an unknown network's weights, {len(state)} arrays ({first or 'none'}, …); those of "
        "arcface_torch's iresnets, mbf and ViT, of the ArcFace zoo's IR-SE and of the public "
        "MobileFaceNet can be read"
    )


def iresnet_from_state(state: Mapping[str, np.ndarray]) -> TorchWeights:
    """An iresnet's variables.

    Depth and widths follow from the blocks' names and shapes, D and the image size from `fc`. A
    scale of the last BatchNorm, 1 in InsightFace's networks and absent in ours, goes into `fc`.

    Raises:
      UserError: as `network_of`; or an unknown depth or width.
    """
    _require_axes(state, {"conv1.weight": 4, "fc.weight": 2}, what="an arcface_torch iresnet")
    network = _iresnet_of(state)
    widths = build_network(network, {"embedding_dim": 1}).widths
    state = dict(state)
    side, state["fc.weight"] = _of_map(state["fc.weight"], widths[-1], name="fc.weight")
    if (scale := state.pop("features.weight", None)) is not None:
        state["fc.weight"] = state["fc.weight"] * scale[:, None]
        for name in ("fc.bias", "features.running_mean"):
            if name in state:
                state[name] = state[name] * scale
    options = {"embedding_dim": len(state["fc.weight"]), "dropout_rate": 0.0}
    return _converted(network, options, Preprocessing(_TOTAL_STRIDE * side), state, _iresnet_name)


def mobilefacenet_from_state(state: Mapping[str, np.ndarray]) -> TorchWeights:
    """The public MobileFaceNet's variables, for 112×112 images and 128-d embeddings."""
    options = {"embedding_dim": 128}
    return _converted("mobilefacenet", options, _IMAGENET, state, _mobilefacenet_name)


def mbf_from_state(state: Mapping[str, np.ndarray]) -> TorchWeights:
    """arcface_torch's MobileFaceNet's variables.

    The blocks follow from the names, the scale from the first convolution. A shape that neither
    mbf nor mbf_large has is given as options of mbf, which describe any such network.
    """
    axes = {
        "layers.0.layers.0.weight": 4,
        "features.layers.2.weight": 2,
        "features.layers.0.layers.0.weight": 4,
    }
    _require_axes(state, axes, what="arcface_torch's MobileFaceNet")
    stem, last, head = (state[name].shape for name in axes)
    if not stem[0] or stem[0] % mbf.WIDTHS[0] or head[2] != head[3]:
        raise UserError(
            f"mbf's first convolution has {stem[0]} channels and its last map {head[2]}×{head[3]} "
            f"pixels: expected a multiple of {mbf.WIDTHS[0]}, and a square"
        )
    repeats = [
        _count(rf"layers\.{2 * stage + 1}\.layers\.(\d+)\.layers\.", state) for stage in range(4)
    ]
    shape = {"blocks": (repeats[0] or 1, *repeats[1:]), "scale": stem[0] // mbf.WIDTHS[0]}
    network, options = _named(("mbf", "mbf_large"), shape)
    options["embedding_dim"] = last[0]
    return _converted(network, options, Preprocessing(_TOTAL_STRIDE * head[2]), state, _mbf_name)


def vit_from_state(state: Mapping[str, np.ndarray]) -> TorchWeights:
    """The variables of one of arcface_torch's ViTs.

    Depth and width follow from the names and shapes, the image size from the number of tokens, in
    patches of 9 pixels 112 for 144 of them; heads are 8, as in all of theirs. A shape that no name
    has is given as options of vit_t, which describe any such network.
    """
    axes = {"patch_embed.proj.weight": 4, "feature.2.weight": 2, "pos_embed": 3, "mask_token": 3}
    _require_axes(state, axes, what="an arcface_torch ViT")
    state = dict(state)
    (width, _, patch, _), (embedding_dim, _), (_, tokens, _), _ = (state[n].shape for n in axes)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"'pos_embed' is of {tokens} tokens: expected a square's")
    for name in ("feature.1.running_var", "feature.3.running_var"):
        if name in state:
            state[name] = state[name] + np.float32(_VIT_EPSILON - _EPSILON)
    # A patch's values are [H, W, I] here.
    kernel = state["patch_embed.proj.weight"].transpose(0, 2, 3, 1)
    state["patch_embed.proj.weight"] = kernel.reshape(width, -1)
    state["pos_embed"], state["mask_token"] = state["pos_embed"][0], state["mask_token"].reshape(-1)
    depth = max(1, _count(r"blocks\.(\d+)\.", state))
    shape = {"depth": depth, "width": width, "patch_size": patch}
    network, options = _named(("vit_t", "vit_s", "vit_b", "vit_l"), shape)
    options |= {"embedding_dim": embedding_dim, "drop_path_rate": 0.0, "mask_ratio": 0.0}
    # 12 patches of 9 pixels leave four of 112 over.
    size = 112 if (side, patch) == (12, 9) else side * patch
    return _converted(network, options, Preprocessing(size), state, _vit_name)


def ir_se_from_state(state: Mapping[str, np.ndarray]) -> TorchWeights:
    """An IR-SE's variables; a stage begins where the blocks' width changes."""
    axes = {"input_layer.0.weight": 4, "output_layer.3.weight": 2}
    _require_axes(state, axes, what="an IR-SE network")
    if "body.0.res_layer.5.fc1.weight" not in state:
        raise UserError(
            "the weights have IR blocks without gates ('body.0.res_layer.5.fc1.weight'): of this "
            "family IR-SE networks alone can be read"
        )
    convolutions = [
        f"body.{block}.res_layer.1.weight" for block in range(_count(r"body\.(\d+)\.", state))
    ]
    _require_axes(state, dict.fromkeys(convolutions, 4), what="an IR-SE network")
    widths, sizes = [], []
    for name in convolutions:
        width = len(state[name])
        if not widths or width != widths[-1]:
            widths, sizes = [*widths, width], [*sizes, 0]
        sizes[-1] += 1
    stages = {"stage_sizes": tuple(sizes), "widths": tuple(widths)}
    network, options = _named(("ir_se50", "ir_se100", "ir_se152"), stages)
    state = dict(state)
    name = "output_layer.3.weight"
    side, state[name] = _of_map(state[name], widths[-1], name=name)
    options |= {"embedding_dim": len(state[name]), "dropout_rate": 0.0}
    first = np.cumsum([0, *sizes])

    def torch_name(path: tuple[str, ...]) -> str:
        return _ir_se_name(path, first)

    return _converted(network, options, Preprocessing(side * 2 ** len(sizes)), state, torch_name)


# The one name that each network has but once, which its state dict is recognised by.
MARKS: dict[str, Callable[[Mapping[str, np.ndarray]], TorchWeights]] = {
    "features.running_var": iresnet_from_state,
    "gdconv.depthwise.weight": mobilefacenet_from_state,
    "features.layers.3.running_var": mbf_from_state,
    "feature.3.running_var": vit_from_state,
    "output_layer.4.running_var": ir_se_from_state,
}


def _converted(
    network: str,
    options: dict[str, Any],
    preprocessing: Preprocessing,
    state: Mapping[str, np.ndarray],
    torch_name: Callable[[tuple[str, ...]], str],
) -> TorchWeights:
    module = build_network(network, options)
    side = preprocessing.image_size
    variables = variables_of(module, side, state, torch_name, what=network)
    return TorchWeights(network, options, preprocessing, variables)


def _require_axes(state: Mapping[str, np.ndarray], axes: Mapping[str, int], *, what: str) -> None:
    """What a network's shape is read from."""
    if missing := [name for name in axes if name not in state]:
        raise UserError(f"the weights lack '{missing[0]}': expected the whole state dict of {what}")
    for name, number in axes.items():
        if state[name].ndim != number:
            raise UserError(f"'{name}' has shape {state[name].shape}: expected {number} axes")


def _count(pattern: str, state: Mapping[str, np.ndarray]) -> int:
    """One more than the largest number that names have there, at most all names; 0 without any."""
    numbers = (int(m[1]) + 1 for name in state if (m := re.match(pattern, name)))
    return min(max(numbers, default=0), len(state))


def _named(names: tuple[str, ...], shape: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name whose network has this shape, and no options; else the first name, with these."""
    for name in names:
        module = build_network(name, {"embedding_dim": 1})
        if all(getattr(module, key) == value for key, value in shape.items()):
            return name, {}
    own = build_network(names[0], {"embedding_dim": 1})
    return names[0], {k: v for k, v in shape.items() if getattr(own, k) != v}


def _of_map(kernel: np.ndarray, channels: int, *, name: str) -> tuple[int, np.ndarray]:
    """A last map's side, and the [O, I] of what takes it, from [C, H, W] to [H, W, C]."""
    width, flattened = kernel.shape
    side = math.isqrt(flattened // channels) if channels else 0
    if not side or side * side * channels != flattened:
        raise UserError(
            f"'{name}' takes {flattened} values, not a square map of {channels} channels: "
            "only networks for square images can be read"
        )
    kernel = kernel.reshape(width, channels, side, side)
    return side, kernel.transpose(0, 2, 3, 1).reshape(width, flattened)


def _iresnet_of(state: Mapping[str, np.ndarray]) -> str:
    blocks = {(int(m[1]), int(m[2])) for name in state if (m := _IRESNET_BLOCK.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    sizes = tuple(sum(stage == s for s, _ in blocks) for stage in stages)
    stem = state["conv1.weight"].shape[0]
    for name in _IRESNETS:
        module = build_network(name, {"embedding_dim": 1})
        if (sizes, stem) == (module.stage_sizes, module.widths[0]):
            return name
    raise UserError(
        f"the weights are of stages of {list(sizes)} blocks after a stem of {stem} channels: "
        f"expected one of {', '.join(_IRESNETS)}"
    )


def _iresnet_name(path: tuple[str, ...]) -> str:
    """("params", "stage3_block2", "bn1", "scale") → "layer3.1.bn1.weight"."""
    _, *modules, leaf = path
    parts = []
    if len(modules) == 2:
        stage, block = re.fullmatch(r"stage(\d+)_block(\d+)", modules[0]).groups()
        parts.append(f"layer{stage}.{int(block) - 1}")
    parts.append(_IRESNET_MODULES.get(modules[-1], modules[-1]))
    return ".".join([*parts, torch_leaf(leaf)])


def _mobilefacenet_name(path: tuple[str, ...]) -> str:
    """("params", "features_3", "expand", "kernel") → "features.3.conv.0.0.weight"."""
    _, *modules, leaf = path
    if len(modules) == 2:
        prefix = modules[0].replace("_", ".") + ".conv." + _RESIDUAL_MODULES[modules[1]]
    else:
        prefix = _MOBILEFACENET_MODULES[modules[0]]
    return f"{prefix}.{torch_leaf(leaf)}"


def _mbf_name(path: tuple[str, ...]) -> str:
    """("params", "stage2_block3", "expand_bn", "scale") → "layers.3.layers.2.layers.0.layers.1.…".

    layers.0 is the stem, 1 the first stage, 2 the bottleneck before the second, 3 that stage, ….
    """
    _, *modules, leaf = path
    parts = []
    if match := re.fullmatch(r"stage(\d+)_block(\d+)", modules[0]):
        parts = [f"layers.{2 * int(match[1]) - 1}.layers.{int(match[2]) - 1}.layers"]
    elif match := re.fullmatch(r"down(\d+)", modules[0]):
        parts = [f"layers.{2 * int(match[1]) - 2}.layers"]
    name, _, kind = modules[-1].partition("_")
    parts.append(_MBF_MODULES[name])
    if name not in ("fc", "embedding"):
        parts.append({"": "0", "bn": "1", "prelu": "2"}[kind])
    return ".".join([*parts, torch_leaf(leaf)])


def _vit_name(path: tuple[str, ...]) -> str:
    """("params", "blocks", "qkv", "kernel") → "blocks.*.attn.qkv.weight", for every block."""
    _, *modules, leaf = path
    if not modules:
        return {"position": "pos_embed", "mask_token": "mask_token"}[leaf]
    blocks = ["blocks.*"] if modules[0] == "blocks" else []
    return ".".join([*blocks, _VIT_MODULES[modules[-1]], torch_leaf(leaf)])


def _ir_se_name(path: tuple[str, ...], first: np.ndarray) -> str:
    """("params", "stage2_block1", "bn1", "scale") → "body.3.res_layer.0.weight".

    Args:
      first: the number in the body of a stage's first block.
    """
    _, *modules, leaf = path
    parts = []
    if match := re.fullmatch(r"stage(\d+)_block(\d+)", modules[0]):
        parts = [f"body.{first[int(match[1]) - 1] + int(match[2]) - 1}"]
        modules = modules[1:]
    return ".".join([*parts, _IR_SE_MODULES[modules[0]], *modules[1:], torch_leaf(leaf)])
