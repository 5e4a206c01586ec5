"""The generator's file, and the faces that it makes."""

import jax
import numpy as np
import pytest

from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.common.errors import UserError
from ida_jax.models.stylegan import GeneratorNetwork, draw_noise

OPTIONS = {
    "resolution": 16, "latent_dim": 8, "style_dim": 8, "mapping_layers": 2, "channel_base": 64,
    "channel_max": 8,
}  # fmt: skip


def made(image_size=12, seed=0):
    network, rng = GeneratorNetwork(**OPTIONS), np.random.default_rng(seed)
    key = jax.random.key(0)
    shapes = jax.eval_shape(
        lambda: network.init(key, np.zeros((1, 8), np.float32), draw_noise(key, 1, 16))
    )
    # Random numbers for all of them, the noises' strengths too; init() compiles each of its own.
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["params"])
    return FaceGenerator.of(OPTIONS, params, image_size=image_size, provenance={"title": "t"})


@pytest.fixture(scope="module")
def generator():
    return made()


def test_a_saved_generator_is_the_same(generator, tmp_path):
    path = tmp_path / "g.safetensors"
    generator.save(path)
    loaded = FaceGenerator.load(path)
    assert loaded.fingerprint == generator.fingerprint
    assert (loaded.options, loaded.image_size) == (OPTIONS, 12)
    assert loaded.provenance == {"title": "t"}
    np.testing.assert_array_equal(loaded.faces(0, 3), generator.faces(0, 3))


def test_a_generator_from_before_the_transposed_up_convolution_makes_the_same_faces(generator):
    """Its file says nothing of the order; today's says so."""
    params = generator.variables["params"]

    def faces(**order):
        options = OPTIONS | order
        return FaceGenerator.of(options, params, image_size=12, provenance={}).faces(0, 2)

    old = faces(filter_first=True)
    np.testing.assert_array_equal(generator.faces(0, 2), old)
    # The borders alone differ, of every resolution.
    assert np.any(faces(filter_first=False) != old)


def test_an_altered_or_other_file_is_refused(generator, tmp_path):
    path = tmp_path / "g.safetensors"
    generator.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(UserError, match=r"g.safetensors is damaged"):
        FaceGenerator.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        FaceGenerator.load(path)
    with pytest.raises(UserError, match="no file at"):
        FaceGenerator.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(("first", "count"), [(0, 1), (63, 2), (64, 64), (5, 129), (130, 0)])
def test_a_face_is_a_function_of_its_number(generator, first, count):
    row = generator.faces(0, 200)
    found = generator.faces(first, count)
    assert (found.dtype, found.shape) == (np.uint8, (count, 12, 12, 3))
    np.testing.assert_array_equal(found, row[first : first + count])


def test_seeds_give_other_faces_and_truncation_one_face(generator):
    assert np.abs(generator.faces(0, 9).astype(int) - generator.faces(0, 9, seed=1)).mean() > 5
    ordinary = generator.faces(0, 9, truncation=0.0).astype(int)
    some, all_ = (generator.faces(0, 9, truncation=t).astype(int) for t in (0.5, 1.0))
    # At ψ = 0 the noise alone differs.
    assert ordinary.std(axis=0).mean() < some.std(axis=0).mean() < all_.std(axis=0).mean()
    for wrong in (-0.1, 1.1):
        with pytest.raises(UserError, match="expected a number from 0 to 1"):
            generator.faces(0, 1, truncation=wrong)


def test_the_mean_style_is_the_mean_of_mapped_latents(generator):
    network = GeneratorNetwork(**OPTIONS)
    latents = np.random.default_rng(1).standard_normal((8192, 8)).astype(np.float32)
    styles = np.asarray(network.apply(generator.variables, latents, method="map"), np.float64)
    error = styles.std(axis=0) / np.sqrt(8192)
    assert np.all(np.abs(generator.mean_style - styles.mean(axis=0)) < 6 * error + 1e-6)


def test_faces_have_the_crops_size_whatever_the_resolution(generator):
    small, large = (made(size).faces(0, 2) for size in (12, 24))
    assert [faces.shape[1:3] for faces in (small, large)] == [(12, 12), (24, 24)]
    whole = made(16).faces(0, 2)
    np.testing.assert_array_equal(small, whole[:, 2:14, 2:14])
    assert made(12).fingerprint != made(24).fingerprint
