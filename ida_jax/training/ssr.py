"""Trains the SSR (support set regression) module on a frozen backbone's embeddings (Eq. 6).

Targets are searched once and kept (`train_ssr`), or computed for each batch on the device that
trains (`train_ssr_on_the_fly`, ssr.targets=on_the_fly). The latter pays on a GPU or TPU, and copies
of a face then never repeat.

N faces, A anchors, B batch, D embedding.
"""

import os
from collections.abc import Callable
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.ssr_module import TARGETS, SSRModule
from ida_jax.common.errors import UserError
from ida_jax.models.ssr_network import SSRNetwork
from ida_jax.ops.dao import log_density as log_density_of
from ida_jax.ops.hypersphere import nearest_anchors, normalize
from ida_jax.rescoring.density import searched_log_density
from ida_jax.training.loop import Progress, open_metrics, training_steps
from ida_jax.training.optimizer import learning_rate_schedule, sgd

STEPS_A_CALL = 100
# Faces whose searched densities give on-the-fly targets their mean and deviation.
_SAMPLE = 4096

# (key, data) → faces [B, D] and their standardised targets [B]; data are arrays on the device.
_Draw = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]


class SSRTarget(NamedTuple):
    """What the module regresses, and the affine map that gives F back.

    Attributes:
      values: float32 [N].
      mean, std, floor: see `SSRModule`.
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


class LabelledFaces(NamedTuple):
    """Faces to train on: unit rows float32 [N, D] and their identities int32 [N], or None."""

    embeddings: np.ndarray
    labels: np.ndarray | None


def with_copies(
    faces: np.ndarray,
    labels: np.ndarray | None,
    *,
    copies: int,
    mix: float,
    noise: float,
    seed: int,
) -> LabelledFaces:
    """The faces, and for each of them `copies` synthetic ones near it, of its identity; ours.

    A copy of f is the unit vector of (1 − a) f + a g + ε, with g another face drawn at random, a
    uniform in [0, mix) and ε normal of deviation noise / √D in each dimension. F is defined for any
    point of the hypersphere, so that a copy's target is searched as any face's; copies keep the
    module from overfitting a small training set.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N]; None if no identity is to be excluded.
      copies: of each face; 0 gives the faces alone.
      mix: 0 … 0.5.
      noise: at least 0; at 1 the noise is about as long as the face.
    """
    rng = np.random.default_rng(seed)
    n, width = faces.shape
    parts = [np.asarray(faces)]
    for _ in range(copies):
        share = rng.uniform(0, mix, size=(n, 1)).astype(np.float32)
        copy = (1 - share) * faces + share * faces[rng.permutation(n)]
        copy += np.float32(noise / np.sqrt(width)) * rng.standard_normal((n, width), np.float32)
        parts.append(copy / np.linalg.norm(copy, axis=1, keepdims=True))
    own = None if labels is None else np.tile(np.asarray(labels, np.int32), copies + 1)
    return LabelledFaces(np.concatenate(parts), own)


def train_ssr(
    faces: np.ndarray,
    log_density: np.ndarray,
    config: ConfigDict,
    *,
    k: int,
    tau: float,
    fingerprint: str = "",
    workdir: str | os.PathLike[str] | None,
    seed: int,
    steps: int | None = None,
) -> SSRModule:
    """Fits M_SSR to the searched densities; the backbone is frozen, so embeddings are all it sees.

    Args:
      faces: float32 [N, D], unit rows, of the training set.
      log_density: float32 [N], their log F, each one's identity excluded from its support set.
      config: hidden, target, input, batch_size, steps, learning_rate, decay_steps, decay_factor,
        momentum, weight_decay.
      steps: where the config's schedule is stopped; None for its end.

    Raises:
      UserError: an unknown target, densities or a loss that are not finite.
    """
    target = make_target(log_density, config.target)
    draw, data = rows_of(config.batch_size, len(faces)), (np.asarray(faces), target.values)
    params = _fit(draw, data, config, workdir=workdir, seed=seed, steps=steps)
    constants = target.mean, target.std, target.floor
    return SSRModule(params, config.target, *constants, k, tau, fingerprint)


def rows_of(size: int, count: int) -> _Draw:
    """Draws `size` of `count` rows of the faces and their targets."""

    def draw(key: jax.Array, data: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows = jax.random.randint(key, (size,), 0, count)
        return data[0][rows], data[1][rows]

    return draw


def train_ssr_on_the_fly(
    faces: np.ndarray,
    labels: np.ndarray | None,
    anchors: AnchorSet,
    config: ConfigDict,
    *,
    k: int,
    tau: float,
    fingerprint: str = "",
    workdir: str | os.PathLike[str],
    seed: int,
    searcher: str = "auto",
) -> SSRModule:
    """As `train_ssr`, each batch's densities computed exactly in the step that trains on them.

    Only a sample of 4,096 faces is searched before, whose densities standardise the targets. Copies
    are drawn anew in each step and never repeat; a face is a copy with probability
    copies / (copies + 1), as in `with_copies`. A step compares B faces with all anchors, which
    suits a GPU or TPU that holds faces and anchors; on a CPU, search once.

    Args:
      faces: float32 [N, D], unit rows, of the training set.
      labels: int [N], identities in the anchors' numbering; each is excluded from its own support
        set, for which k anchors must remain. None if no identity is shared.
      config: as in `train_ssr`; copies, mix, noise as in `with_copies`.

    Raises:
      UserError: as `train_ssr` and `searched_log_density`.
    """
    own = None if labels is None else np.asarray(labels, np.int32)
    among = None if labels is None else anchors.labels
    data = jax.device_put((np.asarray(faces), own, np.asarray(anchors.embeddings), among))
    sample_key = jax.random.fold_in(jax.random.key(seed), 1)
    sample = drawn_faces(sample_key, *data[:2], size=_SAMPLE, config=config)
    searched = searched_log_density(
        np.asarray(sample[0]),
        anchors,
        k=k,
        tau=tau,
        labels=None if labels is None else np.asarray(sample[1]),
        searcher=searcher,
    )
    target = make_target(searched, config.target)

    draw = searched_rows(config, k=k, tau=tau, mean=target.mean, std=target.std)
    params = _fit(draw, data, config, workdir=workdir, seed=seed)
    constants = target.mean, target.std, target.floor
    return SSRModule(params, config.target, *constants, k, tau, fingerprint)


def searched_rows(config: ConfigDict, *, k: int, tau: float, mean: float, std: float) -> _Draw:
    """Draws a batch of (faces, labels, anchors, anchor labels) and searches its targets."""

    def draw(key: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
        batch, own = drawn_faces(key, *data[:2], size=config.batch_size, config=config)
        log_f = device_log_density(batch, own, *data[2:], k=k, tau=tau)
        raw = log_f if config.target == "log" else jnp.exp(log_f)
        return batch, (raw - mean) / std

    return draw


def drawn_faces(
    key: jax.Array, faces: jax.Array, labels: jax.Array | None, *, size: int, config: ConfigDict
) -> tuple[jax.Array, jax.Array | None]:
    """Faces [size, D] drawn at random, copies (`with_copies`) among them, and their labels.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int32 [N], or None.
    """
    row_key, other_key, share_key, noise_key, copy_key = jax.random.split(key, 5)
    n, width = faces.shape
    rows = jax.random.randint(row_key, (size,), 0, n)
    chosen, own = faces[rows], None if labels is None else labels[rows]
    if not config.copies:
        return chosen, own
    share = jax.random.uniform(share_key, (size, 1), maxval=config.mix)
    others = faces[jax.random.randint(other_key, (size,), 0, n)]
    noise = (config.noise / width**0.5) * jax.random.normal(noise_key, (size, width))
    copies = normalize((1 - share) * chosen + share * others + noise)
    is_copy = jax.random.bernoulli(copy_key, config.copies / (config.copies + 1), (size, 1))
    return jnp.where(is_copy, copies, chosen), own


def device_log_density(
    faces: jax.Array,
    labels: jax.Array | None,
    anchors: jax.Array,
    anchor_labels: jax.Array | None,
    *,
    k: int,
    tau: float,
) -> jax.Array:
    """log F [B] of faces [B, D] by the exact search, as `searched_log_density` but traceable.

    Args:
      faces: float32 [B, D], unit rows.
      labels: int32 [B], each excluded from its own support set; None excludes nothing.
      anchors: float32 [A, D], unit rows.
      anchor_labels: int32 [A]; None where `labels` is.
    """
    support = nearest_anchors(faces, anchors, k=k, query_labels=labels, anchor_labels=anchor_labels)
    return log_density_of(support.similarities, tau=tau)


def _fit(
    draw: _Draw,
    data: Any,
    config: ConfigDict,
    *,
    workdir: str | os.PathLike[str] | None,
    seed: int,
    steps: int | None = None,
) -> dict[str, Any]:
    """The module's parameters after `steps` steps, by default the config's, on drawn batches."""
    training, schedule = (
        network_training(draw, data, config, seed=seed),
        learning_rate_schedule(config),
    )
    progress = Progress(0, training.state)

    def check(step: int, values: dict[str, float]) -> None:
        if not np.isfinite(values["loss"]):
            raise UserError(
                f"the SSR loss is {values['loss']} by step {step}: begin another --workdir with a "
                "lower ssr.learning_rate"
            )

    def record(step: int, values: dict[str, float], steps_per_second: float) -> str:
        start = (step - 1) // STEPS_A_CALL * STEPS_A_CALL
        write(step, {**values, "learning_rate": float(schedule(start))})
        return f"loss={values['loss']:.4g}"

    with open_metrics(workdir, stage="ssr") as write:
        for last, _ in training_steps(
            progress,
            repeat(None),
            stage="ssr",
            steps=config.steps if steps is None else steps,
            check=check,
            record=record,
            is_logged=lambda step: True,
            stride=STEPS_A_CALL,
        ):
            progress.state, loss = training.run(progress.state, last - progress.step)
            progress.metrics = {"loss": loss}
    return training.module_params(progress.state)


class NetworkTraining(NamedTuple):
    """A training of M_SSR that has not begun.

    Attributes:
      state: before the first step.
      run: (state, steps) → the state after that many more steps, and their mean loss.
      module_params: (state) → the module's parameters, which take unit rows.
    """

    state: Any
    run: Callable[[Any, int], tuple[Any, jax.Array]]
    module_params: Callable[[Any], dict[str, Any]]


class SSRProgram(NamedTuple):
    """The steps of a training of M_SSR on one device.

    Attributes:
      init: () → the state that the seed gives.
      run: (state, data, steps) → the state after that many steps, and their mean loss; jitted.
    """

    init: Callable[[], Any]
    run: Callable[[Any, Any, int], tuple[Any, jax.Array]]


def make_ssr_program(
    draw: _Draw,
    config: ConfigDict,
    *,
    width: int,
    centre: np.ndarray | None,
    scale: np.float32,
    seed: int,
) -> SSRProgram:
    """The training of a network on drawn batches.

    Args:
      draw: takes a step's batch from the data.
      width: D.
      centre, scale: of the network's input, scale · (f − centre).
    """
    module, optimizer = SSRNetwork(hidden=config.hidden), sgd(config)
    init_key, order_key = jax.random.split(jax.random.key(seed))

    def init() -> _State:
        params = module.init(init_key, jnp.zeros((1, width), jnp.float32))["params"]
        return _State(jnp.int32(0), params, optimizer.init(params))

    def step(state: _State, data: Any) -> tuple[_State, jax.Array]:
        faces, target = draw(jax.random.fold_in(order_key, state.step), data)
        if centre is not None:
            faces = faces - centre[None]

        def loss_fn(params: Any) -> jax.Array:
            predicted = module.apply({"params": params}, scale * faces)
            return jnp.mean(squared_error(predicted, target))

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return _State(state.step + 1, params, opt_state), loss

    # Many steps a call: one step of so small a module is shorter than its dispatch.
    @jax.jit(static_argnums=(2,))
    def run(state: _State, data: Any, steps: int) -> tuple[_State, jax.Array]:
        state, losses = lax.scan(lambda s, _: step(s, data), state, length=steps)
        return state, jnp.mean(losses)

    return SSRProgram(init, run)


def network_training(draw: _Draw, data: Any, config: ConfigDict, *, seed: int) -> NetworkTraining:
    """The training of a network on drawn batches, which takes its input as `ssr.input` says.

    Args:
      draw: takes a step's batch from the data.
      data: the faces float32 [N, D] first, and what `draw` needs beside them.
    """
    centre, scale = _input_map(config.input, np.asarray(data[0]))
    width = data[0].shape[1]
    program = make_ssr_program(draw, config, width=width, centre=centre, scale=scale, seed=seed)
    data = jax.device_put(data)

    def module_params(state: _State) -> dict[str, Any]:
        params = jax.tree.map(np.asarray, state.params)
        hidden = params["hidden_fc"]
        hidden["kernel"] = scale * hidden["kernel"]
        if centre is not None:
            hidden["bias"] = hidden["bias"] - centre @ hidden["kernel"]
        return params

    return NetworkTraining(
        program.init(), lambda state, steps: program.run(state, data, steps), module_params
    )


def spread(faces: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of faces [N, D], float32 [D]; the root of their mean squared distance from it."""
    mean = np.mean(faces, axis=0, dtype=np.float64)
    squares = np.mean(np.sum(np.square(faces, dtype=np.float64), axis=1)) - mean @ mean
    return mean.astype(np.float32), float(np.sqrt(max(squares, 0))) or 1.0


def _input_map(kind: str, faces: np.ndarray) -> tuple[np.ndarray | None, np.float32]:
    """(centre [D] or None, scale) of the network's input, scale · (f − centre)."""
    root = float(np.sqrt(faces.shape[1]))
    if kind == "centred":
        centre, wide = spread(faces)
        return centre, np.float32(root / wide)
    return None, np.float32(root if kind == "scaled" else 1)
