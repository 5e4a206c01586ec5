"""What the GAN's benchmark claims: a peer that does the same, and that few packages are needed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_gan
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environment import with_devices
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.models.stylegan import DiscriminatorNetwork, GeneratorNetwork, _StyledConv, draw_noise
from ida_jax.ops.gan_losses import r1_penalty

_REPOSITORY = Path(__file__).parents[2]
SIZES = {"resolution": 8, "channel_base": 32, "channel_max": 6}
CONFIG = SimpleNamespace(
    batch_size=4, learning_rate=0.002, r1_weight=10.0, r1_every=2, path_weight=2.0, path_every=2,
    style_mixing=0.9, ema_images=100.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def torch_stylegan():
    torch = pytest.importorskip("torch")
    import torch_stylegan

    # Threads that wait for each other take longer than such small maps.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch_stylegan
    torch.set_num_threads(before)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(function, *inputs):
    """Parameters of a module's shapes, all of unit variance."""
    flat = flatten_dict(jax.eval_shape(function, jax.random.key(0), *inputs)["params"])
    return unflatten_dict({k: normal(*v.shape, seed=n) for n, (k, v) in enumerate(flat.items())})


def copy_layer(layer, params):
    """Ours into PyTorch's: kernels with the outputs first."""
    import torch

    for name, values in params.items():
        if name == "style":
            copy_layer(layer.style, values)
            continue
        values = np.moveaxis(values, (-1, -2), (0, 1)) if name == "kernel" else values
        own = getattr(layer, {"kernel": "weight"}.get(name, name))
        assert own.shape == values.shape
        own.data = torch.tensor(values)


def test_the_peers_discriminator_and_its_r1_are_ours(torch_stylegan):
    import torch

    images = normal(4, 8, 8, 3)
    ours = DiscriminatorNetwork(**SIZES)
    params = drawn(ours.init, images)
    training = torch_stylegan.Training(
        {**SIZES, "latent_dim": 3, "style_dim": 4, "mapping_layers": 1}, CONFIG
    )
    peer = training.discriminator
    for name, values in params.items():
        # The dense layer after the maps sees them flattened: ours channels last.
        if name == "block_4_fc":
            kernel = values["kernel"].reshape(4, 4, 6, 6).transpose(2, 0, 1, 3).reshape(96, 6)
            values = {**values, "kernel": kernel}
        layer = {
            "from_rgb": peer.from_rgb, "block_8_conv_0": peer.blocks[0].conv0,
            "block_8_conv_1": peer.blocks[0].conv1, "block_8_skip": peer.blocks[0].skip,
            "block_4_conv": peer.conv, "block_4_fc": peer.dense, "output_fc": peer.out,
        }[name]  # fmt: skip
        copy_layer(layer, values)

    @jax.jit
    def penalty(params):
        judge = lambda x: ours.apply({"params": params}, x)  # noqa: E731
        return r1_penalty(judge, jnp.asarray(images), weight=10.0), judge(images)

    expected_penalty, expected = penalty(params)
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(peer(inputs).detach(), expected, rtol=1e-4, atol=1e-4)
    # Weighted by the steps between.
    np.testing.assert_allclose(
        training._r1_penalty(inputs).item(), CONFIG.r1_every * expected_penalty, rtol=1e-4
    )


@pytest.mark.parametrize("up", [False, True])
def test_the_peers_styled_convolution_is_ours_but_for_the_border(torch_stylegan, up):
    import torch

    from ida_jax.ops.resample import upsample

    maps, style = normal(2, 6, 6, 3), normal(2, 4, seed=1)
    ours = _StyledConv(5)

    @jax.jit
    def styled(params, maps, style):
        x = upsample(maps) if up else maps
        noise = jnp.zeros((*x.shape[:3], 1), jnp.float32)
        return ours.apply({"params": params}, x, style, noise)

    no_noise = np.zeros((2, 6, 6, 1), np.float32)
    params = drawn(ours.init, maps, style, no_noise) | {"noise_strength": np.float32(0)}
    peer = torch_stylegan.StyledConv(3, 5, 4, up=up)
    copy_layer(peer, params)
    expected = np.asarray(styled(params, jnp.asarray(maps), jnp.asarray(style)))
    found = peer(torch.tensor(maps.transpose(0, 3, 1, 2)), torch.tensor(style))
    found = found.detach().numpy().transpose(0, 2, 3, 1)
    assert found.shape == expected.shape
    # Its transposed convolution sees what the filter spreads beyond the border.
    inside = slice(1, -1) if up else slice(None)
    np.testing.assert_allclose(
        found[:, inside, inside], expected[:, inside, inside], rtol=1e-4, atol=1e-5
    )


