"""The plan: HLO texts with hand-computed costs, flops against formulas, the command itself."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ida_jax import plan
from ida_jax.common.errors import UserError
from ida_jax.planning.flops import count_flops
from ida_jax.planning.hlo import array_bytes, parse, unknown_loops
from ida_jax.planning.topology import CHIPS, hops, open_topology, peak_flops
from ida_jax.planning.traffic import Collective, collectives, memory_bytes
from ida_jax.runs.config_flags import parse_config
from ida_jax.runs.programs import Sizes, device_program


def _module(name):
    return parse((Path(__file__).parent / "hlo" / f"{name}.txt").read_text())


def test_collectives_in_loops_count_as_often_as_they_run():
    # The first loop's rounds are written down, those of the one inside it are in its condition, the
    # last one's are not known.
    module = _module("loops")
    sent = 2 * 100 * 16 * 4 * 3 / 4
    assert collectives(module) == [
        Collective("all-reduce", 15, 4, sent),
        Collective("all-reduce", 1, 4, sent),
    ]
    assert unknown_loops(module) == 1


def test_bytes_that_each_kind_of_collective_sends():
    array, gathered = 64 * 4 * 4, 8 * 64 * 2
    assert collectives(_module("kinds")) == [
        Collective("reduce-scatter", 1, 8, array * 7 / 8),
        Collective("reduce-scatter", 1, 8, array * 7 / 8),
        Collective("all-to-all", 1, 2, array / 2),
        Collective("collective-permute", 1, 2, array),
        Collective("all-reduce", 1, 8, 2 * (array + gathered) * 7 / 8),
        Collective("all-gather", 1, 4, gathered * 3),
        Collective("all-reduce", 1, 2, array),
    ]


def test_memory_counts_slices_and_leaves_out_what_is_on_the_chip():
    block = 10 * 8 * 4
    # A round reads a block and its number, and writes the block; the copy reads g once.
    assert memory_bytes(_module("memory")) == 100 * (2 * block + 4) + block


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f32[]", 4), ("pred[3]", 3), ("bf16[5,7]{1,0:T(8,128)(2,1)S(1)}", 70), ("s4[6]", 3),
        ("(f32[2]{0}, (u8[3], c64[1]), token[])", 19), ("f8e4m3fn[9]", 9), ("f32[<=8,2]", 64),
    ],
)  # fmt: skip
def test_array_bytes(text, expected):
    assert array_bytes(text) == expected


def _flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.jit(function).trace(*arguments).jaxpr)


def test_flops_of_products_loops_and_branches():
    high = jax.lax.Precision.HIGHEST
    assert _flops(jnp.matmul, (3, 5), (5, 7)) == (210, 210)
    assert _flops(lambda a, b: jnp.matmul(a, b, precision=high), (3, 5), (5, 7)) == (210, 1260)

    def loop(a):
        return jax.lax.fori_loop(0, 4, lambda _, x: jnp.tanh(x @ x), a)

    assert _flops(loop, (3, 3)) == (4 * 54, 4 * 54)
    assert _flops(jax.checkpoint(loop), (3, 3)) == (4 * 54, 4 * 54)

    def branches(a):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a @ a @ a)

    assert _flops(branches, (3, 3)).flops == 108


def test_flops_of_a_convolution_and_its_gradients():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=8,
        )  # fmt: skip

    forward = 2 * (4 * 8 * 8 * 16) * (3 * 3 * 8)
    assert _flops(convolve, (4, 16, 16, 8), (3, 3, 8, 16)).flops == forward
    assert _flops(grouped, (4, 16, 16, 8), (3, 3, 1, 8)).flops == 2 * (4 * 16 * 16 * 8) * 9

    def loss(x, kernel):
        return jnp.sum(jnp.square(convolve(x, kernel)))

    for argument in (0, 1):
        both = _flops(jax.grad(loss, argument), (4, 16, 16, 8), (3, 3, 8, 16)).flops
        np.testing.assert_allclose(both, 2 * forward)


def test_flops_of_a_shard_map_are_those_of_all_devices():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec(("data", "model"))
    product = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
    )
    assert _flops(product, (16, 5), (5, 7)).flops == 2 * 16 * 5 * 7


def test_hops_of_a_square_torus_are_half_its_sides():
    assert hops(256, CHIPS["v5e"]) == 16
    np.testing.assert_allclose(hops(64, CHIPS["v5p"]), 6)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [("NVIDIA H100 80GB HBM3", 989e12, 494e12), ("NVIDIA H100 PCIe", 756e12, 378e12),
     ("NVIDIA A100-SXM4-80GB", 312e12, 156e12), ("TPU v5 lite", 197e12, 197e12),
     ("TPU v5", 459e12, 459e12), ("cpu", None, None),
     ("NVIDIA L40S", None, None), ("TPU7x", 1153.5e12, 1153.5e12)],
)  # fmt: skip
def test_the_longest_matching_name_gives_the_peak(kind, bfloat16, float32):
    assert peak_flops("bfloat16", kind) == bfloat16
    assert peak_flops("float32", kind) == float32


_CONFIG = """
from ml_collections import ConfigDict
from ida_jax.runs.config import train_section

