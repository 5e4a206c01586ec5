"""A trained network's weights from elsewhere, as a face model.

.pth .pt .ckpt .npz .safetensors   a PyTorch state dict: iresnet (arcface_torch), MobileFaceNet
.onnx                              InsightFace's published iresnets (w600k_r50.onnx, glint360k_…)
.safetensors                       also a model of ida_jax's own
"""

import os
from pathlib import Path

from ida_jax.artefacts.face_model import KIND, FaceModel, Preprocessing
from ida_jax.common.errors import UserError
from ida_jax.common.files import kind_of
from ida_jax.interop.onnx_import import read_onnx_state
from ida_jax.interop.state_dict import iresnet_from_state, mobilefacenet_variables, read_state

# The public MobileFaceNet is trained on ImageNet's statistics.
_IMAGENET = Preprocessing(112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def import_model(
    path: str | os.PathLike[str], *, preprocessing: Preprocessing | None = None
) -> FaceModel:
    """Reads weights, identifies their network, and returns the whole model.

    Args:
      path: a file of one of the kinds above; its suffix decides how it is read.
      preprocessing: what the network was trained on, RGB in any case. None: (x/255 − 0.5)/0.5 for
        an iresnet, as InsightFace has it; ImageNet's mean and deviation for MobileFaceNet.

    Raises:
      UserError: see `read_state`, `read_onnx_state`, `iresnet_from_state` and
        `mobilefacenet_variables`; or `preprocessing` is for images of a different size.
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
    if "gdconv.depthwise.weight" in state:
        network, options = "mobilefacenet", {"embedding_dim": 128}
        own, variables = _IMAGENET, mobilefacenet_variables(state)
    else:
        network, options, image_size, variables = iresnet_from_state(state)
        own = Preprocessing(image_size)
    preprocessing = preprocessing or own
    if preprocessing.image_size != own.image_size:
        raise UserError(
            f"{path} is for images of {own.image_size} pixels, not {preprocessing.image_size}"
        )
    return FaceModel(network, options, preprocessing, variables)
