"""Faces drawn by a procedural generator: labelled data that needs no file and no download.

A person is a point in the box that TRAITS spans, with a style of hair, of beard and of glasses and
a few colours; an image adds a point in the box that SHOT spans (pose, light, expression, blur,
noise) with clothes, a background and, at times, something that covers a part of the face. The
pixels come from `ida_jax.data.face_shader`.

N faces, C identities, B images a batch. Lengths are in half image sides, x to the right and y down
from the middle of the head; angles in radians; colours RGB in [0, 1].
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.data import face_shader
from ida_jax.data.dataset import FaceDataset

# One shape for every request, so that an image size is compiled once; the last batch is padded.
# At 112 pixels 8 images stay in a CPU's cache and take a third of the time that 16 at once take.
BATCH = 8
MIN_SIZE = 32

# Trait: its lowest and its highest value over all persons.
TRAITS = {
    "face_width": (0.44, 0.56), "crown": (0.58, 0.7), "chin": (0.53, 0.69), "jaw": (2.0, 3.6),
    "taper": (0.06, 0.4), "cheekbone": (0.0, 0.06), "eye_height": (-0.06, 0.06),
    "eye_spacing": (0.18, 0.25), "eye_width": (0.085, 0.125), "eye_open": (0.034, 0.068),
    "eye_tilt": (-0.25, 0.2), "iris": (0.038, 0.054), "lash": (0.2, 1.0),
    "brow_gap": (0.09, 0.155), "brow_thick": (0.012, 0.042), "brow_arch": (0.0, 0.06),
    "brow_tilt": (-0.3, 0.25), "nose_length": (0.19, 0.29), "nose_width": (0.055, 0.115),
    "nose_bulge": (0.12, 0.26), "mouth_gap": (0.11, 0.16), "mouth_width": (0.11, 0.2),
    "upper_lip": (0.014, 0.045), "lower_lip": (0.022, 0.06), "lip_colour": (0.0, 1.0),
    "ear": (0.09, 0.15), "ear_out": (0.0, 0.05), "neck": (0.2, 0.32), "hairline": (-0.46, -0.3),
    "peak": (-0.05, 0.09), "age": (-0.8, 1.0), "freckles": (-1.0, 1.0), "mole_x": (-0.32, 0.32),
    "mole_y": (0.05, 0.42), "mole_size": (-0.03, 0.026), "skin_depth": (0.0, 1.0),
    "skin_tone": (-1.0, 1.0), "hair_shade": (-0.2, 0.2), "eye_shade": (0.0, 1.0),
}  # fmt: skip

# What differs between a person's images: the middle and the reach of a triangular distribution.
SHOT = {
    "yaw": (0.0, 0.6), "pitch": (0.0, 0.2), "roll": (0.0, 0.2), "scale": (1.14, 0.1),
    "shift_x": (0.0, 0.08), "shift_y": (0.0, 0.07), "light_x": (0.0, 1.2), "light_y": (-0.5, 0.6),
    "strength": (0.75, 0.25), "exposure": (1.02, 0.2), "contrast": (1.0, 0.2),
    "smile": (0.03, 0.09), "mouth_open": (-0.02, 0.1), "brow_lift": (0.0, 0.03),
    "squint": (0.1, 0.35), "gaze": (0.0, 0.024), "blur": (-0.02, 0.08), "noise": (0.01, 0.05),
    "slope": (0.0, 2.0), "disc_x": (0.0, 1.0), "disc_size": (0.3, 0.2), "patch_x": (0.0, 0.7),
    "patch_y": (0.3, 0.6), "patch_size": (0.28, 0.1),
}  # fmt: skip

HAIR_FIELDS = (
    "cover", "volume", "side_volume", "line_shift", "part", "jag", "side_end", "back_end",
    "back_width", "curl", "bun",
)  # fmt: skip
HAIR = {
    "bald": (0.0, 0.0, 0.0, -0.5, 0.0, 0.0, -0.5, -0.5, 0.3, 0.0, 0.0),
    "buzz": (0.75, 0.02, 0.012, 0.0, 0.0, 0.0, 0.04, -0.3, 0.3, 0.1, 0.0),
    "crop": (1.0, 0.08, 0.03, 0.02, 0.08, 0.025, 0.06, -0.3, 0.3, 0.25, 0.0),
    "quiff": (1.0, 0.2, 0.02, -0.05, 0.25, 0.03, 0.02, -0.3, 0.3, 0.3, 0.0),
    "fringe": (1.0, 0.1, 0.06, 0.15, 0.0, 0.03, 0.2, 0.2, 0.5, 0.0, 0.0),
    "sweep": (1.0, 0.12, 0.05, 0.06, 0.6, 0.0, 0.12, -0.3, 0.3, 0.0, 0.0),
    "bob": (1.0, 0.11, 0.1, 0.0, -0.3, 0.0, 0.5, 0.5, 0.6, 0.0, 0.0),
    "long": (1.0, 0.1, 0.09, 0.0, 0.15, 0.0, 0.75, 1.6, 0.62, 0.0, 0.0),
    "curls": (1.0, 0.2, 0.16, 0.03, 0.0, 0.04, 0.1, 0.3, 0.6, 1.0, 0.0),
    "cloud": (1.0, 0.3, 0.28, -0.02, 0.0, 0.02, -0.05, 0.1, 0.7, 0.8, 0.0),
    "bun": (1.0, 0.04, 0.02, -0.02, 0.0, 0.0, 0.02, -0.3, 0.3, 0.0, 1.0),
    "waves": (1.0, 0.14, 0.12, 0.0, 0.4, 0.0, 0.6, 0.95, 0.62, 0.6, 0.0),
}
BEARD_FIELDS = ("moustache", "goatee", "whiskers", "beard_length")
BEARD = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "stubble": (0.35, 0.4, 0.35, 0.0),
    "moustache": (0.95, 0.0, 0.0, 0.0),
    "goatee": (0.9, 0.95, 0.0, 0.0),
    "full": (0.95, 0.95, 0.9, 0.03),
    "long": (0.95, 0.95, 0.95, 0.18),
}
GLASSES_FIELDS = ("glasses", "lens_width", "lens_height", "lens_corner")
GLASSES = {
    "none": (0.0, 0.17, 0.13, 3.0),
    "round": (1.0, 0.145, 0.14, 2.0),
    "square": (1.0, 0.17, 0.12, 4.5),
    "narrow": (1.0, 0.165, 0.085, 3.0),
}
# Ramps of colours between which a trait's position chooses.
SKIN = (
    (0.97, 0.84, 0.76), (0.92, 0.72, 0.58), (0.8, 0.58, 0.43), (0.6, 0.4, 0.28), (0.4, 0.26, 0.19),
)  # fmt: skip
IRIS = (
    (0.3, 0.17, 0.09), (0.5, 0.32, 0.14), (0.35, 0.5, 0.25), (0.3, 0.55, 0.72), (0.55, 0.62, 0.68),
)  # fmt: skip
LIPS = ((0.8, 0.52, 0.46), (0.76, 0.32, 0.34), (0.62, 0.16, 0.28))
FRAME = ((0.08, 0.08, 0.1), (0.45, 0.2, 0.1), (0.75, 0.6, 0.3), (0.6, 0.1, 0.15))
HAIR_COLOUR = {
    "black": (0.12, 0.1, 0.12), "brown": (0.34, 0.21, 0.14), "chestnut": (0.5, 0.26, 0.15),
    "ginger": (0.8, 0.4, 0.15), "blond": (0.88, 0.7, 0.4), "silver": (0.75, 0.76, 0.8),
    "teal": (0.12, 0.5, 0.52), "plum": (0.45, 0.18, 0.4), "rose": (0.88, 0.45, 0.55),
    "indigo": (0.22, 0.25, 0.55),
}  # fmt: skip


class Domain(NamedTuple):
    """A group of persons with its own distribution (section 3.3).

    A trait's position in its range is centre + spread · (u − ½), u uniform on [0, 1), reflected at
    the range's ends.

    Attributes:
      spread: how much of each trait's range its persons fill; small means look-alikes.
      centre: the middle of a trait's positions, in [0, 1]; ½ for those not named.
      hair, colours, beards, glasses: the styles to choose from, all as likely.
    """

    name: str
    share: float
    spread: float
    centre: dict[str, float]
    hair: tuple[str, ...]
    colours: tuple[str, ...]
    beards: tuple[str, ...]
    glasses: tuple[str, ...]


DOMAINS = (
    Domain(
        "valley", 0.55, 1.0, {},
        ("buzz", "crop", "quiff", "fringe", "sweep", "bob", "long", "bun", "bald"),
        ("black", "brown", "chestnut", "blond", "silver"),
        ("none", "none", "none", "stubble", "moustache", "full"),
        ("none", "none", "round", "square"),
    ),
    Domain(
        "coast", 0.25, 0.8,
        {"face_width": 0.8, "chin": 0.25, "jaw": 0.7, "eye_spacing": 0.7, "lower_lip": 0.7},
        ("curls", "cloud", "waves", "long", "fringe"),
        ("ginger", "teal", "rose", "chestnut", "black"),
        ("none", "none", "goatee", "long"),
        ("none", "round", "narrow"),
    ),
    Domain(
        "hills", 0.15, 0.8,
        {"face_width": 0.2, "chin": 0.8, "taper": 0.7, "nose_length": 0.7, "brow_thick": 0.7},
        ("bald", "buzz", "bun", "sweep", "waves", "quiff"),
        ("silver", "blond", "indigo", "brown"),
        ("none", "full", "long", "moustache"),
        ("none", "square", "narrow"),
    ),
    Domain(
        "island", 0.05, 0.45,
        {"face_width": 0.6, "eye_width": 0.7, "brow_gap": 0.3},
        ("fringe", "bob"), ("plum", "black"), ("none",), ("none", "none", "none", "round"),
    ),
)  # fmt: skip

STYLE_FIELDS = (*HAIR_FIELDS, *BEARD_FIELDS, *GLASSES_FIELDS, "phase")
COVERINGS = {"shades": 0.05, "scarf": 0.04, "patch": 0.06}
Person = collections.namedtuple("Person", (*TRAITS, *STYLE_FIELDS))
Shot = collections.namedtuple("Shot", (*SHOT, *COVERINGS))
PERSON_COLOURS = ("skin", "flush", "hair", "iris", "lips", "frame")
SHOT_COLOURS = ("cloth", "back", "back_far", "patch", "light")
Palette = collections.namedtuple("Palette", (*PERSON_COLOURS, *SHOT_COLOURS))


def _uniform(seed: int, identity: int, draws: range, count: int) -> np.ndarray:
    """Numbers in [0, 1), [draws, count]; draw 0 is the person's, draw j + 1 is image j's."""
    # A seed sequence takes (a, b) and (a, b, 0) for the same, so the last entry is never zero.
    generators = (np.random.default_rng((seed, identity, draw + 1)) for draw in draws)
    return np.stack([generator.random(count) for generator in generators])


def _ramp(stops: Sequence[Sequence[float]], position: float) -> np.ndarray:
    """The colour [3] at a position in [0, 1] along evenly spaced stops."""
    at = np.linspace(0.0, 1.0, len(stops))
    return np.array([np.interp(position, at, channel) for channel in np.transpose(stops)])


def _hue(hue: np.ndarray, saturation: float, value: np.ndarray | float) -> np.ndarray:
    """Colours [N, 3] of a hue [N], a saturation and a value, all in [0, 1]."""
    wheel = np.abs((6.0 * hue[:, None] + np.array([[0.0, 4.0, 2.0]])) % 6.0 - 3.0) - 1.0
    return np.asarray(value)[..., None] * (1.0 - saturation * (1.0 - np.clip(wheel, 0.0, 1.0)))


def _person(seed: int, identity: int, domain: Domain) -> tuple[np.ndarray, np.ndarray]:
    """One identity's fields of Person [F] and its colours [6, 3]."""
    (u,) = _uniform(seed, identity, range(1), len(TRAITS) + 6)
    *positions, hair, hue, beard, glasses, frame, phase = u
    traits = {}
    for (name, (low, high)), x in zip(TRAITS.items(), positions, strict=True):
        at = abs(domain.centre.get(name, 0.5) + domain.spread * (x - 0.5))
        traits[name] = low + (high - low) * (at if at < 1.0 else 2.0 - at)

    def pick(options: tuple[str, ...], x: float) -> str:
        return options[int(x * len(options))]

    styles = (
        *HAIR[pick(domain.hair, hair)], *BEARD[pick(domain.beards, beard)],
        *GLASSES[pick(domain.glasses, glasses)], 2.0 * np.pi * phase,
    )  # fmt: skip
    skin = _ramp(SKIN, traits["skin_depth"]) + traits["skin_tone"] * np.array([0.01, -0.01, -0.03])
    strands = np.array(HAIR_COLOUR[pick(domain.colours, hue)]) * (1.0 + traits["hair_shade"])
    lips = 0.6 * _ramp(LIPS, traits["lip_colour"]) + 0.4 * skin * np.array([0.9, 0.6, 0.6])
    iris = _ramp(IRIS, traits["eye_shade"])
    flush = skin * np.array([0.98, 0.72, 0.68])
    colours = np.stack([skin, flush, strands, iris, lips, _ramp(FRAME, frame)])
    return np.array([*traits.values(), *styles]), colours


