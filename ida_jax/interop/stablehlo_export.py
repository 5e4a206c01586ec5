"""Face models as StableHLO by `jax.export`: one file that runs on CPU, GPU and TPU, in any batch.

    from jax import export
    network = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    network.call(images)["embedding"]

JAX promises to read such a file for six months; ONNX is the format to keep for longer.

B batch, H and W image size, C channels, D embedding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from ida_jax.artefacts.face_model import FaceModel
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError
from ida_jax.interop.exported import Graph, deployable, input_shape
from ida_jax.models.mobilefacenet import DepthwiseConv

_PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo_bytes(
    model: FaceModel,
    *,
    input: str = "uint8",
    ssr: SSRModule | None = None,
    norm: bool = False,
    output_kind: str = "unit",
) -> bytes:
    """The serialised `jax.export.Exported` of a face model, float32, for any batch.

    One argument, the images; it returns {"embedding": …}, with `norm` also "norm", and, with an SSR
    module, "log_density":
    `ida_jax.interop.exported.deployable` with its weights in it. That module's `description`
    belongs beside the file.

    Args:
      model: one of bfloat16 or float16 is written as float32.
      input: "uint8" or "float_nchw".
      ssr: its SSR module.
      norm: gives the raw embeddings' norms too.
      output_kind: of `OUTPUT_KINDS`.
    """
    try:
        import flatbuffers  # noqa: F401, jax's serialize needs it
    except ImportError as error:
        raise UserError("StableHLO needs flatbuffers: pip install 'ida_jax[interop]'") from error
    variables, apply = deployable(
        model, ssr, input=input, norm=norm, float32=True, output_kind=output_kind
    )
    variables = jax.tree.map(np.asarray, variables)

    def graph(images: jax.Array) -> dict[str, jax.Array]:
        with nn.intercept_methods(_grouped_convolutions):
            return apply(variables, images)

    dtype = jnp.uint8 if input == "uint8" else jnp.float32
    shape = (*export.symbolic_shape("B"), *input_shape(model, input))
    exported = export.export(jax.jit(graph), platforms=_PLATFORMS)(
        jax.ShapeDtypeStruct(shape, dtype)
    )
    return bytes(exported.serialize())


def stablehlo_graph(data: bytes) -> Graph:
    """The function that a serialised export holds."""
    exported = export.deserialize(bytearray(data))
    return lambda images: {k: np.asarray(v) for k, v in exported.call(images).items()}


def _grouped_convolutions(call: Any, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
    """A flax interceptor: depthwise convolutions as such, on every platform.

    The module's own choice by platform would put both formulations into the file.
    """
    if not isinstance(context.module, DepthwiseConv):
        return call(*args, **kwargs)
    (x,) = args
    module = context.module
    return lax.conv_general_dilated(
        x,
        module.get_variable("params", "kernel"),
        (module.stride,) * 2,
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // module.group_size,
    )
