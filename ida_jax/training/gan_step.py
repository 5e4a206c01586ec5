"""The four updates of a StyleGAN2 training with adaptive augmentation, jitted, on a mesh.

Sources: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), lazy
regularisation and path length; "Training Generative Adversarial Networks with Limited Data" (2020),
the adaptive augmentation.

Lazy regularisation is two separate updates, so that four functions are compiled, whatever the
intervals.

B batch, S crop size, R resolution, Z latent, W style, L styles of an image.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ida_jax.common.devices import batch_sharding, replicated
from ida_jax.common.errors import UserError
from ida_jax.models.stylegan import DiscriminatorNetwork, GeneratorNetwork, draw_noise, num_styles
from ida_jax.ops.adaptive_augment import adapted_probability, augment
from ida_jax.ops.gan_losses import (
    discriminator_loss,
    generator_loss,
    mixed_styles,
    path_lengths,
    r1_penalty,
)
from ida_jax.ops.resample import to_resolution

# Of the mean path length, the target of the regularisation; and of the sign of real faces' logits,
# over about the four batches that StyleGAN2-ADA averages.
_PATH_DECAY = 0.01
_SIGN_DECAY = 0.25


class GanState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, steps taken.
      average: the generator's moving average, which is the generator that is kept.
      path_mean: float32 scalar, the moving mean of path lengths.
      r1: float32 scalar, the last penalty; here, like the mean, for the records of a resumed
        training.
      real_sign: float32 scalar, the moving mean of sign(D(real)).
      augment_probability: float32 scalar, p of the adaptive augmentation.
    """

    step: jax.Array
    generator: Any
    discriminator: Any
    average: Any
    generator_opt: optax.OptState
    discriminator_opt: optax.OptState
    path_mean: jax.Array
    r1: jax.Array
    real_sign: jax.Array
    augment_probability: jax.Array


Metrics = dict[str, jax.Array]


class GanProgram(NamedTuple):
    """The training of a config, on a mesh. Each update donates the old state.

    A step is `generator`, every `path_every` steps `path_length`, `discriminator`, and every
    `r1_every` steps `r1`, in this order.

    Attributes:
      init: () → the state that the seed gives.
      state: its shapes, types and shardings.
      generator: (state) → (state, metrics): the generator's loss, and the moving average.
      path_length: (state) → state: the generator's path length regularisation.
      discriminator: (state, images) → (state, metrics): the discriminator's loss; counts the step.
        images are uint8 [B, S, S, 3].
      r1: (state, images) → state: the discriminator's R1 regularisation, at the same images.
    """

    init: Callable[[], GanState]
    state: GanState
    generator: Callable[[GanState], tuple[GanState, Metrics]]
    path_length: Callable[[GanState], GanState]
    discriminator: Callable[[GanState, jax.Array], tuple[GanState, Metrics]]
    r1: Callable[[GanState, jax.Array], GanState]


