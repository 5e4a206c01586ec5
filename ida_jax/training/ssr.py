"""Trains the support set regression module on a frozen backbone's embeddings (Eq. 6).

N faces, B batch, D embedding.
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict
from tqdm import tqdm

from ida_jax.errors import UserError
from ida_jax.models.ssr import SSR
from ida_jax.rescoring.density import TARGETS, DensityRegressor
from ida_jax.training.metrics import open_metrics
from ida_jax.training.optimizer import learning_rate_schedule, sgd

_STEPS_A_CALL = 100


class SSRTarget(NamedTuple):
    """What the module regresses, and the affine map that gives F back.

    Attributes:
      values: float32 [N].
      mean: see `DensityRegressor`.
      std: see `DensityRegressor`.
      floor: see `DensityRegressor`.
    """

    values: np.ndarray
    mean: float
    std: float
    floor: float


class _State(NamedTuple):
    step: jax.Array
    params: Any
    opt_state: optax.OptState


def squared_error(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """‖M_SSR(f) − F(f, Ψ_f)‖² of each face (Eq. 6), unreduced."""
    return jnp.square(predicted - target)


def make_target(log_density: np.ndarray, kind: str) -> SSRTarget:
    """The regression target of `kind` from the searched log F, [N].

    F at τ = 1, k = 10 lies within about 0.04 … 0.1, where the raw squared error is nearly flat;
    standardising is an affine change of the same regression. "paper" keeps Eq. 6 to the letter.

    Raises:
      UserError: an unknown kind, or a log F that is not finite.
    """
    if kind not in TARGETS:
        raise UserError(f"SSR target '{kind}' is unknown: choose one of {', '.join(TARGETS)}")
    log_density = np.asarray(log_density, np.float64)
    bad = np.flatnonzero(~np.isfinite(log_density))
    if bad.size:
        raise UserError(f"log F of row {bad[0]} is {log_density[bad[0]]}: expected finite targets")
    density = np.exp(log_density)
    raw = log_density if kind == "log" else density
    mean, std = (0.0, 1.0) if kind == "paper" else (float(raw.mean()), float(raw.std()) or 1.0)
    values = ((raw - mean) / std).astype(np.float32)
    return SSRTarget(values, mean, std, float(density.min()) / 2)


class Faces(NamedTuple):
    """Faces to train on: unit rows float32 [N, D] and their identities int32 [N]."""

    embeddings: np.ndarray
    labels: np.ndarray


def with_copies(
    faces: np.ndarray, labels: np.ndarray, *, copies: int, mix: float, noise: float, seed: int
) -> Faces:
    """The faces, and for each `copies` made-up ones near it, of its identity; ours.

    A copy of f is the unit vector of (1 − a) f + a g + ε, with g another face drawn at random, a
    uniform in [0, mix) and ε normal of deviation noise / √D in each dimension. F is defined for any
    point of the hypersphere, so that its target is searched as any face's, and a small training set
    need not be learnt by heart.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N].
      copies: of each face; 0 gives the faces alone.
      mix: 0 … 0.5.
      noise: at least 0; at 1 it is as long as the face.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n, width = faces.shape
    made = [np.asarray(faces)]
    for _ in range(copies):
        share = rng.uniform(0, mix, size=(n, 1)).astype(np.float32)
        copy = (1 - share) * faces + share * faces[rng.permutation(n)]
        copy += np.float32(noise / np.sqrt(width)) * rng.standard_normal((n, width), np.float32)
        made.append(copy / np.linalg.norm(copy, axis=1, keepdims=True))
    return Faces(np.concatenate(made), np.tile(np.asarray(labels, np.int32), copies + 1))


def train_ssr(
    faces: np.ndarray,
    log_density: np.ndarray,
    config: ConfigDict,
    *,
    k: int,
    tau: float,
    fingerprint: str = "",
    workdir: str | os.PathLike[str],
    seed: int,
) -> DensityRegressor:
    """Fits M_SSR to the searched densities; the backbone is frozen, so embeddings are all it sees.

    Args:
      faces: float32 [N, D], unit rows, of the training set.
      log_density: float32 [N], log F of each, its own identity excluded from its support set.
      config: hidden, target, input, batch_size, steps, learning_rate, decay_steps, decay_factor,
        momentum, weight_decay.
      k: the support sets' size.
      tau: the densities' τ.
      fingerprint: of the model that made the embeddings.
      workdir: gets the stage's metrics.
      seed: of parameters and order.

    Raises:
      UserError: an unknown target, densities or a loss that are not finite.
    """
    target = make_target(log_density, config.target)
    module = SSR(hidden=config.hidden)
    scale = np.float32(np.sqrt(faces.shape[1]) if config.input == "scaled" else 1)
    schedule, optimizer = learning_rate_schedule(config), sgd(config)
    init_key, order_key = jax.random.split(jax.random.key(seed))
    params = module.init(init_key, jnp.zeros((1, faces.shape[1]), jnp.float32))["params"]
    state = _State(jnp.int32(0), params, optimizer.init(params))

    def step(state: _State, data: tuple[jax.Array, jax.Array]) -> tuple[_State, jax.Array]:
        key = jax.random.fold_in(order_key, state.step)
        rows = jax.random.randint(key, (config.batch_size,), 0, len(faces))

        def loss_fn(params: Any) -> jax.Array:
            predicted = module.apply({"params": params}, scale * data[0][rows])
            return jnp.mean(squared_error(predicted, data[1][rows]))

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return _State(state.step + 1, params, opt_state), loss

    # Many steps a call: one step of so small a module is shorter than its dispatch.
    @jax.jit(static_argnums=(2,))
    def run(
        state: _State, data: tuple[jax.Array, jax.Array], steps: int
    ) -> tuple[_State, jax.Array]:
        state, losses = lax.scan(lambda s, _: step(s, data), state, length=steps)
        return state, jnp.mean(losses)

    data = jax.device_put((np.asarray(faces), target.values))
    with (
        open_metrics(workdir, stage="ssr") as write,
        tqdm(total=config.steps, desc="ssr", unit="step") as bar,
    ):
        done = 0
        while done < config.steps:
            steps = min(_STEPS_A_CALL, config.steps - done)
            state, loss = run(state, data, steps)
            rate = float(schedule(done))
            done += steps
            if not np.isfinite(float(loss)):
                raise UserError(
                    f"the SSR loss is {float(loss)} by step {done}: begin another --workdir with a "
                    "lower ssr.learning_rate"
                )
            write(done, {"loss": float(loss), "learning_rate": rate})
            bar.update(steps)
            bar.set_postfix(loss=f"{float(loss):.4g}")
    params = jax.tree.map(np.asarray, state.params)
    # The module takes unit embeddings, whatever it was trained on.
    params["hidden_fc"]["kernel"] = scale * params["hidden_fc"]["kernel"]
    return DensityRegressor(
        params, config.target, target.mean, target.std, target.floor, k, tau, fingerprint
    )
