import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from ida_jax.common.errors import UserError
from ida_jax.data import augment

SHAPES = [(112, 112), (33, 47), (1, 1), (1, 5)]


def _face(shape=(40, 32), seed=0):
    """Smooth, with all colours: like a photograph to a codec."""
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 2.0)


def _rng(number=0, seed=0):
    return augment.stream(seed=seed, number=number)


@pytest.mark.parametrize("name", augment.CHANGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_change_keeps_shape_and_type_and_repeats_itself(name, shape):
    change, image = augment.CHANGES[name], _face(shape)
    before = image.copy()
    for number in range(12):
        out = change(image, _rng(number))
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out, change(image, _rng(number)))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", augment.CHANGES)
def test_every_change_changes_an_image(name):
    image = _face()
    assert any(np.any(augment.CHANGES[name](image, _rng(i)) != image) for i in range(4))


def test_flip_mirrors_left_and_right():
    image = _face((3, 5))
    np.testing.assert_array_equal(augment.flip(image, _rng()), image[:, ::-1])


def test_crop_keeps_a_rectangle_in_its_place():
    image = np.full((60, 80, 3), 7, np.uint8)
    areas = []
    for number in range(300):
        kept = augment.crop(image, _rng(number))[:, :, 0] == 7
        rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
        assert kept.sum() == len(rows) * len(columns)
        assert kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.append(kept.mean())
    # A side that would pass the image's edge is cut there, hence below 0.2 by a rounding at most.
    assert 0.18 < min(areas) < 0.25
    assert max(areas) > 0.9


def test_occlusion_covers_a_rectangle_of_at_most_a_quarter():
    image = np.full((60, 80, 3), 7, np.uint8)
    shares = []
    for number in range(300):
        out = augment.occlusion(image, _rng(number))
        assert set(np.unique(out)) <= {7, 128}
        covered = (out == 128).all(2)
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        assert covered.sum() == len(rows) * len(columns)
        shares.append(covered.mean())
    assert max(shares) <= 0.26
    assert np.mean(shares) > 0.06


def test_colour_is_brightness_then_contrast_then_saturation():
    image = np.random.default_rng(0).integers(60, 150, (9, 8, 3), np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    for number in range(20):
        brightness, contrast, saturation = _rng(number).uniform(0.5, 1.5, size=3)
        x = brightness * image.astype(np.float64)
        x = contrast * x + (1 - contrast) * (x @ luma).mean()
        x = saturation * x + (1 - saturation) * (x @ luma)[:, :, None]
        out = augment.colour(image, _rng(number))
        np.testing.assert_allclose(out, np.clip(x, 0, 255), atol=1)  # fixed point


def test_grey_is_the_luma():
    image = _face()
    out = augment.grey(image, _rng())
    expected = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(out, np.repeat(expected[:, :, None], 3, 2), atol=1)


def test_blur_and_low_resolution_lose_detail_but_not_the_mean():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    for change in (augment.blur, augment.low_resolution):
        spreads = []
        for number in range(20):
            out = change(image, _rng(number)).astype(np.float64)
            assert abs(out.mean() - image.mean()) < 4
            spreads.append(np.abs(np.diff(out, axis=1)).mean())
        assert np.mean(spreads) < 0.75 * np.abs(np.diff(image.astype(float), axis=1)).mean()


def test_jpeg_is_near_and_keeps_the_colours():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:] = (200, 120, 40)
    for number in range(10):
        np.testing.assert_allclose(augment.jpeg(image, _rng(number)).astype(int), image, atol=8)


def test_augmentation_by_name_and_by_mapping():
    assert augment.augmentation("none") == {}
    assert augment.augmentation("flip") == {"flip": 0.5}
    assert augment.augmentation("insightface") == augment.INSIGHTFACE
    expected = [("flip", 1.0), ("jpeg", 0.25)]  # in the order of application, zeros left out
    for value in ({"jpeg": 0.25, "blur": 0, "flip": 1}, ConfigDict({"jpeg": 0.25, "flip": 1})):
        assert list(augment.augmentation(value).items()) == expected
    for name in augment.SETS:
        probabilities = augment.augmentation(name)
        assert list(probabilities) == [n for n in augment.CHANGES if n in probabilities]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("strong", "augment 'strong' is unknown: choose none, flip, insightface, low_quality"),
        ({"color": 0.5}, "augmentation 'color' is unknown: choose flip, crop"),
        ({"flip": 1.5}, "augment.flip is 1.5: give a probability from 0 to 1"),
        ({"flip": -0.1}, "augment.flip is -0.1"),
        ({"flip": float("nan")}, "augment.flip is nan"),
        ({"flip": "0.5"}, "augment.flip is 0.5"),
        ({"flip": None}, "augment.flip is None"),
    ],
)
def test_augmentation_mistakes(value, message):
    with pytest.raises(UserError, match=message):
        augment.augmentation(value)


def test_an_images_changes_depend_on_its_number_alone():
    probabilities = augment.augmentation("low_quality")
    whole = augment.drawn(probabilities, seed=5, first=0, count=101)
    for first, count in ((0, 1), (1, 100), (37, 9), (100, 1)):
        part = augment.drawn(probabilities, seed=5, first=first, count=count)
        np.testing.assert_array_equal(part, whole[first : first + count])
    assert not np.array_equal(whole, augment.drawn(probabilities, seed=6, first=0, count=101))
    # A change's draws do not depend on which others are asked for.
    alone = augment.drawn({"jpeg": 0.2}, seed=5, first=0, count=101)[:, 0]
    np.testing.assert_array_equal(alone, whole[:, list(probabilities).index("jpeg")])


def test_changes_come_as_often_as_their_probabilities_say_and_independently():
    probabilities = augment.augmentation("low_quality")
    drawn = augment.drawn(probabilities, seed=0, first=10**9, count=20_000)
    np.testing.assert_allclose(drawn.mean(0), list(probabilities.values()), atol=0.015)
    correlations = np.corrcoef(drawn.T) - np.eye(len(probabilities))
    assert np.abs(correlations).max() < 0.03


def test_streams_of_images_differ_from_each_other_and_from_the_draws():
    draws = [augment.stream(seed=s, number=n).random(4) for s in (0, 1) for n in (0, 1, 2**40)]
    uniform = np.random.Generator(np.random.Philox(key=[0, 0])).random(4)
    assert len({tuple(d) for d in [*draws, uniform]}) == 7


def test_changes_follow_one_another():
    image = _face()
    out = augment.augmented(image, ["flip", "grey", "jpeg"], _rng(3))
    expected = augment.jpeg(augment.grey(augment.flip(image, None), None), _rng(3))
    np.testing.assert_array_equal(out, expected)
    assert augment.augmented(image, [], None) is image
