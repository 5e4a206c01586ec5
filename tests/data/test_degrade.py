"""Degraded copies: a function of seed, image and copy; kinds and strengths; mistakes."""

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.data.dataset import image_subset
from ida_jax.data.degrade import (
    KINDS,
    STRENGTHS,
    Degradation,
    copies_of,
    degradation,
    degraded,
    degraded_rows,
    with_degraded,
)


def _images(count, side=112, seed=0):
    """Smooth pictures with edges, as faces have both."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 7, 7, 3), np.uint8)
    return coarse.repeat(side // 7, axis=1).repeat(side // 7, axis=2)


def _change(kind, strength, images):
    """The mean absolute difference to the images, in grey levels."""
    how = Degradation({kind: strength})
    made = [degraded(image, how, number=number) for number, image in enumerate(images)]
    return np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(made, images, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stronger_degradation_changes_more(kind):
    images = _images(12)
    changes = [_change(kind, strength, images) for strength in STRENGTHS]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_what_each_kind_does():
    image = _images(1)[0]
    rng = np.random.default_rng(0)
    dark = KINDS["low_light"].apply(image, 0.1, rng)
    np.testing.assert_allclose(dark.mean(), 0.1 * image.mean(), rtol=0.05)
    noisy = KINDS["noise"].apply(np.full_like(image, 128), 20.0, rng)
    np.testing.assert_allclose(noisy.std(), 20, rtol=0.05)
    # A point, blurred, keeps its sum; a Gaussian's deviation is the one that was asked for.
    point = np.zeros((111, 111, 3), np.uint8)
    point[55, 55] = 255
    spread = KINDS["blur"].apply(100 * (point // 255), 1.5, rng).astype(float)[..., 0]
    at = np.arange(111) - 55
    weights = spread / spread.sum()
    assert abs((weights * at[:, None] ** 2).sum() ** 0.5 - 1.5 * 111 / 112) < 0.15
    line = KINDS["motion_blur"].apply(point, 9.0, rng)[..., 0] > 0
    extent = [np.ptp(np.flatnonzero(line.any(axis=axis))) for axis in (0, 1)]
    assert 7 <= np.hypot(*extent) <= 11
    small = KINDS["low_resolution"].apply(image, 16.0, rng)
    assert len(np.unique(image[..., 0])) > 16  # and the mean is kept
    np.testing.assert_allclose(small.mean(), image.mean(), atol=2)
    red = np.zeros((112, 112, 3), np.uint8) + np.array([200, 50, 10], np.uint8)
    np.testing.assert_allclose(KINDS["jpeg"].apply(red, 95.0, rng), red, atol=3)


def test_lengths_grow_with_the_image():
    for side in (56, 112, 224):
        image = np.zeros((side, side, 3), np.uint8)
        image[:, : side // 2] = 200
        soft = KINDS["blur"].apply(image, 2.0, None)[side // 2, :, 0].astype(float)
        width = np.count_nonzero((soft > 32) & (soft < 168))
        assert width == pytest.approx(2 * 2.0 * side / 112, abs=2)


def test_a_copy_depends_on_seed_number_and_copy_alone():
    images, how = _images(5), degradation("varied", copies=2, seed=7)
    whole = copies_of(images, how, numbers=np.arange(10, 15))
    assert len(whole) == 10
    for index in (9, 0, 5, 3):  # in any order
        copy, row = divmod(index, 5)
        expected = degraded(images[row], how, number=10 + row, copy=copy)
        np.testing.assert_array_equal(whole[index], expected)
        assert whole[index].dtype == np.uint8
        assert whole[index].shape == images[row].shape
    part = copies_of(image_subset(images, np.array([3])), how, numbers=np.array([13]))
    np.testing.assert_array_equal(part[1], whole[8])
    others = [
        degraded(images[0], how._replace(seed=8), number=10),
        degraded(images[0], how, number=11),
        degraded(images[0], how, number=10, copy=1),
    ]
    for other in others:
        assert (other != whole[0]).any()


def test_images_are_not_changed_in_place():
    images = _images(4)
    before = images.copy()
    for kind in KINDS:
        for number, image in enumerate(images):
            degraded(image, Degradation({kind: "strong"}), number=number)
    np.testing.assert_array_equal(images, before)


def test_one_kind_or_two_about_equally_often():
    """Of two kinds, of which one only darkens: half of the copies have both."""
    image = np.full((112, 112, 3), 200, np.uint8)
    how = degradation("low_light:strong,noise:strong")
    dark = noisy = 0
    for number in range(400):
        copy = degraded(image, how, number=number).astype(float)
        dark += copy.mean() < 100
        noisy += copy.std() > 22
    assert 0.68 < dark / 400 < 0.82
    assert 0.68 < noisy / 400 < 0.82


def test_which_images_have_copies():
    numbers = np.arange(3000)
    chosen = degraded_rows(degradation("varied", share=0.3, seed=1), numbers)
    assert 0.27 < chosen.mean() < 0.33
    np.testing.assert_array_equal(
        degraded_rows(degradation("varied", share=0.3, seed=1), numbers[100:50:-1]),
        chosen[100:50:-1],
    )
    more = degraded_rows(degradation("varied", share=0.6, seed=1), numbers)
    assert (more | ~chosen).all()
    assert more.sum() > chosen.sum()
    assert degraded_rows(degradation("varied", share=1.0), numbers).all()
    assert (degraded_rows(degradation("varied", share=0.3, seed=2), numbers) != chosen).any()


def test_with_degraded():
    images, numbers = _images(6), np.array([4, 8, 15, 16, 23, 42])
    how = degradation("blur", share=0.5, copies=2, seed=0)
    both, rows = with_degraded(images, how, numbers=numbers)
    chosen = np.flatnonzero(degraded_rows(how, numbers))
    assert 0 < len(chosen) < 6
    np.testing.assert_array_equal(rows, [*range(6), *chosen, *chosen])
    assert len(both) == len(rows)
    for index, row in enumerate(rows):
        copy = (index - 6) // len(chosen)
        expected = (
            images[row]
            if index < 6
            else degraded(images[row], how, number=int(numbers[row]), copy=copy)
        )
        np.testing.assert_array_equal(both[index], expected)
    same, rows = with_degraded(images, None)
    assert same is images
    np.testing.assert_array_equal(rows, np.arange(6))


def test_none_drawn():
    how = degradation("blur", share=1e-9)
    both, rows = with_degraded(_images(3), how)
    assert len(both) == len(rows) == 3


def test_specs():
    assert degradation("") is None
    assert degradation("mild").strengths == dict.fromkeys(KINDS, "mild")
    assert degradation("jpeg:strong, blur").strengths == {"jpeg": "strong", "blur": "varied"}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("blr", {}, "'blr' is not understood: expected one of mild, medium, strong, varied"),
        ("blur:hard", {}, "'blur:hard' is not understood"),
        ("blur:", {}, "'blur:' is not understood"),
        ("blur,", {}, "'' is not understood"),
        ("blur,jpeg,blur", {}, "'blur' is not understood"),
        ("mild,blur", {}, "'mild' is not understood"),
        ("mild", {"share": 0.0}, "here_share is 0: expected"),
        ("mild", {"share": 1.5}, "here_share is 1.5: expected"),
        ("mild", {"share": float("nan")}, "here_share is nan: expected"),
        ("mild", {"copies": 0}, "here_copies is 0: expected 1 or more"),
    ],
)
def test_mistakes(spec, options, message):
    with pytest.raises(UserError, match=message):
        degradation(spec, what="here", **options)
