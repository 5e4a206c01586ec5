"""Rendered faces: reproducible, consistently labelled, recognisable, one domain crowded."""

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.data import rendered
from ida_jax.data.rendered import DOMAINS, rendered_faces

# One size, so that one compilation serves all tests but the one that compares sizes.
SIZE = 32


def faces(**arguments):
    return rendered_faces(**{"image_size": SIZE, **arguments})


@pytest.fixture(scope="module")
def dataset():
    """7 persons × 3 images: 21 rows, which no batch divides."""
    return faces(identities=7, images_per_identity=3)


@pytest.fixture(scope="module")
def by_domain():
    """For each domain, what 30 of its persons look like: features [30, 2 images, 8 · 8 · 3]."""
    features = []
    for domain in range(len(DOMAINS)):
        shares = np.eye(len(DOMAINS))[domain].tolist()
        data = faces(identities=30, images_per_identity=2, shares=shares)
        assert (data.domains == domain).all()
        blocks = data.images.reshape(30, 2, 8, SIZE // 8, 8, SIZE // 8, 3)
        features.append(blocks.mean(axis=(3, 5)).reshape(30, 2, -1))
    return features


def mean_distance(a, b):
    return np.linalg.norm(a - b, axis=-1).mean()


def test_the_same_request_gives_the_same_bytes(dataset):
    again = faces(identities=7, images_per_identity=3)
    np.testing.assert_array_equal(dataset.images, again.images)
    assert dataset.names == again.names


def test_another_seed_gives_other_faces(dataset):
    other = faces(identities=7, images_per_identity=3, seed=1)
    assert not (dataset.images == other.images).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(
    ("first", "identities", "images"), [(0, 1, 1), (2, 5, 3), (3, 2, 2), (6, 1, 3)]
)
def test_a_face_is_the_same_in_every_request(dataset, first, identities, images):
    part = faces(identities=identities, images_per_identity=images, first_identity=first)
    grid = dataset.images.reshape(7, 3, SIZE, SIZE, 3)[first : first + identities, :images]
    np.testing.assert_array_equal(part.images, grid.reshape(part.images.shape))
    assert part.identities == dataset.identities[first : first + identities]
    assert set(part.names) <= set(dataset.names)
    assert part.labels.tolist() == np.repeat(np.arange(identities), images).tolist()
    domains = dataset.domains.reshape(7, 3)[first : first + identities, :images]
    np.testing.assert_array_equal(part.domains, domains.ravel())


def test_rows_run_identity_by_identity(dataset):
    assert dataset.images.shape == (21, SIZE, SIZE, 3)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert dataset.labels.tolist() == sorted([*range(7)] * 3)
    assert dataset.num_identities == 7
    assert dataset.identities[4] == "person_00004"
    assert dataset.names[4 * 3 + 2] == "person_00004_0002"
    assert len(set(dataset.names)) == 21
    assert dataset.domains.dtype == np.int32
    assert dataset.domain_names == tuple(domain.name for domain in DOMAINS)
    per_identity = dataset.domains.reshape(7, 3)
    assert (per_identity == per_identity[:, :1]).all()


@pytest.mark.parametrize("shares", [None, (1, 1, 1, 1), (0, 3, 0, 1)])
@pytest.mark.parametrize("first", [0, 1000])
def test_any_run_of_identities_has_the_shares_asked_for(shares, first):
    data = faces(identities=100, images_per_identity=1, shares=shares, first_identity=first)
    expected = np.array(shares if shares else [domain.share for domain in DOMAINS], float)
    expected *= 100 / expected.sum()
    counts = np.bincount(data.domains, minlength=len(DOMAINS))
    assert np.abs(counts - expected).max() <= 3
    assert (counts[expected == 0] == 0).all()


def test_shares_change_a_person_only_through_its_domain():
    uneven = faces(identities=12, images_per_identity=1)
    even = faces(identities=12, images_per_identity=1, shares=(5, 5, 5, 5))
    same_domain = uneven.domains == even.domains
    same_image = (uneven.images == even.images).all(axis=(1, 2, 3))
    assert 0 < same_domain.sum() < 12
    np.testing.assert_array_equal(same_image, same_domain)


def test_every_image_shows_something_of_its_own(dataset):
    assert (dataset.images.std(axis=(1, 2)) > 10).all()
    assert len({image.tobytes() for image in dataset.images}) == 21
    # Neither black nor burnt out.
    means = dataset.images.mean(axis=(1, 2, 3))
    assert ((means > 40) & (means < 215)).all()


def test_images_of_one_person_are_closer_than_images_of_two(by_domain):
    for features in by_domain:
        genuine = mean_distance(features[:, 0], features[:, 1])
        impostor = mean_distance(features[:, 0], np.roll(features[:, 1], 1, axis=0))
        assert genuine < 0.95 * impostor


def test_the_rare_domain_is_crowded_and_its_persons_differ_still(by_domain):
    assert min(DOMAINS, key=lambda domain: domain.share).name == DOMAINS[-1].name
    apart = []
    for features in by_domain:
        persons = features.mean(axis=1)
        pairs = np.linalg.norm(persons[:, None] - persons[None], axis=-1)
        apart.append(pairs[np.triu_indices(len(persons), 1)])
    means = [pairs.mean() for pairs in apart]
    assert means[-1] < 0.9 * min(means[:-1])
    assert apart[-1].min() > 0


def test_domains_lie_apart(by_domain):
    centres = np.stack([features.mean(axis=(0, 1)) for features in by_domain])
    spread = np.linalg.norm(by_domain[-1].mean(axis=1) - centres[-1][None], axis=-1).mean()
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    assert distances[np.triu_indices(len(DOMAINS), 1)].min() > 0.3 * spread


def test_a_larger_image_shows_the_same_picture(dataset):
    double = faces(identities=7, images_per_identity=3, image_size=2 * SIZE)
    halved = double.images.reshape(21, SIZE, 2, SIZE, 2, 3).mean(axis=(2, 4))
    error = np.abs(halved - dataset.images).mean(axis=(1, 2, 3))
    other = np.abs(np.roll(halved, 1, axis=0) - dataset.images).mean(axis=(1, 2, 3))
    assert error.max() < 8
    assert other.min() > 2 * error.max()


def test_traits_stay_in_their_ranges():
    low, high = np.array(list(rendered.TRAITS.values())).T
    for domain in DOMAINS:
        people = np.stack([rendered._person(0, i, domain)[0] for i in range(200)])
        traits = people[:, : len(rendered.TRAITS)]
        assert (traits >= low[None]).all()
        assert (traits <= high[None]).all()
        # A domain fills the part of the range that its spread says, and no more.
        filled = np.ptp(traits, axis=0) / (high - low)
        assert filled.max() <= domain.spread
        assert np.median(filled) > 0.85 * domain.spread


def test_training_shares_sum_to_one():
    assert sum(domain.share for domain in DOMAINS) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identities": 0}, "identities is 0"),
        ({"images_per_identity": -1}, "images_per_identity is -1"),
        ({"image_size": 31}, "image_size is 31"),
        ({"seed": -1}, "seed is -1"),
        ({"first_identity": -2}, "first_identity is -2"),
        ({"shares": (1, 1, 1)}, "give 4 numbers"),
        ({"shares": (1, 1, 1, -1)}, "at least 0"),
        ({"shares": (0, 0, 0, 0)}, "not all 0"),
        ({"shares": (1, 1, 1, float("nan"))}, "at least 0"),
    ],
)
def test_an_impossible_request_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        faces(**{"identities": 2, "images_per_identity": 1, **arguments})
