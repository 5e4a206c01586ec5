"""What every export shares: function, input, description, and the check against JAX.

A graph takes a batch of any size B and gives

    embedding    float32 [B, D], unit rows, or as the network gives them (output_kind "raw")
    norm         float32 [B], the raw embedding's norm (for IDA-Q), where it is asked for
    log_density  float32 [B], log F (IDA-L), where an SSR module is exported too

so that, of unit rows, a pair's score is log DAO = τ · ⟨f₁, f₂⟩ + logaddexp(log F₁, log F₂) (Eq. 4's
logarithm).

B batch, H and W image size, D embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.artefacts.face_model import FaceModel, build_network
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_rows
from ida_jax.models.ssr_network import SSRNetwork
from ida_jax.ops.hypersphere import normalize

# What a graph can take. "uint8": RGB crops [B, H, W, 3] as read, normalised inside the graph.
# "float_nchw": float32 [B, 3, H, W], RGB and normalised already, as InsightFace's networks take.
INPUTS = ("uint8", "float_nchw")
# What becomes of the embedding N(x). "unit": N(x) / ‖N(x)‖. "raw": N(x) itself, as InsightFace's
# files give it: its IJB protocol weighs images by the norm and adds mirrored images' raw ones.
OUTPUT_KINDS = ("unit", "raw")

Graph = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Deployable(NamedTuple):
    """A face model, with or without its SSR module, as arrays and a pure function of them.

    Attributes:
      variables: {"network": …, "ssr": …}, a pytree of arrays; "ssr" only with an SSR module.
      apply: (variables, images) → {"embedding": float32 [B, D], "norm": float32 [B],
        "log_density": float32 [B]}, without "norm" unless it was asked for, and without
        "log_density" where there is no SSR module.
    """

    variables: dict[str, Any]
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]


def deployable(
    model: FaceModel,
    ssr: SSRModule | None = None,
    *,
    input: str = "uint8",
    norm: bool = False,
    float32: bool = False,
    output_kind: str = "unit",
) -> Deployable:
    """From crops x to f = N(x) / ‖N(x)‖ and log F(f), for use inside one's own `jax.jit`.

    The function that `ida-jax export` writes: nothing in it leaves JAX, so that it can be
    vmapped, differentiated and sharded. log F is the SSR module's M (section 3.2):
    mean + std · M(f) for the target "log", log max(mean + std · M(f), floor) for the others.

        variables, apply = ida_jax.deployable(model, ssr)
        out = jax.jit(apply)(variables, images)

    Args:
      model: whose fingerprint the SSR module must carry.
      ssr: its SSR module.
      input: "uint8", images are RGB crops [B, H, W, 3] as read; "float_nchw", float32
        [B, 3, H, W], RGB and normalised already.
      norm: gives ‖N(x)‖ too.
      float32: convolutions in float32, as in exports, instead of in the model's own dtype.
      output_kind: "unit", "embedding" is f; "raw", it is N(x).

    Raises:
      UserError: an unknown input or kind, or an SSR module for another model.
    """
    description(model, input=input, ssr=ssr, norm=norm, output_kind=output_kind)
    model = in_float32(model) if float32 else model
    network = build_network(model.network, model.network_options)
    nhwc = model.preprocessing if input == "uint8" else _nhwc
    variables: dict[str, Any] = {"network": model.variables}
    if ssr is not None:
        variables["ssr"] = ssr.params

    def apply(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        raw = network.apply(variables["network"], nhwc(images), train=False)
        unit = normalize(raw)
        out = {"embedding": unit if output_kind == "unit" else raw.astype(jnp.float32)}
        if norm:
            out["norm"] = jnp.linalg.norm(raw, axis=1)
        if ssr is not None:
            out["log_density"] = _log_density(ssr, variables["ssr"], unit)
        return out

    return Deployable(variables, apply)


def in_float32(model: FaceModel) -> FaceModel:
    """The model with float32 convolutions; its weights are float32 in any case."""
    options = {key: value for key, value in model.network_options.items() if key != "dtype"}
    return replace(model, network_options=options)


def input_shape(model: FaceModel, input: str) -> tuple[int, int, int]:
    """[H, W, 3] or [3, H, W]; UserError if `input` is not one of INPUTS."""
    if input not in INPUTS:
        raise UserError(f"input '{input}' is unknown: choose one of {', '.join(INPUTS)}")
    side = model.preprocessing.image_size
    return (side, side, 3) if input == "uint8" else (3, side, side)


def description(
    model: FaceModel,
    *,
    input: str,
    ssr: SSRModule | None,
    norm: bool = False,
    output_kind: str = "unit",
) -> dict[str, Any]:
    """What a graph's user must know: input, normalisation, width, fingerprint, JSON-able.

    Raises:
      UserError: an unknown input or output kind, or an SSR module for another model.
    """
    if output_kind not in OUTPUT_KINDS:
        raise UserError(
            f"output kind '{output_kind}' is unknown: choose one of {', '.join(OUTPUT_KINDS)}"
        )
    unit = output_kind == "unit"
    shape = input_shape(model, input)
    dtype = "uint8" if input == "uint8" else "float32"
    of_model = model.preprocessing
    facts = {
        "network": model.network,
        "fingerprint": model.fingerprint,
        "input": f"{dtype} [B, {', '.join(map(str, shape))}]",
        "colour_order": "RGB",
        "normalisation": "in the graph" if input == "uint8" else "(x / 255 - mean) / std, by you",
        "mean": of_model.mean,
        "std": of_model.std,
        "image_size": of_model.image_size,
        "embedding_dim": model.width,
        "output_kind": output_kind,
        "embedding": "unit length" if unit else "as the network gives it, of any length",
    }
    if norm:
        facts["norm"] = "of the embedding as the network gives it"
    if ssr is not None:
        ssr.check_model(fingerprint=model.fingerprint, width=model.width)
        facts |= {
            "k": ssr.k,
            "tau": ssr.tau,
            "log_dao": "tau * dot(e1, e2) + logaddexp(log_density1, log_density2)"
            + ("" if unit else ", e1 and e2 brought to unit length"),
        }
    return facts


def largest_difference(
    graph: Graph,
    model: FaceModel,
    *,
    input: str,
    ssr: SSRModule | None,
    norm: bool = False,
    output_kind: str = "unit",
    batch: int = 3,
    seed: int = 0,
) -> float:
    """Runs a graph and the model in float32 on random images; the largest difference of any output.

    That of norms and raw embeddings is relative to the norm.

    Args:
      graph: from an input batch to the outputs by name.
      model: what was exported.
      input: what the graph takes.
      ssr: what was exported with it.
      norm: whether the norms were.
      output_kind: what the embeddings are.
      batch: B.
      seed: of the images.
    """
    rng = np.random.default_rng(seed)
    side = model.preprocessing.image_size
    images = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
    embeddings, _, norms = unit_rows(in_float32(model).raw_embeddings(images))
    expected = {"embedding": embeddings}
    if ssr is not None:
        expected["log_density"] = ssr.log_density(expected["embedding"])
    if input == "float_nchw":
        inputs = np.asarray(model.preprocessing(images)).transpose(0, 3, 1, 2)
    else:
        inputs = images
    actual = dict(graph(np.ascontiguousarray(inputs)))
    if output_kind == "raw":
        actual["embedding"] = actual["embedding"] / norms[:, None]
    if norm:
        actual["norm"], expected["norm"] = actual["norm"] / norms, np.ones(batch)
    return max(float(np.max(np.abs(actual[name] - value))) for name, value in expected.items())


def _nhwc(images: jax.Array) -> jax.Array:
    return images.transpose(0, 2, 3, 1)


def _log_density(ssr: SSRModule, params: Any, embedding: jax.Array) -> jax.Array:
    """`SSRModule.log_density`, traceable: [B, D] → [B]."""
    out = SSRNetwork(hidden=params["hidden_fc"]["kernel"].shape[1]).apply(
        {"params": params}, embedding
    )
    out = jnp.float32(ssr.mean) + jnp.float32(ssr.std) * out
    if ssr.target != "log":
        out = jnp.log(jnp.maximum(out, jnp.float32(ssr.floor)))
    return jnp.float32(ssr.intercept) + jnp.float32(ssr.slope) * out if ssr.calibrated else out
