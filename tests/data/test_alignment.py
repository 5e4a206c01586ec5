import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.transform import SimilarityTransform

from ida_jax.common.errors import UserError
from ida_jax.data.alignment import ARCFACE_POINTS, align, similarity_transform
from ida_jax.data.landmarks import read_landmarks


def _apply(transform, points):
    return points @ transform[:, :2].T + transform[:, 2]


def _least_squares(points, reference):
    """The four numbers a, b, x, y of the transform as one system of linear equations."""
    x, y = points.T
    ones, none = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, ones, none], 1), np.stack([y, x, none, ones], 1)])
    a, b, tx, ty = np.linalg.lstsq(rows, reference.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


def _similarity(scale, degrees, shift):
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def _faces(count):
    rng = np.random.default_rng(count)
    points = ARCFACE_POINTS * rng.uniform(0.3, 6, (count, 1, 1)) + rng.normal(0, 8, (count, 5, 2))
    return points + rng.uniform(-50, 900, (count, 1, 2))


@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize("size", [64, 112, 113])
def test_it_is_the_least_squares_one(count, size):
    points, reference = _faces(count), ARCFACE_POINTS * (size / 112)
    found = similarity_transform(points, size=size)
    assert found.shape == (count, 2, 3)
    assert found.dtype == np.float64
    for transform, face in zip(found, points, strict=True):
        np.testing.assert_allclose(transform, _least_squares(face, reference), atol=1e-9)
        np.testing.assert_allclose(similarity_transform(face, size=size), transform, atol=1e-12)


def test_it_is_scikit_images():
    for face in _faces(31):
        expected = SimilarityTransform.from_estimate(face, ARCFACE_POINTS).params[:2]
        np.testing.assert_allclose(similarity_transform(face), expected, atol=1e-6)


@given(
    scale=st.floats(0.05, 20),
    degrees=st.floats(-180, 180),
    shift=hnp.arrays(np.float64, 2, elements=st.floats(-500, 500)),
)
def test_an_exact_transform_is_found_as_opencv_finds_it(scale, degrees, shift):
    known = _similarity(scale, degrees, shift)
    inverse = cv2.invertAffineTransform(known)
    points = _apply(inverse, ARCFACE_POINTS)
    found = similarity_transform(points)
    np.testing.assert_allclose(found, known, atol=1e-8 * max(1, np.abs(known).max()))
    # OpenCV takes the points in float32, and refines to about as much.
    by_opencv, inliers = cv2.estimateAffinePartial2D(
        points.astype(np.float32), ARCFACE_POINTS.astype(np.float32), ransacReprojThreshold=10
    )
    assert inliers.all()
    np.testing.assert_allclose(_apply(by_opencv, points), _apply(found, points), atol=0.05)


@given(hnp.arrays(np.float64, (5, 2), elements=st.integers(0, 250).map(float)))
def test_it_never_mirrors_and_no_neighbour_is_better(points):
    try:
        found = similarity_transform(points)
    except UserError:
        return
    a, b = found[0, 0], found[1, 0]
    np.testing.assert_array_equal(found[:, :2], [[a, -b], [b, a]])
    assert np.linalg.det(found[:, :2]) > 0

    def error(transform):
        return np.sum((_apply(transform, points) - ARCFACE_POINTS) ** 2)

    for step in (1e-4, -1e-4):
        assert error(found) <= error(found * (1 + step)) + 1e-9
        assert error(found) <= error(found + np.array([[0, 0, step], [0, 0, 0]])) + 1e-9
        turned = found.copy()
        turned[:, :2] += step * np.array([[0, -1], [1, 0]])
        assert error(found) <= error(turned) + 1e-9


def test_mirrored_points_are_turned_and_not_mirrored():
    mirrored = ARCFACE_POINTS * [-1, 1] + [112, 0]
    found = similarity_transform(mirrored)
    assert np.linalg.det(found[:, :2]) > 0
    expected = SimilarityTransform.from_estimate(mirrored, ARCFACE_POINTS).params[:2]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", [56, 112, 160])
@pytest.mark.parametrize("degrees", [-30, 0, 75])
def test_a_picture_is_brought_where_its_points_belong(size, degrees):
    known = _similarity(size / 112 * 0.8, degrees, (-5, 20))
    known[:, 2] -= known[:, :2] @ [90, 130]
    places = _apply(cv2.invertAffineTransform(known), ARCFACE_POINTS * (size / 112))
    y, x = np.mgrid[:420, :420]
    picture = np.zeros((420, 420, 3), np.uint8)
    for channel, (px, py) in enumerate(places[[0, 2, 4]]):
        blob = 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 4**2))
        picture[:, :, channel] = np.round(blob)
    crop = align(picture, places, size=size)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.uint8
    y, x = np.mgrid[:size, :size]
    for channel, expected in enumerate(ARCFACE_POINTS[[0, 2, 4]] * (size / 112)):
        weight = crop[:, :, channel] / crop[:, :, channel].sum()
        np.testing.assert_allclose([(weight * x).sum(), (weight * y).sum()], expected, atol=0.15)


def test_no_change_of_place_keeps_the_pixels_and_beyond_the_picture_is_black():
    picture = np.random.default_rng(0).integers(1, 256, (112, 112, 3), np.uint8)
    np.testing.assert_array_equal(align(picture, ARCFACE_POINTS), picture)
    moved = align(picture, ARCFACE_POINTS - [40, 0])
    assert not moved[:, :39].any()
    np.testing.assert_array_equal(moved[:, 40:], picture[:, :72])


def test_mistakes_are_named():
    good = ARCFACE_POINTS
    for points in (np.full((5, 2), 7.0), good * np.nan, good * np.inf, good * 0, good * 1e200):
        with pytest.raises(UserError, match="the five points give no alignment"):
            similarity_transform(points)
        with pytest.raises(UserError, match="the five points of row 1 give no alignment"):
            similarity_transform(np.stack([good, points, points]))
    with pytest.raises(UserError, match=r"points are \[5, 3\]: expected \[N, 5, 2\]"):
        similarity_transform(np.zeros((5, 3)))
    with pytest.raises(UserError, match="crops of 0 pixels"):
        similarity_transform(good, size=0)
    with pytest.raises(UserError, match=r"the image is uint8 \[9, 9\]"):
        align(np.zeros((9, 9), np.uint8), good)
    with pytest.raises(UserError, match="points of several faces"):
        align(np.zeros((9, 9, 3), np.uint8), good[None])
    with pytest.raises(UserError, match=r"\[0, 9, 3\] cannot be aligned"):
        align(np.zeros((0, 9, 3), np.uint8), good)
    assert similarity_transform(np.zeros((0, 5, 2))).shape == (0, 2, 3)


def test_lfws_own_landmarks(shared_data):
    found = read_landmarks(shared_data / "protocols" / "lfw_landmark_5pt_original_lfw.txt")
    transforms = similarity_transform(found.points)
    assert transforms.shape == (13_233, 2, 3)
    aligned = np.einsum("nij,npj->npi", transforms[:, :, :2], found.points)
    aligned += transforms[:, None, :, 2]
    error = np.sqrt(np.mean(np.sum((aligned - ARCFACE_POINTS) ** 2, -1), -1))
    # Faces turned to the side fit badly; most of LFW's look into the camera.
    assert np.median(error) < 4
    assert np.max(error) < 15
    scale = np.hypot(transforms[:, 0, 0], transforms[:, 1, 0])
    assert 0.4 < scale.min() < scale.max() < 1.6
