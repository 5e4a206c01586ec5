"""The class weights of arcface_torch's checkpoints: the centres that its margin head learned.

checkpoint_gpu_0.pt, …            a rank's whole state, its classes under "state_dict_softmax_fc"
softmax_fc_gpu_0.pt, …            a rank's classes alone, {"weight": [C, D]}
rank_0_softmax_weight.pt, …       the same of older releases, a tensor

Rank r has the r-th block of classes: their rows in the ranks' order are the classes in theirs.

C classes, D embedding.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.interop.state_dict import read_torch

_SHARD = re.compile(r"(checkpoint_gpu_|softmax_fc_gpu_|rank_)(\d+)(\.pt|_softmax_weight\.pt)")
_SUFFIXES = (".pt", ".pth", ".ckpt")
# By the first that a file has.
_NAMES = ("weight", "module.weight")


def class_weight_files(text: str) -> tuple[Path, ...]:
    """The files that FILE, FILE,FILE… or FOLDER stands for, in the order of their classes.

    A folder's are its shards, by rank.

    Raises:
      UserError: a folder without shards, with two kinds of them, or without one of the ranks.
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

    Raises:
      UserError: no file, one that cannot be read so, one without class weights, or files of
        different widths or another one.
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
