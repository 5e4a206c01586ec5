"""Training of the uncertainty module on a frozen backbone, and the artefact that it gives."""

import jax
import numpy as np
import pytest
from drawn import drawn_variables
from flax.traverse_util import flatten_dict

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.uncertainty_model import UncertaintyModel
from ida_jax.common.devices import put_batch, training_mesh
from ida_jax.common.errors import UserError
from ida_jax.data.balanced import balanced_rows
from ida_jax.data.dataset import FaceDataset
from ida_jax.runs.config import pfe_section
from ida_jax.training.loop import read_metrics
from ida_jax.training.pfe import check_pfe_batch, make_pfe_program, train_pfe

pytestmark = pytest.mark.usefixtures("tiny_network")
SIZE, WIDTH = 32, 8
OPTIONS = {"embedding_dim": WIDTH, "dropout_rate": 0.0}


@pytest.fixture(scope="module")
def model(tiny_network):
    network = build_network("tiny", OPTIONS)
    # Running statistics that differ from those of a batch.
    variables = drawn_variables(network, (1, SIZE, SIZE, 3))
    return FaceModel("tiny", OPTIONS, Preprocessing(SIZE), variables)


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12, dtype=np.int32), [4] * 5 + [2] * 5 + [1] * 2)
    centres = rng.integers(0, 255, (12, SIZE, SIZE, 3))
    images = centres[labels] + rng.integers(-60, 60, (len(labels), SIZE, SIZE, 3))
    return FaceDataset(np.clip(images, 0, 255).astype(np.uint8), labels, tuple(map(str, range(12))))


def _config(**changes):
    c = pfe_section()
    c.hidden, c.identities, c.images = 16, 8, 2
    c.steps, c.decay_steps, c.checkpoint_every, c.log_every = 6, (100,), 3, 1
    c.update(changes)
    return c


def _arrays(uncertainty):
    return flatten_dict(uncertainty.variables, sep="/")


def test_it_learns_and_resumes_to_the_same_module(model, faces, tmp_path, capsys):
    straight = train_pfe(faces, model, _config(), workdir=tmp_path / "a", seed=0)
    assert "2 of 32 faces are left out: the only image of their identity" in capsys.readouterr().err
    assert straight.fingerprint == model.fingerprint
    losses = [r["loss"] for r in read_metrics(tmp_path / "a") if r["stage"] == "pfe"]
    assert len(losses) == 6
    records = read_metrics(tmp_path / "a")
    assert [r["step"] for r in records if "images_per_second" in r] == [2, 3, 4, 5, 6]

    train_pfe(faces, model, _config(steps=3), workdir=tmp_path / "b", seed=0)
    resumed = train_pfe(faces, model, _config(), workdir=tmp_path / "b", seed=0)
    for name, value in _arrays(straight).items():
        np.testing.assert_array_equal(value, _arrays(resumed)[name])

    more = _config(steps=60, log_every=30)
    train_pfe(faces, model, more, workdir=tmp_path / "a", seed=0)
    longer = [r["loss"] for r in read_metrics(tmp_path / "a") if r["stage"] == "pfe"]
    assert longer[-1] < losses[0]


def test_checkpoints_of_another_model_are_not_resumed(model, faces, tmp_path):
    other = jax.tree.map(lambda x: x * np.float32(1.1), model.variables)
    other = FaceModel(model.network, OPTIONS, model.preprocessing, other)
    straight = train_pfe(faces, other, _config(), workdir=tmp_path / "a", seed=0)
    train_pfe(faces, model, _config(), workdir=tmp_path / "b", seed=0)
    trained = train_pfe(faces, other, _config(), workdir=tmp_path / "b", seed=0)
    for name, value in _arrays(straight).items():
        np.testing.assert_array_equal(value, _arrays(trained)[name])


def test_what_several_processes_cannot_train_with(monkeypatch):
    config = _config(identities=4, images=4)
    check_pfe_batch(config, 8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"pfe\.identities is 4, which does not divide by the 8"):
        check_pfe_batch(config, 8)
    check_pfe_batch(config, 4)


