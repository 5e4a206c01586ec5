"""What backbones share: widths, rematerialisation, BatchNorm in groups or frozen, bfloat16."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn_variables, shapes_of
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ida_jax.common.errors import UserError
from ida_jax.models import resnet
from ida_jax.models.ir_se import IRSE
from ida_jax.models.mbf import MBF
from ida_jax.models.mobilefacenet import MobileFaceNet
from ida_jax.models.resnet import BatchNorm, IResNet
from ida_jax.models.vit import VisionTransformer

tiny = partial(IResNet, (2, 1), (6, 8), embedding_dim=5, dropout_rate=0.0)
# Both kinds of block, and a third less to compile.
small = partial(IResNet, (2,), (6,), embedding_dim=5, dropout_rate=0.0)
NETWORKS = {"iresnet": tiny, "mobilefacenet": partial(MobileFaceNet, embedding_dim=5)}


def train_step(network, variables, images, mask=None):
    """Embeddings, new statistics, and the gradient of a weighted sum of the embeddings."""

    def loss(params):
        embeddings, updates = network.apply(
            {**variables, "params": params}, images, train=True, mask=mask, mutable=["batch_stats"]
        )
        probe = jnp.sin(jnp.arange(embeddings.size, dtype=jnp.float32)).reshape(embeddings.shape)
        return jnp.sum(embeddings * probe), (embeddings, updates["batch_stats"])

    gradient, (embeddings, updates) = jax.grad(loss, has_aux=True)(variables["params"])
    return embeddings, updates, gradient


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(16, 13, 10, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
    shapes = jax.eval_shape(partial(small().init, train=True), jax.random.key(1), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.2, 0.6, s.shape), jnp.float32), shapes)


def described_count(stage_sizes, widths, embedding_dim, map_size):
    """Parameters by the description: k·k·in·out a convolution, 2·C a BatchNorm, C a PReLU."""
    count = 9 * 3 * widths[0] + 2 * widths[0] + widths[0]
    inputs = widths[0]
    for size, width in zip(stage_sizes, widths, strict=True):
        for block in range(size):
            count += 2 * inputs + 9 * inputs * width + 2 * width + width
            count += 9 * width * width + 2 * width
            if block == 0:
                count += inputs * width + 2 * width
            inputs = width
    # The embedding's BatchNorm has a bias alone.
    flat = map_size * map_size * inputs
    return count + 2 * inputs + flat * embedding_dim + embedding_dim + embedding_dim


@pytest.mark.parametrize(
    ("name", "stage_sizes"),
    [
        ("iresnet18", (2, 2, 2, 2)),
        ("iresnet34", (3, 4, 6, 3)),
        ("iresnet50", (3, 4, 14, 3)),
        ("iresnet100", (3, 13, 30, 3)),
        ("iresnet200", (6, 26, 60, 6)),
    ],
)
def test_every_depth_at_any_width(name, stage_sizes):
    for size, embedding_dim in ((112, 512), (48, 7)):
        params = shapes_of(getattr(resnet, name)(embedding_dim=embedding_dim), size)["params"]
        expected = described_count(stage_sizes, (64, 128, 256, 512), embedding_dim, size // 16)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_options_leave_every_parameter_in_place(name):
    network = NETWORKS[name]
    plain = shapes_of(network(), 32)
    assert shapes_of(network(remat=True, batch_norm_groups=8), 32) == plain
    training = jax.eval_shape(
        partial(network(remat=True, batch_norm_groups=8).init, train=True),
        jax.random.key(0),
        jnp.zeros((1, 32, 32, 3)),
    )
    assert training == plain


def test_remat_gives_the_same_outputs_statistics_and_gradients(images, variables):
    mask = jnp.arange(16) < 13
    plain, remat = (
        jax.jit(partial(train_step, small(remat=remat)))(variables, images, mask)
        for remat in (False, True)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), remat, plain)


def kept_for_backward(network, size=32, batch=4):
    """Shapes and types of what the forward pass hands to the backward pass."""
    images = jnp.zeros((batch, size, size, 3))
    variables = shapes_of(network, size)

    def vjp(variables):
        def embed(params):
            v = {**variables, "params": params}
            return network.apply(v, images, train=True, mutable=["batch_stats"])[0]

        return jax.vjp(embed, variables["params"])[1]

    residuals = jax.tree.leaves(jax.eval_shape(vjp, variables))
    return [leaf for leaf in residuals if math.prod(leaf.shape) % batch == 0 and leaf.ndim >= 4]


@pytest.mark.parametrize("name", NETWORKS)
def test_remat_keeps_less(name):
    plain, remat = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in kept_for_backward(NETWORKS[name](remat=r)))
        for r in (False, True)
    )
    assert remat < 0.6 * plain


@pytest.mark.parametrize("name", NETWORKS)
def test_an_evaluated_network_has_no_trace_of_remat(name):
    network = NETWORKS[name](remat=True)
    variables = shapes_of(network, 32)
    texts = [
        str(
            jax.make_jaxpr(
                lambda v, train=train: network.apply(
                    v, jnp.zeros((2, 32, 32, 3)), train=train, mutable=["batch_stats"]
                )
            )(variables)
        )
        for train in (False, True)
    ]
    assert ["remat" in text or "checkpoint" in text for text in texts] == [False, True]


def batch_norm(groups, x, mask=None, stats=(0.5, 2.0)):
    variables = {
        "params": {"scale": jnp.full(x.shape[-1], 1.5), "bias": jnp.full(x.shape[-1], 0.2)},
        "batch_stats": {"mean": jnp.full(x.shape[-1], stats[0]), "var": jnp.full(3, stats[1])},
    }
    apply = partial(BatchNorm(groups=groups).apply, train=True, mutable=["batch_stats"])
    return jax.jit(apply)(variables, x, mask=mask)


@pytest.mark.parametrize("shape", [(12, 3), (12, 5, 2, 3)])
def test_groups_have_statistics_of_their_own(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, shape), jnp.float32)
    # The second third holds one real row, the last none.
    mask = jnp.asarray([True] * 3 + [False, True] + [False] * 7)
    for rows in (None, mask):
        y, updates = batch_norm(3, x, rows)
        found = []
        for part in range(3):
            within = slice(4 * part, 4 * part + 4)
            real = np.ones(4, bool) if rows is None else np.asarray(rows[within])
            if not real.any():
                continue
            values = np.float64(x[within])[real]
            mean = values.mean(axis=tuple(range(x.ndim - 1)))
            var = values.var(axis=tuple(range(x.ndim - 1)))
            found.append((mean, var))
            expected = 1.5 * (values - mean) / np.sqrt(var + 1e-5) + 0.2
            np.testing.assert_allclose(y[within][real], expected, rtol=1e-3, atol=1e-3)
        mean, var = np.mean(found, axis=0)
        stats = updates["batch_stats"]
        np.testing.assert_allclose(stats["mean"], 0.9 * 0.5 + 0.1 * mean, rtol=1e-5)
        np.testing.assert_allclose(stats["var"], 0.9 * 2.0 + 0.1 * var, rtol=1e-4)
        assert np.all(np.isfinite(y))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_batch_of_padding_alone_moves_nothing(groups):
    x = jnp.full((4, 3), 7.0)

    def loss(x):
        y, updates = batch_norm(groups, x, jnp.zeros(4, bool))
        return jnp.sum(jnp.where(jnp.zeros((4, 3), bool), y, 0.0)), updates["batch_stats"]

    gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(stats["mean"], 0.5)
    np.testing.assert_array_equal(stats["var"], 2.0)


@pytest.mark.parametrize("rows", [1, 7, 9])
def test_a_batch_that_does_not_divide_is_refused(rows):
    with pytest.raises(UserError, match=f"8 groups and the batch {rows} rows: expected a multiple"):
        batch_norm(8, jnp.zeros((rows, 3)))


def test_groups_of_a_network_train_as_so_many_separate_batches(images, variables):
    def trained(network):
        return jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))

    grouped, updates = trained(small(batch_norm_groups=2))(variables, images)
    alone = trained(small())
    halves = [alone(variables, images[half]) for half in (slice(0, 8), slice(8, 16))]
    np.testing.assert_allclose(
        grouped, np.concatenate([half[0] for half in halves]), rtol=1e-3, atol=1e-3
    )
    mean = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), updates, mean)


EVERY = {
    **NETWORKS,
    "mbf": partial(MBF, blocks=(1, 2, 1, 1), scale=1, embedding_dim=5),
    "vit": partial(
        VisionTransformer, depth=1, width=8, heads=2, drop_path_rate=0, mask_ratio=0,
        embedding_dim=5,
    ),
    "ir_se": partial(
        IRSE, stage_sizes=(1, 1), widths=(16, 16), dropout_rate=0.0, embedding_dim=5
    ),
}  # fmt: skip


# Two programs of one network: what optimisation leaves out rounds otherwise.
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_frozen_statistics_train_the_evaluated_network(name, remat):
    plain, frozen = EVERY[name](), EVERY[name](batch_norm_groups=0, remat=remat)
    images = np.random.default_rng(0).normal(size=(4, 18, 18, 3)).astype(np.float32)
    variables = drawn_variables(plain, images.shape)
    probe = jnp.sin(jnp.arange(20, dtype=jnp.float32)).reshape(4, 5)

    def evaluated(params):
        out = plain.apply({**variables, "params": params}, images, train=False)
        return jnp.sum(out * probe), out

    expected, out = jax.jit(jax.grad(evaluated, has_aux=True))(variables["params"])
    # A row that only pads the batch is a row like the others.
    mask = jnp.arange(4) < 3
    found = jax.jit(partial(train_step, frozen))(variables, images, mask)
    np.testing.assert_allclose(found[0], out, rtol=1e-4, atol=1e-5 * np.max(np.abs(out)))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.max(np.abs(b)))

    jax.tree.map(close, found[2], expected)
    jax.tree.map(np.testing.assert_array_equal, found[1], variables["batch_stats"])
    # Scales and biases are trained: some that are not behind a ReLU's zeros.
    last = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found[2])
            if "bias" in jax.tree_util.keystr(path)][-1]  # fmt: skip
    assert np.any(last != 0)


def test_frozen_statistics_leave_dropout_as_it_is(images, variables):
    network = small(dropout_rate=0.5, batch_norm_groups=0)

    def embedded(key):
        return network.apply(
            variables, images, train=True, rngs={"dropout": jax.random.key(key)}
        )  # fmt: skip

    first, again, other = (jax.jit(embedded)(key) for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 1e-3 * np.max(np.abs(first))


def test_a_group_a_device_needs_no_collective_in_the_forward_pass(images, variables):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "model")))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def has_collectives(groups):
        def embed(variables, images, mask):
            return small(batch_norm_groups=groups).apply(
                variables, images, train=True, mask=mask, mutable=["batch_stats"]
            )[0]

        compiled = (
            jax.jit(embed, in_shardings=(everywhere, rows, rows), out_shardings=rows)
            .lower(variables, images, jnp.ones(16, bool))
            .compile()
        )
        names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
        return any(name in compiled.as_text() for name in names)

    assert has_collectives(1)
    assert not has_collectives(8)
    assert not has_collectives(0)
