"""The blockwise, sharded softmax and its update against the plain loss in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_insightface
from jax.sharding import PartitionSpec as P

from ida_jax.common.devices import padded_classes, training_mesh
from ida_jax.models.margin_head import MarginHead
from ida_jax.ops.class_optimizers import AdamW, ClassWeights, Sgd
from ida_jax.ops.class_softmax import PRODUCTS, Sampled, sample_classes, softmax_step

ROWS, WIDTH, RATE, MU, DECAY = 16, 6, 0.1, 0.9, 5e-4


def _problem(classes, sub_centres=1, seed=0):
    rng = np.random.default_rng(seed)
    embeddings = reference.unit((ROWS, WIDTH), 100 + seed).astype(np.float32)
    weight = rng.normal(0, 0.1, (classes, sub_centres, WIDTH)).astype(np.float32)
    momentum = rng.normal(0, 0.1, weight.shape).astype(np.float32)
    labels = rng.integers(0, classes, ROWS).astype(np.int32)
    return embeddings, weight, momentum, labels


_MARGINS = {
    "arcface": reference.arcface,
    "cosface": lambda c, m: c - m,
    "l2_softmax": lambda c, m: c,
    "sphereface": reference.sphereface,
    "combined": reference.combined,
}


def _plain(head, embeddings, weight, labels, row_weights):
    """Loss, gradients by unit embeddings and by weights, from the [B, C] logits, in float64."""
    f, w = np.float64(embeddings), np.float64(weight)
    norms = np.linalg.norm(w, axis=-1, keepdims=True)
    unit = w / norms
    margin = lambda c: head.scale * _MARGINS[head.kind](c, head.margin)  # noqa: E731
    loss, by_f, by_unit = 0.0, np.zeros_like(f), np.zeros_like(w)
    for b, y in enumerate(labels):
        nearest = np.argmax(unit @ f[b], axis=1)
        centres = unit[np.arange(len(w)), nearest]
        cosines = centres @ f[b]
        is_out = (cosines > head.interclass_filtering_threshold) & (np.arange(len(w)) != y)
        is_out &= head.interclass_filtering_threshold > 0
        logits = head.scale * np.where(is_out, 0.0, cosines)
        logits[y] = margin(cosines[y])
        p = np.exp(logits - logits.max())
        p /= p.sum()
        loss -= row_weights[b] * np.log(p[y])
        slopes = np.where(is_out, 0.0, head.scale * p)
        step = 1e-6
        slopes[y] = (
            (p[y] - 1) * (margin(cosines[y] + step) - margin(cosines[y] - step)) / (2 * step)
        )
        slopes *= row_weights[b]
        by_f[b] = slopes @ centres
        by_unit[np.arange(len(w)), nearest] += slopes[:, None] * f[b]
    along = np.sum(by_unit * unit, axis=-1, keepdims=True)
    return loss, by_f, (by_unit - along * unit) / norms


def _sharded(
    head, embeddings, weight, momentum, labels, row_weights, *, mesh, block=0, sampled=None,
    parts=(True, True), dense=True, adamw=None,
):  # fmt: skip
    classes = len(weight)
    fill = ((0, padded_classes(classes, mesh) - classes), (0, 0), (0, 0))
    weight, momentum = np.pad(weight, fill), np.pad(momentum, fill)
    optimizer = Sgd(jnp.float32(RATE), MU, DECAY, *map(jnp.bool_, parts))
    moments = [momentum]
    if adamw is not None:  # (steps taken, second moments)
        optimizer = AdamW(jnp.float32(RATE), DECAY, jnp.int32(adamw[0] + 1))
        moments.append(np.pad(adamw[1], fill))

    def on_device(embeddings, classes_here, labels, row_weights):
        gather = lambda x: jax.lax.all_gather(x, "model", tiled=True)  # noqa: E731
        out = softmax_step(
            embeddings, gather(labels), gather(row_weights), classes_here, head.label_logits,
            optimizer, num_classes=classes, scale=head.scale,
            filter_above=head.interclass_filtering_threshold, block=block, sampled=sampled,
            dense=dense,
        )  # fmt: skip
        loss = jax.lax.psum(jnp.sum(gather(row_weights) * out.losses), "data")
        return loss, out.gradient, out.classes, jax.lax.psum(out.velocity_squared, "model")

    rows = P(("data", "model"))
    step = jax.shard_map(
        on_device, mesh=mesh, in_specs=(rows, P("model"), rows, rows),
        out_specs=(P(), rows, P("model"), P()), check_vma=False,
    )  # fmt: skip
    loss, gradient, out, squared = jax.jit(step)(
        embeddings, ClassWeights(weight, *moments), labels, row_weights
    )
    second = () if adamw is None else (out.second[:classes],)
    return loss, gradient, out.weight[:classes], out.momentum[:classes], squared, *second


def _mesh(devices, shards):
    return training_mesh(shards, devices=jax.devices()[:devices])


@pytest.mark.parametrize(("devices", "shards"), [(1, 1), (8, 8), (8, 2), (8, 1)])
@pytest.mark.parametrize(("classes", "block"), [(13, 0), (13, 1), (16, 5), (17, 16)])
def test_it_is_the_plain_softmax(devices, shards, classes, block):
    head = MarginHead(classes, "arcface", 16.0, 0.3)
    embeddings, weight, momentum, labels = _problem(classes)
    row_weights = np.full(ROWS, 1 / ROWS, np.float32)
    loss, by_embeddings, by_weight = _plain(head, embeddings, weight, labels, row_weights)
    got = _sharded(
        head, embeddings, weight, momentum, labels, row_weights,
        mesh=_mesh(devices, shards), block=block,
    )  # fmt: skip
    velocity = MU * momentum + by_weight + DECAY * weight
    np.testing.assert_allclose(got[0], loss, rtol=1e-5)
    np.testing.assert_allclose(got[1], by_embeddings, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[3], velocity, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2], weight - RATE * velocity, rtol=1e-5, atol=1e-6)
    # Rows that pad have no weights and no momentum.
    np.testing.assert_allclose(got[4], np.sum(np.square(velocity)), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "margin", "centres"),
    [("cosface", 0.35, 1), ("l2_softmax", None, 1), ("sphereface", 4, 1), ("arcface", 0.5, 3),
     ("combined", (0.9, 0.3, 0.1), 2)],
)  # fmt: skip
def test_every_margin_and_sub_centres(kind, margin, centres):
    head = MarginHead(11, kind, 16.0, margin, sub_centres=centres)
    embeddings, weight, momentum, labels = _problem(11, centres)
    row_weights = np.linspace(0, 1, ROWS).astype(np.float32)
    loss, by_embeddings, by_weight = _plain(head, embeddings, weight, labels, row_weights)
    got = _sharded(
        head, embeddings, weight, momentum, labels, row_weights, mesh=_mesh(2, 2), block=4
    )
    velocity = MU * momentum + by_weight + DECAY * weight
    np.testing.assert_allclose(got[0], loss, rtol=1e-5)
    np.testing.assert_allclose(got[1], by_embeddings, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2], weight - RATE * velocity, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "margin", "centres"), [("arcface", 0.5, 1), ("cosface", 0.4, 2)])
def test_interclass_filtering_is_arcface_torchs(kind, margin, centres):
    """Others' cosines above the threshold are 0, in the softmax's sum too, and without gradient."""
    threshold, classes = 0.3, 11
    head = MarginHead(
        classes, kind, 16.0, margin, sub_centres=centres, interclass_filtering_threshold=threshold
    )
    embeddings, weight, momentum, labels = _problem(classes, centres)
    unit = weight / np.linalg.norm(weight, axis=-1, keepdims=True)
    cosines = np.max(np.einsum("bd,csd->bcs", embeddings, unit), axis=-1)
    is_label = labels[:, None] == np.arange(classes)
    assert (cosines[is_label] > threshold).any()  # a label's cosine is never filtered
    assert 10 < np.sum((cosines > threshold) & ~is_label) < cosines.size / 2
    np.testing.assert_allclose(
        reference_insightface.filtered_cosines(cosines, labels, threshold),
        np.where((cosines > threshold) & ~is_label, 0, cosines),
    )
    row_weights = np.full(ROWS, 1 / ROWS, np.float32)
    loss, by_embeddings, by_weight = _plain(head, embeddings, weight, labels, row_weights)
    got = _sharded(
        head, embeddings, weight, momentum, labels, row_weights, mesh=_mesh(4, 2), block=4
    )
    velocity = MU * momentum + by_weight + DECAY * weight
    np.testing.assert_allclose(got[0], loss, rtol=1e-5)
    np.testing.assert_allclose(got[1], by_embeddings, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[3], velocity, rtol=1e-5, atol=1e-5)
    variables = {"params": {"weight": weight[:, 0] if centres == 1 else weight}}
    logits = np.float64(jax.jit(head.apply)(variables, embeddings, labels))
    plain = np.log(np.sum(np.exp(logits), 1)) - logits[np.arange(ROWS), labels]
    np.testing.assert_allclose(plain.mean(), loss, rtol=1e-5)


@pytest.mark.parametrize("taken", [0, 7])
@pytest.mark.parametrize("dense", [True, False])
def test_adamw_is_pytorchs(taken, dense):
    """Sampled classes by their gradient, the others by one of 0, or not at all."""
    torch = pytest.importorskip("torch")
    head, classes = MarginHead(9, "cosface", 16.0, 0.3), 9
    embeddings, weight, momentum, labels = _problem(classes)
    labels = labels % 4  # of the classes 0 … 3
    second = np.square(momentum) * 0.3
    row_weights = np.full(ROWS, 1 / ROWS, np.float32)
    sampled = Sampled(jnp.arange(6, dtype=jnp.int32), 6, 6)
    _, _, by_weight = _plain(head, embeddings, weight[:6], labels, row_weights)
    parameter = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    theirs = torch.optim.AdamW([parameter], lr=RATE, weight_decay=DECAY)
    parameter.grad = torch.tensor(np.pad(by_weight, ((0, 3), (0, 0), (0, 0))))
    theirs.state[parameter] = {
        "step": torch.tensor(float(taken)),
        "exp_avg": torch.tensor(np.float64(momentum)),
        "exp_avg_sq": torch.tensor(np.float64(second)),
    }
    theirs.step()
    state = theirs.state[parameter]
    expected = [parameter.detach().numpy(), state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()]
    if not dense:
        for moved, kept in zip(expected, (weight, momentum, second), strict=True):
            moved[6:] = kept[6:]
    got = _sharded(
        head, embeddings, weight, momentum, labels, row_weights, mesh=_mesh(1, 1), block=4,
        sampled=sampled, dense=dense, adamw=(taken, second),
    )  # fmt: skip
    for found, wanted in zip((got[2], got[3], got[5]), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(
        got[4], np.sum(np.square(expected[1][: None if dense else 6])), rtol=1e-5
    )


def test_three_products_of_halves_are_near_the_whole():
    """What bfloat16_x3 stands for, where no unit computes it: the table of `PRODUCTS`."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 256)).astype(np.float32) for n in (64, 500))
    b[:64] = a + 0.1 * b[:64]
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    high = lambda x: x.astype(jnp.bfloat16).astype(np.float32)  # noqa: E731
    (a1, a2), (b1, b2) = ((high(x), high(x - high(x))) for x in (a, b))
    exact = np.float64(a) @ np.float64(b).T
    assert np.abs(a1 @ b1.T + (a2 @ b1.T + a1 @ b2.T) - exact).max() < 2e-6
    assert np.abs(a1 @ b1.T - exact).max() > 2e-4
    dtype, precision = PRODUCTS["bfloat16_x3"]
    product = jax.jit(partial(jnp.matmul, precision=precision))(a.astype(dtype), b.T)
    np.testing.assert_allclose(product, exact, atol=2e-6)


