"""float16 training: the scale against PyTorch's GradScaler, and what an overflow leaves alone."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ida_jax.common.devices import training_mesh
from ida_jax.common.errors import UserError
from ida_jax.data.dataset import FaceDataset
from ida_jax.runs.config import run_section
from ida_jax.training import loss_scale
from ida_jax.training.loop import read_metrics
from ida_jax.training.loss_scale import adjusted, initial_loss_scale
from ida_jax.training.recognition import train
from ida_jax.training.train_step import make_program

pytestmark = pytest.mark.usefixtures("tiny_network")
SIZE, CLASSES, ROWS = 8, 5, 16
# Machine code that runs a few times need not be fast.
QUICK = {"xla_backend_optimization_level": 0}


def _config(dtype="float16", **changes):
    config = run_section("test")
    config.model.network = "tiny"
    config.model.options = ConfigDict({"embedding_dim": 8, "dropout_rate": 0.3, "dtype": dtype})
    config.model.image_size = SIZE
    config.train.update(
        {"scale": 16.0, "margin": 0.3, "batch_size": ROWS, "steps": 6, "learning_rate": 0.02,
         "decay_steps": (4,), "checkpoint_every": 3, "log_every": 1} | changes
    )  # fmt: skip
    return config


def _faces(rows=30):
    rng = np.random.default_rng(0)
    labels = np.arange(rows, dtype=np.int32) % CLASSES
    images = rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8)
    return FaceDataset(images, labels, tuple(map(str, range(CLASSES))))


def test_the_scale_is_gradscalers(monkeypatch):
    torch = pytest.importorskip("torch")
    assert torch.amp.GradScaler("cpu").get_growth_interval() == loss_scale.PATIENCE
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    scaler, ours = torch.amp.GradScaler("cpu", growth_interval=3), initial_loss_scale()
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    overflows = [0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    for overflow in overflows:
        optimizer.zero_grad()
        scaler.scale(weight.sum() * (float("inf") if overflow else 1.0)).backward()
        assert float(ours.scale) == scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        ours = adjusted(ours, jnp.bool_(not overflow))
    assert (float(ours.scale), int(ours.skipped)) == (scaler.get_scale(), sum(overflows))
    assert weight.item() == -(len(overflows) - sum(overflows))  # as many steps as were taken


@cache
def _compiled(dtype, changes):
    mesh = training_mesh(1, devices=jax.devices()[:1])
    program = make_program(_config(dtype, **dict(changes)), num_classes=CLASSES, mesh=mesh)
    return program, program.step.lower(program.state, *program.batch).compile(QUICK)


def _stepped(dtype="float16", scale=None, **changes):
    """(state before, state after, metrics) of a first step, at another scale."""
    program, step = _compiled(dtype, tuple(changes.items()))
    state, faces = program.init(), _faces(ROWS)
    if scale is not None:
        loss_scale = state.opt_state.loss_scale._replace(scale=jnp.float32(scale))
        state = state._replace(opt_state=state.opt_state._replace(loss_scale=loss_scale))
    before = jax.tree.map(np.array, state)
    places = jax.tree.map(lambda like: like.sharding, program.batch)
    after, metrics = step(state, *jax.device_put((faces.images, faces.labels, None), places))
    return before, jax.tree.map(np.array, after), jax.tree.map(float, metrics)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "ema_decay": 0.5, "class_block": 2}])
def test_a_step_without_overflow_is_float32s(changes):
    before, half, metrics = _stepped(scale=2.0**8, **changes)
    _, single, expected = _stepped("float32", **changes)
    assert "loss_scale" not in expected
    assert (metrics["loss_scale"], metrics["skipped_steps"]) == (2.0**8, 0)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert metrics["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=5e-3)
    assert tuple(half.opt_state.loss_scale) == (2.0**8, 1, 0)
    assert int(half.step) == 1
    for of in (lambda state: state.params, lambda state: state.head.classes.weight):
        start, ours, theirs = (
            np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(of(state))])
            for state in (before, half, single)
        )
        # Rounding to 11 bits, summed over the layers behind.
        assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs - start)


def test_a_step_that_overflows_changes_the_scale_alone():
    changes = {"accumulate": 2, "optimizer": "adamw", "head": "adaface", "ema_decay": 0.5}
    before, after, metrics = _stepped(scale=2.0**40, **changes)
    scaled = before.opt_state._replace(loss_scale=after.opt_state.loss_scale)
    same = before._replace(step=after.step, opt_state=scaled)
    jax.tree.map(np.testing.assert_array_equal, after, same)
    assert int(after.step) == 1
    assert tuple(after.opt_state.loss_scale) == (2.0**39, 0, 1)
    assert not np.isfinite(metrics["gradient_norm"])


def test_gradients_too_small_for_float16_are_kept():
    _, scaled, _ = _stepped(scale=2.0**8)
    before, unscaled, _ = _stepped(scale=2.0**-26)
    moved = [
        np.linalg.norm(state.params["stem_conv"]["kernel"] - before.params["stem_conv"]["kernel"])
        for state in (scaled, unscaled)
    ]
    assert moved[1] < 0.5 * moved[0]


def test_overflows_are_skipped_logged_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**40)
    straight = train(_faces(), _config(steps=40), workdir=tmp_path / "a")
    records = read_metrics(tmp_path / "a")
    skipped = [record["skipped_steps"] for record in records]
    scales = [record["loss_scale"] for record in records]
    assert skipped[0] == 1
    assert 5 < skipped[-1] < 40
    assert scales[-1] == 2.0 ** (40 - skipped[-1])
    for record, new in zip(records, np.diff([0, *skipped]), strict=True):
        assert ("gradient_norm" in record) == (not new)
    # The schedule counts the steps that were taken.
    taken = np.arange(40) - np.array(skipped)
    rates = [record["learning_rate"] for record in records]
    np.testing.assert_allclose(rates, np.where(taken >= 4, 0.002, 0.02), rtol=1e-6)

    train(_faces(), _config(steps=6), workdir=tmp_path / "b")
    resumed = train(_faces(), _config(steps=40), workdir=tmp_path / "b")
    assert resumed.fingerprint == straight.fingerprint
    assert [record["loss_scale"] for record in read_metrics(tmp_path / "b")] == scales


def test_an_overflow_at_every_scale_ends_the_run(tmp_path):
    config = _config(steps=40)
    config.model.std = (1e-7,) * 3  # inputs beyond float16's 65,504
    message = "float16 overflows at step 18 whatever the loss scale, 18 steps were skipped: begin"
    with pytest.raises(UserError, match=message):
        train(_faces(), config, workdir=tmp_path)


def test_float16_begins_no_other_types_checkpoint(tmp_path):
    train(_faces(), _config("bfloat16", steps=3), workdir=tmp_path)
    with pytest.raises(UserError, match=r"checkpoint .*/3 has .*: another config wrote it"):
        train(_faces(), _config(), workdir=tmp_path)


def test_adjusted_can_be_compiled_under_strict_promotion():
    states = jax.lax.scan(
        lambda state, finite: (adjusted(state, finite), state.scale),
        initial_loss_scale(),
        jnp.ones(4001, bool),
    )[1]
    np.testing.assert_array_equal(np.unique(states), [2.0**16, 2.0**17, 2.0**18])
    assert np.argmax(states > 2.0**16) == 2000
