"""A trained generator of faces as one file: network, weights, the crops it makes, its fingerprint.

Its faces belong to no real person: the fake-db's anchors are made of them (section 3.2).

N faces, S crop size, R resolution, Z latent, W style.
"""

import os
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.common.devices import batch_sharding, local_mesh, replicated
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, save_tensors
from ida_jax.common.fingerprints import fingerprint_of
from ida_jax.common.validation import require_variables
from ida_jax.models.stylegan import GeneratorNetwork, draw_noise, num_styles
from ida_jax.ops.resample import to_crops

_KIND = "face_generator"
# Faces made at once; fixed, since a convolution's last bit depends on their number.
_BLOCK = 64
_LATENTS_AVERAGED = 8192
# Of a generator that is read; far above any that is trained here.
_LARGEST_SIZE, _MOST_LAYERS, _MOST_TIMES = 1 << 20, 64, 16


@dataclass(frozen=True, eq=False)
class FaceGenerator:
    """A generator with its weights.

    Attributes:
      options: of `ida_jax.models.stylegan.GeneratorNetwork`, JSON-able; a file without filter_first
        is of the time when every generator filtered first.
      variables: {"params": …}, the training's moving average.
      mean_style: float32 [W], w̄, the mean of w, towards which truncation moves styles.
      image_size: S, the side of the crops that it learned from and makes, independent of R.
      provenance: of the training, JSON-able: data set, its size, steps, images shown, figures.
    """

    options: dict[str, Any]
    variables: dict[str, Any]
    mean_style: np.ndarray
    image_size: int
    provenance: dict[str, Any]

    @classmethod
    def of(
        cls, options: dict[str, Any], params: Any, *, image_size: int, provenance: dict[str, Any]
    ) -> "FaceGenerator":
        """A generator of these parameters, its mean style estimated from 8,192 latents."""
        params = jax.tree.map(np.asarray, params)
        network = _network(options)
        mean = np.asarray(_mean_style(network, {"params": params}))
        return cls(options, {"params": params}, mean, image_size, provenance)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over sizes, crop size and every weight."""
        return fingerprint_of([self.options, self.image_size], self.variables)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the generator as one safetensors file, whole or not at all."""
        tensors = {
            name: np.asarray(value) for name, value in flatten_dict(self.variables, sep="/").items()
        }
        tensors["mean_style"] = self.mean_style
        metadata = {
            "options": self.options,
            "image_size": self.image_size,
            "provenance": self.provenance,
            "fingerprint": self.fingerprint,
        }
        save_tensors(path, tensors, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FaceGenerator":
        """Reads a saved generator."""
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            mean_style = tensors.pop("mean_style")
            generator = cls(
                metadata["options"],
                unflatten_dict(tensors, sep="/"),
                mean_style,
                metadata["image_size"],
                metadata["provenance"],
            )
            written = metadata["fingerprint"]
            _check(generator)
        if generator.fingerprint != written:
            raise UserError(f"{path} does not match its own fingerprint: it was altered or damaged")
        return generator

    def faces(
        self,
        first: int,
        count: int,
        *,
        seed: int = 0,
        truncation: float = 1.0,
    ) -> np.ndarray:
        """Faces number `first` … `first` + `count` − 1 of an endless sequence.

            w ← w̄ + ψ·(w − w̄)

        A face is a function of (seed, its number, ψ), in float32; on a different number or kind
        of devices a pixel may be rounded differently.

        Args:
          first: the number of the first one, 0 or more.
          count: N.
          truncation: ψ, 1 for the whole distribution; less for more ordinary, less varied faces.

        Returns:
          uint8 [N, S, S, 3], RGB.
        """
        if not 0 <= truncation <= 1:
            raise UserError(f"truncation is {truncation}: expected a number from 0 to 1")
        mesh = local_mesh()
        rows = -(-_BLOCK // mesh.size) * mesh.size
        network, whole = _network(self.options), replicated(mesh)
        variables, mean = jax.device_put((self.variables, self.mean_style), whole)
        faces = np.empty((count, self.image_size, self.image_size, 3), np.uint8)
        for block in range(first // _BLOCK, -(-(first + count) // _BLOCK)):
            start = block * _BLOCK
            numbers = jax.device_put(
                np.arange(start, start + rows, dtype=np.uint32), batch_sharding(mesh)
            )
            made = _faces(
                network, self.image_size, variables, mean, numbers,
                jax.random.key(seed), np.float32(truncation),
            )  # fmt: skip
            low, high = max(start, first), min(start + _BLOCK, first + count)
            faces[low - first : high - first] = np.asarray(made)[low - start : high - start]
        return faces


def _network(options: dict[str, Any]) -> GeneratorNetwork:
    return GeneratorNetwork(**{"filter_first": True, **options})


def _check(generator: FaceGenerator) -> None:
    """Raises ValueError where what was read is not a generator's sizes and arrays."""
    others = ("dtype", "filter_first")
    sizes = {key: value for key, value in generator.options.items() if key not in others}
    sizes["image_size"] = generator.image_size
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= _LARGEST_SIZE:
            raise ValueError(f"{name[:40]} is {size!r:.40}, expected from 1 to {_LARGEST_SIZE}")
    if type(generator.options.get("filter_first", True)) is not bool:
        raise ValueError("filter_first is not true or false")
    network = _network(generator.options)
    resolution = network.resolution
    if resolution < 8 or resolution.bit_count() != 1 or network.mapping_layers > _MOST_LAYERS:
        raise ValueError(f"resolution {resolution}, {network.mapping_layers} mapping layers")
    if generator.image_size > _MOST_TIMES * resolution:
        raise ValueError(f"crops of {generator.image_size} by a resolution of {resolution}")
    style = generator.mean_style
    if style.shape != (network.style_dim,) or style.dtype != np.float32:
        raise ValueError(f"mean_style is {style.dtype} {list(style.shape)}")

    def init() -> Any:
        key, latents = jax.random.key(0), jnp.zeros((1, network.latent_dim))
        return network.init(key, latents, draw_noise(key, 1, resolution))

    require_variables(generator.variables, init)


@partial(jax.jit, static_argnums=0)
def _mean_style(network: GeneratorNetwork, variables: Any) -> jax.Array:
    latents = jax.random.normal(jax.random.key(0), (_LATENTS_AVERAGED, network.latent_dim))
    return jnp.mean(network.apply(variables, latents, method="map"), axis=0)


@partial(jax.jit, static_argnums=(0, 1))
def _faces(
    network: GeneratorNetwork,
    image_size: int,
    variables: Any,
    mean_style: jax.Array,
    numbers: jax.Array,
    key: jax.Array,
    truncation: jax.Array,
) -> jax.Array:
    """uint8 [B, S, S, 3], each from its own number's key."""

    def drawn(number: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        own = jax.random.split(jax.random.fold_in(key, number))
        noise = draw_noise(own[1], 1, network.resolution)
        return jax.random.normal(own[0], (network.latent_dim,)), [n[0] for n in noise]

    latents, noise = jax.vmap(drawn)(numbers)
    styles = network.apply(variables, latents, method="map")
    styles = mean_style[None, :] + truncation * (styles - mean_style[None, :])
    layers = num_styles(network.resolution)
    styles = jnp.repeat(styles[:, None, :], layers, axis=1)
    images = to_crops(network.apply(variables, styles, noise, method="synthesise"), image_size)
    return jnp.clip(jnp.round(images * 127.5 + 127.5), 0, 255).astype(jnp.uint8)
