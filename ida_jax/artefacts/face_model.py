"""A trained backbone as one file: network, weights, preprocessing, and its fingerprint.

The fingerprint is a hash of network, options, preprocessing and weights. Anchor sets, modules and
embeddings carry the fingerprint of the model that they belong to, and another model's are refused;
where either side is unknown nothing is refused.

B batch, N faces, H height, W width, D embedding, C classes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from inspect import signature
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.common.devices import batch_sharding, local_mesh, pad_batch, replicated
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, save_tensors
from ida_jax.common.fingerprints import fingerprint_of
from ida_jax.common.validation import require_variables, unit_embeddings
from ida_jax.models import ir_se, mbf, mobilefacenet, resnet, vit

KIND = "face_model"  # of its file
# Crops at once where there are fewer than a batch: two shapes are compiled, with little padding.
_FEW = 8
_LARGEST_SIDE = 1 << 14
_NETWORKS = {
    "iresnet_nano": resnet.iresnet_nano,
    "iresnet18": resnet.iresnet18,
    "iresnet34": resnet.iresnet34,
    "iresnet50": resnet.iresnet50,
    "iresnet100": resnet.iresnet100,
    "iresnet200": resnet.iresnet200,
    "mobilefacenet": mobilefacenet.MobileFaceNet,
    "mbf": mbf.mbf,
    "mbf_large": mbf.mbf_large,
    "vit_t": vit.vit_t,
    "vit_s": vit.vit_s,
    "vit_b": vit.vit_b,
    "vit_l": vit.vit_l,
    "ir_se50": ir_se.ir_se50,
    "ir_se100": ir_se.ir_se100,
    "ir_se152": ir_se.ir_se152,
}
NETWORK_NAMES = tuple(_NETWORKS)


@dataclass(frozen=True)
class Preprocessing:
    """A network's input: RGB crops of one size, (x/255 − mean) / std per channel."""

    image_size: int = 112
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def check(self, image: np.ndarray, *, what: str) -> None:
        """Refuses a crop that is not uint8 [H, W, 3] of this size, as a UserError."""
        expected = (self.image_size, self.image_size, 3)
        if image.shape != expected or image.dtype != np.uint8:
            raise UserError(
                f"{what} is {image.dtype} {list(image.shape)}: the model takes RGB crops, uint8 "
                f"{list(expected)}"
            )

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] in RGB order to the network's float32 input."""
        mean = jnp.asarray(self.mean, jnp.float32)[None, None, None, :]
        std = jnp.asarray(self.std, jnp.float32)[None, None, None, :]
        return (images.astype(jnp.float32) / 255.0 - mean) / std


