"""Probabilistic face embeddings (PFE): an embedding and its uncertainty.

A face is a Gaussian N(μ, diag σ²): μ is the frozen backbone's unit embedding, σ² comes from a
module on the backbone's last feature map. Source: Shi & Jain, "Probabilistic Face Embeddings" (ICCV
2019); the paper's section 4.7 and Table 5.

B batch, N faces, D embedding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict, unflatten_dict

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network, by_batches
from ida_jax.common.devices import local_mesh, replicated
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.common.validation import (
    require_log_variances,
    require_same_model,
    require_variables,
    unit_embeddings,
)
from ida_jax.models.uncertainty_network import UncertaintyNetwork

_KIND = "uncertainty_module"


class ProbabilisticEmbeddings(NamedTuple):
    """Faces as Gaussians.

    Attributes:
      means: μ, float32 [N, D], unit rows.
      log_variances: log σ², float32 [N, D].
    """

    means: np.ndarray
    log_variances: np.ndarray


@dataclass(frozen=True, eq=False)
class UncertaintyModel:
    """A trained uncertainty module, which belongs to one face model.

    Attributes:
      variables: {"params": …, "batch_stats": …} of `UncertaintyNetwork`.
      fingerprint: of the face model on whose feature maps it was trained.
    """

    variables: dict[str, Any]
    fingerprint: str

    @property
    def module(self) -> UncertaintyNetwork:
        """The flax module that takes the variables."""
        hidden, width = self.variables["params"]["output_fc"]["kernel"].shape
        return UncertaintyNetwork(embedding_dim=width, hidden=hidden)

    def embed(
        self,
        model: FaceModel,
        images: Sequence[np.ndarray],
        *,
        batch_size: int = 128,
        flip: bool = False,
        progress: str | None = None,
    ) -> ProbabilisticEmbeddings:
        """Means and log-variances of face crops.

        Args:
          model: the face model, whose embeddings are the means.
          images: N crops, as `FaceModel.embed` takes them.
          batch_size: as there.
          flip: the mean is f(x) + f(mirrored x), normalised, as there; log σ² is the average of
            the two images'.
          progress: as there.

        Raises:
          UserError: a different face model; a crop of a different size; a zero, NaN or infinite
            embedding, or a σ² that is 0, NaN or infinite, named by row.
        """
        raw, log_variances = self.raw_embeddings(
            model, images, batch_size=batch_size, flip=flip, progress=progress
        )
        means = unit_embeddings(raw, what="the model's embeddings")
        return ProbabilisticEmbeddings(means, require_log_variances(log_variances))

    def raw_embeddings(
        self,
        model: FaceModel,
        images: Sequence[np.ndarray],
        *,
        batch_size: int = 128,
        flip: bool = False,
        progress: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `embed`, embeddings as the network gives them and unchecked log-variances, [N, D]."""
        width = self.module.embedding_dim
        self.check_model(fingerprint=model.fingerprint, width=model.width)
        variables = jax.device_put((model.variables, self.variables), replicated(local_mesh()))
        network, module = build_network(model.network, model.network_options), self.module
        batches = by_batches(
            lambda images: _embed_batch(
                network, module, model.preprocessing, flip, variables, images
            ),
            images,
            model.preprocessing,
            batch_size=batch_size,
            progress=progress,
        )
        try:
            chunks = list(batches) or [(np.zeros((0, width), np.float32),) * 2]
        except ScopeParamShapeError as error:
            raise UserError(
                "the uncertainty module takes feature maps of another size than the model's: train "
                "it on this model"
            ) from error
        raw, log_variances = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        return raw, log_variances

    def check_model(self, *, fingerprint: str, width: int) -> None:
        """Refuses a model that this module was not trained on, as `AnchorSet.check_model`."""
        require_same_model(
            "uncertainty module", self.fingerprint, self.module.embedding_dim,
            fingerprint=fingerprint, width=width,
        )  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the module as one safetensors file, whole or not at all."""
        tensors = {k: np.asarray(v) for k, v in flatten_dict(self.variables, sep="/").items()}
        save_tensors(path, tensors, kind=_KIND, metadata={"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "UncertaintyModel":
        """Reads a saved module.

        Raises:
          UserError: the file is absent, torn, or not an uncertainty module.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            model = cls(unflatten_dict(tensors, sep="/"), metadata["fingerprint"])
            features = tensors["params/hidden_fc/kernel"].shape[0]
            require_variables(
                model.variables,
                lambda: model.module.init(
                    jax.random.key(0), jnp.zeros((1, 1, 1, features)), train=False
                ),
            )
            require_types(model)
        return model


def means_and_maps(
    network: nn.Module, variables: Any, inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The frozen backbone's raw embeddings [B, D] and last feature maps [B, H, W, C]."""
    embeddings, state = network.apply(variables, inputs, train=False, mutable=["intermediates"])
    (feature_map,) = state["intermediates"]["feature_map"]
    return embeddings, feature_map


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _embed_batch(
    network: nn.Module,
    module: UncertaintyNetwork,
    preprocessing: Preprocessing,
    flip: bool,
    variables: tuple[Any, Any],
    images: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    inputs = preprocessing(images)
    views = 1
    if flip:
        # Side by side, so that rows stay on their devices.
        inputs = jnp.stack([inputs, inputs[:, :, ::-1, :]], axis=1)
        inputs, views = inputs.reshape(-1, *inputs.shape[2:]), 2
    embeddings, feature_maps = means_and_maps(network, variables[0], inputs)
    log_variances = module.apply(variables[1], feature_maps, train=False)
    shape = (len(images), views, -1)
    return jnp.sum(embeddings.reshape(shape), axis=1), jnp.mean(
        log_variances.reshape(shape), axis=1
    )