def get_config():
    c = ConfigDict()
    c.seed, c.stages, c.data_dir = 0, ("train",), "nowhere"
    c.train_data = ConfigDict({"name": "rendered", "identities": 41, "dataset": "ms1m"})
    c.model = ConfigDict({"network": "iresnet_nano", "image_size": 16})
    c.model.mean = c.model.std = (0.5, 0.5, 0.5)
    c.model.options = ConfigDict({"embedding_dim": 32, "dropout_rate": 0.4, "dtype": "bfloat16"})
    c.train = train_section()
    c.train.steps, c.train.batch_size = 100, 32
    return c
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command on the small config, with further flags; returns its JSON."""
    (tmp_path / "config.py").write_text(_CONFIG)

    def run(*flags):
        argv = [f"--config={tmp_path / 'config.py'}", f"--json={tmp_path / 'plan.json'}", *flags]
        monkeypatch.setattr(sys, "argv", ["plan", *argv])
        plan.main(argv)
        return json.loads((tmp_path / "plan.json").read_text())

    return run


def test_plan_on_fake_devices(command, capsys):
    result = command(
        "--topology=cpu:8", "--config.train.batch_size=24", "--config.train.class_block=4"
    )
    assert (result["devices"], result["classes"], result["rows_per_device"]) == (8, 41, 3)
    assert result["fits"]
    assert "bound" not in result
    costs = result["parts"]["step"]["costs"]
    memory = costs["memory"]
    # The state is updated in place.
    assert memory["aliased"] > 0.9 * memory["outputs"]
    # The backbone's gradient is what the devices exchange most of.
    backbone = memory["outputs"] / 2
    assert backbone < costs["sent"]["all-reduce"]["bytes"] < 2.5 * backbone
    # Embeddings and labels are gathered, class weights are not.
    assert 0 < costs["sent"]["all-gather"]["bytes"] < 48 * 32 * 4
    assert costs["unknown_loops"] == 0
    np.testing.assert_allclose(costs["flops"], costs["xla_flops"], rtol=0.2)
    assert "iresnet_nano, 41 classes, batch 24" in capsys.readouterr().out


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@needs_libtpu
def test_plan_for_a_small_tpu_slice(command, capsys):
    result = command("--topology=v5e:2x2", "--classes=1000")
    assert (result["chips"], result["devices"], result["classes"]) == (4, 4, 1000)
    assert result["rows_per_device"] == 8
    assert result["fits"]
    costs = result["parts"]["step"]["costs"]
    assert costs["memory"]["limit"] == 16 * 2**30
    bound = result["bound"]
    assert bound["step_seconds"] == max(bound["seconds"].values())
    assert bound["seconds"][bound["binds"]] == bound["step_seconds"]
    np.testing.assert_allclose(bound["images_per_second"], 32 / bound["step_seconds"])
    np.testing.assert_allclose(bound["hours"], 100 * bound["step_seconds"] / 3600)
    np.testing.assert_allclose(costs["flops"], costs["xla_flops"], rtol=0.2)
    assert "verdict           fits" in capsys.readouterr().out


@needs_libtpu
def test_a_step_that_does_not_fit_ends_with_1(command, monkeypatch, capsys):
    from ida_jax.training import train_step

    def too_large(config, *, num_classes, mesh):
        replicated = jax.sharding.NamedSharding(mesh, PartitionSpec())
        state = jax.ShapeDtypeStruct((5 << 30,), jnp.float32, sharding=replicated)
        step = jax.jit(lambda state, images: (state + 1.0, images), donate_argnums=0)
        images = jax.ShapeDtypeStruct((4,), jnp.uint8, sharding=replicated)
        return train_step.Program(step, None, state, (images,))

    monkeypatch.setattr("ida_jax.runs.programs.make_program", too_large)
    with pytest.raises(SystemExit) as ending:
        command("--topology=v5e:2x2")
    assert ending.value.code == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "devices", "per_chip"),
    [("v5e:1x1", 1, 1), ("v5p:2x2x1", 4, 1), ("v3:2x2x1", 8, 2), ("tpu7x:2x2x1", 8, 2)],
)
def test_topologies(name, devices, per_chip):
    topology = open_topology(name)
    assert (len(topology.devices), topology.devices_per_chip) == (devices, per_chip)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e"], "expected KIND:SHAPE"),
        (["--topology=v9:2x2"], "h200, h100, a100, v2, v3"),
        (["--topology=gpu:8"], "one of h200, h100, a100"),
        (["--topology=h200:2x2"], "a number of devices, such as h200:8"),
        (["--topology=h200:12"], "expected a multiple of it"),
        (["--topology=cpu:2x2"], "a number of devices"),
        (["--topology=cpu:64"], "already asks for 8"),
        (["--topology=cpu:8", "--classes=0"], "expected 1 or more"),
        (["--topology=cpu:8", "--program=gan"], "the config has no 'gan', which --program=gan"),
        (["--topology=cpu:8", "--program=gans"], "invalid choice: 'gans'"),
        (["--topology=cpu:8", "--faces=0"], "--faces=0: expected 1 or more"),
        (["--topology=cpu:8", "--config.train_data.name=tfds"], "give --classes=C"),
        (["--topology=cpu:8", "--config.train_data.name=lfw"], "give --classes=C"),
        (["--topology=cpu:8", "--config.train.accumulate=3"], "8 devices"),
        (["--topology=cpu:8", "--config.train.batchsize=3"], "did you mean"),
        (["--topology=cpu:8", "--class=3"], "class"),
        (["--topology=cpu:8", "more"], "unknown flag 'more'"),
        (["--topology=cpu:8", "--config.stages=('import',)"], "none of them trains"),
        ([], "--topology"),
        pytest.param(["--topology=v5e:3x3"], "not divisible", marks=needs_libtpu),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        command(*flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "plan.json").exists()


_WHOLE = """
from ml_collections import ConfigDict
from ida_jax.runs.config import run_section

