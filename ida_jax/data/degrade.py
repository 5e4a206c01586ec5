"""Degraded copies of face images: what bad light, movement, distance and compression do to them.

Degraded faces crowd together in the embedding space, so that anchors have to be as varied as the
probes, and the SSR module's training faces as varied as both (experiments/degraded_anchors.py).
`augment` holds the random changes of training images, whose faces stay recognisable; these here are
meant to lose quality, by a named strength.

A copy is a function of (seed, the image's number, the copy's number) and of the image alone,
however images are shared out over batches. It has one kind of degradation, or two with probability
½, applied in the order of `KINDS`, the order in which a camera adds them.

N images. Lengths are in pixels of an image of 112 and grow with the image; a quality is JPEG's own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.data.augment import compressed
from ida_jax.data.dataset import LazyImages, image_subset

_SIDE = 112
_PHOTONS = 4  # grey levels a photon
_Apply = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def low_light(image: np.ndarray, gain: float, rng: np.random.Generator) -> np.ndarray:
    """The share `gain` of the light, with its shot noise: x → 4·Poisson(gain·x/4), at most 255."""
    photons = rng.poisson(image * (gain / _PHOTONS))
    return np.minimum(_PHOTONS * photons, 255).astype(np.uint8)


def motion_blur(image: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """The mean along a line of `length`, its direction uniform."""
    import cv2

    length *= image.shape[1] / _SIDE
    half = int(np.ceil(length / 2))
    places = np.linspace(-length / 2, length / 2, 4 * half + 1)
    angle = rng.uniform(0, np.pi)
    rows, columns = (np.rint(half + places * way).astype(int) for way in
                     (np.sin(angle), np.cos(angle)))  # fmt: skip
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    np.add.at(kernel, (rows, columns), np.float32(1 / len(places)))
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of deviation `sigma`."""
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma * image.shape[1] / _SIDE)


