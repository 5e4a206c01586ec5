"""A model's figures on held-out pairs, as the training looks at them.

P pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ida_jax.artefacts.face_model import FaceModel
from ida_jax.common.validation import row_norms, unit_embeddings
from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.protocols.insightface_rule import RULES, insightface_figures


def figures_of_sets(
    model: FaceModel, sets: Mapping[str, tuple[Sequence[np.ndarray], PairList]],
    *, flip: bool, rule: str,
) -> dict[str, float]:  # fmt: skip
    """`held_out_figures` of one set; of several sets, SET_FIGURE, and the mean as "accuracy"."""
    found = {name: held_out_figures(model, *of, flip=flip, rule=rule) for name, of in sets.items()}
    if len(found) == 1:
        return next(iter(found.values()))
    mean = float(np.mean([figures["accuracy"] for figures in found.values()]))
    named = {f"{name}_{key}": v for name, of in found.items() for key, v in of.items()}
    return {"accuracy": mean, **named}


def held_out_figures(
    model: FaceModel, images: Sequence[np.ndarray], pair_list: PairList, *, flip: bool, rule: str
) -> dict[str, float]:
    """The cosine's k-fold "accuracy"; by InsightFace's rule also its "val" at 1e-3 and "xnorm".

    XNorm is the mean norm of the embeddings of images and of mirrored ones, as InsightFace has it.

    Args:
      images: crops, uint8 [H, W, 3].
      flip: adds mirrored images' embeddings.
      rule: of `RULES`.
    """
    if rule == RULES[0]:
        faces, (pairs, same, fold) = model.embed(images, flip=flip), pair_list
        cosines = np.sum(faces[pairs[:, 0]] * faces[pairs[:, 1]], axis=1)
        return {"accuracy": kfold_accuracy(cosines, same, folds=fold).mean}
    sides = [model.raw_embeddings(images)]
    if flip:
        sides.append(model.raw_embeddings([image[:, ::-1] for image in images]))
    faces = unit_embeddings(np.sum(sides, axis=0), what="the model's embeddings")
    xnorm = float(np.mean([row_norms(side) for side in sides]))
    figures = insightface_figures(faces, pair_list, xnorm=xnorm)
    (val,) = figures["val@far"].values()
    return {"accuracy": figures["accuracy"], "val": val, "xnorm": xnorm}
