"""ONNX files of InsightFace's networks: a graph back into its state dict.

PyTorch's exporter drops the names that matter and may fold each BatchNorm that follows a
convolution into it. The weights are found by walking the graph from its input:

    iresnet  Conv [BatchNormalization] PRelu
             blocks: BatchNormalization, Conv [BatchNormalization] PRelu Conv [BatchNormalization],
             added to the input itself or to its Conv [BatchNormalization], which begins a stage
             BatchNormalization, Flatten | Reshape, Gemm | MatMul Add [BatchNormalization]
    IR-SE    no BatchNormalization before a block's PRelu, at its end GlobalAveragePool Conv Relu
             Conv Sigmoid Mul; added to the input itself, by MaxPool, or to its Conv
    mbf      bottlenecks of Conv [BatchNormalization] PRelu twice and Conv [BatchNormalization],
             added to their input or not
    ViT      Conv, Add; blocks of norm, MatMul, attention, MatMul Add, norm, MatMul Add, Clip,
             MatMul Add, each half added to its input; norm, Flatten | Reshape, two products
"""

from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.interop.exported import Graph
from ida_jax.interop.onnx_walk import OnnxGraph

# Of the ViTs' BatchNorms.
_VIT_EPSILON = 2e-5


def read_onnx_state(path: Path) -> dict[str, np.ndarray]:
    """The state dict, by its PyTorch names, of a network's ONNX file.

    Any opset from 11 on, by either of PyTorch's exporters, with constants folded or not.
    """
    require_file(path, what="weights")
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"{path} needs onnx: pip install 'ida_jax[interop]'") from error
    try:
        graph = OnnxGraph(onnx.load(path).graph, path)
    except Exception as error:  # protobuf's DecodeError, or external data that is not there
        raise UserError(f"{path} is not a whole ONNX file: {error}") from error
    try:
        return _walked(graph, path)
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: a node has other inputs than ours: {graph.readable}") from error


def onnx_function(path: Path) -> Graph:
    """The function of images, image by image, that an ONNX file holds, by its first output."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"reading the ViT {path} needs onnxruntime: pip install 'ida_jax[interop]'"
        ) from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except Exception as error:  # onnxruntime raises many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be run: {reason}") from error

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = [session.run(None, {name: image[None]})[0] for image in images]
        return {"embedding": np.concatenate(outputs)}

    return run


def _walked(graph: OnnxGraph, path: Path) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    stem = graph.take(graph.input, "Conv").output[0]
    if graph.consumer(stem, "Reshape", "Flatten"):
        x = _vit(graph, state)
    elif any(node.op_type == "Sigmoid" for node in graph.order):
        x = _ir_se(graph, state)
    else:
        x = graph.convolution(graph.input, "conv1", "bn1", state)
        x = graph.prelu(x, "prelu", state)
        if graph.consumer(x, "Conv") and not graph.consumer(x, "BatchNormalization"):
            state.clear()
            x = _mbf(graph, state)
        else:
            x = _iresnet(graph, x, path, state)
    if x != graph.output:
        raise UserError(f"{path}: the graph continues after the embedding, '{x}': {graph.readable}")
    return state


def _iresnet(graph: OnnxGraph, x: str, path: Path, state: dict[str, np.ndarray]) -> str:
    """The blocks behind the stem's value x."""
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
    return graph.dense_batchnorm(x, "fc", "features", state, biased=True)


def _mbf(graph: OnnxGraph, state: dict[str, np.ndarray]) -> str:
    """A row of convolutions, of which three are a bottleneck."""
    x, row, inputs, added = graph.input, [], [], []
    while graph.consumer(x, "Conv"):
        inputs.append(x)
        layer: dict[str, np.ndarray] = {}
        x = graph.convolution(x, "0", "1", layer)
        if graph.consumer(x, "PRelu"):
            x = graph.prelu(x, "2", layer)
        # A value that a convolution takes too is a later block's input.
        total = None if graph.consumer(x, "Conv") else graph.consumer(x, "Add")
        if total is not None:
            if len(row) < 3 or set(total.input) != {x, inputs[-3]}:
                raise UserError(
                    f"{graph.path}: node '{total.name}' does not add a block to its input"
                )
            x = total.output[0]
        row.append(layer)
        added.append(total is not None)
        if len(row) > len(graph.order):
            raise UserError(f"{graph.path}: the graph runs in a circle at '{x}': {graph.readable}")
    # Behind the stem: a convolution alone, or residuals already.
    alone = int(len(row) > 1 and row[1]["0.weight"].shape[2] == 3)
    bottlenecks = len(row) - 3 - alone
    if bottlenecks < 0 or bottlenecks % 3:
        raise UserError(f"{graph.path}: {len(row)} convolutions in a row: {graph.readable}")
    names = ["layers.0.layers", "layers.1.layers"][: 1 + alone]
    layer, block = alone, 0
    for third in range(1 + alone, 1 + alone + bottlenecks, 3):
        residual = added[third + 2]
        block = block + 1 if residual and added[third - 1] else 0
        layer += not block
        name = f"layers.{layer}.layers.{block}.layers" if residual else f"layers.{layer}.layers"
        names += [f"{name}.{part}.layers" for part in range(3)]
    names += ["conv_sep.layers", "features.layers.0.layers"]
    for name, arrays in zip(names, row, strict=True):
        state.update({f"{name}.{key}": value for key, value in arrays.items()})
    x = graph.take(x, "Flatten", "Reshape").output[0]
    return graph.dense_batchnorm(x, "features.layers.2", "features.layers.3", state, biased=False)


