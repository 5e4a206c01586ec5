"""Faces for a trial without data: rendered people, seen through Fisherfaces.

Belhumeur et al. (1997): principal components of the pixels, then the directions that tell some
other people apart. A weak model, of no training that would take minutes.

N faces, D embedding.
"""

import numpy as np

from ida_jax.data.rendered import rendered_faces
from ida_jax.trials.rotate import Labelled

_SIZE, _IMAGES = 32, 4
LEARNT, TRIED = 300, 1500  # people
_COMPONENTS, _WIDTH = 150, 64


def demo_faces(*, seed: int = 0) -> tuple[Labelled, np.ndarray]:
    """1,500 people of four images by a model of 300 others, and the images."""
    sets = [
        rendered_faces(
            identities=count, images_per_identity=_IMAGES, image_size=_SIZE, seed=seed,
            first_identity=first,
        )
        for first, count in ((0, LEARNT), (LEARNT, TRIED))
    ]  # fmt: skip
    learnt, tried = (
        np.asarray(faces.images).reshape(len(faces.images), -1) / 255 for faces in sets
    )
    people = np.asarray(sets[0].labels)
    mean = learnt.mean(axis=0)
    _, scale, basis = np.linalg.svd(learnt - mean, full_matrices=False)
    basis = (basis[:_COMPONENTS] / scale[:_COMPONENTS, None]).T * np.sqrt(len(learnt))
    faces = (learnt - mean) @ basis
    centres = np.stack([faces[people == person].mean(axis=0) for person in np.unique(people)])
    within = np.cov((faces - centres[people]).T) + 0.1 * np.eye(_COMPONENTS)
    # Whitened within people, the directions of the largest spread between them.
    values, vectors = np.linalg.eigh(within)
    whiten = vectors / np.sqrt(values)
    _, _, between = np.linalg.svd((centres - centres.mean(axis=0)) @ whiten, full_matrices=False)
    embeddings = (tried - mean) @ basis @ whiten @ between[:_WIDTH].T
    norms = np.linalg.norm(embeddings, axis=1)
    faces = (embeddings / norms[:, None]).astype(np.float32)
    return Labelled(faces, np.asarray(sets[1].labels), norms=norms), sets[1].images
