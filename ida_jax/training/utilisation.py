"""How much of the devices' arithmetic a training uses (MFU, model FLOPs utilisation).

FLOPs count a multiplication and an addition as two.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ida_jax.face_model import build_network

# Dense peaks of one device in TFLOP/s by its jax `device_kind`: bfloat16, and float32 as XLA runs
# it by default (TF32 on GPUs; on TPUs bfloat16 products). Source: NVIDIA's data sheets and Google
# Cloud's TPU pages.
_PEAKS = {
    "NVIDIA V100": (None, 15.7),
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA A10": (125.0, 62.5),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100": (989.0, 494.0),
    "NVIDIA H200": (989.0, 494.0),
    "NVIDIA B200": (2250.0, 1125.0),
    "TPU v2": (45.0, 45.0),
    "TPU v3": (123.0, 123.0),
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5": (459.0, 459.0),
    "TPU v6 lite": (918.0, 918.0),
}


def peak_flops(dtype: str, device_kind: str | None = None) -> float | None:
    """FLOP/s of one device at its best; None where this table has no figure for it.

    Args:
      dtype: "bfloat16" or "float32".
      device_kind: jax's name of the device; this run's first one if None.
    """
    kind = device_kind or jax.devices()[0].device_kind
    matching = [name for name in _PEAKS if kind.startswith(name)]
    if not matching:
        return None
    tera = _PEAKS[max(matching, key=len)][dtype != "bfloat16"]
    return None if tera is None else tera * 1e12


def flops_per_image(config: ConfigDict, *, num_classes: int) -> float:
    """What training one image takes: three forward passes, of the backbone and the head's product.

    The backward pass counts as two forward ones; what is computed again (remat, blocks of classes)
    counts once, as MFU has it.
    """
    c = config.model
    module = build_network(c.network, c.options.to_dict())
    image = jax.ShapeDtypeStruct((1, c.image_size, c.image_size, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda image: module.init(jax.random.key(0), image, train=False), image
    )
    forward = jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, image)
    classes = config.train.sample_rate * num_classes * config.train.sub_centres
    return 3 * (forward.cost_analysis()["flops"] + 2 * classes * module.embedding_dim)