def test_a_masked_row_counts_for_nothing():
    head = MarginHead(9, "arcface", 16.0, 0.3)
    embeddings, weight, momentum, labels = _problem(9)
    row_weights = np.where(np.arange(ROWS) < 11, 1 / 11, 0).astype(np.float32)
    first = _sharded(
        head, embeddings, weight, momentum, labels, row_weights, mesh=_mesh(8, 8), block=2
    )
    others = reference.unit((ROWS, WIDTH), 5).astype(np.float32)
    others[:11] = embeddings[:11]
    labels = np.where(np.arange(ROWS) < 11, labels, -1).astype(np.int32)
    second = _sharded(
        head, others, weight, momentum, labels, row_weights, mesh=_mesh(8, 8), block=2
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(second[1][11:], 0)


def test_one_class_has_no_loss():
    head = MarginHead(1, "arcface", 16.0, 0.3)
    embeddings, weight, momentum, labels = _problem(1)
    row_weights = np.full(ROWS, 1 / ROWS, np.float32)
    got = _sharded(head, embeddings, weight, momentum, labels, row_weights, mesh=_mesh(8, 8))
    assert float(got[0]) == 0
    np.testing.assert_array_equal(got[1], 0)
    np.testing.assert_allclose(got[3], MU * momentum + DECAY * weight, rtol=1e-6)


@pytest.mark.parametrize("block", [0, 3])
def test_parts_of_a_batch_add_up(block):
    """Two parts, each with half the weight, are one step of their union."""
    head = MarginHead(13, "cosface", 16.0, 0.2)
    embeddings, weight, momentum, labels = _problem(13)
    row_weights = np.full(ROWS, 1 / ROWS, np.float32)
    *_, by_weight = _plain(head, embeddings, weight, labels, row_weights)
    state, mesh = (weight, momentum), _mesh(2, 2)
    for part, flags in (
        (slice(0, None, 2), (True, False)),
        (slice(1, None, 2), (False, True)),
    ):
        *_, w, v, _ = _sharded(
            head, embeddings[part], *state, labels[part], row_weights[part], mesh=mesh,
            block=block, parts=flags,
        )  # fmt: skip
        state = (w, v)
    velocity = MU * momentum + by_weight + DECAY * weight
    np.testing.assert_allclose(state[1], velocity, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state[0], weight - RATE * velocity, rtol=1e-5, atol=1e-6)


def _sampled(rows, block, *, beyond=()):
    """Those rows, and behind them others that take no part."""
    size = min(block or len(rows), len(rows))
    return Sampled(jnp.int32([*rows, *beyond]), jnp.int32(len(rows)) if beyond else len(rows), size)


def sampled_steps(*, dense, block=0, beyond=()):
    """Each step's (found, expected): loss, gradient by embeddings, weights, momenta, ‖v‖².

    Partial FC against SGD in float64: all rows are moved (V2's rule), or only the sampled ones.
    """
    classes, steps = 20, 1 if beyond else 4
    draws = [np.array([0, 2, 3, 7, 8, 11, 15, 16, 19]), np.array([1, 2, 4, 5, 8, 10, 12, 13, 18])]
    head = MarginHead(classes, "arcface", 16.0, 0.3)
    embeddings, weight, momentum, _ = _problem(classes)
    row_weights = np.full(ROWS, 1 / ROWS, np.float32)
    small = MarginHead(9, "arcface", 16.0, 0.3)
    w, v, got = np.float64(weight), np.float64(momentum), (0, 0, weight, momentum)
    for step in range(steps):
        rows = draws[step % 2]
        labels = np.random.default_rng(step).choice(rows, ROWS).astype(np.int32)
        places = np.searchsorted(rows, labels).astype(np.int32)
        loss, by_embeddings, by_rows = _plain(small, embeddings, w[rows], places, row_weights)
        by_weight, moved = np.zeros_like(w), np.arange(classes) if dense else rows
        by_weight[rows] = by_rows
        v[moved] = MU * v[moved] + by_weight[moved] + DECAY * w[moved]
        w[moved] -= RATE * v[moved]
        got = _sharded(
            head, embeddings, np.asarray(got[2]), np.asarray(got[3]), labels, row_weights,
            mesh=_mesh(1, 1), block=block, sampled=_sampled(rows, block, beyond=beyond),
            dense=dense,
        )  # fmt: skip
        yield got, (loss, by_embeddings, w, v, np.sum(v[moved] ** 2))


@pytest.mark.parametrize(("block", "beyond"), [(0, ()), (4, ()), (3, (1, 4, 5)), (9, (1, 17))])
@pytest.mark.parametrize("dense", [True, False])
def test_sampled_classes_are_a_softmax_of_their_own(block, beyond, dense):
    for got, expected in sampled_steps(dense=dense, block=block, beyond=beyond):
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got[3], expected[3], rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(got[2], expected[2], rtol=1e-4, atol=5e-6)
        np.testing.assert_allclose(got[4], expected[4], rtol=1e-4)


def test_sampling_keeps_the_batch_s_classes_and_draws_the_rest_evenly():
    local, classes, count = 10, 37, 6
    mesh = _mesh(4, 4)
    labels = np.array([0, 9, 10, 36, 36, 5, -1], np.int32)

    def on_device(number):
        key = jax.random.fold_in(jax.random.key(number[0]), jax.lax.axis_index("model"))
        drawn = sample_classes(key, labels, num_local=local, num_classes=classes, count=count)
        return drawn.rows[:count]

    draw = jax.jit(
        jax.shard_map(on_device, mesh=mesh, in_specs=P(), out_specs=P("model"), check_vma=False)
    )
    counts = np.zeros((4, local))
    for number in range(300):
        drawn = np.asarray(draw(np.array([number], np.uint32))).reshape(4, count)
        for device, rows in enumerate(drawn):
            assert np.all(np.diff(rows) > 0)
            counts[device, rows] += 1
    assert counts[0, [0, 5, 9]].tolist() == [300] * 3
    assert counts[1, 0] == 300
    assert counts[3, 6] == 300
    assert np.all(counts[3, 7:] == 0)  # rows that only pad
    # The rest: 3 of the 7 others on device 0, 6 of 10 on device 2.
    others = np.delete(counts[0], [0, 5, 9])
    assert np.all(np.abs(others / 300 - 3 / 7) < 0.12)
    assert np.all(np.abs(counts[2] / 300 - 0.6) < 0.12)


def test_a_sample_grows_only_where_the_batch_has_more_classes_than_it():
    """On many devices a share of the classes stays that share: room is for all, blocks are not."""
    local, count, block = 12, 4, 2
    labels = np.array([0, 1, 3, 5, 11, 5, 12, 13, 30, -1], np.int32)

    def on_device():
        drawn = sample_classes(
            jax.random.key(jax.lax.axis_index("model")), labels, num_local=local, num_classes=36,
            count=count, block=block,
        )  # fmt: skip
        return drawn.rows, jnp.full((1,), drawn.used)

    draw = jax.shard_map(on_device, mesh=_mesh(3, 3), in_specs=(), out_specs=P("model"),
                         check_vma=False)  # fmt: skip
    rows, used = (np.asarray(array) for array in jax.jit(draw)())
    assert used.tolist() == [6, 4, 4]  # five classes of the batch, in whole blocks; two; one
    rows = rows.reshape(3, 10)
    for of_device, number, own in zip(rows, used, ([0, 1, 3, 5, 11], [0, 1], [6]), strict=True):
        assert set(own) <= set(of_device[:number])
        assert np.all(np.diff(of_device[:number]) > 0)
        assert np.all(np.diff(of_device[number:]) > 0)
        assert len(set(of_device)) == 10
