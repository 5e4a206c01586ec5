"""IDA-L's settings by held-out people; without structure it falls back to the cosine."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import reference

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.ssr_module import HeldOut, SSRModule
from ida_jax.common.errors import UserError
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.methods import cohort_notes
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.runs.config import ssr_section
from ida_jax.training import ssr_choice
from ida_jax.training.ssr import train_ssr, with_copies
from ida_jax.training.ssr_choice import Setting, chooses, train_chosen_ssr

K = 4
GRID = (Setting(16, 0, 0.0, 3e-2), Setting(32, 2, 0.5, 5e-3))


def _people(kind, seed=0, people=160, images=3):
    """Unit rows [N, D] and who is on them; "crowds": people crowd around some centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 12))
    if kind == "crowds":
        group = rng.integers(6, size=people)
        away = np.linspace(0.3, 1.5, 6)[group, None]
        centres = np.random.default_rng(9).normal(size=(6, 12))[group] + away * centres
    own = np.repeat(np.arange(people, dtype=np.int32), images)
    rows = centres[own] + 0.2 * rng.normal(size=(len(own), 12))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), own


def _trained(kind, tmp_path, grid=GRID):
    faces, own = _people(kind)
    anchors = AnchorSet.from_embeddings(faces[::3], labels=own[::3], k=K)
    config = ssr_section()
    config.steps = 200
    options = {"k": K, "tau": 1.0, "fingerprint": "abc", "workdir": tmp_path, "seed": 0}
    with pytest.MonkeyPatch.context() as patch:  # five trainings in place of eleven
        patch.setattr(ssr_choice, "GRID", grid)
        patch.setattr(ssr_choice, "FOLDS", 3)
        return train_chosen_ssr(faces, own, own, anchors, config, **options), anchors


@pytest.fixture(scope="module")
def crowds(tmp_path_factory):
    return _trained("crowds", tmp_path_factory.mktemp("crowds"))


def test_structure_is_learnt_without_bias(crowds):
    module, anchors = crowds
    judged = module.held_out
    assert judged.doubt == ""
    assert 0.3 < judged.r2_low < judged.r2 < judged.r2_high
    assert judged.people == 106  # two of three folds; the first has chosen
    assert judged.steps in (100, 200)
    assert judged.hidden in (16, 32)
    assert module.fingerprint == "abc"
    # People who were never seen, among the same centres.
    fresh, _ = _people("crowds", seed=1)
    searched = searched_log_density(fresh, anchors)
    regressed = module.log_density(fresh)
    assert abs(np.mean(regressed - searched)) < 0.25 * searched.std()
    assert np.corrcoef(regressed, searched)[0, 1] > 0.5


def test_log_density_is_the_calibration_of_the_networks_own(crowds):
    module, _ = crowds
    faces, _ = _people("crowds", seed=2)
    plain = replace(module, slope=1.0, intercept=0.0)
    own = np.asarray(plain.log_density(faces), np.float64)
    expected = module.intercept + module.slope * own
    np.testing.assert_allclose(module.log_density(faces), expected, atol=1e-6)
    assert module.slope != 1


def test_directions_without_structure_fall_back_to_the_cosine(tmp_path, capsys):
    module, _ = _trained("random", tmp_path)
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line == module.held_out.note()
    assert "falls back to the cosine" in line
    assert module.slope == 0
    faces, _ = _people("random", seed=1)
    assert np.ptp(module.log_density(faces)) == 0
    scorer = Rescorer(None, method="ida_l", ssr=module)
    assert cohort_notes([scorer], None) == (line,)
    pairs = np.random.default_rng(0).integers(len(faces), size=(300, 2))
    scores = scorer.score_pairs(faces, pairs)
    cosines = np.sum(faces[pairs[:, 0]] * faces[pairs[:, 1]], axis=1)
    np.testing.assert_allclose(scores - cosines, np.full(300, np.mean(scores - cosines)), atol=1e-5)


def test_the_file_keeps_the_judgement_and_old_files_load(crowds, tmp_path):
    module, _ = crowds
    module.save(tmp_path / "m.safetensors")
    loaded = SSRModule.load(tmp_path / "m.safetensors")
    assert loaded.held_out == module.held_out
    assert loaded.judgement() == module.judgement()
    faces, _ = _people("crowds", seed=1)
    np.testing.assert_array_equal(loaded.log_density(faces), module.log_density(faces))

    plain = SSRModule(module.params, "log", -2.0, 0.1, 0.0, K, 1.0)
    plain.save(tmp_path / "old.safetensors")
    assert b"slope" not in (tmp_path / "old.safetensors").read_bytes()
    old = SSRModule.load(tmp_path / "old.safetensors")
    assert (old.slope, old.intercept, old.held_out) == (1, 0, None)
    assert old.judgement() == {}
    assert cohort_notes([Rescorer(None, method="ida_l", ssr=old)], None) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"slope": -1.0},
        {"slope": float("nan")},
        {"intercept": "x"},
        {"held_out": "doubt"},
        {"people": 1.5},
        {"doubt": "\x1b[31m"},
        {"r2": None},
    ],
)
def test_a_file_that_says_something_else_is_refused(crowds, tmp_path, change):
    module, _ = crowds
    known = {key: value for key, value in change.items() if hasattr(module, key)}
    judged = {key: value for key, value in change.items() if hasattr(module.held_out, key)}
    if "held_out" not in known:
        known["held_out"] = replace(module.held_out, **judged)
    else:
        known.pop("held_out")
        known["held_out"] = HeldOut(*["doubt"] * 14)
    replace(module, **known).save(tmp_path / "m.safetensors")
    with pytest.raises(UserError):
        SSRModule.load(tmp_path / "m.safetensors")


