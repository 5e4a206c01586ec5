from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError
from ida_jax.data.dataset import FaceDataset
from ida_jax.metrics.evaluation import regression_quality
from ida_jax.rescoring.density import searched_log_density
from ida_jax.runs.config import run_section
from ida_jax.runs.stages import run
from ida_jax.training.loop import open_metrics, read_metrics
from ida_jax.training.optimizer import learning_rate_schedule, sgd
from ida_jax.training.recognition import train
from ida_jax.training.ssr import (
    device_log_density,
    drawn_faces,
    make_target,
    train_ssr,
    train_ssr_on_the_fly,
    with_copies,
)

pytestmark = pytest.mark.usefixtures("tiny_network")
SIZE = 16
NETWORK = {"embedding_dim": 8, "dropout_rate": 0.0}


def _config(**changes):
    config = run_section("test")
    config.model.network = "tiny"
    config.model.options = ConfigDict(NETWORK)
    config.model.image_size = SIZE
    config.train.update(
        {"scale": 16.0, "margin": 0.3, "batch_size": 6, "steps": 6, "learning_rate": 0.02,
         "decay_steps": (4,), "checkpoint_every": 3, "log_every": 1} | changes
    )  # fmt: skip
    return config


def _faces(n=30, classes=5):
    rng = np.random.default_rng(0)
    labels = np.arange(n, dtype=np.int32) % classes
    centres = rng.integers(0, 255, (classes, SIZE, SIZE, 3))
    images = np.clip(centres[labels] + rng.integers(-30, 30, (n, SIZE, SIZE, 3)), 0, 255)
    return FaceDataset(images.astype(np.uint8), labels, tuple(map(str, range(classes))))


def _train(workdir, config, faces=None, **options):
    return train(faces or _faces(), config, workdir=workdir, **options)


def test_sgd_is_pytorch_s():
    config = _config().train
    optimizer, schedule = sgd(config), learning_rate_schedule(config)
    w = np.array([1.0, -2.0, 3.0])
    velocity = np.zeros(3)
    params = jnp.asarray(w, jnp.float32)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(7):
        gradient = np.sin(w + step)
        rate = 0.02 * (0.1 if step >= 4 else 1.0)
        assert float(schedule(step)) == pytest.approx(rate)
        updates, state = update(np.float32(gradient), state, params)
        params = params + updates
        velocity = 0.9 * velocity + gradient + 5e-4 * w
        w = w - rate * velocity
        np.testing.assert_allclose(params, w, rtol=1e-5)


def test_training_learns_and_resumes_to_the_same_model(tmp_path):
    straight = _train(tmp_path / "a", _config(steps=12))
    losses = [r["loss"] for r in read_metrics(tmp_path / "a") if r["stage"] == "train"]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])

    # A run that ended after its checkpoint of step 6 and a few steps more.
    _train(tmp_path / "b", _config(steps=6))
    before = read_metrics(tmp_path / "b")
    with open_metrics(tmp_path / "b", stage="train", first_step=6) as write:
        write(7, {"loss": 123.0})
    resumed = _train(tmp_path / "b", _config(steps=12))
    assert resumed.fingerprint == straight.fingerprint
    np.testing.assert_array_equal(resumed.class_weights, straight.class_weights)
    records = read_metrics(tmp_path / "b")
    assert [r["step"] for r in records] == list(range(1, 13))
    # Their speeds show that the first six steps were not taken again.
    assert records[:6] == before
    assert 123.0 not in [r["loss"] for r in records]


def test_fine_tuning_with_frozen_statistics_resumes_to_the_same_model(tmp_path):
    given = _train(tmp_path / "given", _config())
    frozen = partial(_config, batch_norm="frozen")
    straight = _train(tmp_path / "a", frozen(steps=6), start=given)
    _train(tmp_path / "b", frozen(steps=3), start=given)
    resumed = _train(tmp_path / "b", frozen(steps=6), start=given)
    assert resumed.fingerprint == straight.fingerprint != given.fingerprint
    for model in (straight, resumed):
        jax.tree.map(
            np.testing.assert_array_equal,
            model.variables["batch_stats"], given.variables["batch_stats"],
        )  # fmt: skip