@dataclass(frozen=True, eq=False)
class FaceModel:
    """A backbone with its weights.

    Attributes:
      network: its name, one of those that `build_network` knows.
      network_options: the module's options (embedding_dim, dropout_rate, …), JSON-able.
      preprocessing: how crops become the input.
      variables: {"params": …, "batch_stats": …}.
      class_weights: float32 [C, D], the margin head's weights it was trained with, or None.
    """

    network: str
    network_options: dict[str, Any]
    preprocessing: Preprocessing
    variables: dict[str, Any]
    class_weights: np.ndarray | None = None

    @property
    def width(self) -> int:
        """D, the embedding's width."""
        return int(self.network_options["embedding_dim"])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over network, options, preprocessing and every weight.

        Two models with one fingerprint give the same embeddings; files that carry it (anchor sets,
        SSR modules) belong to this model alone.
        """
        described = [self.network, self.network_options, asdict(self.preprocessing)]
        return fingerprint_of(described, self.variables)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model as one safetensors file, whole or not at all."""
        tensors = {
            name: np.asarray(value) for name, value in flatten_dict(self.variables, sep="/").items()
        }
        if self.class_weights is not None:
            tensors["class_weights"] = np.asarray(self.class_weights, np.float32)
        metadata = {
            "network": self.network,
            "network_options": self.network_options,
            "colour_order": "RGB",
            "image_size": self.preprocessing.image_size,
            "mean": self.preprocessing.mean,
            "std": self.preprocessing.std,
            "fingerprint": self.fingerprint,
        }
        save_tensors(path, tensors, kind=KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FaceModel":
        """Reads a saved model.

        Raises:
          UserError: the file is absent, torn, not a face model, or not what its fingerprint states.
        """
        tensors, metadata = load_tensors(path, kind=KIND)
        class_weights = tensors.pop("class_weights", None)
        with complete(path):
            preprocessing = Preprocessing(
                metadata["image_size"], tuple(metadata["mean"]), tuple(metadata["std"])
            )
            model = cls(
                metadata["network"],
                metadata["network_options"],
                preprocessing,
                unflatten_dict(tensors, sep="/"),
                class_weights,
            )
            written = metadata["fingerprint"]
            _check(model)
        if model.fingerprint != written:
            raise UserError(f"{path} does not match its own fingerprint: it was altered or damaged")
        return model

    def embed(
        self,
        images: Sequence[np.ndarray],
        *,
        batch_size: int = 128,
        flip: bool = False,
        progress: str | None = None,
    ) -> np.ndarray:
        """Unit embeddings of face crops, float32 [N, D]: `raw_embeddings`, normalised.

        Raises:
          UserError: a crop of a different size; a zero, NaN or infinite embedding, named by row.
        """
        raw = self.raw_embeddings(images, batch_size=batch_size, flip=flip, progress=progress)
        return unit_embeddings(raw, what="the model's embeddings")

    def raw_embeddings(
        self,
        images: Sequence[np.ndarray],
        *,
        batch_size: int = 128,
        flip: bool = False,
        progress: str | None = None,
    ) -> np.ndarray:
        """Embeddings of face crops as the network gives them, by batches over all devices.

        Their norms reflect the images' quality, which the IJB protocols may use.

        Args:
          images: N crops, uint8 [H, W, 3], RGB, of the model's size.
          batch_size: crops at once, or 8 where there are fewer crops than that; the last batch is
            padded, so that one shape is compiled.
          flip: embeds f(x) + f(mirrored x), as is usual in the LFW and IJB protocols.
          progress: the title of a progress bar; none if None.

        Returns:
          float32 [N, D].

        Raises:
          UserError: a crop of a different size.
        """
        variables = jax.device_put(self.variables, replicated(local_mesh()))
        module = build_network(self.network, self.network_options)

        def embed(images: jax.Array) -> tuple[jax.Array]:
            return (embed_batch(module, self.preprocessing, flip, variables, images),)

        batches = by_batches(
            embed, images, self.preprocessing, batch_size=batch_size, progress=progress
        )
        chunks = [chunk for (chunk,) in batches]
        return np.concatenate(chunks) if chunks else np.zeros((0, self.width), np.float32)


def _check(model: FaceModel) -> None:
    """Raises ValueError for a preprocessing that is not valid, or that does not fit the network."""
    of_input = model.preprocessing
    side, channels = of_input.image_size, (*of_input.mean, *of_input.std)
    if type(side) is not int or not 1 <= side <= _LARGEST_SIDE:
        raise ValueError(f"image_size is {side!r:.40}, expected from 1 to {_LARGEST_SIDE}")
    if [len(of_input.mean), len(of_input.std)] != [3, 3] or not all(
        type(value) in (int, float) and abs(value) <= _LARGEST_SIDE for value in channels
    ):
        raise ValueError("mean and std: expected 3 finite numbers each")
    if not min(of_input.std) > 0:
        raise ValueError(f"std is {list(of_input.std)}, expected positive numbers")
    try:
        network = build_network(model.network, model.network_options)
    except UserError as error:  # which names no file
        raise ValueError(str(error)) from error
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    init = partial(network.init, train=False)
    require_variables(model.variables, lambda: jax.eval_shape(init, jax.random.key(0), image))
    weights = model.class_weights
    if weights is not None and (weights.ndim != 2 or weights.shape[1] != model.width):
        raise ValueError(f"class_weights is {list(weights.shape)}, expected [C, {model.width}]")


def by_batches(
    function: Callable[[jax.Array], tuple[jax.Array, ...]],
    images: Sequence[np.ndarray],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    progress: str | None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """A jitted function of crops by batches of one shape, over all devices; its rows on the host.

    Args:
      function: uint8 [B, H, W, 3] → arrays of B rows.
      images: N crops.
      preprocessing: gives the size that they must have.
      batch_size, progress: as in `FaceModel.raw_embeddings`.
    """
    mesh = local_mesh()
    rows = batch_size if len(images) >= batch_size else min(_FEW, batch_size)
    rows = -(-rows // mesh.size) * mesh.size
    pending = None
    for batch in _batches(images, rows, preprocessing, progress):
        (padded,), _ = pad_batch(batch, to_multiple_of=rows)
        out = function(jax.device_put(padded, batch_sharding(mesh)))
        # The previous batch is fetched while the device works on this one.
        if pending is not None:
            yield _on_host(*pending)
        pending = out, len(batch)
    if pending is not None:
        yield _on_host(*pending)


def _on_host(arrays: tuple[jax.Array, ...], rows: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(array)[:rows] for array in arrays)


def build_network(name: str, options: dict[str, Any]) -> nn.Module:
    """The flax module of a network's name.

    Raises:
      UserError: an unknown name or option, or an option out of range.
    """
    if name not in _NETWORKS:
        raise UserError(f"network '{name}' is unknown: choose one of {', '.join(_NETWORKS)}")
    if name.startswith("iresnet") and (fixed := sorted({"stage_sizes", "widths"} & options.keys())):
        raise UserError(f"model.options of {name}: {fixed[0]} follows from the network's name")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    dtype, width = options.pop("dtype", "float32"), options.get("embedding_dim")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"model.options.dtype is '{dtype}': choose float32, bfloat16 or float16")
    if not isinstance(width, int) or width < 1:
        raise UserError(f"model.options.embedding_dim is {width}: expected a width of at least 1")
    known = [key for key in signature(_NETWORKS[name]).parameters if key not in ("parent", "name")]
    if unknown := sorted(options.keys() - set(known)):
        raise UserError(
            f"model.options of {name}: unknown option '{unknown[0]}': it has {', '.join(known)}"
        )
    return _NETWORKS[name](dtype=jnp.dtype(dtype), **options)


@partial(jax.jit, static_argnums=(0, 1, 2))
def embed_batch(
    module: nn.Module, preprocessing: Preprocessing, flip: bool, variables: Any, images: jax.Array
) -> jax.Array:
    """The raw embeddings of a batch of crops, float32 [B, D]; as `FaceModel.raw_embeddings`."""
    inputs = preprocessing(images)
    if not flip:
        return module.apply(variables, inputs, train=False)
    # Both in one pass, which is compiled once; side by side, so that rows stay on their devices.
    both = jnp.stack([inputs, inputs[:, :, ::-1, :]], axis=1)
    embeddings = module.apply(variables, both.reshape(-1, *inputs.shape[1:]), train=False)
    return jnp.sum(embeddings.reshape(len(inputs), 2, -1), axis=1)


def _batches(
    images: Sequence[np.ndarray], rows: int, preprocessing: Preprocessing, progress: str | None
) -> Iterator[np.ndarray]:
    from ida_jax.common.progress import progress_bar

    bar = progress_bar(total=len(images), desc=progress, unit="face", disable=progress is None)
    # Decoding releases the interpreter's lock, so that threads spread it over the cores.
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(images), rows):
            batch = list(pool.map(images.__getitem__, range(start, min(start + rows, len(images)))))
            for offset, image in enumerate(batch):
                preprocessing.check(image, what=f"image {start + offset}")
            yield np.stack(batch)
            bar.update(len(batch))
