"""The SSR module's network: the density of a face from its embedding alone (IDA-L).

SSR is support set regression.

Source: the paper's section 3.2 and Eq. 6, "two fully connected layers" on the face's embedding,
with ReLU (section 4.1). Their width is not given there.

D embedding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class SSRNetwork(nn.Module):
    """Fully connected, ReLU, fully connected to one number.

    Attributes:
      hidden: the width between the two layers.
      dtype: of the hidden layer's computation, float32 or bfloat16. The result is float32.
    """

    hidden: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array) -> jax.Array:
        """Unit embeddings [..., D] → float32 [...], on the scale of the training's targets."""
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden_fc")(embeddings))
        return nn.Dense(1, name="output_fc")(x.astype(jnp.float32))[..., 0]
