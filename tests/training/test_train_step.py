"""A training step on every mesh against the same step written out plainly, and what it costs."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_insightface
from ml_collections import ConfigDict

from ida_jax.artefacts import face_model
from ida_jax.common.devices import training_mesh
from ida_jax.ops.margin import cross_entropy
from ida_jax.planning import hlo
from ida_jax.planning.traffic import collectives
from ida_jax.runs.config import run_section
from ida_jax.training.head_step import margin_head
from ida_jax.training.optimizer import learning_rate_schedule
from ida_jax.training.train_step import flops_per_image, make_program

CLASSES, WIDTH, SIZE, ROWS, STEPS = 13, 8, 8, 15, 3
RATE = 0.05
# Machine code that runs a few times need not be fast.
QUICK = {"xla_backend_optimization_level": 0}
pytestmark = pytest.mark.usefixtures("tiny_network")
MESHES = [(1, 1), (1, 2), (2, 2), (1, 8), (4, 2), (8, 1)]


def _config(*, rows=ROWS, dropout=0.3, **changes):
    config = run_section("test")
    config.model.network = "tiny"
    config.model.options = ConfigDict({"embedding_dim": WIDTH, "dropout_rate": dropout})
    config.model.image_size = SIZE
    config.train.update(
        {"scale": 16.0, "margin": 0.3, "batch_size": rows, "learning_rate": RATE,
         "decay_steps": (2,)} | changes
    )  # fmt: skip
    return config


def _mesh(data, model):
    return training_mesh(model, devices=jax.devices()[: data * model])


def _compiled(config, mesh, classes=CLASSES):
    program = make_program(config, num_classes=classes, mesh=mesh)
    lowered = program.step.lower(program.state, *program.batch)
    return program, lowered.compile(QUICK)


@cache
def _initial(optimizer="sgd"):
    """The state that the seed gives, on one device: values only."""
    program = make_program(_config(optimizer=optimizer), num_classes=CLASSES, mesh=_mesh(1, 1))
    return jax.tree.map(np.asarray, program.init())


def _averaged(state):
    """What the moving average is of."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def _placed(program):
    """The same state in another program's shapes and places."""

    def place(value, like):
        filled = np.zeros(like.shape, like.dtype)  # with classes that are none
        filled[tuple(map(slice, value.shape))] = value
        return jax.device_put(filled, like.sharding)

    state = _initial("sgd" if program.state.head.classes.second is None else "adamw")
    if program.state.average is not None:
        state = state._replace(average=_averaged(state))
    leaves = map(place, jax.tree.leaves(state), jax.tree.leaves(program.state))
    return jax.tree.unflatten(jax.tree.structure(program.state), leaves)


def _batch(step, rows):
    rng = np.random.default_rng(step)
    labels = rng.integers(0, CLASSES, rows).astype(np.int32)
    return rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8), labels


def _run(program, compiled, rows, *, steps=STEPS):
    """States, on the host, and metrics of the first steps; rows past `rows` pad the batch."""
    state, seen = _placed(program), []
    places = jax.tree.map(lambda like: like.sharding, program.batch)
    for step in range(steps):
        images, labels = _batch(step, rows)
        missing = program.batch[0].shape[0] - rows
        # What pads the batch must not matter: neither these pixels nor these labels.
        images = np.concatenate([images, np.full((missing, SIZE, SIZE, 3), 255, np.uint8)])
        labels = np.concatenate([labels, np.full(missing, CLASSES - 1, np.int32)])
        mask = None if program.batch[2] is None else np.arange(rows + missing) < rows
        state, metrics = compiled(state, *jax.device_put((images, labels, mask), places))
        on_host = jax.tree.map(np.array, state)
        classes = jax.tree.map(lambda x: x[:CLASSES], on_host.head.classes)
        on_host = on_host._replace(head=on_host.head._replace(classes=classes))
        seen.append((on_host, jax.tree.map(float, metrics)))
    return seen