def _shots(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N images' fields of Shot [N, F] and their colours [N, 5, 3], from numbers in [0, 1)."""
    first, second, rest = u[:, : len(SHOT)], u[:, len(SHOT) : 2 * len(SHOT)], u[:, 2 * len(SHOT) :]
    middle, reach = np.array(list(SHOT.values())).T
    fields = middle[None] + reach[None] * (first + second - 1.0)
    cloth, cloth_value, back, back_value, far, far_value, patch, covering, warmth = rest.T
    ends = np.cumsum([0.0, *COVERINGS.values()])
    covered = (ends[None, :-1] <= covering[:, None]) & (covering[:, None] < ends[None, 1:])
    light = 1.0 + (warmth[:, None] - 0.5) * np.array([[0.2, 0.0, -0.2]])
    colours = (
        _hue(cloth, 0.5, 0.25 + 0.65 * cloth_value), _hue(back, 0.3, 0.4 + 0.5 * back_value),
        _hue(far, 0.35, 0.3 + 0.6 * far_value), _hue(0.25 + 0.6 * patch, 0.55, 0.7), light,
    )  # fmt: skip
    return np.concatenate([fields, covered], axis=1), np.stack(colours, axis=1)


def _domains_of(numbers: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """Domain of each identity, int32 [C].

    The golden ratio's multiples modulo 1 lie evenly in [0, 1), so any run of identities has its
    domains in nearly the shares asked for, and an identity's domain depends on its number alone.
    """
    at = (numbers * 0.6180339887498949 + np.random.default_rng(seed).random()) % 1.0
    bounds = np.cumsum(shares) / np.sum(shares)
    return np.searchsorted(bounds[:-1], at, side="right").astype(np.int32)


def _checked_shares(shares: Sequence[float] | None) -> np.ndarray:
    if shares is None:
        return np.array([domain.share for domain in DOMAINS])
    weights = np.array(shares, np.float64)
    wrong = weights.shape != (len(DOMAINS),) or not np.all(np.isfinite(weights) & (weights >= 0.0))
    if wrong or weights.sum() == 0.0:
        names = ", ".join(domain.name for domain in DOMAINS)
        raise UserError(
            f"shares is {shares}; give {len(DOMAINS)} numbers of at least 0, not all 0, for {names}"
        )
    return weights


def rendered_faces(
    *,
    identities: int,
    images_per_identity: int,
    image_size: int = 64,
    seed: int = 0,
    first_identity: int = 0,
    shares: Sequence[float] | None = None,
) -> FaceDataset:
    """Renders images_per_identity faces of each of C = identities persons.

    A person depends on (seed, its number, its domain) alone, and an image on its own number
    besides, so a request for more of either repeats the smaller one's images. Persons that a
    training set lacks are those from `first_identity` = its number of identities on.

    Args:
      identities: C, how many persons.
      image_size: height and width in pixels, at least 32; a size shows the same picture as another.
      shares: the domains' shares, in the order of DOMAINS, of any sum; None for the training
        set's uneven ones.

    Returns:
      N = C · images_per_identity faces, identity by identity, as a uint8 array
      [N, image_size, image_size, 3], with labels 0 … C-1 and the domains.
    """
    for name, value, least in (
        ("identities", identities, 1), ("images_per_identity", images_per_identity, 1),
        ("image_size", image_size, MIN_SIZE), ("seed", seed, 0),
        ("first_identity", first_identity, 0),
    ):  # fmt: skip
        if value < least:
            raise UserError(f"{name} is {value}; give a whole number of at least {least}")
    numbers = np.arange(first_identity, first_identity + identities)
    domains = _domains_of(numbers, _checked_shares(shares), seed)
    persons, colours, draws = [], [], []
    for number, domain in zip(numbers.tolist(), domains, strict=True):
        fields, person_colours = _person(seed, number, DOMAINS[domain])
        persons.append(fields)
        colours.append(person_colours)
        draws.append(_uniform(seed, number, range(1, images_per_identity + 1), 2 * len(SHOT) + 12))
    u = np.concatenate(draws)
    shots, shot_colours = _shots(u[:, :-3])
    labels = np.repeat(np.arange(identities, dtype=np.int32), images_per_identity)
    palettes = np.concatenate([np.stack(colours)[labels], shot_colours], axis=1)
    arrays = np.stack(persons)[labels], shots, palettes
    persons, shots, palettes = (x.astype(np.float32) for x in arrays)
    salt = (u[:, -3:] * 2.0**32).astype(np.uint32)
    images = np.empty((len(salt), image_size, image_size, 3), np.uint8)
    for start in range(0, len(salt), BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), len(salt) - 1)
        person, shot = Person(*persons[rows].T), Shot(*shots[rows].T)
        palette = Palette(*palettes[rows].transpose(1, 0, 2))
        batch = face_shader.render(person, shot, palette, salt[rows], size=image_size)
        batch = np.asarray(batch).transpose(0, 2, 3, 1)
        images[start : start + BATCH] = batch[: len(salt) - start]
    people = tuple(f"person_{number:05d}" for number in numbers)
    names = tuple(f"{person}_{i:04d}" for person in people for i in range(images_per_identity))
    domain_names = tuple(domain.name for domain in DOMAINS)
    return FaceDataset(images, labels, people, names, domains[labels], domain_names)
