"""A residual block in training, whose first BatchNorm is folded into its convolution.

Against the block as it is defined, in float64 with JAX's own derivatives: results, statistics and
all gradients, with rows that only pad, in groups, and on eight devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ida_jax.models.resnet import Block


def conv(x, kernel, stride=1):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def norm(x, params, real, groups):
    """x normalised by the real rows of each group, and the mean over groups of the statistics."""
    parts, statistics = [], []
    for rows, mask in zip(np.split(np.arange(len(x)), groups), np.split(real, groups), strict=True):
        part = x[rows]
        mean = jnp.mean(part[mask], axis=(0, 1, 2))
        var = jnp.var(part[mask], axis=(0, 1, 2))
        parts.append((part - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"])
        statistics.append((mean, var))
    mean, var = (sum(s) / groups for s in zip(*statistics, strict=True))
    return jnp.concatenate(parts), {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var}


def defined_block(params, x, real, stride, groups):
    p, stats = params, {}
    y, stats["bn1"] = norm(x, p["bn1"], real, groups)
    y = conv(y, p["conv1"]["kernel"])
    y, stats["bn2"] = norm(y, p["bn2"], real, groups)
    y = jnp.where(y >= 0, y, p["prelu"]["slope"] * y)
    y = conv(y, p["conv2"]["kernel"], stride)
    y, stats["bn3"] = norm(y, p["bn3"], real, groups)
    if "shortcut_conv" in p:
        x = conv(x[:, ::stride, ::stride], p["shortcut_conv"]["kernel"])
        x, stats["shortcut_bn"] = norm(x, p["shortcut_bn"], real, groups)
    return x + y, stats


CASES = [
    # Shape, width, stride, real rows, groups, devices.
    ((4, 5, 4, 3), 3, 1, 4, 1, 1),
    ((5, 7, 1, 3), 6, 2, 3, 1, 1),
    ((3, 1, 2, 2), 2, 1, 3, 1, 1),
    ((8, 6, 5, 3), 4, 2, 8, 4, 1),
    ((16, 3, 3, 2), 2, 1, 13, 1, 8),
]


@pytest.mark.parametrize(("shape", "width", "stride", "count", "groups", "devices"), CASES)
def test_block_is_as_defined(shape, width, stride, count, groups, devices):
    rng = np.random.default_rng(0)
    block = Block(width, stride, batch_norm_groups=groups)
    x = 1.0 + rng.normal(size=shape).astype(np.float32) * rng.uniform(0.3, 3, shape[-1])
    x = x.astype(np.float32)
    variables = jax.eval_shape(
        lambda x: block.init(jax.random.key(0), (x, x), False), jnp.asarray(x)
    )
    params = jax.tree.map(
        lambda s: (0.3 + rng.normal(size=s.shape)).astype(np.float32), variables["params"]
    )
    stats = jax.tree_util.tree_map_with_path(
        lambda path, s: np.full(s.shape, path[-1].key == "var", np.float32),
        variables["batch_stats"],
    )
    real = np.arange(len(x)) < count
    out = (len(x), -(-shape[1] // stride), -(-shape[2] // stride), width)
    probe = (rng.normal(size=out) * real[:, None, None, None]).astype(np.float32)

    def results(apply, params, x, probe):
        def loss(params, x):
            y, updates = apply(params, x)
            return jnp.sum(y * probe), (y, updates)

        (_, (y, updates)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return y, updates, gradients

    def ours(params, x):
        mask = None if count == len(x) else jnp.asarray(real)
        (y, _), updates = block.apply(
            {"params": params, "batch_stats": stats}, (x, x), True, mask, mutable=["batch_stats"]
        )
        return y, updates["batch_stats"]

    given = (params, x, probe)
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
        split = NamedSharding(mesh, PartitionSpec("data"))
        given = (params, *jax.device_put((x, probe), split))
    actual = jax.jit(lambda *a: results(ours, *a))(*given)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        wide = jax.tree.map(np.float64, (params, x, probe))
        expected = results(lambda p, x: defined_block(p, x, real, stride, groups), *wide)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = (v[: count if v.shape == out or v.shape == shape else None] for v in (a, e))
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=2e-4 * (1 + np.ptp(e)))