@pytest.mark.parametrize("batch_norm", ["global", "frozen"])
def test_a_training_begins_with_imported_weights(tmp_path, batch_norm):
    """Stages import and train: one step at a rate of almost 0 leaves the backbone as it was."""
    network = build_network("tiny", NETWORK)
    key = jax.random.key(7)
    variables = jax.jit(partial(network.init, train=False))(key, np.zeros((1, 32, 32, 3)))
    given = FaceModel("tiny", NETWORK, Preprocessing(32), jax.tree.map(np.asarray, variables))
    given.save(tmp_path / "given.safetensors")
    config = _config(steps=1, learning_rate=1e-12, ema_decay=0.5, decay_steps=(), batch_size=8)
    config.train.batch_norm = batch_norm
    config.stages, config.data_dir = ("import", "train"), str(tmp_path)
    config.model.image_size = 32
    config.model.weights = "given.safetensors"
    config.train_data = ConfigDict(
        {"name": "rendered", "identities": 4, "images_per_identity": 2, "image_size": 32}
    )
    run(config, tmp_path / "run")
    trained = FaceModel.load(tmp_path / "run" / "model.safetensors")
    for path, value in flatten_dict(trained.variables["params"]).items():
        np.testing.assert_allclose(value, flatten_dict(given.variables["params"])[path], atol=1e-9)
    kept = [
        np.array_equal(a, b)
        for a, b in zip(
            *(jax.tree.leaves(of.variables["batch_stats"]) for of in (trained, given)), strict=True
        )
    ]
    assert all(kept) if batch_norm == "frozen" else not any(kept)
    assert trained.class_weights.shape == (4, 8)
    assert given.fingerprint == FaceModel.load(tmp_path / "run/imported.safetensors").fingerprint
    finished = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    run(config, tmp_path / "run")  # neither stage is run again
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == finished

    config.model.options.embedding_dim = 9
    with pytest.raises(UserError, match=r"holds tiny, 8-d, 32 px, but the config's model is tiny"):
        run(config, tmp_path / "other")
    for stages, weights, message in (
        (("train", "import"), "w", "import is the first"),
        (("import",), None, "stages has import, and model.weights names no file"),
    ):
        config.stages, config.model.weights = stages, weights
        with pytest.raises(UserError, match=message):
            run(config, tmp_path / "other")
    assert not (tmp_path / "other" / "model.safetensors").exists()


def test_a_model_file_holds_everything(tmp_path):
    model = _train(tmp_path / "run", _config(steps=2))
    model.save(tmp_path / "model.safetensors")
    loaded = FaceModel.load(tmp_path / "model.safetensors")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.preprocessing == Preprocessing(SIZE)
    images = _faces().images[:9]
    for flip in (False, True):
        np.testing.assert_array_equal(
            loaded.embed(images, flip=flip), model.embed(images, flip=flip)
        )
    flat = flatten_dict(model.variables, sep="/")
    name = next(iter(flat))
    other = {**flat, name: flat[name] + 1}
    from flax.traverse_util import unflatten_dict

    changed = FaceModel(
        model.network, model.network_options, model.preprocessing, unflatten_dict(other, sep="/")
    )
    assert changed.fingerprint != model.fingerprint


def test_embedding_in_any_batch_size(tmp_path):
    model = _train(tmp_path, _config(steps=2))
    images = _faces().images[:17]
    expected = model.embed(images, batch_size=100)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
    for batch_size in (1, 8, 16, 17):
        np.testing.assert_allclose(model.embed(images, batch_size=batch_size), expected, atol=1e-5)
    assert model.embed(images[:0]).shape == (0, 8)
    with pytest.raises(UserError, match=r"image 1 is uint8 \[8, 8, 3\]: the model takes"):
        model.embed([images[0], images[1][:8, :8]])


@pytest.mark.parametrize("log_every", [1, 7])
def test_a_run_stopped_before_a_step_that_is_logged_goes_on(tmp_path, log_every):
    _train(tmp_path, _config(steps=6, log_every=log_every))
    _train(tmp_path, _config(steps=7, log_every=log_every))
    assert read_metrics(tmp_path)[-1]["step"] == 7


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    message = r"the loss is .* at step [123], after step [012] was still finite: .* has saved none"
    with pytest.raises(UserError, match=message):
        _train(tmp_path, _config(learning_rate=1e30))


def test_an_unknown_network(tmp_path):
    config = _config()
    config.model.network = "vgg"
    with pytest.raises(UserError, match="'vgg' is unknown: choose one of iresnet_nano"):
        _train(tmp_path, config)


def test_ssr_targets():
    log_f = np.log(np.array([0.04, 0.05, 0.09]))
    paper = make_target(log_f, "paper")
    np.testing.assert_allclose(paper.values, [0.04, 0.05, 0.09], rtol=1e-6)
    for kind, raw in (("standardised", np.exp(log_f)), ("log", log_f)):
        target = make_target(log_f, kind)
        assert abs(target.values.mean()) < 1e-6
        np.testing.assert_allclose(target.values.std(), 1, rtol=1e-5)
        np.testing.assert_allclose(target.mean + target.std * target.values, raw, rtol=1e-5)
    with pytest.raises(UserError, match="'f' is unknown"):
        make_target(log_f, "f")
    with pytest.raises(UserError, match="row 1 is inf"):
        make_target(np.array([0.1, np.inf]), "log")