def test_a_step_is_the_same_on_one_device_and_on_eight(model, faces):
    states = []
    for devices in (1, 8):
        mesh = training_mesh(1, devices=jax.devices()[:devices])
        program = make_pfe_program(model, _config(), seed=0, mesh=mesh)
        rows = balanced_rows(faces.labels, identities=8, images=2, seed=0)(0, 16)
        images, labels, which = put_batch(
            (faces.images[rows], faces.labels[rows], rows.astype(np.int32)), mesh
        )
        means, maps = program.freeze(jax.device_put(model.variables), images)
        state, metrics = program.step(program.init(), means, maps, labels, which)
        states.append((jax.tree.map(np.asarray, state.params), float(metrics["loss"])))
    assert states[0][1] == pytest.approx(states[1][1], rel=1e-5)
    for one, eight in zip(*(jax.tree.leaves(state[0]) for state in states), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-6)


def test_only_the_layers_weights_decay(model, faces):
    mesh = training_mesh(1)
    start = make_pfe_program(model, _config(), seed=0, mesh=mesh).init().params
    moved = []
    for decay in (0.0, 0.5):
        config = _config(weight_decay=decay, learning_rate=1.0, momentum=0.0)
        program = make_pfe_program(model, config, seed=0, mesh=mesh)
        rows = balanced_rows(faces.labels, identities=8, images=2, seed=0)(0, 16)
        arrays = put_batch((faces.images[rows], faces.labels[rows], rows.astype(np.int32)), mesh)
        means, maps = program.freeze(model.variables, arrays[0])
        state, _ = program.step(program.init(), means, maps, *arrays[1:])
        moved.append(flatten_dict(state.params, sep="/"))
    start = flatten_dict(start, sep="/")
    for name, value in moved[0].items():
        expected = value - 0.5 * start[name] if name.endswith("kernel") else value
        np.testing.assert_allclose(moved[1][name], expected, rtol=1e-4, atol=1e-6)
    assert sum(name.endswith("kernel") for name in start) == 2


def test_mistakes_are_refused(model, faces, tmp_path):
    with pytest.raises(UserError, match="a batch of 10, which does not divide by 8 devices"):
        train_pfe(faces, model, _config(identities=5), workdir=tmp_path, seed=0)
    with pytest.raises(UserError, match="10 of 12 identities have two images or more"):
        train_pfe(faces, model, _config(identities=12), workdir=tmp_path, seed=0)
    with pytest.raises(UserError, match=r"begin another --workdir with a lower pfe.learning_rate"):
        train_pfe(faces, model, _config(learning_rate=1e30), workdir=tmp_path, seed=0)


def test_the_artefact_gives_the_models_means_and_belongs_to_it(model, faces, tmp_path):
    trained = train_pfe(faces, model, _config(), workdir=tmp_path, seed=0)
    trained.save(tmp_path / "pfe.safetensors")
    uncertainty = UncertaintyModel.load(tmp_path / "pfe.safetensors")
    for count in (1, 7, 8, 9):
        found = uncertainty.embed(model, faces.images[:count], batch_size=8)
        np.testing.assert_allclose(found.means, model.embed(faces.images[:count]), atol=1e-6)
        assert found.log_variances.shape == (count, WIDTH)
    mirrored = uncertainty.embed(model, faces.images[:5, :, ::-1])
    both = uncertainty.embed(model, faces.images[:5], flip=True)
    plain = uncertainty.embed(model, faces.images[:5])
    np.testing.assert_allclose(both.means, model.embed(faces.images[:5], flip=True), atol=1e-6)
    average = (plain.log_variances + mirrored.log_variances) / 2
    np.testing.assert_allclose(both.log_variances, average, rtol=1e-5)
    assert uncertainty.embed(model, faces.images[:0]).means.shape == (0, WIDTH)

    other = FaceModel(
        "tiny", OPTIONS, Preprocessing(SIZE), jax.tree.map(lambda x: x + 1, model.variables)
    )
    with pytest.raises(UserError, match="the uncertainty module's"):
        uncertainty.embed(other, faces.images[:2])
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="expected 'uncertainty_module'"):
        UncertaintyModel.load(tmp_path / "model.safetensors")
    uncertainty.variables["params"]["shift"] = np.float32(np.nan)
    with pytest.raises(UserError, match="log-variances: row 0 holds nan, expected"):
        uncertainty.embed(model, faces.images[:2])
