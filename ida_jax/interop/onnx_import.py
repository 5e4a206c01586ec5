"""InsightFace's ONNX files: an iresnet's graph back into its state dict.

PyTorch's exporter drops the names that matter and may fold each BatchNorm that follows a
convolution into it. The weights are found by walking the graph from its input:

    Conv [BatchNormalization] PRelu
    blocks: BatchNormalization, Conv [BatchNormalization] PRelu Conv [BatchNormalization], added to
            the input itself or to its Conv [BatchNormalization], which begins a stage
    BatchNormalization, Flatten | Reshape, Gemm | MatMul Add [BatchNormalization]
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file

# Of the BatchNorm in our networks and in PyTorch's.
_EPSILON = 1e-5
# Nodes that change no value here: the exporter shares equal weights through Identity, and mixed
# precision leaves casts. Weights become float32 in any case.
_NOTHING = ("Identity", "Cast", "Dropout")
# What is filled with one number is a bias of zeros.
_LARGEST_BIAS = 1 << 20


def read_onnx_state(path: Path) -> dict[str, np.ndarray]:
    """The state dict, by arcface_torch's names, of an iresnet's ONNX file.

    A folded BatchNorm becomes one of scale 1, mean 0 and variance 1 − 1e-5, whose bias is the
    convolution's.

    Any opset from 11 on, by either of PyTorch's exporters, with constants folded or not.

    Raises:
      UserError: no such file, not an ONNX file, onnx not installed, or another network's graph: the
        first node that does not fit is named.
    """
    require_file(path, what="weights")
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"{path} needs onnx: pip install 'ida_jax[interop]'") from error
    try:
        graph = _Graph(onnx.load(path).graph, path)
    except Exception as error:  # protobuf's DecodeError, or external data that is not there
        raise UserError(f"{path} is not a whole ONNX file: {error}") from error
    try:
        return _walked(graph, path)
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: a node has other inputs than ours: {graph.readable}") from error


def _walked(graph: "_Graph", path: Path) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    x = graph.convolution(graph.input, "conv1", "bn1", state)
    x = graph.prelu(x, "prelu", state)
    stage, block, seen = 0, 0, {x}
    while (bn := graph.consumer(x, "BatchNormalization")) and graph.consumer(bn.output[0], "Conv"):
        shortcut = graph.consumer(x, "Conv")
        stage, block = (stage + 1, 0) if shortcut else (stage, block + 1)
        name = f"layer{stage}.{block}"
        y = graph.batchnorm(x, f"{name}.bn1", state)
        y = graph.convolution(y, f"{name}.conv1", f"{name}.bn2", state)
        y = graph.prelu(y, f"{name}.prelu", state)
        y = graph.convolution(y, f"{name}.conv2", f"{name}.bn3", state)
        if shortcut:
            down = f"{name}.downsample"
            x = graph.convolution(x, f"{down}.0", f"{down}.1", state)
        total = graph.take(y, "Add")
        if set(total.input) != {x, y}:
            raise UserError(f"{path}: node '{total.name}' does not add a block to its shortcut")
        x = total.output[0]
        if x in seen:
            raise UserError(f"{path}: the graph runs in a circle at '{x}': {graph.readable}")
        seen.add(x)
    x = graph.batchnorm(x, "bn2", state)
    x = graph.take(x, "Flatten", "Reshape").output[0]
    x = graph.gemm(x, state)
    if x != graph.output:
        raise UserError(f"{path}: the graph continues after the embedding, '{x}': {graph.readable}")
    return state


class _Graph:
    """A graph's nodes by the values that they take; every constant as a NumPy array."""

    readable = "PyTorch's exports of arcface_torch's iresnets alone can be read"

    def __init__(self, graph: Any, path: Path) -> None:
        from onnx import numpy_helper

        self.path = path
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes: dict[str, list[Any]] = {}
        names: dict[str, str] = {}
        for node in graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = names.get(name, name)
            folded = _folded(node, self.constants)
            if folded is not None:
                self.constants[node.output[0]] = folded
            elif node.op_type in _NOTHING:
                names[node.output[0]] = node.input[0]
            else:
                for name in set(node.input):
                    self.nodes.setdefault(name, []).append(node)
        self.input = next(i.name for i in graph.input if i.name not in self.constants)
        self.output = names.get(graph.output[0].name, graph.output[0].name)

    def consumer(self, value: str, *kinds: str) -> Any | None:
        """A node of one of these kinds that takes the value, or None."""
        return next((n for n in self.nodes.get(value, ()) if n.op_type in kinds), None)

    def take(self, value: str, *kinds: str) -> Any:
        node = self.consumer(value, *kinds)
        if node is None:
            operations = ", ".join(n.op_type for n in self.nodes.get(value, ())) or "nothing"
            raise UserError(
                f"{self.path}: expected {' or '.join(kinds)} after '{value}', found {operations}: "
                f"{self.readable}"
            )
        return node

    def constant(self, name: str) -> np.ndarray:
        if name not in self.constants:
            raise UserError(f"{self.path}: '{name}' is computed, not a weight: {self.readable}")
        return self.constants[name]

    def convolution(self, x: str, conv: str, bn: str, state: dict[str, np.ndarray]) -> str:
        """A convolution and its BatchNorm, whether folded into it or not."""
        node = self.take(x, "Conv")
        kernel, *bias = (self.constant(name) for name in node.input[1:])
        state[f"{conv}.weight"] = kernel
        x = node.output[0]
        if self.consumer(x, "BatchNormalization"):
            x = self.batchnorm(x, bn, state)
        else:
            _put_batchnorm(state, bn, bias=np.zeros(len(kernel), np.float32))
        if bias:
            state[f"{bn}.running_mean"] = state[f"{bn}.running_mean"] - bias[0]
        return x

    def batchnorm(self, x: str, name: str, state: dict[str, np.ndarray]) -> str:
        node = self.take(x, "BatchNormalization")
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), _EPSILON)
        scale, bias, mean, var = (self.constant(name) for name in node.input[1:])
        var = (var.astype(np.float64) + (epsilon - _EPSILON)).astype(np.float32)
        _put_batchnorm(state, name, scale=scale, bias=bias, mean=mean, var=var)
        return node.output[0]

    def prelu(self, x: str, name: str, state: dict[str, np.ndarray]) -> str:
        node = self.take(x, "PRelu")
        state[f"{name}.weight"] = self.constant(node.input[1]).reshape(-1)
        return node.output[0]

    def gemm(self, x: str, state: dict[str, np.ndarray]) -> str:
        """The fully connected layer, as one node or as a product and a sum, and its BatchNorm."""
        node = self.take(x, "Gemm", "MatMul")
        kernel, *bias = (self.constant(name) for name in node.input[1:])
        transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
        state["fc.weight"] = kernel if transposed else kernel.T
        x = node.output[0]
        if node.op_type == "MatMul" and (added := self.consumer(x, "Add")):
            bias = [self.constant(name) for name in added.input if name != x]
            x = added.output[0]
        width = len(state["fc.weight"])
        state["fc.bias"] = bias[0] if bias else np.zeros(width, np.float32)
        if self.consumer(x, "BatchNormalization"):
            return self.batchnorm(x, "features", state)
        _put_batchnorm(state, "features", bias=np.zeros(width, np.float32))
        return x