def _plain_gradients(
    params, batch_stats, weight, norms, images, labels, key, *, kind, dropout, frozen
):  # fmt: skip
    """(loss, new statistics), and the gradients by the backbone's and the head's parameters."""
    config = _config(dropout=dropout, head=kind)
    module = face_model.build_network("tiny", config.model.options.to_dict())
    head = margin_head(config.train, num_classes=CLASSES)

    def loss(params, weight):
        embeddings, updates = module.apply(
            {"params": params, "batch_stats": batch_stats},
            (images.astype(jnp.float32) / 255 - 0.5) / 0.5,
            train=not frozen, rngs={"dropout": key}, mutable=["batch_stats"],
        )  # fmt: skip
        statistics = {"batch_stats": norms} if kind == "adaface" else {}
        logits, head_updates = head.apply(
            {"params": {"weight": weight}, **statistics}, embeddings, labels,
            mutable=["batch_stats"],
        )  # fmt: skip
        new = updates["batch_stats"], head_updates.get("batch_stats", norms)
        return jnp.mean(cross_entropy(logits, labels)), new

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, weight)


@partial(
    jax.jit,
    static_argnames=("kind", "dropout", "parts", "one_after_the_other", "clip", "frozen"),
    compiler_options=QUICK,
)
def _plain_step(
    state, batch, step, *, kind="arcface", dropout=0.3, parts=((None,),),
    one_after_the_other=True, clip=0.0, frozen=False,
):  # fmt: skip
    """JAX's derivative of the plain loss, averaged over slices of the batch; optax's SGD."""
    both, opt_state, first_stats, norms = state
    images, labels = batch
    key = jax.random.fold_in(jax.random.key(0), step)
    stats, found, losses, gradients = first_stats, [], [], []
    for number, rows in enumerate(slice(*part) for part in parts):
        (loss, (stats, norms)), gradient = _plain_gradients(
            both[0], stats if one_after_the_other else first_stats, both[1], norms,
            images[rows], labels[rows], jax.random.fold_in(key, number),
            kind=kind, dropout=dropout, frozen=frozen,
        )  # fmt: skip
        found.append(stats)
        losses.append(loss)
        gradients.append(gradient)
    mean = lambda trees: jax.tree.map(lambda *x: sum(x) / float(len(trees)), *trees)  # noqa: E731
    stats = stats if one_after_the_other else mean(found)
    by_params, by_weight = mean(gradients)
    norm = optax.tree.norm(by_params)
    if clip:
        by_params = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / norm), by_params)
    updates, opt_state = _OPTIMIZER.update((by_params, by_weight), opt_state, both)
    both = optax.apply_updates(both, updates)
    metrics = {
        "loss": mean(losses),
        "gradient_norm": norm,
        "head_velocity": jnp.linalg.norm(opt_state[1].trace[1]),
    }
    return (both, opt_state, stats, norms), metrics


_OPTIMIZER = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.trace(0.9),
    optax.scale_by_learning_rate(lambda step: jnp.where(step < 2, RATE, 0.1 * RATE)),
)


def _plain_run(rows, *, steps=STEPS, **options):
    """What `_run` should give."""
    first = _initial()
    both = first.params, first.head.classes.weight[:, 0]
    norms = {"norm_mean": first.head.norms.mean, "norm_std": first.head.norms.std}
    state, seen = (both, _OPTIMIZER.init(both), first.batch_stats, norms), []
    for step in range(steps):
        state, metrics = _plain_step(state, _batch(step, rows), jnp.int32(step), **options)
        seen.append((state, metrics))
    return seen


