"""Face models as ONNX graphs, with the SSR module in the same graph where wanted.

The graph is written layer by layer from the variables, as PyTorch's exporter would: [B, C, H, W],
real grouped convolutions, BatchNormalization by itself (runtimes fold it), one dynamic axis B.

It is written by hand because the available converter requires an older Orbax. The order of layers
is thus stated twice; tests compare both in onnxruntime.

B batch, H and W image size, C channels, D embedding.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError
from ida_jax.interop.exported import Graph, description, in_float32, input_shape
from ida_jax.models.mobilefacenet import STAGES
from ida_jax.models.resnet import IResNet

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
      model: a bfloat16 one is written as float32.
      input: "uint8" or "float_nchw".
      ssr: its SSR module.
      norm: gives the raw embeddings' norms too.
      output_kind: of `OUTPUT_KINDS`.

    Raises:
      UserError: onnx is not installed, an unknown input or kind, an SSR module for another model.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise UserError("ONNX files need onnx: pip install 'ida_jax[interop]'") from error
    facts = description(model, input=input, ssr=ssr, norm=norm, output_kind=output_kind)
    model = in_float32(model)
    graph = _Layers(model.variables)
    x = graph.preprocessed("images", model.preprocessing) if input == "uint8" else "images"
    network = build_network(model.network, model.network_options)
    if isinstance(network, IResNet):
        x = _iresnet(graph, x, network)
    else:
        x = _mobilefacenet(graph, x, model.preprocessing.image_size)
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
    """The function that onnxruntime makes of an ONNX file's bytes, on the CPU.

    Raises:
      UserError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "checking an ONNX file needs onnxruntime: pip install 'ida_jax[interop]'"
        ) from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


class _Layers:
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

    def dense(self, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """[B, I] · [I, O] + [O]."""
        inputs = [self.constant(kernel, f"{name}/kernel"), self.constant(bias, f"{name}/bias")]
        return self.node("Gemm", [x, *inputs], output=name)


def _iresnet(graph: _Layers, x: str, network: IResNet) -> str:
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
    # The map is flattened as [C, H, W] here, as [H, W, C] in the module.
    kernel, channels = graph.weights["fc/kernel"], network.widths[-1]
    kernel = kernel.reshape(-1, channels, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)
    return graph.batchnorm(graph.dense(x, "fc", kernel, graph.weights["fc/bias"]), "embedding_bn")


def _mobilefacenet(graph: _Layers, x: str, side: int) -> str:
    """`models.mobilefacenet.MobileFaceNet` in inference: [B, 3, H, W] → [B, D]."""

    def depthwise(x: str, name: str, *, stride: int = 1, padding: int = 1) -> str:
        groups = graph.weights[f"{name}/kernel"].shape[-1]
        return graph.convolution(x, name, stride=stride, padding=padding, groups=groups)

    x = graph.convolution(x, "conv1", stride=2, padding=1)
    x = graph.relu6(graph.batchnorm(x, "conv1_bn"))
    x = graph.node("Relu", [graph.batchnorm(depthwise(x, "dw_conv_depthwise"), "dw_conv_bn1")])
    x = graph.convolution(x, "dw_conv_pointwise")
    x = graph.node("Relu", [graph.batchnorm(x, "dw_conv_bn2")])

    shape = ((side + 1) // 2, 64)
    strides = [(s, s.stride if r == 0 else 1) for s in STAGES for r in range(s.repeats)]
    for index, (stage, stride) in enumerate(strides):
        name = f"features_{index}"
        y = graph.batchnorm(graph.convolution(x, f"{name}/expand"), f"{name}/expand_bn")
        y = depthwise(graph.relu6(y), f"{name}/depthwise", stride=stride)
        y = graph.relu6(graph.batchnorm(y, f"{name}/depthwise_bn"))
        y = graph.batchnorm(graph.convolution(y, f"{name}/project"), f"{name}/project_bn")
        before, shape = shape, (-(-shape[0] // stride), stage.width)
        x = graph.node("Add", [x, y], output=name) if before == shape else y

    x = graph.relu6(graph.batchnorm(graph.convolution(x, "conv2"), "conv2_bn"))
    x = graph.node("Flatten", [depthwise(x, "gdconv_depthwise", padding=0)])
    x = graph.batchnorm(x, "gdconv_bn")
    weights = graph.weights
    return graph.batchnorm(
        graph.dense(x, "conv3", weights["conv3/kernel"], weights["conv3/bias"]), "bn"
    )


def _log_density(graph: _Layers, x: str, ssr: SSRModule) -> None:
    """`SSRModule.log_density` of the value x, unit rows."""
    for layer, after in (("hidden_fc", "Relu"), ("output_fc", "Flatten")):
        weights = {leaf: np.asarray(value) for leaf, value in ssr.params[layer].items()}
        x = graph.dense(x, f"ssr/{layer}", weights["kernel"], weights["bias"])
        x = graph.node(after, [x])
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