def test_the_peers_networks_are_as_large_as_ours(torch_stylegan):
    options = vars(bench_gan._options(["--small"]))
    sizes = {name: options[name] for name in bench_gan._SIZES}
    shared = {name: sizes[name] for name in SIZES}
    latents = jnp.zeros((1, sizes["latent_dim"]), jnp.float32)
    images = jnp.zeros((1, 64, 64, 3), jnp.float32)
    key = jax.random.key(0)
    pairs = [
        (
            torch_stylegan.Generator(**sizes),
            lambda: GeneratorNetwork(**sizes).init(key, latents, draw_noise(key, 1, 64)),
        ),
        (
            torch_stylegan.Discriminator(**shared),
            lambda: DiscriminatorNetwork(**shared).init(key, images),
        ),
    ]
    for peer, ours in pairs:
        count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(ours)))
        assert sum(parameter.numel() for parameter in peer.parameters()) == count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peer_trains_with_what_is_due_of_the_regularisation(torch_stylegan, dtype):
    import torch

    torch.manual_seed(0)
    sizes = {**SIZES, "latent_dim": 3, "style_dim": 4, "mapping_layers": 1}
    training = torch_stylegan.Training(sizes, CONFIG, dtype=getattr(torch, dtype))
    average = [p.clone() for p in training.average.parameters()]
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    losses = [training.step(number, images) for number in range(3)]
    assert [sorted(found) for found in losses] == [
        ["discriminator_loss", "generator_loss", "path_penalty", "r1"],
        ["discriminator_loss", "generator_loss"],
        ["discriminator_loss", "generator_loss", "path_penalty", "r1"],
    ]
    assert all(torch.isfinite(value) for found in losses for value in found.values())
    for before, after in zip(average, training.average.parameters(), strict=True):
        assert not torch.equal(before, after)


_SCRIPT = """
import sys
for package in ("ml_collections", "ml_collections.config_dict", "grain", "tensorflow_datasets",
                "array_record", "scann", "scipy", "cv2"):
    sys.modules[package] = None
import bench_gan
options = vars(bench_gan._options(["--small", "--resolution=8", "--latent-dim=3", "--style-dim=4",
    "--mapping-layers=1", "--channel-base=32", "--channel-max=6", "--batch-size=4"]))
program = bench_gan.ours(options, "r1_every=2+path_every=3")
assert program["run"](4, "host") > 0
assert program["describe"]()["flops_per_image"] > 0
assert program["memory"]()["temporary_bytes"] > 0
assert bench_gan.machine(options)["describe"]()["provenance"]["versions"]
"""


def test_our_updates_run_without_the_packages_that_read_data_and_configs():
    path = os.pathsep.join(map(str, (_REPOSITORY, _REPOSITORY / "experiments")))
    environment = with_devices(1) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_measurement_is_of_whole_cycles(capsys):
    with pytest.raises(SystemExit):
        bench_gan._options(["--steps=20"])
    assert "20 is not a multiple of 16" in capsys.readouterr().err
    config = bench_gan._config(vars(bench_gan._options([])), "augment_target=0.6+path_every=8")
    assert (config.augment_target, config.path_every, config.resolution) == (0.6, 8, 128)
    with pytest.raises(ValueError, match="has no 'colour'"):
        bench_gan._config(vars(bench_gan._options([])), "colour=1")
