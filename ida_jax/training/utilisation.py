"""How much of the devices' arithmetic a training uses (MFU, model FLOPs utilisation).

FLOPs count a multiplication and an addition as two.
"""

import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ida_jax.artefacts.face_model import build_network
from ida_jax.planning.chips import CHIPS
from ida_jax.planning.flops import count_flops

# NVIDIA's dense peaks in TFLOP/s, by what jax's `device_kind` begins with: bfloat16, and float32 as
# XLA runs it by default, TF32 where there is one. Source: NVIDIA's data sheets.
_GPUS = {
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA A10": (125.0, 62.5),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA H100": (989.0, 494.0),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100 NVL": (835.0, 417.5),
    "NVIDIA H200": (989.0, 494.0),
    "NVIDIA B200": (2250.0, 1125.0),
}
# On TPUs float32 products run as bfloat16 ones by default.
_TPUS = {
    "TPU v4": ("v4", 1),
    "TPU v5 lite": ("v5e", 1),
    "TPU v5": ("v5p", 1),
    "TPU v6 lite": ("v6e", 1),
    "TPU7x": ("tpu7x", 2),  # a device is half a chip
}


def peak_flops(dtype: str, device_kind: str | None = None) -> float | None:
    """FLOP/s of one device at its best; None where this table has no figure for it.

    Args:
      dtype: "bfloat16" or "float32".
      device_kind: jax's name of the device; this run's first one if None.
    """
    kind = device_kind or jax.devices()[0].device_kind
    # Whole words: an L40 is no L4.
    matching = [name for name in (*_GPUS, *_TPUS) if re.match(re.escape(name) + r"\b", kind)]
    if not matching:
        return None
    name = max(matching, key=len)
    if name in _TPUS:
        chip, devices = _TPUS[name]
        return CHIPS[chip].flops / devices
    return _GPUS[name][dtype != "bfloat16"] * 1e12


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
    forward = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, image)
    classes = config.train.sample_rate * num_classes * config.train.sub_centres
    return 3 * (count_flops(forward).flops + 2 * classes * module.embedding_dim)