def _assert_close(found, expected, rtol=1e-4):
    def check(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        # 1e-6: what BatchNorm cancels is 0 but for rounding.
        off, allowed = np.max(np.abs(a - b)), rtol * np.max(np.abs(b)) + 1e-6
        assert off <= allowed, f"{jax.tree_util.keystr(path)}: off by {off}, allowed {allowed}"

    jax.tree_util.tree_map_with_path(check, found, expected)


def _assert_same_run(found, expected):
    for (state, metrics), ((both, opt_state, stats, norms), plain) in zip(
        found, expected, strict=True
    ):
        classes = state.head.classes
        (trace,) = [x.trace for x in _flat(state.opt_state) if isinstance(x, optax.TraceState)]
        _assert_close(
            {"metrics": {name: metrics[name] for name in plain},
             "parameters": (state.params, classes.weight[:, 0]),
             "momenta": (trace, classes.momentum[:, 0]),  # of the first step: the gradients
             "statistics": (state.batch_stats, tuple(state.head.norms))},
            {"metrics": plain, "parameters": both, "momenta": opt_state[1].trace,
             "statistics": (stats, (norms["norm_mean"], norms["norm_std"]))},
        )  # fmt: skip


def _flat(opt_state):
    is_leaf = lambda x: isinstance(x, optax.TraceState)  # noqa: E731
    return jax.tree.leaves(opt_state, is_leaf=is_leaf)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [*((mesh, {"class_block": 3 if mesh[1] == 2 else 0}) for mesh in MESHES),
     ((1, 1), {"remat": True})],
)  # fmt: skip
def test_every_mesh_takes_the_plain_steps(mesh, changes):
    program, compiled = _compiled(_config(**changes), _mesh(*mesh))
    # 15 rows on 2, 4 or 8 devices are padded, 13 classes likewise; dropout draws the same.
    assert (program.batch[2] is None) == (mesh == (1, 1))
    _assert_same_run(_run(program, compiled, ROWS), _plain_run(ROWS))
    if mesh == (1, 8):
        for rows in (9, 16):  # the same program, from almost half padding to none
            _assert_same_run(_run(program, compiled, rows, steps=1), _plain_run(rows, steps=1))


def test_adaface_and_its_statistics():
    program, compiled = _compiled(_config(head="adaface"), _mesh(4, 2))
    found, expected = _run(program, compiled, ROWS), _plain_run(ROWS, kind="adaface")
    _assert_same_run(found, expected)
    assert found[-1][0].head.norms.mean < 20 * 0.99  # they have moved


def test_accumulation_clipping_and_the_moving_average():
    clip, decay = 0.5, 0.15
    config = _config(rows=16, accumulate=2, clip_norm=clip, ema_decay=decay, class_block=3)
    program, compiled = _compiled(config, _mesh(4, 2))
    halves = ((0, None, 2), (1, None, 2))
    found = _run(program, compiled, 16)
    expected = _plain_run(16, parts=halves, clip=clip)
    _assert_same_run(found, expected)
    assert all(plain["gradient_norm"] > clip for _, plain in expected)

    average = _averaged(_initial())
    for step, (state, _) in enumerate(found):
        kept = min(decay, (1 + step) / (10 + step))  # 0.1, then 0.15
        average = jax.tree.map(
            lambda a, x, kept=kept: kept * a + (1 - kept) * x, average, _averaged(state)
        )
        _assert_close(state.average, average, rtol=1e-6)


