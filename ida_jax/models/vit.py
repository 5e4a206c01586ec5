"""Vision transformers in arcface_torch's shape: the networks "vit_t", "vit_s", "vit_b", "vit_l".

Source: deepinsight/insightface, recognition/arcface_torch/backbones/vit.py. Against the usual one:
patches of 9 pixels, of which 112 hold 12 in a row (the last four pixels are unused); ReLU6 in the
MLP; no class token, but a fully connected output over all tokens, as in the residual networks; and
in training a share of the tokens is left out of the blocks, and a learned one put in their places
behind them.

Blocks are one `nn.scan`: their parameters are stacked along a first axis, and one block is
compiled, whatever the depth. Which tokens and which blocks' branches a step leaves out follows from
its key "dropout", and so from (seed, step).

B batch, H and W image size, L tokens, K kept tokens, C width, D embedding.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.models.resnet import BatchNorm

# theirs: trunc_normal_(std=.02), which truncates at 100 deviations
_INITIAL = nn.initializers.normal(0.02)
_layer_norm = partial(nn.LayerNorm, epsilon=1e-5)


class VisionTransformer(nn.Module):
    """Images to embeddings.

    Attributes:
      depth: blocks.
      width: C, of the tokens; the first layer of the output has it too.
      heads: of the attention.
      patch_size: in pixels.
      embedding_dim: D.
      drop_path_rate: the chance that an image skips a branch of the last block; it rises evenly
        from 0 in the first (stochastic depth). What is kept grows in proportion.
      mask_ratio: the share of an image's tokens that training leaves out of the blocks:
        K = ⌊L · (1 − ratio)⌋ others are drawn for each image. arcface_torch takes 0.1 for every
        ratio above 0, so that its `…_mask_005` is 0.1 here.
      dtype, batch_norm_groups, remat: as in `models.resnet.IResNet`, the dtype of the blocks'
        products; float32 are the sum over the blocks, softmax, norms and the output layers.
        arcface_torch has remat in vit_b and vit_l.
    """

    depth: int = 12
    width: int = 256
    heads: int = 8
    patch_size: int = 9
    embedding_dim: int = 512
    drop_path_rate: float = 0.1
    mask_ratio: float = 0.1
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """The embeddings of a batch, not normalised.

        The position embedding's and the output's sizes follow from H and W, which so are part of a
        trained network. Training updates the collection "batch_stats" and draws from the key
        "dropout".

        Args:
          images: float [B, H, W, 3], normalised as for training (RGB, (x/255 − 0.5)/0.5).
          mask: bool [B], False for rows that only pad the batch: they enter no statistics.

        Returns:
          float32 [B, D].
        """
        patches = _patches(images, self.patch_size)
        rows, columns, of_patch = patches.shape[1:4]
        batch, tokens = patches.shape[0], rows * columns
        x = nn.Dense(
            self.width, dtype=self.dtype, name="patch",
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        )(patches.reshape(batch, tokens, of_patch)).astype(jnp.float32)  # fmt: skip
        position = self.param("position", _INITIAL, (tokens, self.width), jnp.float32)
        mask_token = self.param("mask_token", _INITIAL, (self.width,), jnp.float32)
        x = x + position[None]

        masked = train and self.mask_ratio > 0
        if masked:
            kept = int(tokens * (1 - self.mask_ratio))
            noise = jax.random.uniform(self.make_rng("dropout"), (batch, tokens))
            order = jnp.argsort(noise, axis=1)
            x = jnp.take_along_axis(x, order[:, :kept, None], axis=1)

        block = Block
        # Only in training, so that an exported network has no trace of it.
        if self.remat and train:
            block = nn.remat(Block, prevent_cse=False)
        rates = np.linspace(0, self.drop_path_rate, self.depth, dtype=np.float32)
        x, _ = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )(
            heads=self.heads,
            drop_path=train and self.drop_path_rate > 0,
            dtype=self.dtype,
            name="blocks",
        )(x, jnp.asarray(rates))

        x = _layer_norm(name="norm")(x)
        if masked:
            # Token t is where the order has it: of the first K, or left out.
            left_out = jnp.broadcast_to(mask_token, (batch, tokens - kept, self.width))
            places = jnp.argsort(order, axis=1)[:, :, None]
            x = jnp.take_along_axis(jnp.concatenate([x, left_out], axis=1), places, axis=1)
        # For the uncertainty module; nothing unless the collection is asked for.
        self.sow("intermediates", "feature_map", x.reshape(batch, rows, columns, self.width))

        dense = partial(nn.Dense, use_bias=False, kernel_init=_INITIAL)
        norm = partial(BatchNorm, groups=self.batch_norm_groups)
        stats = {"train": train, "mask": mask}
        x = dense(self.width, name="fc1")(x.reshape(batch, -1))
        x = norm(name="fc1_bn")(x, **stats)
        return norm(name="embedding_bn")(dense(self.embedding_dim, name="fc2")(x), **stats)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); the MLP is four times as wide, with ReLU6.

    As `nn.scan` wants it: (x, the block's drop path rate) → (x, nothing).
    """

    heads: int
    drop_path: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
        """float32 [B, L, C] → float32 [B, L, C].

        Raises:
          UserError: C is not a multiple of the heads.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(
                f"the tokens' width is {width}, the heads {self.heads}: take a multiple"
            )
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_INITIAL)

        y = _layer_norm(name="norm1")(x)
        qkv = dense(3 * width, use_bias=False, name="qkv")(y)
        qkv = qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        y = _attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        y = dense(width, name="proj")(y.reshape(x.shape))
        x = x + self._kept(y, rate)
        y = dense(4 * width, name="mlp1")(_layer_norm(name="norm2")(x))
        y = dense(width, name="mlp2")(nn.relu6(y))
        return x + self._kept(y, rate), None

    def _kept(self, branch: jax.Array, rate: jax.Array) -> jax.Array:
        """The branch of the images that do not skip it, as float32."""
        branch = branch.astype(jnp.float32)
        if not self.drop_path:
            return branch
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (branch.shape[0], 1, 1))
        return jnp.where(kept, branch / (1 - rate), 0)


def _attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q·k / √d) v of [B, L, heads, d] each, in their type; the softmax is float32.

    As `jax.nn.dot_product_attention`, whose casts are implicit: strict promotion rejects them, in
    the backward pass too.
    """
    product = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = nn.softmax(product / query.shape[-1] ** 0.5)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def _patches(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, 3] → [B, ⌊H/size⌋, ⌊W/size⌋, size · size · 3]: a convolution becomes a product."""
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    x = images[:, : rows * size, : columns * size]
    x = x.reshape(batch, rows, size, columns, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)


vit_t = partial(VisionTransformer, depth=12, width=256)
vit_s = partial(VisionTransformer, depth=12, width=512)
vit_b = partial(VisionTransformer, depth=24, width=512)
vit_l = partial(VisionTransformer, depth=24, width=768)
