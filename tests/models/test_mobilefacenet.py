import tarfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.interop.torch_networks import mobilefacenet_from_state
from ida_jax.models.mobilefacenet import (
    DepthwiseConv,
    MobileFaceNet,
    _convolution_backward,
    _nine_products_backward,
)


@partial(jax.jit, static_argnums=0)
def embed(network, variables, images):
    return network.apply(variables, images, train=False)


def grouped_convolution(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8)])
def test_depthwise_convolution_and_its_gradients(stride, size):
    x = jax.random.normal(jax.random.key(0), (3, *size, 5))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 5))
    module = DepthwiseConv(stride)

    def ours(x, kernel):
        return module.apply({"params": {"kernel": kernel}}, x)

    expected, expected_vjp = jax.vjp(partial(grouped_convolution, stride=stride), x, kernel)
    actual, actual_vjp = jax.vjp(ours, x, kernel)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    probe = jax.random.normal(jax.random.key(2), expected.shape)
    for a, e in zip(actual_vjp(probe), expected_vjp(probe), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4)


def test_the_platform_compiled_for_chooses_the_depthwise_convolution():
    """Whichever compiles: a TPU's and a GPU's program hold the convolution, a CPU's does not."""
    module = DepthwiseConv(2)
    x = jax.ShapeDtypeStruct((2, 9, 6, 4), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(1), x)

    def loss(variables, x):
        return jnp.sum(jnp.square(module.apply(variables, x)))

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(variables, x)
    for platform, convolutions in (("cpu", 0), ("cuda", 3), ("tpu", 3)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution(") == convolutions, platform


def test_the_gradient_of_a_gpus_and_a_tpus_depthwise_convolution():
    """Which is not compiled here otherwise."""
    x = jax.random.normal(jax.random.key(0), (2, 9, 6, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 4))
    probe = jax.random.normal(jax.random.key(2), (2, 5, 3, 4))
    both = [
        jax.jit(partial(backward, stride=2))(x, kernel, probe)
        for backward in (_convolution_backward, _nine_products_backward)
    ]
    for a, e in zip(*both, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4)


def test_depthwise_convolution_in_bfloat16_sums_in_float32():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 4))
    probe = jax.random.normal(jax.random.key(2), x.shape).astype(jnp.bfloat16)
    module = DepthwiseConv(dtype=jnp.bfloat16)
    y, vjp = jax.vjp(lambda x, k: module.apply({"params": {"kernel": k}}, x), x, kernel)
    x_gradient, kernel_gradient = vjp(probe)
    assert (y.dtype, x_gradient.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert kernel_gradient.dtype == jnp.float32

    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    expected, expected_vjp = jax.vjp(
        partial(grouped_convolution, stride=1), x.astype(jnp.float32), rounded
    )
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
    _, expected_gradient = expected_vjp(probe.astype(jnp.float32))
    np.testing.assert_allclose(kernel_gradient, expected_gradient, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(112, 112, (7, 7)), (56, 64, (4, 4)), (33, 1, (3, 1))]
)
def test_any_image_size(height, width, kernel):
    network = MobileFaceNet(embedding_dim=9, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((3, height, width, 3), jnp.float32)
    embeddings, variables = jax.eval_shape(
        lambda images: network.init_with_output(jax.random.key(0), images, train=False), images
    )
    assert (embeddings.shape, embeddings.dtype) == ((3, 9), jnp.float32)
    assert variables["params"]["gdconv_depthwise"]["kernel"].shape == (*kernel, 1, 512)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.fixture(scope="module")
def small():
    """Images of 16 pixels and a network for them."""
    images = jax.random.normal(jax.random.key(0), (5, 16, 16, 3))
    shapes = jax.eval_shape(
        partial(MobileFaceNet(embedding_dim=6).init, train=False), jax.random.key(0), images
    )
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        positive = path[-1].key in ("scale", "var")
        values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape)
        fan_in = np.prod(leaf.shape[:-1])
        return jnp.float32(values / np.sqrt(fan_in) if path[-1].key == "kernel" else values)

    return jax.tree_util.tree_map_with_path(fill, shapes), images