def _ssr_config(**changes):
    config = {
        "hidden": 64, "target": "standardised", "batch_size": 128, "steps": 1500,
        "learning_rate": 0.05, "decay_steps": (1000,), "decay_factor": 0.1, "momentum": 0.9,
        "weight_decay": 5e-4, "input": "unit",
    }  # fmt: skip
    return ConfigDict(config | changes)


@pytest.mark.parametrize("target", ["standardised", "log", "paper"])
def test_ssr_learns_the_density_of_unseen_faces(tmp_path, target):
    faces = reference.unit((3000, 16), 0, clusters=6)
    anchors = AnchorSet.from_embeddings(faces[:500], labels=np.arange(500))
    train_faces, test_faces = faces[:2000], faces[2000:]
    labels = np.arange(2000)
    log_f = searched_log_density(train_faces, anchors, labels=labels)
    module = train_ssr(
        train_faces, log_f, _ssr_config(target=target), k=10, tau=1.0,
        fingerprint="abc", workdir=tmp_path, seed=0,
    )  # fmt: skip
    searched = searched_log_density(test_faces, anchors)
    predicted = module.log_density(test_faces)
    if target == "paper":
        # Eq. 6 to the letter starts thousands of times above the variance of F, and is flat there.
        error = np.mean((np.exp(predicted) - np.exp(searched)) ** 2)
        assert error < 0.05 * np.mean(np.exp(searched)) ** 2
    else:
        quality = regression_quality(predicted, searched)
        assert quality.r2 > 0.8
        assert quality.rank_correlation > 0.9

    module.save(tmp_path / "ssr.safetensors")
    loaded = SSRModule.load(tmp_path / "ssr.safetensors")
    np.testing.assert_array_equal(loaded.log_density(test_faces), module.log_density(test_faces))
    assert (loaded.k, loaded.tau, loaded.fingerprint) == (10, 1.0, "abc")
    with pytest.raises(UserError, match=r"8 wide, the SSR module's 16"):
        loaded.log_density(reference.unit((3, 8), 0))


def test_a_scaled_input_is_folded_into_the_module(tmp_path):
    """Trained on embeddings times √D, it takes unit ones, and learns faster."""
    faces = reference.unit((1500, 16), 0, clusters=6)
    anchors = AnchorSet.from_embeddings(reference.unit((300, 16), 1, clusters=6))
    log_f = searched_log_density(faces, anchors)
    errors = {}
    for kind in ("unit", "scaled"):
        config = _ssr_config(input=kind, steps=300, decay_steps=(200,), learning_rate=0.01)
        module = train_ssr(
            faces[:1000], log_f[:1000], config, k=10, tau=1.0, workdir=tmp_path, seed=0
        )
        errors[kind] = 1 - regression_quality(module.log_density(faces[1000:]), log_f[1000:]).r2
    assert errors["scaled"] < 0.7 * errors["unit"]


@pytest.mark.parametrize("copies", [0, 1, 3])
def test_copies_of_faces(copies):
    faces = reference.unit((41, 16), 0)
    labels = np.arange(41) // 2
    options = {"copies": copies, "mix": 0.5, "noise": 0.3}
    made = with_copies(faces.astype(np.float32), labels, seed=1, **options)
    assert made.embeddings.shape == (41 * (copies + 1), 16)
    assert made.embeddings.dtype == np.float32
    np.testing.assert_array_equal(made.embeddings[:41], faces.astype(np.float32))
    np.testing.assert_array_equal(made.labels, np.tile(labels, copies + 1))
    np.testing.assert_allclose(np.linalg.norm(made.embeddings, axis=1), 1, atol=1e-6)
    again = with_copies(faces.astype(np.float32), labels, seed=1, **options)
    np.testing.assert_array_equal(made.embeddings, again.embeddings)
    other = with_copies(faces.astype(np.float32), labels, seed=2, **options)
    assert copies == 0 or np.any(made.embeddings != other.embeddings)
    # A copy is nearer to its face than to others: the own share is at least a half.
    for copy in made.embeddings.reshape(copies + 1, 41, 16)[1:]:
        own = np.sum(copy * faces, axis=1)
        assert np.mean(own[:, None] >= copy @ faces.T) > 0.9


@pytest.mark.parametrize("labelled", [True, False])
def test_targets_of_a_batch_are_the_searched_ones(labelled):
    faces = reference.unit((200, 16), 0, clusters=6).astype(np.float32)
    labels = np.arange(200, dtype=np.int32) // 2 if labelled else None
    anchor_labels = np.arange(100, dtype=np.int32) if labelled else None
    anchors = AnchorSet.from_embeddings(faces[::2], labels=anchor_labels)
    searched = searched_log_density(faces, anchors, k=7, tau=2.0, labels=labels)
    computed = device_log_density(
        jnp.asarray(faces), labels, jnp.asarray(anchors.embeddings), anchor_labels, k=7, tau=2.0
    )
    np.testing.assert_allclose(computed, searched, atol=1e-5)


