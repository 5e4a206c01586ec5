"""A trained network's weights from elsewhere, as a face model.

.pth .pt .ckpt .npz .safetensors   a PyTorch state dict of `ida_jax.interop.torch_networks`:
                                   iresnet, mbf, ViT (arcface_torch), IR-SE, MobileFaceNet
.onnx                              InsightFace's published networks (w600k_r50.onnx, glint360k_…)
.safetensors                       also a model of ida_jax's own
"""

import os
from pathlib import Path

from ida_jax.artefacts.face_model import KIND, FaceModel, Preprocessing, build_network
from ida_jax.common.errors import UserError
from ida_jax.common.files import kind_of
from ida_jax.interop.onnx_import import read_onnx_state
from ida_jax.interop.state_dict import read_state
from ida_jax.interop.torch_networks import network_of
from ida_jax.models.vit import VisionTransformer

# Of unit embeddings: rounding gives less than 1e-5, another network far more.
_LARGEST_DIFFERENCE = 1e-3


def import_model(
    path: str | os.PathLike[str], *, preprocessing: Preprocessing | None = None
) -> FaceModel:
    """Reads weights, identifies their network, and returns the whole model.

    Args:
      path: a file of one of the kinds above; its suffix decides how it is read.
      preprocessing: what the network was trained on, RGB in any case. None: ImageNet's mean and
        deviation for MobileFaceNet, (x/255 − 0.5)/0.5 for the others, as InsightFace has it.

    Raises:
      UserError: see `read_state`, `read_onnx_state` and `network_of`; or `preprocessing` is for
        images of a different size.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and kind_of(path) == KIND:
        model = FaceModel.load(path)
        if preprocessing not in (None, model.preprocessing):
            raise UserError(
                f"{path} takes {model.preprocessing}, not {preprocessing}: set model.image_size, "
                "model.mean and model.std to that"
            )
        return model
    state = read_onnx_state(path) if path.suffix == ".onnx" else read_state(path)
    try:
        network, options, own, variables = network_of(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    preprocessing = preprocessing or own
    if preprocessing.image_size != own.image_size:
        raise UserError(
            f"{path} is for images of {own.image_size} pixels, not {preprocessing.image_size}"
        )
    model = FaceModel(network, options, preprocessing, variables)
    if path.suffix == ".onnx" and isinstance(build_network(network, options), VisionTransformer):
        _require_same_embeddings(path, model)
    return model


def _require_same_embeddings(path: Path, model: FaceModel) -> None:
    """Refuses a graph that does something else with its weights than the model of them does.

    A ViT's weights are found by their order; the number of heads stands in no weight's shape.
    """
    from ida_jax.interop.exported import largest_difference
    from ida_jax.interop.onnx_import import onnx_function

    difference = largest_difference(
        onnx_function(path), model, input="float_nchw", ssr=None, output_kind="raw", batch=2
    )
    if not difference <= _LARGEST_DIFFERENCE:
        raise UserError(
            f"{path}: on random images the graph differs by {difference:.1e} from {model.network} "
            "with its weights: a number of heads other than 8, or other layers, which cannot be "
            "read"
        )