def network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `GeneratorNetwork` takes, from the section gan."""
    keys = ("latent_dim", "style_dim", "mapping_layers", "channel_base", "channel_max")
    sizes = {key: config[key] for key in ("resolution", *keys)}
    return {**sizes, "filter_first": False}


def check_gan_batch(batch_size: int, devices: int) -> None:
    """Refuses a batch that the devices do not divide, as a UserError."""
    if batch_size % devices:
        raise UserError(
            f"gan.batch_size is {batch_size}, which does not divide by {devices} devices: take a "
            "multiple"
        )


def make_gan_program(config: Any, *, seed: int, mesh: Mesh) -> GanProgram:
    """The training of a generator of faces.

    Lazy regularisation: R1 and path length are separate updates every n steps, weighted by n; the
    optimisers' rate and decay are scaled by n / (n + 1).

    Random draws are a function of seed and step, so that a resumed training is bit-exact.
    """
    c, dtype = config, jnp.dtype(config.dtype)
    options = network_options(c)
    generator = GeneratorNetwork(**options, dtype=dtype)
    discriminator = DiscriminatorNetwork(c.resolution, c.channel_base, c.channel_max, dtype=dtype)
    generator_optimizer = _adam(c.learning_rate, every=c.path_every if c.path_weight else 0)
    discriminator_optimizer = _adam(c.learning_rate, every=c.r1_every)
    layers = num_styles(c.resolution)
    spread = partial(jax.lax.with_sharding_constraint, shardings=batch_sharding(mesh))

    def init() -> GanState:
        keys = jax.random.split(jax.random.key(seed))
        z = jnp.zeros((4, c.latent_dim), jnp.float32)
        g = generator.init(keys[0], z, draw_noise(keys[0], 4, c.resolution))["params"]
        x = jnp.zeros((4, c.resolution, c.resolution, 3), jnp.float32)
        d = discriminator.init(keys[1], x)["params"]
        zero, opts = jnp.float32(0), (generator_optimizer.init(g), discriminator_optimizer.init(d))
        # A copy, since a donated buffer must not occur twice.
        return GanState(
            jnp.int32(0), g, d, jax.tree.map(jnp.copy, g), *opts, zero, zero, zero, zero
        )

    def key_of(state: GanState, phase: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), phase)

    def drawn_styles(params: Any, key: jax.Array, batch: int) -> jax.Array:
        """w [B, L, W] of two latents: the second's from a random layer on, or nowhere (mixing)."""
        keys = jax.random.split(key, 4)
        latents = [spread(jax.random.normal(k, (batch, c.latent_dim))) for k in keys[:2]]
        first, second = (generator.apply({"params": params}, z, method="map") for z in latents)
        crossover = jax.random.randint(keys[2], (batch,), 1, layers)
        mixed = jax.random.bernoulli(keys[3], c.style_mixing, (batch,))
        crossover = jnp.where(mixed, crossover, layers)
        return mixed_styles(first, second, crossover, layers=layers)

    def synthesised(params: Any, styles: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.tree.map(spread, draw_noise(key, len(styles), c.resolution))
        return generator.apply({"params": params}, styles, noise, method="synthesise")

    def generated(params: Any, key: jax.Array, batch: int) -> jax.Array:
        keys = jax.random.split(key)
        return synthesised(params, drawn_styles(params, keys[0], batch), keys[1])

    def augmented(key: jax.Array, images: jax.Array, probability: jax.Array) -> jax.Array:
        if not c.augment_target:
            return images
        # It takes a third of a step on a CPU, and a training starts at probability 0.
        # Without the constraint XLA gives every device the whole batch behind the conditional.
        return spread(
            jax.lax.cond(
                probability > 0, lambda x: augment(key, x, probability), lambda x: x, images
            )
        )

    def logits(params: Any, key: jax.Array, images: jax.Array, probability: jax.Array) -> jax.Array:
        return discriminator.apply({"params": params}, augmented(key, images, probability))

    def update_generator(state: GanState) -> tuple[GanState, Metrics]:
        keys = jax.random.split(key_of(state, 0))

        def loss_of(params: Any) -> jax.Array:
            fake = generated(params, keys[0], c.batch_size)
            return generator_loss(
                logits(state.discriminator, keys[1], fake, state.augment_probability)
            )

        loss, gradient = jax.value_and_grad(loss_of)(state.generator)
        params, opt = _applied(generator_optimizer, gradient, state.generator, state.generator_opt)
        # Half-life of ema_images, at first a twentieth of the images seen so far.
        seen = (state.step + 1).astype(jnp.float32) * c.batch_size
        half_life = jnp.minimum(jnp.float32(c.ema_images), seen * 0.05)
        decay = 0.5 ** (c.batch_size / jnp.maximum(half_life, 1e-8))
        average = jax.tree.map(lambda a, p: p + (a - p) * decay, state.average, params)
        state = state._replace(generator=params, generator_opt=opt, average=average)
        return state, {"generator_loss": loss}

    def update_path_length(state: GanState) -> GanState:
        keys = jax.random.split(key_of(state, 1), 3)
        # Half a batch, as in the authors' code, to save memory; rounded up to the devices.
        batch = -(-c.batch_size // (2 * mesh.size)) * mesh.size

        def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
            styles = drawn_styles(params, keys[0], batch)
            lengths = path_lengths(lambda w: synthesised(params, w, keys[1]), styles, keys[2])
            mean = jax.lax.stop_gradient(jnp.mean(lengths))
            mean = state.path_mean + _PATH_DECAY * (mean - state.path_mean)
            penalty = jnp.mean((lengths - mean) ** 2) * c.path_weight
            return penalty * c.path_every, mean

        gradient, mean = jax.grad(loss_of, has_aux=True)(state.generator)
        params, opt = _applied(generator_optimizer, gradient, state.generator, state.generator_opt)
        return state._replace(generator=params, generator_opt=opt, path_mean=mean)

    def update_discriminator(state: GanState, images: jax.Array) -> tuple[GanState, Metrics]:
        keys, p = jax.random.split(key_of(state, 2), 3), state.augment_probability
        real = _prepared(images, c.resolution)
        fake = generated(state.generator, keys[0], c.batch_size)

        def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            both = logits(params, keys[1], real, p), logits(params, keys[2], fake, p)
            return discriminator_loss(*both), both

        (loss, both), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.discriminator)
        params, opt = _applied(
            discriminator_optimizer, gradient, state.discriminator, state.discriminator_opt
        )
        metrics = {"discriminator_loss": loss, "diversity": _spread(fake) / _spread(real)}
        for name, values in zip(("real", "fake"), both, strict=True):
            metrics[f"{name}_logit"] = jnp.mean(values)
            metrics[f"{name}_logit_std"] = jnp.std(values)
            metrics[f"{name}_sign"] = jnp.mean(jnp.sign(values))
        sign = state.real_sign + _SIGN_DECAY * (metrics["real_sign"] - state.real_sign)
        if c.augment_target:
            p = adapted_probability(
                p, sign, target=c.augment_target, images_seen=c.batch_size,
                adjust_images=c.augment_images,
            )  # fmt: skip
        state = state._replace(
            step=state.step + 1, discriminator=params, discriminator_opt=opt, real_sign=sign,
            augment_probability=p,
        )  # fmt: skip
        metrics |= {"augment_probability": p, "path_length": state.path_mean, "r1": state.r1}
        return state, metrics

    def update_r1(state: GanState, images: jax.Array) -> GanState:
        # At the images that the discriminator sees; the authors differentiate through the
        # augmentation too.
        real = augmented(
            key_of(state, 3), _prepared(images, c.resolution), state.augment_probability
        )

        def loss_of(params: Any) -> jax.Array:
            penalty = r1_penalty(
                lambda x: discriminator.apply({"params": params}, x), real, weight=c.r1_weight
            )
            return penalty * c.r1_every

        loss, gradient = jax.value_and_grad(loss_of)(state.discriminator)
        params, opt = _applied(
            discriminator_optimizer, gradient, state.discriminator, state.discriminator_opt
        )
        return state._replace(discriminator=params, discriminator_opt=opt, r1=loss / c.r1_every)

    whole = replicated(mesh)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(init)
    )
    shardings = jax.tree.map(lambda _: whole, shapes)

    def jitted(update: Callable[..., Any], out: Any) -> Callable[..., Any]:
        return jax.jit(update, donate_argnums=0, out_shardings=out)

    return GanProgram(
        init=jax.jit(init, out_shardings=shardings),
        state=shapes,
        generator=jitted(update_generator, (shardings, whole)),
        path_length=jitted(update_path_length, shardings),
        discriminator=jitted(update_discriminator, (shardings, whole)),
        r1=jitted(update_r1, shardings),
    )


def _adam(learning_rate: float, *, every: int) -> optax.GradientTransformation:
    """StyleGAN2's Adam, β = (0, 0.99), of a network with an extra update every n steps."""
    ratio = every / (every + 1) if every else 1.0
    return optax.adam(learning_rate * ratio, b1=0.0, b2=0.99**ratio, eps=1e-8)


def _applied(
    optimizer: optax.GradientTransformation, gradient: Any, params: Any, opt: optax.OptState
) -> tuple[Any, optax.OptState]:
    # optax's Adam raises a number to the power of an integer count.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt = optimizer.update(gradient, opt, params)
    return optax.apply_updates(params, updates), opt


def _prepared(images: jax.Array, resolution: int) -> jax.Array:
    """uint8 crops [B, S, S, 3] → float32 [B, R, R, 3] in −1 … 1."""
    return to_resolution(images.astype(jnp.float32) / 127.5 - 1, resolution)


def _spread(images: jax.Array) -> jax.Array:
    """The deviation over the batch, averaged over pixels and colours."""
    return jnp.mean(jnp.std(images, axis=0))
