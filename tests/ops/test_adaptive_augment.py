import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from ida_jax.common.devices import batch_sharding, training_mesh
from ida_jax.ops.adaptive_augment import (
    MAX_PROBABILITY,
    Colours,
    Geometry,
    adapted_probability,
    augment,
    colour_matrices,
    draw_changes,
    geometry_matrices,
    recolour,
    warp,
)

# Images are compared to the bit, as two programs give them.
pytestmark = pytest.mark.usefixtures("optimised")
_AUGMENT = jax.jit(augment)
_DRAW = jax.jit(draw_changes, static_argnums=(1, 2))
_GEOMETRY_MATRICES, _COLOUR_MATRICES = jax.jit(geometry_matrices), jax.jit(colour_matrices)
_WARP, _RECOLOUR = jax.jit(warp), jax.jit(recolour)
_MANY = 20_000


def _images(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _geometry(**changes):
    """The movement of one image, neutral where nothing is said."""
    neutral = {"shift": (0, 0), "drift": (0, 0), "scale": 1, "stretch": 1}
    values = {name: changes.get(name, neutral.get(name, 0)) for name in Geometry._fields}
    return Geometry(**{name: np.asarray([value], np.float32) for name, value in values.items()})


def _colours(**changes):
    """The change of one image's colours, neutral where nothing is said."""
    neutral = {"contrast": 1, "saturation": 1}
    values = {name: changes.get(name, neutral.get(name, 0)) for name in Colours._fields}
    return Colours(**{name: np.asarray([value], np.float32) for name, value in values.items()})


def _moved(image, **changes):
    return np.asarray(_WARP(image[None], _GEOMETRY_MATRICES(_geometry(**changes))))[0]


def _forward(geometry, row):
    """The movement of one image in float64, from old places to new ones."""
    g = {name: np.asarray(value[row], np.float64) for name, value in geometry._asdict().items()}

    def linear(a, b, c, d):
        return np.array([[a, b, 0], [c, d, 0], [0, 0, 1]])

    def turned(angle):
        return linear(np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle))

    def shifted(by):
        return np.array([[1, 0, by[0]], [0, 1, by[1]], [0, 0, 1]])

    steps = [
        linear(1 - 2 * g["flip"], 0, 0, 1),
        turned(g["quarter_turns"] * np.pi / 2),
        shifted(g["shift"]),
        linear(g["scale"], 0, 0, g["scale"]),
        turned(g["angle_before"]),
        linear(g["stretch"], 0, 0, 1 / g["stretch"]),
        turned(g["angle_after"]),
        shifted(g["drift"]),
    ]
    all_of_them = np.eye(3)
    for step in steps:
        all_of_them = step @ all_of_them
    return all_of_them


def test_matrices_are_the_inverse_of_the_movements():
    geometry, _ = _DRAW(jax.random.key(3), 17, 33, jnp.float32(0.8))
    got = _GEOMETRY_MATRICES(geometry)
    assert got.dtype == jnp.float32
    for row in range(17):
        expected = np.linalg.inv(_forward(geometry, row))
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=2e-5)


def test_flips_turns_and_shifts_move_whole_pixels():
    image = _images((7, 7, 3))
    np.testing.assert_array_equal(_moved(image), image)
    np.testing.assert_array_equal(_moved(image, flip=1), image[:, ::-1])
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(_moved(image, quarter_turns=turns), np.rot90(image, turns))
    # Two to the right and one up: what comes in is the mirror image, the border itself not twice.
    shifted = _moved(image, shift=(2, -1))
    np.testing.assert_array_equal(shifted[:-1, 2:], image[1:, :-2])
    np.testing.assert_array_equal(shifted[:-1, :2], image[1:, [2, 1]])
    np.testing.assert_array_equal(shifted[-1, 2:], image[-2, :-2])


