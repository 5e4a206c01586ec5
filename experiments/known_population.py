"""Scores of a made-up population whose TARs are known, for checks of the intervals.

A genuine score is m + 1.5 (√.5 a_p + √.1 (q_i + q_j) + √.3 e), an impostor one
√.15 (h_p + h_r) + √.05 (q_i + q_j) + √.6 e: a is how well a person is recognised, h how much a
person is taken for others, q an image's quality, e the pair's own part; all standard normal, so
that the TAR at a FAR is known. m = 6.5 (TARs as MobileFaceNet's on LFW: .997 at 1e-2, .93 at 1e-5)
or 4.5 (.93, .56). People have as many images as on LFW, at most 10 (71 % have one; the 3 % with
ten give half of the genuine pairs), or three each. Each method's a, h, q and e correlate by .9
with every other method's. One method is the equal of the baseline; of the better one h counts
√.05 in place of √.15.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

MEANS = {"few errors": 6.5, "many errors": 4.5}
# Identities of LFW by their number of images, 10 standing for 10 and more.
LFW_SIZES = np.array([4069, 779, 291, 187, 112, 55, 39, 33, 26, 158])
SIZES = ("as on LFW", "three each")
RHO = math.sqrt(0.9)
GENUINE_SD, HUB, BETTER_HUB, QUALITY = 1.5, 0.15, 0.05, 0.05


class People(NamedTuple):
    """Faces' identities, and the faces of both kinds of pairs.

    Attributes:
      labels: int [N].
      genuine: int [G, 2].
      impostor: int [n, 2].
    """

    labels: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray


def some_people(rng: np.random.Generator, sizes: str, people: int) -> People:
    """People with at least one genuine pair among them."""
    while True:
        chances = LFW_SIZES / LFW_SIZES.sum()
        images = rng.choice(np.arange(1, 11), people, p=chances) if sizes == SIZES[0] else 3
        labels = np.repeat(np.arange(people), images)
        pairs = np.stack(np.triu_indices(labels.size, 1), axis=1)
        same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        if same.any():
            return People(labels, pairs[same], pairs[~same])


def scores(
    rng: np.random.Generator, people: People, mean: float, hubs: tuple[float, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each method's genuine [G] and impostor [n] scores; `hubs` are the methods' variances of h."""
    labels, genuine, impostor = people
    shapes = (labels.max() + 1, labels.max() + 1, labels.size, len(genuine), len(impostor))
    common = [rng.standard_normal(shape, np.float32) for shape in shapes]
    for hub in hubs:
        ability, hubness, quality, own, pairs = (
            np.float32(RHO) * part
            + np.float32(math.sqrt(1 - RHO**2)) * rng.standard_normal(part.size, np.float32)
            for part in common
        )
        person = math.sqrt(0.5) * ability[labels[genuine[:, 0]]]
        of_genuine = person + math.sqrt(0.1) * quality[genuine].sum(axis=1) + math.sqrt(0.3) * own
        face = (math.sqrt(hub) * hubness[labels] + math.sqrt(QUALITY) * quality).astype(np.float32)
        rest = np.float32(math.sqrt(1 - 2 * HUB - 2 * QUALITY))
        of_impostor = face[impostor[:, 0]] + face[impostor[:, 1]] + rest * pairs
        yield (mean + GENUINE_SD * of_genuine).astype(np.float32), of_impostor


def true_threshold(far: float, hub: float) -> float:
    """The threshold of a FAR in the population."""
    return math.sqrt(1 + 2 * (hub - HUB)) * norm.isf(far)


def true_tar(far: float, mean: float, hub: float) -> float:
    """The TAR at a FAR in the population."""
    return norm.cdf((mean - true_threshold(far, hub)) / GENUINE_SD)


def true_accuracy(mean: float, hub: float) -> float:
    """The share of right decisions at the best threshold, as many genuine pairs as impostors."""
    thresholds = np.linspace(0, 6, 6001)
    missed = norm.cdf((thresholds - mean) / GENUINE_SD)
    accepted = norm.sf(thresholds / math.sqrt(1 + 2 * (hub - HUB)))
    return float(np.max(1 - (missed + accepted) / 2))


def pair_list(rng: np.random.Generator, people: int) -> tuple[People, np.ndarray, np.ndarray]:
    """People's listed pairs, genuine first; their labels and folds."""
    half = 3 * people // 4
    labels = np.repeat(np.arange(people), 4)
    with_pairs = rng.permutation(people)[: max(10, 3 * people // 10)]
    images = np.array([rng.permutation(4)[:2] for _ in range(half)])
    genuine = 4 * rng.choice(with_pairs, half)[:, None] + images
    sides = np.array([rng.permutation(people)[:2] for _ in range(half)])
    impostor = 4 * sides + rng.integers(4, size=(half, 2))
    same = np.repeat([True, False], half)
    return People(labels, genuine, impostor), same, np.tile(np.arange(half) % 10, 2)