def _folded(node: Any, constants: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What a node of constants gives, which exporters leave to the runtime; None for others."""
    from onnx import helper, numpy_helper

    kind = node.op_type
    options = {attribute.name: attribute for attribute in node.attribute}
    if kind == "Constant":
        ((name, value),) = options.items()
        value = helper.get_attribute_value(value)
        return numpy_helper.to_array(value) if name == "value" else np.asarray(value)
    if not node.input or node.input[0] not in constants:
        return None
    value, *others = (constants.get(name) for name in node.input)
    if kind in (*_NOTHING, "CastLike"):
        return value
    if any(other is None for other in others):
        return None
    if kind == "Unsqueeze":
        axes = others[0] if others else options["axes"].ints
        return np.expand_dims(value, tuple(int(axis) for axis in axes))
    if kind == "Squeeze":
        return value.squeeze()  # no weight here has an axis of one that matters
    if kind == "Reshape":
        sizes = [value.shape[i] if size == 0 else size for i, size in enumerate(others[0].tolist())]
        return value.reshape(sizes)
    if kind == "Transpose":
        return value.transpose(list(options["perm"].ints) if "perm" in options else None)
    if kind == "Shape":
        start, stop = (options[n].i if n in options else None for n in ("start", "end"))
        return np.array(value.shape[start:stop], np.int64)
    if kind == "Concat":
        return np.concatenate([value, *others], axis=options["axis"].i)
    if kind == "Expand" and math.prod(others[0].tolist()) <= _LARGEST_BIAS:
        return value * np.ones(others[0].tolist(), value.dtype)
    return None


def _put_batchnorm(
    state: dict[str, np.ndarray],
    name: str,
    *,
    bias: np.ndarray,
    scale: np.ndarray | None = None,
    mean: np.ndarray | None = None,
    var: np.ndarray | None = None,
) -> None:
    """A BatchNorm's four arrays; those left out make it add the bias alone."""
    one = np.ones_like(bias)
    state[f"{name}.weight"] = one if scale is None else scale
    state[f"{name}.bias"] = bias
    state[f"{name}.running_mean"] = 0 * one if mean is None else mean
    state[f"{name}.running_var"] = np.float32(1 - _EPSILON) * one if var is None else var
