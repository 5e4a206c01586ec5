"""Face models as ONNX graphs, with the SSR module in the same graph where wanted.

Layers are written one by one from their variables, as PyTorch's exporter would: [B, C, H, W], real
grouped convolutions, BatchNormalization by itself (runtimes fold it), one dynamic axis B. By hand
because the available converter requires an older Orbax. The order of layers is thus stated twice;
tests compare both in onnxruntime.

B batch, H and W image size, C channels, D embedding, L tokens, I and O a layer's inputs and
outputs.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError
from ida_jax.interop.exported import Graph, description, in_float32, input_shape
from ida_jax.models.ir_se import IRSE
from ida_jax.models.mbf import MBF
from ida_jax.models.mobilefacenet import STAGES, MobileFaceNet
from ida_jax.models.resnet import IResNet
from ida_jax.models.vit import VisionTransformer


class Layers:
    """A growing graph; each method adds a layer after the value `x` and returns its output."""

    def __init__(self, variables: dict[str, Any]) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        # kernel, scale, bias, slope; mean, var: no name is in both collections.
        self.weights = {
            name: np.asarray(value)
            for collection in variables.values()
            for name, value in flatten_dict(collection, sep="/").items()
        }

    def constant(self, value: np.ndarray, name: str | None = None) -> str:
        from onnx import numpy_helper

        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(
        self, kind: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any
    ) -> str:
        from onnx import helper

        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def preprocessed(self, images: str, preprocessing: Preprocessing) -> str:
        """uint8 [B, H, W, 3] → float32 [B, 3, H, W], (x/255 − mean) / std."""
        from onnx import TensorProto

        mean, std = (
            self.constant(np.float32(value).reshape(1, 3, 1, 1), name)
            for value, name in ((preprocessing.mean, "mean"), (preprocessing.std, "std"))
        )
        x = self.node("Transpose", [images], perm=[0, 3, 1, 2])
        x = self.node("Cast", [x], to=TensorProto.FLOAT)
        x = self.node("Div", [x, self.constant(np.float32(255))])
        return self.node("Div", [self.node("Sub", [x, mean]), std])

    def convolution(
        self, x: str, name: str, *, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> str:
        """A kernel [H, W, I, O], or a fully connected layer's [I, O] at every pixel."""
        kernel = self.weights[f"{name}/kernel"]
        kernel = kernel[None, None] if kernel.ndim == 2 else kernel
        kernel = self.constant(kernel.transpose(3, 2, 0, 1), f"{name}/kernel")
        return self.node(
            "Conv",
            [x, kernel],
            output=name,
            kernel_shape=self.initializers[-1].dims[2:],
            strides=[stride] * 2,
            pads=[padding] * 4,
            group=groups,
        )

    def batchnorm(self, x: str, name: str) -> str:
        bias = self.weights[f"{name}/bias"]
        scale = self.weights.get(f"{name}/scale", np.ones_like(bias))
        of_name = {leaf: self.weights[f"{name}/{leaf}"] for leaf in ("mean", "var")}
        leaves = {"scale": scale, "bias": bias, **of_name}
        inputs = [self.constant(value, f"{name}/{leaf}") for leaf, value in leaves.items()]
        return self.node("BatchNormalization", [x, *inputs], output=name, epsilon=1e-5)

    def prelu(self, x: str, name: str) -> str:
        slope = self.weights[f"{name}/slope"].reshape(-1, 1, 1)
        return self.node("PRelu", [x, self.constant(slope, f"{name}/slope")], output=name)

    def relu6(self, x: str) -> str:
        bounds = [self.constant(np.float32(value)) for value in (0, 6)]
        return self.node("Clip", [x, *bounds])

    def depthwise(self, x: str, name: str, *, stride: int = 1, padding: int = 1) -> str:
        """A kernel [H, W, G, O] in O / G groups."""
        members, outputs = self.weights[f"{name}/kernel"].shape[2:]
        return self.convolution(x, name, stride=stride, padding=padding, groups=outputs // members)

    def dense(self, x: str, name: str, kernel: np.ndarray | None = None) -> str:
        """[B, I] · [I, O] + [O], with the bias left out where the layer has none.

        Args:
          kernel: in place of the layer's own.
        """
        kernel = self.weights[f"{name}/kernel"] if kernel is None else kernel
        inputs = [self.constant(kernel, f"{name}/kernel")]
        if (bias := self.weights.get(f"{name}/bias")) is not None:
            inputs.append(self.constant(bias, f"{name}/bias"))
        return self.node("Gemm", [x, *inputs], output=name)

    def token_dense(self, x: str, name: str, block: int) -> str:
        """[B, L, I] · [I, O] + [O] of the stacked layers' one of a block."""
        own = f"{name}/{block}"
        kernel = self.constant(self.weights[f"{name}/kernel"][block], f"{own}/kernel")
        x = self.node("MatMul", [x, kernel])
        if (bias := self.weights.get(f"{name}/bias")) is None:
            return x
        return self.node("Add", [x, self.constant(bias[block], f"{own}/bias")], output=own)

    def layer_norm(self, x: str, name: str, block: int | None = None) -> str:
        """Of the last axis; with a block, the stacked layers' one."""
        leaves = (self.weights[f"{name}/{leaf}"] for leaf in ("scale", "bias"))
        own = name if block is None else f"{name}/{block}"
        inputs = [
            self.constant(leaf if block is None else leaf[block], f"{own}/{i}")
            for i, leaf in enumerate(leaves)
        ]
        return self.node("LayerNormalization", [x, *inputs], output=own, epsilon=1e-5)

    def split(self, x: str, sizes: str, *, axis: int, parts: int) -> list[str]:
        """Consecutive parts of an axis."""
        from onnx import helper

        outputs = [f"split_{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [x, sizes], outputs, axis=axis))
        return outputs

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps an axis, −1 takes what is left."""
        return self.node("Reshape", [x, self.constant(np.int64(shape))])


def _iresnet(graph: Layers, x: str, network: IResNet, side: int) -> str:
    """`models.resnet.IResNet` in inference: [B, 3, H, W] → [B, D]."""
    x = graph.batchnorm(graph.convolution(x, "stem_conv", padding=1), "stem_bn")
    x = graph.prelu(x, "stem_prelu")
    for stage, size in enumerate(network.stage_sizes, start=1):
        for block in range(1, size + 1):
            name, stride = f"stage{stage}_block{block}", 2 if block == 1 else 1
            y = graph.batchnorm(x, f"{name}/bn1")
            y = graph.convolution(y, f"{name}/conv1", padding=1)
            y = graph.prelu(graph.batchnorm(y, f"{name}/bn2"), f"{name}/prelu")
            y = graph.convolution(y, f"{name}/conv2", padding=1, stride=stride)
            y = graph.batchnorm(y, f"{name}/bn3")
            if f"{name}/shortcut_conv/kernel" in graph.weights:
                x = graph.convolution(x, f"{name}/shortcut_conv", stride=stride)
                x = graph.batchnorm(x, f"{name}/shortcut_bn")
            x = graph.node("Add", [x, y], output=name)
    x = graph.node("Flatten", [graph.batchnorm(x, "output_bn")])
    kernel = _of_map(graph.weights["fc/kernel"], network.widths[-1])
    return graph.batchnorm(graph.dense(x, "fc", kernel), "embedding_bn")


def _mobilefacenet(graph: Layers, x: str, network: MobileFaceNet, side: int) -> str:
    """`models.mobilefacenet.MobileFaceNet` in inference: [B, 3, H, W] → [B, D]."""
    x = graph.convolution(x, "conv1", stride=2, padding=1)
    x = graph.relu6(graph.batchnorm(x, "conv1_bn"))
    x = graph.node(
        "Relu", [graph.batchnorm(graph.depthwise(x, "dw_conv_depthwise"), "dw_conv_bn1")]
    )
    x = graph.convolution(x, "dw_conv_pointwise")
    x = graph.node("Relu", [graph.batchnorm(x, "dw_conv_bn2")])

    shape = ((side + 1) // 2, 64)
    strides = [(s, s.stride if r == 0 else 1) for s in STAGES for r in range(s.repeats)]
    for index, (stage, stride) in enumerate(strides):
        name = f"features_{index}"
        y = graph.batchnorm(graph.convolution(x, f"{name}/expand"), f"{name}/expand_bn")
        y = graph.depthwise(graph.relu6(y), f"{name}/depthwise", stride=stride)
        y = graph.relu6(graph.batchnorm(y, f"{name}/depthwise_bn"))
        y = graph.batchnorm(graph.convolution(y, f"{name}/project"), f"{name}/project_bn")
        before, shape = shape, (-(-shape[0] // stride), stage.width)
        x = graph.node("Add", [x, y], output=name) if before == shape else y

    x = graph.relu6(graph.batchnorm(graph.convolution(x, "conv2"), "conv2_bn"))
    x = graph.node("Flatten", [graph.depthwise(x, "gdconv_depthwise", padding=0)])
    x = graph.batchnorm(x, "gdconv_bn")
    return graph.batchnorm(graph.dense(x, "conv3"), "bn")


def _mbf(graph: Layers, x: str, network: MBF, side: int) -> str:
    """`models.mbf.MBF` in inference: [B, 3, H, W] → [B, D]."""

    def activated(x: str, name: str) -> str:
        return graph.prelu(graph.batchnorm(x, f"{name}_bn"), f"{name}_prelu")

    def bottleneck(x: str, name: str, stride: int) -> str:
        x = activated(graph.convolution(x, f"{name}/expand"), f"{name}/expand")
        x = graph.depthwise(x, f"{name}/depthwise", stride=stride)
        x = graph.convolution(activated(x, f"{name}/depthwise"), f"{name}/project")
        return graph.batchnorm(x, f"{name}/project_bn")

    x = activated(graph.convolution(x, "stem", stride=2, padding=1), "stem")
    for stage, repeats in enumerate(network.blocks, start=1):
        if stage == 1 and repeats == 1:
            x = activated(graph.depthwise(x, "grouped"), "grouped")
            continue
        if stage > 1:
            x = bottleneck(x, f"down{stage}", 2)
        for index in range(1, repeats + 1):
            y = bottleneck(x, f"stage{stage}_block{index}", 1)
            x = graph.node("Add", [x, y])
    x = activated(graph.convolution(x, "separate"), "separate")
    x = graph.batchnorm(graph.depthwise(x, "global", padding=0), "global_bn")
    return graph.batchnorm(graph.dense(graph.node("Flatten", [x]), "fc"), "embedding_bn")


def _vit(graph: Layers, x: str, network: VisionTransformer, side: int) -> str:
    """`models.vit.VisionTransformer` in inference: [B, 3, H, W] → [B, D]."""
    patch, width, heads = network.patch_size, network.width, network.heads
    kernel = graph.weights["patch/kernel"].reshape(patch, patch, 3, width).transpose(3, 2, 0, 1)
    inputs = [graph.constant(kernel, "patch/kernel"), graph.constant(graph.weights["patch/bias"])]
    x = graph.node("Conv", [x, *inputs], kernel_shape=[patch] * 2, strides=[patch] * 2)
    x = graph.node("Transpose", [graph.reshape(x, 0, 0, -1)], perm=[0, 2, 1])
    x = graph.node("Add", [x, graph.constant(graph.weights["position"][None], "position")])
    scale = graph.constant(np.float32((width // heads) ** -0.5))
    thirds = graph.constant(np.int64([width] * 3))

    def of_heads(x: str, *axes: int) -> str:
        return graph.node("Transpose", [graph.reshape(x, 0, 0, heads, -1)], perm=axes)

    for block in range(network.depth):
        y = graph.token_dense(graph.layer_norm(x, "blocks/norm1", block), "blocks/qkv", block)
        q, k, v = graph.split(y, thirds, axis=2, parts=3)
        q, k, v = of_heads(q, 0, 2, 1, 3), of_heads(k, 0, 2, 3, 1), of_heads(v, 0, 2, 1, 3)
        weights = graph.node("Mul", [graph.node("MatMul", [q, k]), scale])
        y = graph.node("MatMul", [graph.node("Softmax", [weights], axis=-1), v])
        y = graph.reshape(graph.node("Transpose", [y], perm=[0, 2, 1, 3]), 0, 0, -1)
        x = graph.node("Add", [x, graph.token_dense(y, "blocks/proj", block)])
        y = graph.token_dense(graph.layer_norm(x, "blocks/norm2", block), "blocks/mlp1", block)
        x = graph.node("Add", [x, graph.token_dense(graph.relu6(y), "blocks/mlp2", block)])
    x = graph.dense(graph.node("Flatten", [graph.layer_norm(x, "norm")]), "fc1")
    return graph.batchnorm(graph.dense(graph.batchnorm(x, "fc1_bn"), "fc2"), "embedding_bn")


def _ir_se(graph: Layers, x: str, network: IRSE, side: int) -> str:
    """`models.ir_se.IRSE` in inference: [B, 3, H, W] → [B, D]."""
    x = graph.batchnorm(graph.convolution(x, "stem_conv", padding=1), "stem_bn")
    x = graph.prelu(x, "stem_prelu")
    for stage, size in enumerate(network.stage_sizes, start=1):
        for block in range(1, size + 1):
            name, stride = f"stage{stage}_block{block}", 2 if block == 1 else 1
            y = graph.convolution(graph.batchnorm(x, f"{name}/bn1"), f"{name}/conv1", padding=1)
            y = graph.prelu(y, f"{name}/prelu")
            y = graph.convolution(y, f"{name}/conv2", padding=1, stride=stride)
            y = graph.batchnorm(y, f"{name}/bn2")
            gate = graph.node("GlobalAveragePool", [y])
            gate = graph.node("Relu", [graph.convolution(gate, f"{name}/gate/fc1")])
            gate = graph.node("Sigmoid", [graph.convolution(gate, f"{name}/gate/fc2")])
            y = graph.node("Mul", [y, gate])
            if f"{name}/shortcut_conv/kernel" in graph.weights:
                x = graph.convolution(x, f"{name}/shortcut_conv", stride=stride)
                x = graph.batchnorm(x, f"{name}/shortcut_bn")
            elif stride > 1:
                x = graph.node("MaxPool", [x], kernel_shape=[1, 1], strides=[stride] * 2)
            x = graph.node("Add", [x, y], output=name)
    x = graph.node("Flatten", [graph.batchnorm(x, "output_bn")])
    kernel = _of_map(graph.weights["fc/kernel"], network.widths[-1])
    return graph.batchnorm(graph.dense(x, "fc", kernel), "embedding_bn")


def _of_map(kernel: np.ndarray, channels: int) -> np.ndarray:
    """[I, O], whose I is a map flattened as [C, H, W] here and as [H, W, C] in the module."""
    return kernel.reshape(-1, channels, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)


_WRITERS: dict[type[nn.Module], Callable[[Layers, str, Any, int], str]] = {
    IResNet: _iresnet,
    MobileFaceNet: _mobilefacenet,
    MBF: _mbf,
    VisionTransformer: _vit,
    IRSE: _ir_se,
}


def write_network(graph: Layers, x: str, network: nn.Module, side: int) -> str:
    """Writes a network in inference behind the value x; returns its output's name.

    Args:
      graph: has the network's variables.
      x: float32 [B, 3, H, W], normalised.
      network: of `ida_jax.artefacts.face_model.build_network`.
      side: H and W.
    """
    return _WRITERS[type(network)](graph, x, network, side)


# Old enough for every runtime of the last years: onnxruntime 1.12, TensorRT 8.6, OpenVINO 2022.3.
_OPSET, _IR_VERSION = 17, 8


def onnx_bytes(
    model: FaceModel,
    *,
    input: str = "uint8",
    ssr: SSRModule | None = None,
    norm: bool = False,
    output_kind: str = "unit",
) -> bytes:
    """The ONNX file of a face model, float32, for any batch.

    Input `images`, outputs `embedding`, where asked for `norm`, and, with an SSR module,
    `log_density`: see `ida_jax.interop.exported`. The file's `metadata_props` say colour order,
    normalisation, fingerprint, width, k and τ.

    Args:
      model: one of bfloat16 or float16 is written as float32.
      input: "uint8" or "float_nchw".
      ssr: its SSR module.
      norm: gives the raw embeddings' norms too.
      output_kind: of `OUTPUT_KINDS`.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise UserError("ONNX files need onnx: pip install 'ida_jax[interop]'") from error
    facts = description(model, input=input, ssr=ssr, norm=norm, output_kind=output_kind)
    model = in_float32(model)
    graph = Layers(model.variables)
    x = graph.preprocessed("images", model.preprocessing) if input == "uint8" else "images"
    network = build_network(model.network, model.network_options)
    x = write_network(graph, x, network, model.preprocessing.image_size)
    if output_kind == "raw":
        graph.node("Identity", [x], output="embedding")
    if output_kind == "unit" or ssr is not None:
        length = graph.node("ReduceL2", [x], axes=[1], keepdims=1)
        length = graph.node("Max", [length, graph.constant(np.float32(1e-12))])
        own = {"output": "embedding"} if output_kind == "unit" else {}
        unit = graph.node("Div", [x, length], **own)
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", model.width])]
    if norm:
        graph.node("ReduceL2", [x], axes=[1], keepdims=0, output="norm")
        outputs.append(helper.make_tensor_value_info("norm", TensorProto.FLOAT, ["B"]))
    if ssr is not None:
        _log_density(graph, unit, ssr)
        outputs.append(helper.make_tensor_value_info("log_density", TensorProto.FLOAT, ["B"]))

    kind = TensorProto.UINT8 if input == "uint8" else TensorProto.FLOAT
    images = helper.make_tensor_value_info("images", kind, ["B", *input_shape(model, input)])
    proto = helper.make_model(
        helper.make_graph(graph.nodes, model.network, [images], outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="ida_jax",
    )
    strings = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    helper.set_model_props(proto, strings)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def onnx_graph(data: bytes) -> Graph:
    """The function that onnxruntime makes of an ONNX file's bytes, on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "checking an ONNX file needs onnxruntime: pip install 'ida_jax[interop]'"
        ) from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _log_density(graph: Layers, x: str, ssr: SSRModule) -> None:
    """`SSRModule.log_density` of the value x, unit rows."""
    for layer, after in (("hidden_fc", "Relu"), ("output_fc", "Flatten")):
        own = {f"ssr/{layer}/{leaf}": np.asarray(v) for leaf, v in ssr.params[layer].items()}
        graph.weights |= own
        x = graph.node(after, [graph.dense(x, f"ssr/{layer}")])
    x = graph.node("Squeeze", [x, graph.constant(np.int64([1]))])
    x = graph.node("Mul", [x, graph.constant(np.float32(ssr.std))])
    mean = graph.constant(np.float32(ssr.mean))
    of_network = None if ssr.calibrated else "log_density"
    if ssr.target == "log":
        x = graph.node("Add", [x, mean], output=of_network)
    else:
        floor = graph.constant(np.float32(ssr.floor))
        x = graph.node("Max", [graph.node("Add", [x, mean]), floor])
        x = graph.node("Log", [x], output=of_network)
    if ssr.calibrated:
        x = graph.node("Mul", [x, graph.constant(np.float32(ssr.slope))])
        graph.node("Add", [x, graph.constant(np.float32(ssr.intercept))], output="log_density")