def test_a_scale_above_one_enlarges():
    image = np.zeros((8, 8, 3), np.float32)
    image[2:6, 2:6] = 1

    def size(**changes):
        # Without the outer pixels, where the mirror images are.
        lit = _moved(image, **changes)[2:6, 2:6, 0] > 0.5
        return lit.any(axis=0).sum(), lit.any(axis=1).sum()

    assert size(scale=0.5) == (2, 2)
    assert size(stretch=2) == (4, 2)
    assert np.all(_moved(image, scale=2) > 0.5)


@pytest.mark.parametrize(("size", "channels"), [(2, 1), (9, 3), (16, 2)])
def test_warp_samples_bilinearly_with_mirrored_borders(size, channels):
    rng = np.random.default_rng(size)
    images = _images((5, size, size, channels))
    matrices = np.tile(np.eye(3), (5, 1, 1))
    matrices[:, :2, :2] += rng.normal(size=(5, 2, 2))
    matrices[:, :2, 2] = rng.normal(size=(5, 2)) * 3 * size
    matrices = matrices.astype(np.float32)
    got = np.asarray(_WARP(images, matrices))
    places = np.arange(size) - (size - 1) / 2
    grid = np.stack(np.broadcast_arrays(places[None], places[:, None], 1.0)).reshape(3, -1)
    for image, matrix, out in zip(images, matrices, got, strict=True):
        x, y, _ = matrix.astype(np.float64) @ grid + (size - 1) / 2
        for channel in range(channels):
            expected = map_coordinates(
                image[..., channel].astype(np.float64), [y, x], order=1, mode="mirror"
            )
            np.testing.assert_allclose(out[..., channel].ravel(), expected, atol=1e-4)


def test_colour_matrices_are_their_changes_in_turn():
    _, colours = _DRAW(jax.random.key(1), 17, 33, jnp.float32(0.8))
    pixels = _images((17, 3, 3, 3))
    got = np.asarray(_RECOLOUR(pixels, _COLOUR_MATRICES(colours)))
    luma_axis = np.ones(3) / np.sqrt(3)
    for row in range(17):
        c = {name: float(value[row]) for name, value in colours._asdict().items()}
        expected = pixels[row].astype(np.float64).reshape(-1, 3)
        expected = (expected + c["brightness"]) * c["contrast"]
        if c["luma_flip"]:
            expected = expected - 2 * np.outer(expected @ luma_axis, luma_axis)
        expected = Rotation.from_rotvec(c["hue"] * luma_axis).apply(expected)
        grey = np.outer(expected @ luma_axis, luma_axis)
        expected = grey + c["saturation"] * (expected - grey)
        np.testing.assert_allclose(got[row].reshape(-1, 3), expected, rtol=1e-5, atol=1e-5)


def test_hue_and_saturation_keep_greys_and_luma():
    grey = np.full((1, 3, 3, 3), 0.3, np.float32)
    image = _images((1, 3, 3, 3))
    for change in ({"hue": 2.0}, {"saturation": 3.0}, {"saturation": 0.0}):
        matrices = _COLOUR_MATRICES(_colours(**change))
        np.testing.assert_allclose(_RECOLOUR(grey, matrices), grey, atol=1e-6)
        changed = np.asarray(_RECOLOUR(image, matrices))
        assert np.abs(changed - image).max() > 0.1
        np.testing.assert_allclose(changed.mean(axis=3), image.mean(axis=3), atol=1e-6)


