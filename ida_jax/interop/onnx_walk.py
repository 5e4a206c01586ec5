"""An ONNX graph to walk: its nodes by the values that they take, and its weights.

Weights go into a state dict under names that the caller gives. A folded BatchNorm becomes one of
scale 1, mean 0 and variance 1 − 1e-5, whose bias is the convolution's.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError

# Of the BatchNorm in our networks and in PyTorch's.
_EPSILON = 1e-5
# Nodes that change no value here: the exporter shares equal weights through Identity, and mixed
# precision leaves casts. Weights become float32 in any case.
_NOTHING = ("Identity", "Cast", "Dropout")
# What is filled with one number is a bias of zeros.
_LARGEST_BIAS = 1 << 20


class OnnxGraph:
    """A graph's nodes by the values that they take; every constant as a NumPy array."""

    readable = "PyTorch's exports of arcface_torch's networks and of IR-SE alone can be read"

    def __init__(self, graph: Any, path: Path) -> None:
        from onnx import numpy_helper

        self.path = path
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes: dict[str, list[Any]] = {}
        self.order: list[Any] = []
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
                self.order.append(node)
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

    def batchnorm(
        self, x: str, name: str, state: dict[str, np.ndarray], *, epsilon: float = _EPSILON
    ) -> str:
        """A BatchNorm, its variances as those of one that has this epsilon."""
        node = self.take(x, "BatchNormalization")
        own = next((a.f for a in node.attribute if a.name == "epsilon"), _EPSILON)
        scale, bias, mean, var = (self.constant(name) for name in node.input[1:])
        var = (var.astype(np.float64) + (own - epsilon)).astype(np.float32)
        _put_batchnorm(state, name, scale=scale, bias=bias, mean=mean, var=var)
        return node.output[0]

    def prelu(self, x: str, name: str, state: dict[str, np.ndarray]) -> str:
        node = self.take(x, "PRelu")
        state[f"{name}.weight"] = self.constant(node.input[1]).reshape(-1)
        return node.output[0]

    def plain_convolution(self, x: str, name: str, state: dict[str, np.ndarray]) -> str:
        """A convolution without a bias, nothing folded into it."""
        node = self.take(x, "Conv")
        if len(node.input) > 2 and np.any(self.constant(node.input[2])):
            raise UserError(f"{self.path}: node '{node.name}' has a bias: {self.readable}")
        state[f"{name}.weight"] = self.constant(node.input[1])
        return node.output[0]

    def dense(self, x: str, name: str, state: dict[str, np.ndarray], *, biased: bool) -> str:
        """A fully connected layer, as one node or as a product and a sum.

        Without `biased` a bias is left to the BatchNorm behind it (`dense_batchnorm`).
        """
        node = self.take(x, "Gemm", "MatMul")
        x = self._product(node, name, state)
        bias = state.pop(f"{name}.bias", None)
        if biased:
            zeros = np.zeros(len(state[f"{name}.weight"]), np.float32)
            state[f"{name}.bias"] = zeros if bias is None else bias
        elif bias is not None:
            raise UserError(f"{self.path}: node '{node.name}' has a bias: {self.readable}")
        return x

    def dense_batchnorm(
        self,
        x: str,
        name: str,
        bn: str,
        state: dict[str, np.ndarray],
        *,
        biased: bool,
        epsilon: float = _EPSILON,
    ) -> str:
        """A fully connected layer and its BatchNorm, whether folded into it or not."""
        x = self._product(self.take(x, "Gemm", "MatMul"), name, state)
        zeros = np.zeros(len(state[f"{name}.weight"]), np.float32)
        bias = state.pop(f"{name}.bias", zeros)
        if biased:
            state[f"{name}.bias"], bias = bias, zeros
        if self.consumer(x, "BatchNormalization"):
            x = self.batchnorm(x, bn, state, epsilon=epsilon)
        else:
            _put_batchnorm(state, bn, bias=zeros, epsilon=epsilon)
            state[f"{bn}.bias"] = zeros
        state[f"{bn}.running_mean"] = state[f"{bn}.running_mean"] - bias
        return x

    def layer_norm(self, x: str, name: str, state: dict[str, np.ndarray]) -> str:
        """A LayerNorm, as one node or as the nine of older opsets."""
        node = self.consumer(x, "LayerNormalization")
        if node is not None:
            scale, bias = (self.constant(value) for value in node.input[1:])
        else:
            self.take(x, "ReduceMean")
            node = self.take(self.take(x, "Sub").output[0], "Div")
            node = self.take(node.output[0], "Mul")
            scale = self.only_constant(node)
            node = self.take(node.output[0], "Add")
            bias = self.only_constant(node)
        state[f"{name}.weight"], state[f"{name}.bias"] = scale, bias
        return node.output[0]

    def only_constant(self, node: Any) -> np.ndarray:
        """The weight that a node joins to a computed value."""
        given = [name for name in node.input if name in self.constants]
        if len(given) != 1:
            raise UserError(
                f"{self.path}: node '{node.name}' has {len(given)} weights, expected one: "
                f"{self.readable}"
            )
        return self.constants[given[0]]

    def next_product(self, x: str) -> str:
        """What the first product with a weight takes that comes after the node that gives x."""
        nodes = iter(self.order)
        for node in nodes:
            if x in node.output:
                break
        for node in nodes:
            if node.op_type in ("MatMul", "Gemm") and node.input[1] in self.constants:
                return node.input[0]
        raise UserError(f"{self.path}: no product with a weight after '{x}': {self.readable}")

    def sum_of(self, x: str, y: str) -> str:
        """What adds the two values."""
        node = self.take(y, "Add")
        if set(node.input) != {x, y}:
            raise UserError(
                f"{self.path}: node '{node.name}' does not add a block to its input: "
                f"{self.readable}"
            )
        return node.output[0]

    def _product(self, node: Any, name: str, state: dict[str, np.ndarray]) -> str:
        """Puts the layer's weight into the state, and its bias where it has one."""
        kernel, *bias = (self.constant(value) for value in node.input[1:])
        transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
        state[f"{name}.weight"] = kernel if transposed else kernel.T
        x = node.output[0]
        added = self.consumer(x, "Add") if node.op_type == "MatMul" else None
        if added and (constants := [n for n in added.input if n != x and n in self.constants]):
            bias = [self.constant(constants[0])]
            x = added.output[0]
        if bias:
            state[f"{name}.bias"] = bias[0]
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
    epsilon: float = _EPSILON,
) -> None:
    """A BatchNorm's four arrays; those left out make it add the bias alone."""
    one = np.ones_like(bias)
    state[f"{name}.weight"] = one if scale is None else scale
    state[f"{name}.bias"] = bias
    state[f"{name}.running_mean"] = 0 * one if mean is None else mean
    state[f"{name}.running_var"] = np.float32(1 - epsilon) * one if var is None else var