def test_adamw_moves_backbone_and_classes_by_their_gradients():
    """Moments of the plain step's gradients; weights by these, as PyTorch's formula has it."""
    decay, betas = 0.1, (0.9, 0.999)
    config = _config(optimizer="adamw", weight_decay=decay, class_block=3)
    program, compiled = _compiled(config, _mesh(4, 2))
    start = _initial()
    before = (start.params, start.head.classes.weight[:, 0])
    norms = {"norm_mean": start.head.norms.mean, "norm_std": start.head.norms.std}
    stats = start.batch_stats
    zero = jax.tree.map(np.zeros_like, before)
    first, second = zero, zero
    for step, (state, metrics) in enumerate(_run(program, compiled, ROWS, steps=2)):
        plain = (before, _OPTIMIZER.init(before), stats, norms)
        (_, (_, sgd, _), _, _), expected = _plain_step(plain, _batch(step, ROWS), jnp.int32(step))
        # From no momentum: the gradient, and the decay that SGD counts among it.
        gradient = jax.tree.map(lambda v, w: np.float64(v) - 5e-4 * w, sgd.trace, before)
        first = jax.tree.map(lambda m, g: betas[0] * m + (1 - betas[0]) * g, first, gradient)
        second = jax.tree.map(lambda v, g: betas[1] * v + (1 - betas[1]) * g**2, second, gradient)
        adam, classes = state.opt_state[0], state.head.classes
        moments = (adam.mu, classes.momentum[:, 0]), (adam.nu, classes.second[:, 0])
        _assert_close(moments, (first, second))
        after = (state.params, classes.weight[:, 0])
        t = step + 1

        def moved(w, m, v, t=t):
            m, v = np.float64(m) / (1 - betas[0] ** t), np.float64(v) / (1 - betas[1] ** t)
            return w - RATE * (m / (np.sqrt(v) + 1e-8) + decay * w)

        _assert_close(after, jax.tree.map(moved, before, *moments))
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
        before, stats = after, state.batch_stats


def test_batch_norm_per_device_is_that_of_groups_of_their_own():
    config = _config(rows=32, batch_norm="per_device", dropout=0.0)
    program, compiled = _compiled(config, _mesh(2, 2))
    groups = tuple((first, first + 8) for first in range(0, 32, 8))
    expected = _plain_run(32, parts=groups, one_after_the_other=False, dropout=0.0, steps=1)
    found = _run(program, compiled, 32, steps=1)
    _assert_same_run(found, expected)
    one_group = _plain_run(32, dropout=0.0, steps=1)
    assert abs(one_group[0][1]["loss"] - found[0][1]["loss"]) > 0.01


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)])
def test_frozen_batch_norm_steps_by_the_evaluated_networks_gradient(mesh):
    config = _config(batch_norm="frozen", dropout=0.0, ema_decay=0.5)
    found = _run(*_compiled(config, _mesh(*mesh)), ROWS)
    _assert_same_run(found, _plain_run(ROWS, dropout=0.0, frozen=True))
    first = _initial()
    for state, _ in found:
        for stats in (state.batch_stats, state.average["batch_stats"]):
            jax.tree.map(np.testing.assert_array_equal, stats, first.batch_stats)
    moved = jax.tree.map(lambda a, b: np.any(a != b), found[-1][0].params, first.params)
    assert all(jax.tree.leaves(moved))  # scales and biases, too


def test_the_first_state_is_the_same_on_every_mesh():
    program = make_program(_config(), num_classes=CLASSES, mesh=_mesh(1, 8))
    state = program.init()
    assert state.head.classes.weight.shape == (16, 1, WIDTH)
    assert {shard.data.shape[0] for shard in state.head.classes.weight.addressable_shards} == {2}
    on_host = jax.tree.map(np.asarray, state)
    classes = jax.tree.map(lambda x: x[:CLASSES], on_host.head.classes)
    on_host = on_host._replace(head=on_host.head._replace(classes=classes))
    _assert_close(on_host, _initial(), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "steps", "decay_steps": (4, 8)}, {0: 1, 3: 1, 4: 0.1, 8: 0.01, 9: 0.01}),
        ({"schedule": "steps", "decay_steps": (), "warmup_steps": 4}, {0: 0.25, 3: 1, 4: 1}),
        ({"schedule": "linear"}, {0: 1, 5: 0.5, 9: 0.1, 10: 0}),
        ({"schedule": "linear", "warmup_steps": 2}, {0: 0.5, 1: 1, 2: 1, 6: 0.5, 9: 0.125, 11: 0}),
    ],
)
def test_learning_rates(changes, expected):
    schedule = learning_rate_schedule(_config(steps=10, **changes).train)
    for step, factor in expected.items():
        assert float(schedule(jnp.int32(step))) == pytest.approx(RATE * factor, rel=1e-6), step


