"""The GAN's loop: resumed to the bit, evaluated, stopped where it collapses; and its updates."""

import json
from contextlib import nullcontext
from functools import partial

import jax
import numpy as np
import pytest

from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.common.devices import put_batch, training_mesh
from ida_jax.common.errors import Stopped, UserError
from ida_jax.data.dataset import FaceDataset
from ida_jax.runs.config import gan_section
from ida_jax.training import collapse, gan
from ida_jax.training.gan import train_gan
from ida_jax.training.gan_step import check_gan_batch, make_gan_program
from ida_jax.training.loop import read_metrics

SIZE = 6  # of the crops; at 8 px they are reflected outwards


def config(**options):
    c = gan_section()
    c.update(resolution=8, latent_dim=8, style_dim=8, channel_base=64, channel_max=8)
    c.update(dtype="float32", batch_size=16, steps=6, path_every=2, r1_every=3, log_every=1)
    c.update(evaluate_every=3, checkpoint_every=2, keep="last")
    c.update(options)
    return c


@pytest.fixture(scope="module", autouse=True)
def _one_device():
    """The updates compile several times as fast for one device as for eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "training_mesh", partial(training_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def faces():
    images = np.random.default_rng(0).integers(0, 256, (18, SIZE, SIZE, 3)).astype(np.uint8)
    labels = np.repeat(np.arange(6, dtype=np.int32), 3)
    return FaceDataset(images, labels, tuple("abcdef"))


def figures(generator):
    """Falls, then rises: the best is not the last."""
    return {"frechet": 1.0 if generator.provenance["step"] == 3 else 2.0, "recall": 0.5}


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gan")
    generator = train_gan(faces, config(), workdir=workdir, seed=3, evaluate=figures, title="six")
    return workdir, generator


def records(workdir):
    times = {"images_per_second"}
    return [
        {key: value for key, value in record.items() if key not in times}
        for record in read_metrics(workdir)
    ]


@pytest.mark.bits
def test_a_stopped_training_goes_on_to_the_bit(faces, undisturbed, tmp_path, monkeypatch):
    workdir, expected = undisturbed
    for stop in (3, 4):  # at step 3 an evaluation is due
        monkeypatch.setattr(gan, "preemption", lambda stop=stop: nullcontext(stop.__eq__))
        with pytest.raises(Stopped, match=f"at step {stop} of 6, which is saved"):
            train_gan(faces, config(), workdir=tmp_path, seed=3, evaluate=figures, title="six")
    monkeypatch.undo()
    resumed = train_gan(faces, config(), workdir=tmp_path, seed=3, evaluate=figures, title="six")
    assert resumed.fingerprint == expected.fingerprint
    assert records(tmp_path) == records(workdir)
    for step in (3, 6):
        name = f"generators/{step:09}.safetensors"
        again, before = (FaceGenerator.load(folder / name) for folder in (tmp_path, workdir))
        assert (again.fingerprint, again.provenance) == (before.fingerprint, before.provenance)


def test_records_files_and_provenance(undisturbed):
    workdir, generator = undisturbed
    written = records(workdir)
    logged = [r for r in written if "generator_loss" in r]
    assert [r["step"] for r in logged] == [1, 2, 3, 4, 5, 6]
    assert set(collapse._STATISTICS) <= logged[0].keys()
    assert [r["images"] for r in logged] == [16, 32, 48, 64, 80, 96]
    # Every second step has a path length of its own, every third an R1 in the next record.
    lengths, penalties = [r["path_length"] for r in logged], [r["r1"] for r in logged]
    assert lengths[0] == 0 < lengths[1] == lengths[2] < lengths[3] == lengths[4]
    assert penalties[:3] == [0, 0, 0]
    assert penalties[3] == penalties[5] > 0
    assert [(r["step"], r["frechet"]) for r in written if "frechet" in r] == [(3, 1.0), (6, 2.0)]
    sheets = sorted(path.name for path in (workdir / "samples").iterdir())
    assert sheets == ["000000000.png", "000000003.png", "000000006.png", "real.png"]
    saved = FaceGenerator.load(workdir / "generators" / "000000006.safetensors")
    assert saved.fingerprint == generator.fingerprint
    provenance = saved.provenance
    assert [provenance[name] for name in ("title", "faces", "identities")] == ["six", 18, 6]
    assert (provenance["step"], provenance["images"]) == (6, 96)
    assert provenance["figures"]["recall"] == 0.5
    assert json.dumps(provenance)
    assert generator.faces(0, 1).shape == (1, SIZE, SIZE, 3)


def test_the_best_generator_is_the_one_with_the_least_distance(faces, undisturbed):
    workdir, _ = undisturbed
    c = config()
    c.keep = "best"
    best = train_gan(faces, c, workdir=workdir, seed=3, evaluate=figures)  # nothing left to train
    assert best.provenance["step"] == 3


def test_a_collapse_stops_the_run_and_names_the_last_good_generator(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "WINDOW", 2)
    monkeypatch.setattr(
        gan, "collapse_reason", lambda records: "all alike" if len(records) == 6 else None
    )
    with pytest.raises(UserError, match="collapsed by step 6: all alike; the last good") as error:
        train_gan(faces, config(), workdir=tmp_path, seed=3, evaluate=figures)
    assert "000000003.safetensors" in str(error.value)
    FaceGenerator.load(tmp_path / "generators" / "000000003.safetensors")
    assert not (tmp_path / "generators" / "000000006.safetensors").exists()


def test_a_number_that_is_not_finite_stops_the_run_at_once(undisturbed, tmp_path):
    record = {**records(undisturbed[0])[0], "generator_loss": float("nan")}
    with pytest.raises(UserError, match=r"generator_loss is nan; no generator was evaluated befo"):
        gan._check_health([record], 1, tmp_path)


def test_few_training_faces_are_warned_of(undisturbed, faces, tmp_path, capsys):
    c = config()
    c.steps = 1
    train_gan(faces, c, workdir=tmp_path, seed=3, evaluate=figures)
    assert "warning: 18 training faces are few for a generator" in capsys.readouterr().err


def test_a_batch_that_devices_do_not_divide_is_refused():
    check_gan_batch(16, 8)
    with pytest.raises(UserError, match=r"gan\.batch_size is 12, which does not divide by 8"):
        check_gan_batch(12, 8)


@pytest.mark.parametrize("phase", ["path_length", "discriminator"])
def test_eight_devices_do_what_one_does(faces, phase):
    images = faces.images[:16]
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = training_mesh(1, devices=devices)
        # Of 16 faces eight devices and one take the same half for the path length.
        program = make_gan_program(config(), seed=3, mesh=mesh)
        given = put_batch((images,), mesh) if phase in ("discriminator", "r1") else ()
        out = getattr(program, phase)(program.init(), *given)
        state, metrics = out if phase in ("generator", "discriminator") else (out, {})
        # Parameters have taken a step of the gradient's sign; the moments hold the gradient itself.
        moments = state.generator_opt, state.discriminator_opt, state.path_mean, state.r1
        results.append(jax.tree.map(np.asarray, (moments, metrics)))
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.abs(one - eight).max() <= 1e-4 * np.abs(one).max() + 1e-7


def test_the_average_follows_the_generator():
    program = make_gan_program(config(), seed=3, mesh=training_mesh(1, devices=jax.devices()[:1]))
    first = program.init()
    start = np.asarray(first.generator["synthesis"]["constant"])
    state, _ = program.generator(first)
    now = np.asarray(state.generator["synthesis"]["constant"])
    average = np.asarray(state.average["synthesis"]["constant"])
    # The half-life is a twentieth of the 16 images seen so far, and the step sees 16.
    np.testing.assert_allclose(average, now + (start - now) * 0.5 ** (16 / 0.8), atol=1e-6)


@pytest.mark.parametrize(("sign", "change"), [(3, 16 / 500_000), (-3, -16 / 500_000)])
def test_augmentation_rises_where_real_faces_are_known_by_heart(faces, sign, change):
    mesh = training_mesh(1, devices=jax.devices()[:1])
    program = make_gan_program(config(), seed=3, mesh=mesh)
    state = program.init()
    # A mean so far off that one batch's sign, −1 … 1, cannot bring it to the target's other side.
    given = {"real_sign": np.float32(sign), "augment_probability": np.float32(0.5)}
    state = state._replace(**jax.device_put(given, state.real_sign.sharding))
    state, metrics = program.discriminator(state, *put_batch((faces.images[:16],), mesh))
    assert float(metrics["augment_probability"]) == pytest.approx(0.5 + change, abs=1e-7)
