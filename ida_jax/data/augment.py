"""Random changes of training images: each a function of the image and of its own random stream.

A change is named with a probability. Those drawn for an image are applied in the order of
`CHANGES`, the order in which a camera would add them: the pose and what occludes the face, the
light, the lens, the sensor, the file.

B batch, H height, W width; a ratio is of lengths, a quality JPEG's own 0 … 100.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import numpy as np

from ida_jax.common.errors import UserError

# Luma, as JPEG and OpenCV weigh R, G and B.
LUMA = np.array([0.299, 0.587, 0.114])


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left and right. Every recipe in the field, at ½."""
    import cv2

    return cv2.flip(image, 1)


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keeps a rectangle where it is and blackens the rest.

    Its area is 0.2 to 1 of the image's, its aspect ¾ to 4⁄3 (log-uniform), its place uniform.
    Source: AdaFace's crop augmentation.
    """
    height, width = image.shape[:2]
    area = height * width * rng.uniform(0.2, 1.0)
    root = math.sqrt(math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))))
    rows = min(height, max(1, round(math.sqrt(area) / root)))
    columns = min(width, max(1, round(math.sqrt(area) * root)))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    out = np.zeros_like(image)
    kept = slice(top, top + rows), slice(left, left + columns)
    out[kept] = image[kept]
    return out


def occlusion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Covers a rectangle with mid-grey, 128.

    Each side is 0.2 to 0.5 of the image's, its middle anywhere on the image, beyond which it is cut
    off. Source: the cutoff of InsightFace's MXNet iterator, which takes a square of fixed side.
    """
    height, width = image.shape[:2]
    out = image.copy()
    half_rows, half_columns = rng.uniform(0.1, 0.25, size=2) * (height, width)
    row, column = rng.uniform(0, (height, width))
    top, left = max(0, round(row - half_rows)), max(0, round(column - half_columns))
    out[top : round(row + half_rows), left : round(column + half_columns)] = 128
    return out


def colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness b, then contrast c, then saturation s, each 0.5 to 1.5: x → c·b·A x + (1−c)·b·m.

    A = s·I + (1−s)·1·lᵀ with the luma weights l, and m is the image's mean luma. Source: AdaFace's
    photometric augmentation (torchvision's ColorJitter, whose order is random and which clips
    between the three; here the one result is clipped).
    """
    import cv2

    brightness, contrast, saturation = rng.uniform(0.5, 1.5, size=3)
    mean = brightness * float(LUMA @ cv2.mean(image)[:3])
    mix = saturation * np.eye(3) + (1 - saturation) * LUMA
    shift = np.full((3, 1), (1 - contrast) * mean)
    return cv2.transform(image, np.hstack([contrast * brightness * mix, shift]))


def grey(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The luma in all three channels. Source: InsightFace's DALI pipeline, saturation 0."""
    import cv2

    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian over 3×3 (σ 0.8) or 5×5 pixels (σ 1.1). Source: InsightFace's DALI pipeline."""
    import cv2

    side, sigma = ((3, 0.8), (5, 1.1))[rng.integers(2)]
    return cv2.GaussianBlur(image, (side, side), sigma)


def low_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrinks by a ratio of 0.2 to 1 and enlarges again.

    Either way by one of nearest, linear, area, cubic and Lanczos at random. Source: AdaFace's
    low-resolution augmentation (InsightFace's DALI pipeline: 0.5 to 0.8).
    """
    import cv2

    ways = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC,
            cv2.INTER_LANCZOS4)  # fmt: skip
    height, width = image.shape[:2]
    ratio = rng.uniform(0.2, 1.0)
    down, up = rng.integers(len(ways), size=2)
    size = max(1, int(ratio * width)), max(1, int(ratio * height))
    small = cv2.resize(image, size, interpolation=ways[down])
    return cv2.resize(small, (width, height), interpolation=ways[up])


def jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compresses to a JPEG of quality 10 to 90 and decodes it.

    Source: InsightFace's MXNet iterator, which draws 2 to 20; the milder range is ours.
    """
    return compressed(image, int(rng.integers(10, 91)))


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """The image as a JPEG of that quality, decoded."""
    import cv2

    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "flip": flip, "crop": crop, "occlusion": occlusion, "colour": colour, "grey": grey,
    "blur": blur, "low_resolution": low_resolution, "jpeg": jpeg,
}  # fmt: skip

FLIP = {"flip": 0.5}
# arcface_torch trains with the mirror alone; these are its DALI pipeline's with dali_aug.
INSIGHTFACE = {"flip": 0.5, "colour": 0.2, "grey": 0.1, "blur": 0.2, "low_resolution": 0.1}
# AdaFace's and CVLface's three at 0.2; JPEG and occlusion beside them are ours.
LOW_QUALITY = {
    "flip": 0.5, "crop": 0.2, "occlusion": 0.1, "colour": 0.2, "low_resolution": 0.2, "jpeg": 0.2,
}  # fmt: skip
SETS: dict[str, dict[str, float]] = {
    "none": {}, "flip": FLIP, "insightface": INSIGHTFACE, "low_quality": LOW_QUALITY,
}  # fmt: skip


def augmentation(value: str | Mapping[str, float]) -> dict[str, float]:
    """A config's `augment`: a set's name, or probabilities by a change's name.

    Returns:
      {name: probability}, in the order in which the changes are applied; those of 0 left out.
    """
    if isinstance(value, str):
        if value not in SETS:
            raise UserError(
                f"augment '{value}' is unknown: choose {', '.join(SETS)}, or give probabilities of "
                f"{', '.join(CHANGES)}"
            )
        value = SETS[value]
    given = dict(value.items())
    for name, probability in given.items():
        if name not in CHANGES:
            raise UserError(f"augmentation '{name}' is unknown: choose {', '.join(CHANGES)}")
        if not isinstance(probability, Real) or not 0 <= probability <= 1:
            raise UserError(f"augment.{name} is {probability}: give a probability from 0 to 1")
    return {name: float(given[name]) for name in CHANGES if given.get(name)}


def drawn(augment: Mapping[str, float], *, seed: int, first: int, count: int) -> np.ndarray:
    """Which changes meet which images: bool [count, len(augment)].

    Row i is image number `first` + i of the whole training; it depends on the seed, its number and
    the probabilities alone, however the images are shared out over batches and hosts.
    """
    steps = -(-len(CHANGES) // 4)  # Philox counts in fours
    numbers = np.random.Generator(np.random.Philox(key=[seed, 0]).advance(steps * first))
    uniform = numbers.random((count, 4 * steps))[:, : len(CHANGES)]
    columns = [list(CHANGES).index(name) for name in augment]
    return uniform[:, columns] < np.array(list(augment.values()))


def stream(*, seed: int, number: int) -> np.random.Generator:
    """The random numbers of image `number`, for whatever its changes draw."""
    return np.random.Generator(np.random.Philox(key=[seed, 1], counter=[0, 0, number, 0]))


def augmented(
    image: np.ndarray, names: Sequence[str], rng: np.random.Generator | None
) -> np.ndarray:
    """Applies changes, one after the other. A mirror alone needs no rng."""
    for name in names:
        image = CHANGES[name](image, rng)
    return image