def low_resolution(image: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    """Shrunk to `side` by areas, and enlarged again, linearly or by cubics at random."""
    import cv2

    height, width = image.shape[:2]
    size = tuple(max(1, round(side * length / _SIDE)) for length in (width, height))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    back = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
    return cv2.resize(small, (width, height), interpolation=back)


def noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of deviation `sigma` grey levels."""
    noisy = image + rng.normal(0, sigma, image.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Compressed to a JPEG of that quality and decoded."""
    return compressed(image, round(quality))


class _Kind(NamedTuple):
    """A degradation, and the range of its amount by strength."""

    apply: _Apply
    mild: tuple[float, float]
    medium: tuple[float, float]
    strong: tuple[float, float]


KINDS = {
    "low_light": _Kind(low_light, (0.3, 0.6), (0.1, 0.3), (0.04, 0.1)),
    "motion_blur": _Kind(motion_blur, (3, 7), (7, 13), (13, 21)),
    "blur": _Kind(blur, (0.7, 1.5), (1.5, 3), (3, 5)),
    "low_resolution": _Kind(low_resolution, (40, 64), (24, 40), (14, 24)),
    "noise": _Kind(noise, (8, 20), (20, 40), (40, 70)),
    "jpeg": _Kind(jpeg, (25, 50), (10, 25), (4, 10)),
}
# "varied": each copy has one of the three.
STRENGTHS = ("mild", "medium", "strong")
VARIED = "varied"


class Degradation(NamedTuple):
    """How images are degraded, and which of them.

    Attributes:
      strengths: {kind: its strength, one of STRENGTHS or "varied"}.
      share: of the images that have degraded copies, above 0, at most 1.
      copies: degraded copies of each of these.
      seed: of the images' choice and of all amounts.
    """

    strengths: dict[str, str]
    share: float = 0.5
    copies: int = 1
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """The same for an artefact's provenance, JSON-able."""
        return {**self._asdict(), "strengths": dict(self.strengths)}


def degradation(
    spec: str, *, share: float = 0.5, copies: int = 1, seed: int = 0, what: str = "degrade"
) -> Degradation | None:
    """A flag's or a config's words: a strength of all kinds, or kinds, with a strength or without.

    Args:
      spec: "varied", "mild", "medium" or "strong"; or such as "blur,jpeg:strong", where a kind
        without a strength is varied; "" is none.
      what: the flag's or entry's name, for messages; `what`_share and `what`_copies are the others.

    Returns:
      None where the spec is empty.
    """
    if not spec:
        return None
    if not 0 < share <= 1:
        raise UserError(f"{what}_share is {share:g}: expected a share above 0, at most 1")
    if copies < 1:
        raise UserError(f"{what}_copies is {copies}: expected 1 or more")
    known = (*STRENGTHS, VARIED)
    if spec in known:
        return Degradation(dict.fromkeys(KINDS, spec), share, copies, seed)
    strengths: dict[str, str] = {}
    for word in spec.split(","):
        kind, colon, strength = word.strip().partition(":")
        if kind not in KINDS or (colon and strength not in known) or kind in strengths:
            raise UserError(
                f"{what} is '{spec}', in which '{word}' is not understood: expected one of "
                f"{', '.join(known)}, or once each any of {', '.join(KINDS)}, with :STRENGTH or "
                "without, separated by commas"
            )
        strengths[kind] = strength or VARIED
    return Degradation(strengths, share, copies, seed)


def degraded(image: np.ndarray, how: Degradation, *, number: int, copy: int = 0) -> np.ndarray:
    """The degraded copy of an image, uint8 [H, W, 3] in RGB order.

    Args:
      number: the image's, at least 0.
      copy: the copy's, at least 0.
    """
    rng = _stream(how.seed, 0, number, copy)
    kinds = [kind for kind in KINDS if kind in how.strengths]
    count = min(len(kinds), 1 + int(rng.random() < 0.5))
    for place in sorted(rng.choice(len(kinds), count, replace=False).tolist()):
        strength = how.strengths[kinds[place]]
        if strength == VARIED:
            strength = STRENGTHS[rng.integers(len(STRENGTHS))]
        kind = KINDS[kinds[place]]
        image = kind.apply(image, rng.uniform(*getattr(kind, strength)), rng)
    return image


def degraded_rows(how: Degradation, numbers: np.ndarray) -> np.ndarray:
    """Which of N images have degraded copies: bool [N], by their numbers, int64 [N].

    An image's choice depends on the seed and its own number alone, so that about the share of the
    images is chosen, and the same ones whatever others there are.
    """
    drawn = [_stream(how.seed, 1, int(number), 0).random() for number in numbers]
    return np.array(drawn, np.float64) < how.share


def with_degraded(
    images: Sequence[np.ndarray], how: Degradation | None, *, numbers: np.ndarray | None = None
) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """N images and, behind them, the degraded copies of some.

    Args:
      how: None adds none.
      numbers: int64 [N], the images' numbers in the set that they come from; 0 … N − 1 if None.

    Returns:
      The images, each made when it is asked for; and int64 [N + copies], the image that each is or
      is a copy of.
    """
    n = len(images)
    if how is None:
        return images, np.arange(n)
    numbers = np.arange(n) if numbers is None else numbers
    chosen = np.flatnonzero(degraded_rows(how, numbers))
    copies = copies_of(image_subset(images, chosen), how, numbers=numbers[chosen])
    both = LazyImages(
        n + len(copies), lambda index: images[index] if index < n else copies[index - n]
    )
    return both, np.concatenate([np.arange(n), np.tile(chosen, how.copies)])


def copies_of(
    images: Sequence[np.ndarray], how: Degradation, *, numbers: np.ndarray
) -> Sequence[np.ndarray]:
    """The first degraded copy of each of N images, then the second of each, and so on.

    Each is made when it is asked for.

    Args:
      numbers: int64 [N], the images' numbers.
    """

    def fetch(index: int) -> np.ndarray:
        copy, row = divmod(index, len(numbers))
        return degraded(images[row], how, number=int(numbers[row]), copy=copy)

    return LazyImages(len(numbers) * how.copies, fetch)


def _stream(seed: int, use: int, number: int, copy: int) -> np.random.Generator:
    """Random numbers of their own for each use, image and copy."""
    return np.random.Generator(np.random.Philox(key=[seed, 2], counter=[0, use, number, copy]))