def test_draws_have_the_published_distributions():
    g, c = _DRAW(jax.random.key(0), _MANY, 64, jnp.float32(1))
    # Four standard errors of a share are at most 0.014, of a deviation 2 % of it.
    shares = [np.mean(np.asarray(g.quarter_turns) == turns) for turns in range(4)]
    np.testing.assert_allclose(shares, 0.25, atol=0.014)
    for binary in (g.flip, c.luma_flip):
        assert set(np.unique(binary)) == {0, 1}
        np.testing.assert_allclose(np.mean(np.asarray(binary)), 0.5, atol=0.014)
    for normal, deviation in [
        (np.log2(g.scale), 0.2), (np.log2(g.stretch), 0.2), (g.drift, 0.125 * 64),
        (c.brightness, 0.2), (np.log2(c.contrast), 0.5), (np.log2(c.saturation), 1.0),
    ]:  # fmt: skip
        normal = np.asarray(normal)
        np.testing.assert_allclose(np.std(normal), deviation, rtol=0.02)
        np.testing.assert_allclose(np.mean(normal), 0, atol=0.03 * deviation)
        assert np.abs(normal).max() > 3 * deviation
    for angle in (g.angle_before, g.angle_after, c.hue):
        angle = np.asarray(angle)
        np.testing.assert_allclose(np.quantile(angle, [0.25, 0.75]) / np.pi, [-0.5, 0.5], atol=0.03)
        assert 0.99 * np.pi < np.abs(angle).max() <= np.pi
    shift = np.asarray(g.shift)
    np.testing.assert_array_equal(shift, np.round(shift))
    assert (shift.min(), shift.max()) == (-8, 8)
    drawn = np.concatenate([np.reshape(x, (_MANY, -1)) for x in (*g, *c)], axis=1)
    correlations = np.corrcoef(drawn, rowvar=False) - np.eye(drawn.shape[1])
    assert np.abs(correlations).max() < 0.04


def test_each_change_is_made_with_its_probability():
    p = 0.3
    g, c = _DRAW(jax.random.key(2), _MANY, 64, jnp.float32(p))

    def share(values, neutral=0.0):
        return np.mean(np.reshape(np.asarray(values) != neutral, (_MANY, -1)).any(axis=1))

    rotated = (np.asarray(g.angle_before) != 0) | (np.asarray(g.angle_after) != 0)
    got = [
        share(g.scale, 1), share(g.stretch, 1), share(g.drift), share(rotated, False),
        share(c.brightness), share(c.contrast, 1), share(c.hue), share(c.saturation, 1),
    ]  # fmt: skip
    np.testing.assert_allclose(got, p, atol=0.014)
    np.testing.assert_allclose(share(g.angle_before), 1 - np.sqrt(1 - p), atol=0.014)
    np.testing.assert_allclose([share(g.flip), share(c.luma_flip)], p / 2, atol=0.014)
    np.testing.assert_allclose(share(g.quarter_turns), 0.75 * p, atol=0.014)


def test_nothing_changes_at_probability_zero():
    images = _images((16, 8, 8, 3))
    images[0, 0, 0] = -0.0
    got = np.asarray(_AUGMENT(jax.random.key(0), images, jnp.float32(0)))
    assert got.tobytes() == images.tobytes()


def test_share_of_changed_images():
    p, runs = 0.05, 100
    images = _images((16, 8, 8, 3))
    changed = [
        np.any(np.abs(np.asarray(_AUGMENT(key, images, jnp.float32(p))) - images) > 1e-5, (1, 2, 3))
        for key in jax.random.split(jax.random.key(0), runs)
    ]
    # A flip or turn that is made may be none; a shift of up to 1 of 8 pixels is none in a quarter.
    unchanged = (1 - p / 2) ** 2 * (1 - 0.75 * p) ** 2 * (1 - p) ** 8
    error = 4 * np.sqrt(unchanged * (1 - unchanged) / (16 * runs))
    np.testing.assert_allclose(np.mean(changed), 1 - unchanged, atol=error)


def test_a_row_is_a_function_of_the_key_and_its_place():
    images = _images((16, 8, 8, 3))
    key, p = jax.random.key(4), jnp.float32(0.7)
    whole = np.asarray(_AUGMENT(key, images, p))
    np.testing.assert_array_equal(_AUGMENT(key, images[:3], p), whole[:3])
    other = np.asarray(_AUGMENT(jax.random.key(5), images, p))
    assert np.mean(np.any(whole != other, axis=(1, 2, 3))) > 0.9
    # Different images of a batch change differently.
    same = np.asarray(_AUGMENT(key, np.broadcast_to(images[:1], images.shape), p))
    assert len({image.tobytes() for image in same}) > 12