def test_training_ignores_padding_rows_and_uses_the_batch(small):
    variables, images = small
    network = MobileFaceNet(embedding_dim=6)

    @jax.jit
    def train(images, mask):
        return network.apply(variables, images, train=True, mask=mask, mutable=["batch_stats"])

    embeddings, updates = train(images, jnp.array([True, True, True, False, False]))
    expected, expected_updates = train(images[:3], None)
    np.testing.assert_allclose(embeddings[:3], expected, rtol=1e-2, atol=2e-3)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-2, atol=2e-3), updates, expected_updates
    )
    bias = variables["params"]["bn"]["bias"]
    np.testing.assert_allclose(np.mean(embeddings[:3], axis=0), bias, atol=1e-2)


def test_bfloat16_is_close_to_float32_and_images_do_not_mix(small):
    variables, images = small
    full = embed(MobileFaceNet(embedding_dim=6), variables, images)
    low = embed(MobileFaceNet(embedding_dim=6, dtype=jnp.bfloat16), variables, images)
    assert low.dtype == jnp.float32
    difference = np.linalg.norm(low - full, axis=1) / np.linalg.norm(full, axis=1)
    assert 0 < np.max(difference) < 0.05
    alone = embed(MobileFaceNet(embedding_dim=6), variables, images[4:])
    np.testing.assert_allclose(alone, full[4:], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def weights(shared_data):
    with np.load(shared_data / "weights" / "mobilefacenet.npz") as archive:
        return dict(archive)


def test_imported_weights_give_pytorchs_embeddings(shared_data, weights):
    cv2 = pytest.importorskip("cv2")
    names = (shared_data / "lfw" / "names.txt").read_text().split()
    rows = np.linspace(0, len(names) - 1, 200).astype(int)
    wanted = {f"./{names[row]}.jpg": row for row in rows}
    faces = {}
    with tarfile.open(shared_data / "lfw" / "lfw_112.tar") as archive:
        for member in archive:
            if member.name in wanted:
                encoded = np.frombuffer(archive.extractfile(member).read(), np.uint8)
                faces[wanted[member.name]] = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
    images = np.stack([faces[row] for row in rows]).astype(np.float32) / 255
    images = (images - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))

    variables = mobilefacenet_from_state(weights).variables
    actual = np.concatenate(
        [embed(MobileFaceNet(), variables, chunk) for chunk in np.split(images, 4)]
    ).astype(np.float64)
    expected = np.load(shared_data / "lfw" / "mobilefacenet_embeddings.npy")[rows]
    expected = expected.astype(np.float64)
    cosines = np.sum(actual * expected, axis=1)
    cosines /= np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    assert np.min(cosines) >= 0.99999
    np.testing.assert_allclose(
        np.linalg.norm(actual, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-3
    )


def test_every_weight_is_used(weights):
    variables = mobilefacenet_from_state(weights).variables
    given = sum(v.size for k, v in weights.items() if not k.endswith("num_batches_tracked"))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == given


def test_a_wrong_state_dict_is_named(weights):
    def without(*names):
        return {name: value for name, value in weights.items() if name not in names}

    with pytest.raises(UserError, match=r"lack 'bn\.running_var', 'features\.3\.conv\.1\.0\.w"):
        mobilefacenet_from_state(without("features.3.conv.1.0.weight", "bn.running_var"))
    with pytest.raises(UserError, match=r"'fc\.weight' is not among"):
        mobilefacenet_from_state({**weights, "fc.weight": np.zeros((3, 4))})
    with pytest.raises(UserError, match=r"'conv3\.weight' has shape \(512, 512, 1, 1\); \(128, 5"):
        mobilefacenet_from_state({**weights, "conv3.weight": np.zeros((512, 512, 1, 1))})
    with pytest.raises(UserError, match=r"'bn\.weight' has shape \(64,\); \(128,\)"):
        mobilefacenet_from_state({**weights, "bn.weight": np.zeros(64)})
    with pytest.raises(UserError, match=r"lack 'bn\.bias', .* and \d+ more"):
        mobilefacenet_from_state({})
