"""PyTorch state dicts: from files to NumPy arrays, and from these to our networks' variables.

iresnet's names are InsightFace's arcface_torch's: `conv1.weight`, `layer3.13.bn2.running_var`,
`layer1.0.downsample.0.weight`, `fc.weight`, `features.bias`, …. MobileFaceNet's are those of the
public PyTorch implementation: `conv1.0.weight`, `features.3.conv.1.1.running_mean`,
`gdconv.depthwise.weight`, …; its 1×1 convolutions are Dense layers here.

PyTorch's kernels are [O, I, H, W] and its fully connected layers [O, I]; ours are [H, W, I, O] and
[I, O]. It flattens the last map as [C, H, W], we as [H, W, C].

O and I output and input channels, H and W a kernel's or the last map's size, C channels, D
embedding.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.common.errors import UserError
from ida_jax.common.files import load_npz, require_file
from ida_jax.models import resnet
from ida_jax.models.mobilefacenet import MobileFaceNet

# Our leaves' names in PyTorch; a PReLU's slope is a "weight" too.
_LEAVES = {
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
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
# All four stages halve the map, rounding up.
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


class IResNetWeights(NamedTuple):
    """An iresnet from a state dict.

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
      state: float arrays by their names, as `read_state` gives them.

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
    network = _iresnet_of(state)
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
    variables = _variables_of(module, image_size, state, _iresnet_name, what=network)
    options = {"embedding_dim": width, "dropout_rate": 0.0}
    return IResNetWeights(network, options, image_size, variables)


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
    return _variables_of(MobileFaceNet(), 112, state, _mobilefacenet_name, what="MobileFaceNet")


def _iresnet_of(state: Mapping[str, np.ndarray]) -> str:
    blocks = {(int(m[1]), int(m[2])) for name in state if (m := _BLOCK.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    sizes = tuple(sum(stage == s for s, _ in blocks) for stage in stages)
    stem = state["conv1.weight"].shape[0]
    for name in _IRESNETS:
        module = getattr(resnet, name)()
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
    return ".".join([*parts, _LEAVES[leaf]])


def _mobilefacenet_name(path: tuple[str, ...]) -> str:
    """("params", "features_3", "expand", "kernel") → "features.3.conv.0.0.weight"."""
    _, *modules, leaf = path
    if len(modules) == 2:
        prefix = modules[0].replace("_", ".") + ".conv." + _RESIDUAL_MODULES[modules[1]]
    else:
        prefix = _MOBILEFACENET_MODULES[modules[0]]
    return f"{prefix}.{_LEAVES[leaf]}"


def _variables_of(
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


def read_torch(path: Path, *, wrappers: Sequence[str] = _WRAPPERS) -> dict[str, np.ndarray]:
    """The tensors of a file of torch.save by their names; a single one is "weight".

    Args:
      path: the file, read by weights_only=True, which runs no code.
      wrappers: names under which a checkpoint may keep the wanted ones, from the outside inwards.

    Raises:
      UserError: PyTorch is not installed; a file that would run code, that is torn, or that holds
        other things.
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
