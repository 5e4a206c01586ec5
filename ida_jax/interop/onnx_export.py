"""Face models as ONNX graphs, with the SSR module in the same graph where wanted.

The networks' own layers are written by `ida_jax.interop.onnx_networks`.

B batch, H and W image size, D embedding.
"""

import json

import numpy as np

from ida_jax.artefacts.face_model import FaceModel, build_network
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError
from ida_jax.interop.exported import Graph, description, in_float32, input_shape
from ida_jax.interop.onnx_networks import Layers, write_network

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