def _ir_se(graph: OnnxGraph, state: dict[str, np.ndarray]) -> str:
    """The whole network, and the division by the embedding's norm at its end if it is there."""
    x = graph.convolution(graph.input, "input_layer.0", "input_layer.1", state)
    x = graph.prelu(x, "input_layer.2", state)
    block = 0
    while (bn := graph.consumer(x, "BatchNormalization")) and graph.consumer(bn.output[0], "Conv"):
        own = f"body.{block}.res_layer"
        y = graph.batchnorm(x, f"{own}.0", state)
        y = graph.prelu(graph.plain_convolution(y, f"{own}.1", state), f"{own}.2", state)
        y = graph.convolution(y, f"{own}.3", f"{own}.4", state)
        gate = graph.take(y, "GlobalAveragePool", "ReduceMean").output[0]
        gate = graph.plain_convolution(gate, f"{own}.5.fc1", state)
        gate = graph.plain_convolution(graph.take(gate, "Relu").output[0], f"{own}.5.fc2", state)
        gate = graph.take(graph.take(gate, "Sigmoid").output[0], "Mul")
        if y not in gate.input:
            raise UserError(f"{graph.path}: node '{gate.name}' is not a gate: {graph.readable}")
        if pool := graph.consumer(x, "MaxPool"):
            x = pool.output[0]
        elif graph.consumer(x, "Conv"):
            down = f"body.{block}.shortcut_layer"
            x = graph.convolution(x, f"{down}.0", f"{down}.1", state)
        total = graph.take(gate.output[0], "Add")
        if set(total.input) != {x, gate.output[0]}:
            raise UserError(
                f"{graph.path}: node '{total.name}' does not add a block to its shortcut"
            )
        x, block = total.output[0], block + 1
        if block > len(graph.order):
            raise UserError(f"{graph.path}: the graph runs in a circle at '{x}': {graph.readable}")
    x = graph.batchnorm(x, "output_layer.0", state)
    x = graph.take(x, "Flatten", "Reshape").output[0]
    x = graph.dense_batchnorm(x, "output_layer.3", "output_layer.4", state, biased=True)
    # Ours are not of unit length before they are made so.
    if graph.consumer(x, "ReduceL2") and (unit := graph.consumer(x, "Div")):
        return unit.output[0]
    return x


def _vit(graph: OnnxGraph, state: dict[str, np.ndarray]) -> str:
    """The weights, in their order; what attention does with them, `ida_jax.interop.weights` checks.

    The token that stands for masked ones is in no graph of an inference: zeros here.
    """
    node = graph.take(graph.input, "Conv")
    kernel, bias = (graph.constant(name) for name in node.input[1:])
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = kernel, bias
    x = graph.take(node.output[0], "Reshape", "Flatten").output[0]
    node = graph.take(graph.take(x, "Transpose").output[0], "Add")
    state["pos_embed"] = graph.only_constant(node)
    state["mask_token"] = np.zeros((1, 1, len(kernel)), np.float32)
    x, block = node.output[0], 0
    while True:
        own = f"blocks.{block}"
        y = graph.layer_norm(x, f"{own}.norm1", state)
        if graph.consumer(y, "Flatten") or not graph.consumer(y, "MatMul"):
            break
        y = graph.dense(y, f"{own}.attn.qkv", state, biased=False)
        y = graph.dense(graph.next_product(y), f"{own}.attn.proj", state, biased=True)
        x = graph.sum_of(x, y)
        y = graph.layer_norm(x, f"{own}.norm2", state)
        y = graph.dense(y, f"{own}.mlp.fc1", state, biased=True)
        y = graph.take(y, "Clip").output[0]
        x = graph.sum_of(x, graph.dense(y, f"{own}.mlp.fc2", state, biased=True))
        block += 1
        if block > len(graph.order):
            raise UserError(f"{graph.path}: the graph runs in a circle at '{x}': {graph.readable}")
    for leaf in ("weight", "bias"):
        state[f"norm.{leaf}"] = state.pop(f"{own}.norm1.{leaf}")
    x = graph.take(y, "Flatten", "Reshape").output[0]
    norms = {"state": state, "biased": False, "epsilon": _VIT_EPSILON}
    x = graph.dense_batchnorm(x, "feature.0", "feature.1", **norms)
    return graph.dense_batchnorm(x, "feature.2", "feature.3", **norms)
