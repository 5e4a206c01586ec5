from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import shapes_of
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ida_jax.models import resnet
from ida_jax.models.resnet import BatchNorm, IResNet, PReLU

# Machine code that runs a few times need not be fast; that of random draws takes a quarter.
QUICK = {"xla_backend_optimization_level": 0}
tiny = partial(IResNet, (2, 1), (6, 8), embedding_dim=5, dropout_rate=0.0)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def embed(network, variables, images):
    return network.apply(variables, images, train=False)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def embed_training(network, variables, images, **options):
    return network.apply(variables, images, train=True, mutable=["batch_stats"], **options)


def randomised(variables, seed=0):
    """Every parameter and statistic moved, so that none hides behind its initial 0 or 1."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    moved = [leaf + jnp.float32(0.3 * rng.uniform(size=leaf.shape)) for leaf in leaves]
    return jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (9, 13, 10, 3))


@pytest.fixture(scope="module")
def initial(images):
    init = jax.jit(partial(tiny().init, train=True), compiler_options=QUICK)
    return init(jax.random.key(1), images)


@pytest.fixture(scope="module")
def variables(initial):
    return randomised(initial)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("iresnet18", 24.02), ("iresnet34", 34.14), ("iresnet50", 43.59), ("iresnet100", 65.15)],
)
def test_published_parameter_counts(name, millions):
    params = shapes_of(getattr(resnet, name)(embedding_dim=512))["params"]
    # The count in PyTorch has the last BatchNorm's fixed scale in it. Some are cut, not rounded.
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) + 512
    assert abs(count / 1e6 - millions) < 0.007


@pytest.mark.parametrize(
    ("name", "blocks"), [("iresnet_nano", 4), ("iresnet18", 8), ("iresnet200", 98)]
)
def test_block_counts_and_dtypes(name, blocks):
    variables = shapes_of(getattr(resnet, name)(dtype=jnp.bfloat16), size=32)
    assert sum("_block" in name for name in variables["params"]) == blocks
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("height", "width", "flattened"), [(112, 112, 49), (112, 96, 42), (56, 56, 16), (33, 1, 3)]
)
def test_any_image_size(height, width, flattened):
    network = resnet.iresnet_nano(embedding_dim=7)
    images = jax.ShapeDtypeStruct((3, height, width, 3), jnp.float32)
    embeddings, variables = jax.eval_shape(
        lambda images: network.init_with_output(jax.random.key(0), images, train=False), images
    )
    assert embeddings.shape == (3, 7)
    assert variables["params"]["fc"]["kernel"].shape == (128 * flattened, 7)


def test_initial_values(initial):
    for path, leaf in flatten_dict(initial["params"], sep="/").items():
        if "conv" in path and leaf.size > 200:
            np.testing.assert_allclose(np.std(leaf), 0.1, rtol=0.2)
        elif path.endswith("slope"):
            np.testing.assert_array_equal(leaf, 0.25)
    assert "scale" not in initial["params"]["embedding_bn"]
    # Initialising in training mode does not move the statistics.
    for path, leaf in flatten_dict(initial["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, 0.0 if path[-1] == "mean" else 1.0)


def test_prelu():
    x = jnp.array([[-2.0, 3.0], [0.0, -4.0]])
    module = PReLU()
    apply = lambda slope, x: module.apply({"params": {"slope": slope}}, x)  # noqa: E731
    slope = jnp.array([0.5, 0.1])
    np.testing.assert_allclose(apply(slope, x), [[-1.0, 3.0], [0.0, -0.4]], rtol=1e-6)
    by_slope, by_x = jax.grad(lambda s, x: jnp.sum(apply(s, x)), argnums=(0, 1))(slope, x)
    np.testing.assert_allclose(by_slope, [-2.0, -4.0])
    np.testing.assert_allclose(by_x, [[0.5, 1.0], [1.0, 0.1]], rtol=1e-6)
    assert apply(slope, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (6, 3, 4, 5)])
@pytest.mark.parametrize("use_scale", [True, False])
def test_batchnorm_is_flaxs(train, shape, use_scale):
    x = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), shape)
    probe = jax.random.normal(jax.random.key(1), shape)
    rows = np.arange(shape[0]) != 2
    mask = jnp.asarray(rows)
    ours = BatchNorm(use_scale=use_scale)
    flaxs = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, use_scale=use_scale
    )
    variables = randomised(flaxs.init(jax.random.key(2), x))

    def results(apply):
        def loss(params, x):
            stats = {"params": params, "batch_stats": variables["batch_stats"]}
            y, updates = apply(stats, x)
            real = mask.reshape((-1,) + (1,) * (y.ndim - 1))
            return jnp.sum(jnp.where(real, y * probe, 0.0)), (y[rows], updates)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    actual = results(lambda v, x: ours.apply(v, x, train=train, mask=mask, mutable=["batch_stats"]))
    expected = results(
        lambda v, x: flaxs.apply(
            v, x, mask=mask.reshape((-1,) + (1,) * (x.ndim - 1)), mutable=["batch_stats"]
        )
    )
    (value, (y, updates)), gradients = actual
    (expected_value, (expected_y, expected_updates)), expected_gradients = expected
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    np.testing.assert_allclose(y, expected_y, atol=2e-5)
    for a, e in ((updates, expected_updates), (gradients, expected_gradients)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), a, e)


def test_training_uses_the_batch_and_moves_the_running_statistics(images, variables):
    embeddings, updates = embed_training(tiny(), variables, images)
    # The last BatchNorm has scale 1 and its bias.
    bias = variables["params"]["embedding_bn"]["bias"]
    np.testing.assert_allclose(np.mean(embeddings, axis=0), bias, atol=1e-4)
    np.testing.assert_allclose(np.std(embeddings, axis=0), 1.0, atol=1e-2)

    stem = jax.lax.conv_general_dilated(
        images,
        variables["params"]["stem_conv"]["kernel"],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for name, statistic in (("mean", np.mean), ("var", np.var)):
        old = np.float64(variables["batch_stats"]["stem_bn"][name])
        expected = 0.9 * old + 0.1 * statistic(np.float64(stem), axis=(0, 1, 2))
        np.testing.assert_allclose(updates["batch_stats"]["stem_bn"][name], expected, rtol=1e-4)


def test_evaluation_treats_each_image_by_itself(images, variables):
    together = embed(tiny(), variables, images)
    assert together.shape == (9, 5)
    for row in (0, 8):
        alone = embed(tiny(), variables, images[row : row + 1])
        np.testing.assert_allclose(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("real", [1, 8])
def test_padding_rows_change_nothing(images, variables, real):
    mask = jnp.arange(9) < real
    padded = jnp.where(mask[:, None, None, None], images, 7.0)
    probe = jax.random.normal(jax.random.key(3), (real, 5))

    @partial(jax.jit, compiler_options=QUICK)
    def step(params, images, mask):
        def loss(params):
            embeddings, updates = tiny().apply(
                {**variables, "params": params},
                images,
                train=True,
                mask=mask,
                mutable=["batch_stats"],
            )
            return jnp.sum(embeddings[:real] * probe), (embeddings[:real], updates)

        gradient, result = jax.grad(loss, has_aux=True)(params)
        return result, gradient

    actual = step(variables["params"], padded, mask)
    expected = step(variables["params"], images[:real], None)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), actual, expected)


def test_statistics_of_a_sharded_batch_are_global(variables):
    images = jax.random.normal(jax.random.key(4), (16, 13, 10, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    actual, expected = (embed_training(tiny(), variables, x) for x in (sharded, images))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), actual, expected)


def test_dropout_is_drawn_in_training_alone(images, variables):
    network = tiny(dropout_rate=0.4)
    first, second = (
        embed_training(network, variables, images, rngs={"dropout": key})[0]
        for key in jax.random.split(jax.random.key(0))
    )
    assert np.max(np.abs(first - second)) > 0.1
    np.testing.assert_array_equal(
        embed(network, variables, images), embed(tiny(), variables, images)
    )


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_is_close_to_float32(images, variables, train):
    low, full = (
        embed_training(network, variables, images)[0]
        if train
        else embed(network, variables, images)
        for network in (tiny(dtype=jnp.bfloat16), tiny())
    )
    assert low.dtype == jnp.float32
    difference = np.linalg.norm(low - full, axis=1) / np.linalg.norm(full, axis=1)
    assert 0 < np.max(difference) < 0.05


def torch_iresnet(torch, stage_sizes, widths, embedding_dim, map_size):
    """The network in PyTorch, after the same description; its modules carry our names."""

    def conv(inputs, outputs, size, stride=1):
        return torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.bn1 = torch.nn.BatchNorm2d(inputs)
            self.conv1 = conv(inputs, outputs, 3)
            self.bn2 = torch.nn.BatchNorm2d(outputs)
            self.prelu = torch.nn.PReLU(outputs)
            self.conv2 = conv(outputs, outputs, 3, stride)
            self.bn3 = torch.nn.BatchNorm2d(outputs)
            self.has_shortcut = stride != 1 or inputs != outputs
            if self.has_shortcut:
                self.shortcut_conv = conv(inputs, outputs, 1, stride)
                self.shortcut_bn = torch.nn.BatchNorm2d(outputs)

        def forward(self, x):
            y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
            y = self.bn3(self.conv2(y))
            return y + (self.shortcut_bn(self.shortcut_conv(x)) if self.has_shortcut else x)

    layers = {
        "stem_conv": conv(3, widths[0], 3),
        "stem_bn": torch.nn.BatchNorm2d(widths[0]),
        "stem_prelu": torch.nn.PReLU(widths[0]),
    }
    inputs = widths[0]
    for stage, (size, width) in enumerate(zip(stage_sizes, widths, strict=True), 1):
        for block in range(1, size + 1):
            layers[f"stage{stage}_block{block}"] = Block(inputs, width, 2 if block == 1 else 1)
            inputs = width
    layers["output_bn"] = torch.nn.BatchNorm2d(inputs)
    layers["flatten"] = torch.nn.Flatten()
    layers["fc"] = torch.nn.Linear(inputs * map_size**2, embedding_dim)
    layers["embedding_bn"] = torch.nn.BatchNorm1d(embedding_dim)
    return torch.nn.Sequential(torch.nn.ModuleDict(layers)).get_submodule("0")


def our_variables(state, channels, map_size):
    """A state dict's arrays as our variables."""
    flat = {}
    for name, value in state.items():
        *modules, leaf = name.split(".")
        if leaf == "num_batches_tracked":
            continue
        if leaf.startswith("running_"):
            flat["batch_stats", *modules, leaf.removeprefix("running_")] = value
        elif leaf == "bias":
            flat["params", *modules, "bias"] = value
        elif modules[-1].endswith("prelu"):
            flat["params", *modules, "slope"] = value
        elif value.ndim == 4:
            flat["params", *modules, "kernel"] = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            chw = value.reshape(-1, channels, map_size, map_size)
            flat["params", *modules, "kernel"] = chw.transpose(2, 3, 1, 0).reshape(-1, len(value))
        elif modules != ["embedding_bn"]:
            flat["params", *modules, "scale"] = value
    return unflatten_dict(flat)


@pytest.mark.parametrize("train", [True, False])
def test_pytorch_gives_the_same(train):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    widths, size, map_size = (8, 12, 16, 20), 37, 3
    network = torch_iresnet(torch, (2, 2, 2, 2), widths, 24, map_size)
    state = network.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and name != "embedding_bn.weight":
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if value.ndim == 1 else (noise - 0.5) * 0.3)
    images = torch.randn(8, 3, size, size, generator=generator)

    with torch.no_grad():
        x = images
        network.train(train)
        for layer in network.values():
            x = layer(x)
    variables = our_variables({k: v.numpy() for k, v in state.items()}, widths[-1], map_size)
    module = resnet.iresnet18(widths=widths, embedding_dim=24, dropout_rate=0.0)
    embeddings, _ = jax.jit(partial(module.apply, train=train, mutable=["batch_stats"]))(
        variables, images.numpy().transpose(0, 2, 3, 1)
    )
    np.testing.assert_allclose(embeddings, x.numpy(), rtol=1e-4, atol=1e-4)
