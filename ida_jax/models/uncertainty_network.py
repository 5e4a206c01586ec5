"""The uncertainty module of Probabilistic Face Embeddings: a face's variances from its last map.

Source: Shi and Jain, "Probabilistic Face Embeddings" (ICCV 2019), and their code. The
trained backbone is frozen: its unit embedding is the mean μ of a Gaussian, and this
module, trained afterwards, gives the variance σ² of each dimension
(`ida_jax.ops.mutual_likelihood`).

B batch, H and W map size, C channels, D embedding.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

_LEAST_VARIANCE = 1e-6


class UncertaintyNetwork(nn.Module):
    """FC → BN → ReLU → FC → BN → γ·x + β → log(1e-6 + exp(x)), the log-variances.

    The first BatchNorm has scale and bias, the second neither: γ and β, one number each for all
    dimensions, take their place. As γ begins at 1e-4 and β at −7, training begins with almost
    equal variances of about e⁻⁷, which rank pairs as the cosine does. 1e-6 is the least variance.

    Attributes:
      embedding_dim: D.
      hidden: the width between the two layers (the authors: D, which was 512).
    """

    embedding_dim: int
    hidden: int = 512

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """log σ² of each dimension of the embedding.

        The first layer's size follows from H, W and C. Training updates the collection
        "batch_stats", whose running statistics move by 0.005.

        Args:
          features: [B, H, W, C], the backbone's last map; the networks of this package sow it as
            "feature_map".

        Returns:
          float32 [B, D].
        """

        def norm(name: str, *, affine: bool) -> nn.BatchNorm:
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.995,
                epsilon=1e-3,
                use_scale=affine,
                use_bias=affine,
                name=name,
            )

        def dense(width: int, name: str) -> nn.Dense:
            # The authors' framework draws weights so where nothing else is said.
            initial = nn.initializers.xavier_uniform()
            return nn.Dense(width, use_bias=False, kernel_init=initial, name=name)

        x = features.reshape(features.shape[0], -1).astype(jnp.float32)
        x = nn.relu(norm("hidden_bn", affine=True)(dense(self.hidden, "hidden_fc")(x)))
        x = norm("output_bn", affine=False)(dense(self.embedding_dim, "output_fc")(x))
        scale = self.param("scale", nn.initializers.constant(1e-4), (), jnp.float32)
        shift = self.param("shift", nn.initializers.constant(-7.0), (), jnp.float32)
        return jnp.logaddexp(scale * x + shift, math.log(_LEAST_VARIANCE))