def test_the_same_seed_gives_the_same_module(crowds, tmp_path):
    judged = crowds[0].held_out  # the grid's other settings change nothing
    chosen = Setting(judged.hidden, judged.copies, judged.noise, judged.weight_decay)
    again, _ = _trained("crowds", tmp_path, grid=(chosen,))
    assert again.judgement() == crowds[0].judgement()
    jax.tree.map(np.testing.assert_array_equal, again.params, crowds[0].params)


def test_centred_input_is_part_of_the_module(tmp_path):
    """A module trained on centred input takes unit rows, as every other."""
    faces, own = _people("crowds")
    far = (faces + 5 * reference.unit((12,), 3)).astype(np.float32)
    far /= np.linalg.norm(far, axis=1, keepdims=True)  # a weak model's: close together
    anchors = AnchorSet.from_embeddings(far[::3], labels=own[::3], k=K)
    log_f = searched_log_density(far, anchors, labels=own)
    config = ssr_section()
    config.update(steps=600, learning_rate=0.01, input="centred", batch_size=64)
    options = {"k": K, "tau": 1.0, "workdir": tmp_path, "seed": 0}
    module = train_ssr(far, log_f, config, **options)
    assert np.corrcoef(module.log_density(far), log_f)[0, 1] > 0.9
    stopped = train_ssr(far, log_f, config, steps=200, **options)
    assert np.any(stopped.log_density(far) != module.log_density(far))


def test_faces_of_held_out_people_are_nowhere_else():
    faces, own = _people("random")
    anchors = AnchorSet.from_embeddings(faces[::3], labels=own[::3], k=K)
    rows, folds = ssr_choice._dealt(own, np.random.default_rng(0))
    np.testing.assert_array_equal(rows, np.arange(len(own)))
    held = folds == 2
    assert not set(own[held]) & set(own[~held])
    split = ssr_choice._split(faces, own, anchors, held, k=K, tau=1.0, searcher="auto")
    assert not set(split.anchors.labels) & set(own[held])
    assert not set(split.own) & set(own[held])
    top = reference.top_k(faces[held], split.anchors.embeddings, K)
    np.testing.assert_allclose(split.searched, -np.log(np.exp(top).sum(axis=1)), atol=1e-5)


def test_crowding_is_among_the_other_people_held_out():
    faces, own = _people("random", people=6)
    got = ssr_choice._log_density_among(faces, own, k=10, tau=1.0, searcher="auto")
    others = reference.top_k(faces, faces[::3], 5, own, own[::3])
    np.testing.assert_allclose(got, -np.log(np.exp(others).sum(axis=1)), atol=1e-5)


def test_when_settings_are_chosen():
    config = ssr_section()
    assert not chooses(config, 1000, 500)
    config.choose = "auto"
    assert chooses(config, 50_000, 50)
    assert not chooses(config, 50_001, 500)
    assert not chooses(config, 1000, 49)
    config.targets = "on_the_fly"
    assert not chooses(config, 1000, 500)
    config.update(choose="held_out", targets="searched")
    assert chooses(config, 10**7, 3)


def test_too_few_people_or_anchors(tmp_path):
    faces, own = _people("random", people=49)
    anchors = AnchorSet.from_embeddings(faces[::3], labels=own[::3], k=K)
    options = {"k": K, "tau": 1.0, "workdir": tmp_path, "seed": 0}
    with pytest.raises(UserError, match="has 49 people"):
        train_chosen_ssr(faces, own, own, anchors, ssr_section(), **options)
    faces, own = _people("random", people=50)
    anchors = AnchorSet.from_embeddings(faces[::3], labels=own[::3], k=K)
    options["k"] = 40  # 40 left, a face's own among them
    with pytest.raises(UserError, match="at most 39 anchors"):
        train_chosen_ssr(faces, own, own, anchors, ssr_section(), **options)


def test_copies_of_a_narrow_set_stay_in_it():
    """The noise of a setting is a share of the spread."""
    faces = reference.unit((200, 12), 0)
    narrow = (faces + 20 * reference.unit((12,), 1)).astype(np.float32)
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    made = ssr_choice._copies(narrow, None, Setting(1, 1, 0.5, 0.0), seed=0).embeddings[200:]
    wide = with_copies(narrow, None, copies=1, mix=0.0, noise=0.5, seed=0).embeddings[200:]
    distance = np.linalg.norm(made - narrow, axis=1).mean()
    assert distance < 0.05 < np.linalg.norm(wide - narrow, axis=1).mean()