def test_devices_each_change_their_own_images():
    """And pull their own gradients back: no image and no gradient goes from one to another."""
    sharding = batch_sharding(training_mesh(1))
    images, weights = _images((16, 8, 8, 3)), _images((16, 8, 8, 3), 1)
    key, p = jax.random.key(0), jnp.float32(0.7)

    def changed_and_back(x):
        changed, back = jax.vjp(lambda x: augment(key, x, p), x)
        return changed, *back(weights)

    spread = jax.jit(changed_and_back, in_shardings=sharding, out_shardings=sharding)
    compiled = spread.lower(images).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()
    got = compiled(jax.device_put(images, sharding))
    np.testing.assert_array_equal(got[0], _AUGMENT(key, images, p))
    # The changes are affine: ⟨w, A·x + b⟩ = ⟨Aᵀw, x⟩ + ⟨w, b⟩, b what becomes of a black image.
    black = np.asarray(_AUGMENT(key, np.zeros_like(images), p))
    through = np.sum((np.asarray(got[0], np.float64) - black) * weights, axis=(1, 2, 3))
    np.testing.assert_allclose(np.sum(got[1] * images, axis=(1, 2, 3)), through, atol=1e-3)


def test_gradients_of_first_and_second_order():
    shape, key, p = (3, 5, 5, 3), jax.random.key(8), jnp.float32(0.8)
    images, weights = _images(shape), _images(shape, 1)

    def changed(x):
        return augment(key, x, p)

    def gradient(x):
        return jax.grad(lambda y: jnp.sum(changed(y) ** 2 * weights))(x)

    penalty = jax.grad(lambda x: jnp.sum(gradient(x) ** 2))
    changed_images, first, second = jax.jit(lambda x: (changed(x), gradient(x), penalty(x)))(images)

    # All changes are affine in the images, A·x + b, so that differences of any size are exact:
    # a column of A is what one pixel of one image changes.
    pixels = np.eye(75, dtype=np.float32).reshape(75, *shape[1:])
    differ = jax.jit(jax.vmap(lambda pixel: changed(images + pixel[None]) - changed(images)))
    columns = np.asarray(differ(pixels), np.float64).reshape(75, 3, 75)
    for row in range(3):
        a, w = columns[:, row].T, np.diag(weights[row].ravel().astype(np.float64))
        y = np.asarray(changed_images[row], np.float64).ravel()
        expected = 2 * a.T @ w @ y
        np.testing.assert_allclose(first[row].ravel(), expected, atol=1e-4 * np.abs(expected).max())
        expected = 4 * a.T @ w @ a @ expected
        np.testing.assert_allclose(
            second[row].ravel(), expected, atol=1e-4 * np.abs(expected).max()
        )
        assert not np.allclose(a, np.eye(75))


def _adapted(probability, sign, **changes):
    options = {"target": 0.6, "images_seen": 64, "adjust_images": 6_400} | changes
    return adapted_probability(jnp.float32(probability), jnp.float32(sign), **options)


def test_probability_follows_overfitting():
    np.testing.assert_allclose(_adapted(0.5, 0.9), 0.51, rtol=1e-6)
    np.testing.assert_allclose(_adapted(0.5, 0.61), 0.51, rtol=1e-6)
    np.testing.assert_allclose(_adapted(0.5, 0.2), 0.49, rtol=1e-6)
    np.testing.assert_allclose(_adapted(0.5, -1.0), 0.49, rtol=1e-6)
    assert _adapted(0.5, 0.6) == 0.5
    assert _adapted(0.5, 0.9).dtype == jnp.float32
    np.testing.assert_allclose(_adapted(0.5, 0.9, adjust_images=640), 0.6, rtol=1e-6)


def test_probability_stays_in_its_bounds():
    assert _adapted(0.0, 0.0) == 0
    assert _adapted(0.005, 0.0) == 0
    assert _adapted(MAX_PROBABILITY, 1.0) == np.float32(MAX_PROBABILITY)
    assert _adapted(0.799, 1.0, images_seen=6_400) == np.float32(MAX_PROBABILITY)