def test_the_polynomial_rates_are_polyschedulers_a_step_earlier():
    config = _config(steps=10, schedule="polynomial")
    ours = [float(learning_rate_schedule(config.train)(jnp.int32(step))) for step in range(10)]
    theirs = reference_insightface.polynomial_rates(RATE, total=10, power=2)
    np.testing.assert_allclose(ours[:-1], theirs[1:], rtol=1e-6)
    config.train.power = 1.0
    linear = _config(steps=10, schedule="linear")
    one, other = (learning_rate_schedule(of.train) for of in (config, linear))
    for step in (0, 3, 9, 12):
        assert one(step) == other(step)


@pytest.mark.parametrize("warmup", [0, 3])
def test_insightfaces_warm_up_is_a_step_behind_ours(warmup):
    expected = reference_insightface.learning_rates(RATE, warmup=warmup, total=10)
    config = _config(steps=10, schedule="linear", warmup_steps=warmup)
    ours = [float(learning_rate_schedule(config.train)(jnp.int32(step))) for step in range(10)]
    np.testing.assert_allclose(ours[warmup:], expected[warmup:], rtol=1e-6)
    np.testing.assert_allclose(ours[:warmup], expected[1 : warmup + 1], rtol=1e-6)
    assert expected[0] == RATE


def _bytes_sent(compiled):
    return sum(c.count * c.bytes_sent for c in collectives(hlo.parse(compiled.as_text())))


def test_what_a_step_sends_and_holds_does_not_grow_with_the_classes():
    few, many, block = 20_000, 200_000, 1_000
    sharded = [
        _compiled(_config(class_block=block), _mesh(1, 8), classes)[1] for classes in (few, many)
    ]
    # Not a byte more; neither the [B, C] logits nor a [C, D] gradient are ever there.
    assert _bytes_sent(sharded[0]) == _bytes_sent(sharded[1]) > 0
    memory = [compiled.memory_analysis() for compiled in sharded]
    own = 2 * 4 * WIDTH * (many - few) // 8  # weights and momentum
    assert memory[1].argument_size_in_bytes - memory[0].argument_size_in_bytes == own
    assert memory[1].temp_size_in_bytes < memory[0].temp_size_in_bytes + 4 * block

    # Twice the batch: the embeddings there and their gradient back, 8 numbers a row at most.
    double = _compiled(_config(rows=32, class_block=block), _mesh(1, 8), few)[1]
    more = _bytes_sent(double) - _bytes_sent(sharded[0])
    assert 16 * 4 * 2 * WIDTH * 7 / 8 <= more <= 16 * 4 * (2 * WIDTH + 8) * 2

    # Where every device has all classes, their gradient is what is sent and held.
    whole = [_compiled(_config(), _mesh(8, 1), classes)[1] for classes in (CLASSES, few)]
    gradient = 4 * WIDTH * (few - CLASSES)
    assert _bytes_sent(whole[1]) - _bytes_sent(whole[0]) == pytest.approx(2 * gradient * 7 / 8)
    assert whole[1].memory_analysis().temp_size_in_bytes > gradient


def test_flops_of_an_image_are_three_passes_of_its_products():
    config = run_section("test")
    config.model.network, config.model.image_size = "iresnet_nano", 32
    config.train.sample_rate, config.train.sub_centres = 0.5, 3
    # (output side, kernel side, channels in, out) of every convolution of iresnet_nano.
    convolutions = [(32, 3, 3, 16)]
    side, channels = 32, 16
    for width in (16, 32, 64, 128):
        convolutions += [(side, 3, channels, width), (side // 2, 3, width, width)]
        convolutions += [(side // 2, 1, channels, width)]  # the shortcut
        side, channels = side // 2, width
    forward = sum(2 * s * s * k * k * i * o for s, k, i, o in convolutions)
    forward += 2 * (side * side * channels) * 256
    head = 2 * 0.5 * 1000 * 3 * 256
    assert flops_per_image(config, num_classes=1000) == pytest.approx(3 * (forward + head))
