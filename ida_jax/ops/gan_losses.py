"""Losses of a generative adversarial network: non-saturating logistic, R1, path length.

Sources: Goodfellow et al., "Generative Adversarial Nets" (2014), section 3; Mescheder et al.,
"Which Training Methods for GANs do actually Converge?" (2018), R1; Karras et al., "Analyzing and
Improving the Image Quality of StyleGAN" (2020), path length; "A Style-Based Generator Architecture
for Generative Adversarial Networks" (2019), style mixing.

B batch, L layers, W style.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def generator_loss(fake_logits: jax.Array) -> jax.Array:
    """−log σ(D(G(z))), averaged: float32 scalar from logits [B]."""
    return jnp.mean(jax.nn.softplus(-fake_logits))


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """−log σ(D(x)) − log(1 − σ(D(G(z)))), averaged: float32 scalar from logits [B] each."""
    return jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(fake_logits))


def r1_penalty(
    discriminator: Callable[[jax.Array], jax.Array], images: jax.Array, *, weight: float
) -> jax.Array:
    """γ/2 · E‖∇ₓ D(x)‖², R1, the gradient penalty at real images.

    Args:
      discriminator: images [B, H, W, 3] → logits [B], each of its own image alone or of a few.
      weight: γ.

    Returns:
      float32 scalar.
    """
    gradient = jax.grad(lambda x: jnp.sum(discriminator(x)))(images)
    return weight / 2 * jnp.mean(jnp.sum(gradient.astype(jnp.float32) ** 2, axis=(1, 2, 3)))


def mixed_styles(
    first: jax.Array, second: jax.Array, crossover: jax.Array, *, layers: int
) -> jax.Array:
    """Style mixing: one latent's style in the layers before the crossover, another's from it on.

    Args:
      first: w of one latent, [B, W].
      second: w of another latent, [B, W].
      crossover: int [B], the first layer of the second; L or more: none.
      layers: L.

    Returns:
      [B, L, W].
    """
    kept = jnp.arange(layers)[None, :] < crossover[:, None]
    return jnp.where(kept[:, :, None], first[:, None, :], second[:, None, :])


def path_lengths(
    synthesise: Callable[[jax.Array], jax.Array], styles: jax.Array, key: jax.Array
) -> jax.Array:
    """‖Jᵀ_w y‖ of each image: how far it moves with its styles, in a random direction y.

        y ~ N(0, I) / √(H·V),  length = √( mean over layers of Σ_W (∂⟨g(w), y⟩/∂w)² )

    Args:
      synthesise: g, styles [B, L, W] → images [B, H, V, 3].
      styles: w.
      key: of y.

    Returns:
      float32 [B].
    """

    def projected(styles: jax.Array) -> jax.Array:
        images = synthesise(styles)
        pixels = images.shape[1] * images.shape[2]
        return jnp.sum(images * (jax.random.normal(key, images.shape) / pixels**0.5))

    gradient = jax.grad(projected)(styles)
    # Where nothing moves the square root has no derivative.
    return jnp.sqrt(jnp.mean(jnp.sum(gradient**2, axis=2), axis=1) + 1e-12)
