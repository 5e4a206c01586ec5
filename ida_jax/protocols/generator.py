"""A generator's faces beside real ones, in the embedding space of the face model.

A generator is judged where it is used: its faces will be anchors in that space. The figures are not
comparable with a published FID.

N faces, D embedding.
"""

import numpy as np

from ida_jax.anchors.sources import sampled_rows
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.metrics.frechet import frechet_distance, precision_recall

# The seed of the faces looked at, which no fake-db is drawn from by default.
_SEED = 2**31


def generator_figures(
    generator: FaceGenerator,
    model: FaceModel,
    real: np.ndarray,
    *,
    faces: int,
    seed: int,
    flip: bool = False,
) -> dict[str, float]:
    """Fréchet distance, precision and recall (`ida_jax.metrics.frechet`).

    Args:
      generator: of crops of the model's size.
      model: the face model.
      real: unit embeddings [N, D] of the training faces by this model.
      faces: at most so many real faces are looked at, drawn from `seed`, and as many generated.
      seed: of the draw.
      flip: whether embeddings are of an image and its mirror image, as `real` is.

    Returns:
      {"frechet": …, "precision": …, "recall": …}; precision is how many generated faces are like
      real ones, recall how much of the real ones is generated.
    """
    rows = sampled_rows(len(real), size=faces, seed=seed)
    made = generator.faces(0, len(rows), seed=_SEED)
    found = model.embed(made, flip=flip)
    shares = precision_recall(real[rows], found)
    distance = frechet_distance(real[rows], found)
    return {"frechet": distance, "precision": shares.precision, "recall": shares.recall}
