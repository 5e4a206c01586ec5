"""A trained network's weights from elsewhere, as a face model.

.pth .pt .ckpt .npz .safetensors   a PyTorch state dict of `ida_jax.interop.torch_networks`:
                                   iresnet, mbf, ViT (arcface_torch), IR-SE, MobileFaceNet
.onnx                              InsightFace's published networks (w600k_r50.onnx, glint360k_…)
.safetensors                       also a model of ida_jax's own

And the class weights of arcface_torch's checkpoints, the centres that its margin head learned:

checkpoint_gpu_0.pt, …            a rank's whole state, its classes under "state_dict_softmax_fc"
softmax_fc_gpu_0.pt, …            a rank's classes alone, {"weight": [C, D]}
rank_0_softmax_weight.pt, …       the same of older releases, a tensor

Rank r has the r-th block of classes: their rows in the ranks' order are the classes in theirs.

C classes, D embedding.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.artefacts.face_model import KIND, FaceModel, Preprocessing, build_network
from ida_jax.common.errors import UserError
from ida_jax.common.files import kind_of, require_file
from ida_jax.interop.onnx_import import read_onnx_state
from ida_jax.interop.state_dict import read_state, read_torch
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


_SHARD = re.compile(r"(checkpoint_gpu_|softmax_fc_gpu_|rank_)(\d+)(\.pt|_softmax_weight\.pt)")
_SUFFIXES = (".pt", ".pth", ".ckpt")
# By the first that a file has.
_NAMES = ("weight", "module.weight")


def class_weight_files(text: str) -> tuple[Path, ...]:
    """The files that FILE, FILE,FILE… or FOLDER stands for, in the order of their classes.

    A folder's are its shards, by rank.
    """
    paths = tuple(Path(part).expanduser() for part in text.split(",") if part)
    if len(paths) != 1 or not paths[0].is_dir():
        return paths
    (folder,) = paths
    kinds: dict[tuple[str, str], dict[int, Path]] = {}
    for path in folder.iterdir():
        if match := _SHARD.fullmatch(path.name):
            kinds.setdefault((match[1], match[3]), {})[int(match[2])] = path
    if len(kinds) != 1:
        found = ", ".join(f"{before}*{after}" for before, after in sorted(kinds)) or "none"
        raise UserError(
            f"{folder} has {found} of arcface_torch's files of class weights: expected one kind, "
            "such as softmax_fc_gpu_0.pt, softmax_fc_gpu_1.pt, …; name the files by commas"
        )
    ((before, after),) = kinds
    (shards,) = kinds.values()
    for rank in range(len(shards)):
        if rank not in shards:
            raise UserError(
                f"{folder} has {len(shards)} shards {before}*{after}, but not {before}{rank}{after}"
            )
    return tuple(shards[rank] for rank in range(len(shards)))


def read_class_weights(
    paths: Sequence[Path], *, width: int | None = None, model: str = "the model"
) -> np.ndarray:
    """float32 [C, D], the classes of all files, one after the other.

    Files are read by torch.load(weights_only=True), which runs no code.

    Args:
      width: the D of the embeddings that they are for; None takes any.
      model: what makes these, for an error.
    """
    shards: list[np.ndarray] = []
    for path in paths:
        require_file(path, what="class weights")
        if path.suffix not in _SUFFIXES:
            raise UserError(f"{path}: expected class weights in {', '.join(_SUFFIXES)}")
        arrays = read_torch(path, wrappers=("state_dict_softmax_fc", "state_dict"))
        weight = next((arrays[name] for name in _NAMES if name in arrays), None)
        if weight is None or weight.ndim != 2 or not np.issubdtype(weight.dtype, np.floating):
            names = ", ".join(sorted(arrays)[:3])
            raise UserError(
                f"{path} holds {names or 'nothing'}…: expected class weights, one tensor 'weight' "
                "of [classes, width], as arcface_torch's softmax_fc_gpu_*.pt or checkpoint_gpu_*.pt"
            )
        if shards and weight.shape[1] != shards[0].shape[1]:
            raise UserError(
                f"{path} has class weights {weight.shape[1]} wide, {paths[0]} "
                f"{shards[0].shape[1]}: expected the shards of one training"
            )
        shards.append(weight)
    if not shards:
        raise UserError("no file of class weights was named")
    if width is not None and shards[0].shape[1] != width:
        raise UserError(
            f"the class weights in {paths[0]} are {shards[0].shape[1]} wide, the embeddings of "
            f"{model} {width}: expected those of its own training"
        )
    return np.concatenate(shards)