def get_config():
    c = run_section("small")
    c.train_data = ConfigDict({"name": "rendered", "identities": 41, "images_per_identity": 2})
    c.train_data.image_size = c.model.image_size = 16
    c.model.network = "iresnet_nano"
    c.model.options = ConfigDict({"embedding_dim": 24, "dtype": "bfloat16"})
    c.train.batch_size, c.anchors.size, c.pfe.identities = 32, 130, 8
    c.gan.update(resolution=8, channel_max=8, latent_dim=8, style_dim=8, batch_size=16)
    return c
"""
_FACES = 70


@pytest.fixture(scope="module")
def whole_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(_WHOLE)
    config, _ = parse_config([f"--config={path}"])
    return config


def absurdities(jaxpr):
    """What no GPU has a fast kernel for.

    Convolutions whose window is larger than a kernel, unless they are a kernel's gradient in the
    form that XLA knows (no zeros between the pixels of the map, and a small result); float64; sorts
    of more than 4,096; scatters.
    """
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        values = [v.aval for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "dtype")]
        if name == "conv_general_dilated":
            numbers, kernel = parameters["dimension_numbers"], equation.invars[1].aval.shape
            window = max(kernel[axis] for axis in numbers.rhs_spec[2:])
            result = max(equation.outvars[0].aval.shape[axis] for axis in numbers.out_spec[2:])
            if window > 3 and (result > 3 or max(parameters["lhs_dilation"]) > 1):
                yield f"a window of {window} for a result of {result}"
        if any(value.dtype == "float64" for value in values):
            yield f"{name} in float64"
        if name == "sort" and values[0].shape[parameters["dimension"]] > 4096:
            yield f"a sort of {values[0].shape}"
        if name.startswith("scatter"):
            yield f"{name} into {values[0].shape}"
        for body in jax.tree.leaves(parameters, is_leaf=lambda x: hasattr(x, "eqns")):
            body = getattr(body, "jaxpr", body)
            if hasattr(body, "eqns"):
                yield from absurdities(body)


def test_an_absurd_convolution_is_seen():
    """JAX's own derivative of a gradient's norm, as R1 is one."""
    conv = partial(jax.lax.conv, window_strides=(2, 2), padding="VALID")
    by_x = jax.grad(lambda x, kernel: jnp.sum(conv(x, kernel) ** 2))
    x, kernel = jnp.zeros((2, 2, 17, 17)), jnp.zeros((2, 2, 3, 3))
    penalty = jax.grad(lambda kernel: jnp.sum(by_x(x, kernel) ** 2))
    assert list(absurdities(jax.make_jaxpr(penalty)(kernel).jaxpr)) != []
    double = jax.make_jaxpr(lambda x: jnp.sort(jnp.zeros(5000).at[0].add(x)))(0.0)
    assert len(list(absurdities(double.jaxpr))) == 2


@pytest.mark.parametrize(
    ("name", "parts", "devices", "flops"),
    [
        ("train", {"step": 1}, 8, None),
        ("embed", {"embed": 1}, 8, None),
        ("search", {"search": 1}, 8, 2 * 8 * 4096 * 130 * 24),
        ("pairs", {"pairs": 1}, 1, 2 * 131072 * 24),
        # A slab of a few faces is 64 on each device.
        ("identify", {"identify": 1}, 8, 2 * 1024 * 8 * 64 * 24),
        ("gan", {"generator": 1, "discriminator": 1, "r1": 16, "path_length": 4}, 8, None),
        ("pfe", {"backbone": 1, "step": 1}, 8, None),
        # Three products of 512 faces with the hidden layer, less the gradient by the faces.
        ("ssr", {"steps": 100}, 1, 100 * 512 * 2 * (2 * 24 * 256 + 3 * 256)),
    ],
)
def test_every_device_program(whole_config, name, parts, devices, flops):
    program = device_program(name, whole_config, jax.devices(), Sizes(lambda: 41, _FACES, 16))
    assert {part.name: part.every for part in program.parts} == parts
    assert program.mesh.size == devices
    traced = [part.function.trace(*part.arguments).jaxpr for part in program.parts]
    counted = [count_flops(jaxpr).flops for jaxpr in traced]
    assert counted[0] > 0
    seen = {find for jaxpr in traced for find in absurdities(jaxpr.jaxpr)}
    # The gradient by the images of the augmentation, which moves pixels.
    assert seen == ({"scatter-add into (16, 64, 3)"} if name == "gan" else set())
    if flops is not None:
        assert counted[0] == flops


def test_targets_of_the_ssr_module_that_each_step_searches(whole_config):
    with whole_config.copy_and_resolve_references().unlocked() as config:
        config.ssr.targets = "on_the_fly"
    (part,) = device_program("ssr", config, jax.devices(), Sizes(None, _FACES, 1)).parts
    searched = count_flops(part.function.trace(*part.arguments).jaxpr).flops
    (part,) = device_program("ssr", whole_config, jax.devices(), Sizes(None, _FACES, 1)).parts
    given = count_flops(part.function.trace(*part.arguments).jaxpr).flops
    assert searched - given == 100 * 2 * 512 * 130 * 24


@pytest.mark.parametrize(("program", "devices"), [("pairs", 1), ("identify", 2)])
def test_the_command_plans_other_programs(tmp_path, program, devices, capsys):
    (tmp_path / "config.py").write_text(_WHOLE)
    json_path = tmp_path / "plan.json"
    plan.main([
        f"--config={tmp_path / 'config.py'}", "--topology=cpu:2", f"--program={program}",
        "--faces=70", f"--json={json_path}",
    ])  # fmt: skip
    result = json.loads(json_path.read_text())
    assert (result["program"], result["devices"], result["faces"]) == (program, devices, 70)
    assert "70" in capsys.readouterr().out


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"pip install 'ida_jax\[tpu\]'"):
        open_topology("v5e:2x2")


def test_a_config_is_needed(monkeypatch):
    with pytest.raises(UserError, match="expected --config=FILE"):
        plan.main(["--topology=cpu:8"])