@pytest.mark.parametrize("copies", [0, 1, 9])
def test_drawn_faces(copies):
    faces = reference.unit((41, 16), 0).astype(np.float32)
    labels = np.arange(41, dtype=np.int32)
    config = ConfigDict({"copies": copies, "mix": 0.5, "noise": 0.3})
    draw = {"size": 2000, "config": config}
    drawn, own = drawn_faces(jax.random.key(0), jnp.asarray(faces), jnp.asarray(labels), **draw)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-5)
    assert set(np.asarray(own)) == set(range(41))
    cosines = np.asarray(drawn) @ faces.T
    made = cosines[np.arange(2000), own] < 1 - 1e-6
    assert np.mean(made) == pytest.approx(copies / (copies + 1), abs=0.05)
    # A copy is nearer to its face than to others.
    assert np.mean(cosines[np.arange(2000), own][:, None] >= cosines) > 0.9
    again, _ = drawn_faces(jax.random.key(0), jnp.asarray(faces), None, **draw)
    np.testing.assert_array_equal(again, drawn)
    other, _ = drawn_faces(jax.random.key(1), jnp.asarray(faces), None, **draw)
    assert np.any(np.asarray(other) != np.asarray(drawn))


@pytest.mark.parametrize("target", ["standardised", "log"])
def test_ssr_trained_on_the_fly_is_as_good_as_on_searched_targets(tmp_path, target):
    faces = reference.unit((2000, 16), 0, clusters=6).astype(np.float32)
    anchors = AnchorSet.from_embeddings(faces[:300], labels=np.arange(300))
    labels = np.arange(1500)
    config = _ssr_config(
        steps=600, decay_steps=(400,), input="scaled", target=target, copies=1, mix=0.5, noise=0.3
    )
    options = {"k": 10, "tau": 1.0, "fingerprint": "abc", "workdir": tmp_path}
    module = train_ssr_on_the_fly(faces[:1500], labels, anchors, config, seed=0, **options)
    searched = searched_log_density(faces[1500:], anchors)
    predicted = module.log_density(faces[1500:])
    assert regression_quality(predicted, searched).r2 > 0.8
    assert (module.k, module.fingerprint, module.target) == (10, "abc", target)
    assert len(read_metrics(tmp_path)) == 6

    made = with_copies(faces[:1500], labels, copies=1, mix=0.5, noise=0.3, seed=0)
    log_f = searched_log_density(made.embeddings, anchors, labels=made.labels)
    kept = train_ssr(made.embeddings, log_f, config, seed=0, **options)
    assert module.mean == pytest.approx(kept.mean, abs=0.1 * kept.std)
    assert module.std == pytest.approx(kept.std, rel=0.1)
    agreement = regression_quality(kept.log_density(faces[1500:]), predicted)
    assert agreement.rank_correlation > 0.9

    again = train_ssr_on_the_fly(faces[:1500], labels, anchors, config, seed=0, **options)
    np.testing.assert_array_equal(again.log_density(faces), module.log_density(faces))
    other = train_ssr_on_the_fly(faces[:1500], labels, anchors, config, seed=1, **options)
    assert np.any(other.log_density(faces) != module.log_density(faces))


def test_an_ssr_loss_that_is_not_finite_stops_the_run(tmp_path):
    faces = reference.unit((50, 16), 0)
    with pytest.raises(UserError, match="the SSR loss is nan"):
        train_ssr(
            faces, faces[:, 0], _ssr_config(learning_rate=1e9), k=10, tau=1.0, workdir=tmp_path,
            seed=0,
        )  # fmt: skip


def test_regressed_density_is_never_without_logarithm():
    params = {
        "hidden_fc": {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32)},
        "output_fc": {"kernel": np.zeros((2, 1), np.float32), "bias": np.full(1, -9, np.float32)},
    }
    module = SSRModule(params, "standardised", 0.05, 0.01, 0.02, 10, 1.0)
    np.testing.assert_allclose(
        module.log_density(reference.unit((3, 4), 0)), np.log(0.02), rtol=1e-6
    )


def test_regression_quality():
    y = np.array([1.0, 2.0, 4.0, 3.0])
    assert regression_quality(y, y) == pytest.approx((1, 1))
    assert regression_quality(2 * y + 1, y).rank_correlation == pytest.approx(1)
    assert regression_quality(np.array([2.5, 2.5, 2.5, 2.6]), y).r2 == pytest.approx(1 - 4.91 / 5)
    assert np.isnan(regression_quality(y, np.ones(4)).r2)
