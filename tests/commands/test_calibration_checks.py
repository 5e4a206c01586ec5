"""A calibration is used with the anchors and settings that it was made with, or refused."""

import numpy as np
import pytest
import reference

from ida_jax import evaluate, rescore
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.calibration import Calibration
from ida_jax.common.errors import UserError
from ida_jax.common.fingerprints import content_fingerprint
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.likelihood_ratios import AffineMap
from ida_jax.rescoring.dao_fit import DaoFit
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.tables.score_origin import ScoreOrigin, read_origin

PEOPLE, ANCHORS = 60, 300
_CENTRES = reference.unit((PEOPLE + ANCHORS, 32), 0)
_RNG = np.random.default_rng(1)
WHO = np.repeat(np.arange(PEOPLE), 3)


def _images(centres):
    return unit_embeddings(centres + 0.05 * _RNG.normal(size=centres.shape).astype(np.float32))


FACES = _images(_CENTRES[WHO])
# The people on the faces are among the anchors of `leaking`, by other images, and not of `right`.
RIGHT = _CENTRES[PEOPLE:]
LEAKING = np.concatenate([_images(_CENTRES[:PEOPLE]), RIGHT[PEOPLE:]])
PAIRS = np.stack(np.triu_indices(len(FACES), 1), axis=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("faces.npy", FACES)
    np.save("pairs.npy", PAIRS)
    np.save("same.npy", WHO[PAIRS[:, 0]] == WHO[PAIRS[:, 1]])
    names = [f"person {i}" for i in range(ANCHORS)]
    for name, rows in (("right", RIGHT), ("leaking", LEAKING)):
        anchors = AnchorSet.from_embeddings(rows, labels=np.arange(ANCHORS), names=names)
        anchors.save(f"{name}.safetensors")
    AnchorSet.from_embeddings(RIGHT[:200]).save("fewer.safetensors")
    return tmp_path


def _rescore(*flags, anchors="right.safetensors", output="s.npy"):
    main = ["--embeddings=faces.npy", "--pairs=pairs.npy", f"--output={output}"]
    rescore.main([*main, *([f"--anchors={anchors}"] if anchors else []), *flags])


def _fit(*flags, scores="s.npy"):
    evaluate.main([f"--scores={scores}", "--labels=same.npy", "--fars=0.01", "--resamples=0",
                   "--fit=logistic", "--calibration=c.safetensors", *flags])  # fmt: skip


_LLR = ("--scale=llr", "--calibration=c.safetensors")


@pytest.mark.parametrize("output", ["s.npy", "s.csv", "s.parquet"])
def test_a_calibration_knows_what_its_scores_were_made_with(folder, capsys, output):
    _rescore("--k=7", "--tau=2", output=output)
    _fit(scores=output)
    calibration = Calibration.load("c.safetensors")
    anchors = AnchorSet.load("right.safetensors")
    origin = calibration.origin
    assert origin == read_origin(folder / output)
    assert (origin.method, origin.settings) == ("ida_r", {"k": 7, "tau": 2.0})
    assert (origin.anchors, origin.anchor_count) == (anchors.sketch, ANCHORS)
    assert (calibration.method, calibration.scale) == ("ida_r", "log")
    said = capsys.readouterr()
    assert "warning" not in said.err
    assert "Made of scores by ida_r, k = 7, tau = 2, 300 anchors, model unknown" in said.out
    _rescore("--k=7", "--tau=2", *_LLR, output="llr.npy")
    assert capsys.readouterr().err == ""
    expected = calibration.llr(Rescorer(anchors, k=7, tau=2.0).score_pairs(FACES, PAIRS))
    np.testing.assert_allclose(np.load("llr.npy"), expected, atol=1e-4)
    assert read_origin(folder / "llr.npy").scale == "llr"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k=20"], r"c.safetensors was fitted to scores made with k = 10, not 20"),
        (["--tau=2"], "tau = 1, not 2"),
        (["--anchors=fewer.safetensors"], "300 anchors, not 200"),
        (["--anchors=leaking.safetensors"], "made with another set of 300 anchors: fit one"),
        (["--method=as_norm"], "was fitted to scores of ida_r, not of as_norm"),
        (["--k=20", "--tau=2"], "k = 10, not 20; tau = 1, not 2"),
    ],
)
def test_another_setting_or_set_is_refused(folder, flags, message):
    _rescore()
    _fit()
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match=message) as error:
        _rescore(*_LLR, *flags, output="llr.npy")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_another_cohort_size_and_another_fit_are_refused(folder):
    _rescore("--method=as_norm", "--top_n=50")
    _fit()
    with pytest.raises(UserError, match="top_n = 50, not 60"):
        _rescore(*_LLR, "--method=as_norm", "--top_n=60")
    _rescore(*_LLR, "--method=as_norm", "--top_n=50", output="llr.npy")
    for name, weight in (("one", 1.5), ("other", 1.6)):
        DaoFit(1.0, weight, 5.0, 0.1, width=32, anchors=ANCHORS).save(f"{name}.safetensors")
    _rescore("--method=ida_r_fitted", "--dao_fit=one.safetensors")
    _fit()
    fitted = content_fingerprint(DaoFit.load("one.safetensors"))
    assert Calibration.load("c.safetensors").origin.artefacts == {"dao_fit": fitted}
    with pytest.raises(UserError, match=f"dao_fit {fitted}, not "):
        _rescore(*_LLR, "--method=ida_r_fitted", "--dao_fit=other.safetensors")


def test_scores_of_unknown_origin_are_fitted_with_a_warning(folder, capsys):
    _rescore()
    np.save("foreign.npy", np.load("s.npy"))
    _fit("--method=ida_r", scores="foreign.npy")
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "warning: foreign.npy does not say what made it" in said.err
    assert "rescore cannot check it" in said.out
    calibration = Calibration.load("c.safetensors")
    assert (calibration.method, calibration.origin) == ("ida_r", None)
    _rescore(*_LLR, output="llr.npy")
    said = capsys.readouterr().err
    assert said.startswith("warning: c.safetensors does not say which anchors and settings")
    np.testing.assert_array_equal(np.load("llr.npy"), calibration.llr(np.load("s.npy")))


def test_the_api_checks_too():
    origin = Rescorer(RIGHT, k=10).origin()
    known = Calibration("logistic", AffineMap(1.0, 0.0), origin=origin)
    again = unit_embeddings(7 * unit_embeddings(RIGHT))  # the same anchors, but for last bits
    assert known.check_scores(Rescorer(AnchorSet(again)).origin()) == ""
    assert known.check_scores(origin) == ""
    assert known.check_scores(Rescorer(RIGHT).origin(model="0123456789abcdef")) == ""
    with pytest.raises(UserError, match="k = 10, not 20"):
        known.check_scores(Rescorer(RIGHT, k=20).origin())
    unknown = Calibration("logistic", AffineMap(1.0, 0.0))
    assert "the calibration does not say" in unknown.check_scores(origin)
    assert "it is not known" in known.check_scores(None)


def test_a_wrong_method_is_refused(folder):
    _rescore()
    with pytest.raises(UserError, match="holds scores of ida_r, not of as_norm"):
        _fit("--method=as_norm")
    with pytest.raises(UserError, match="--allow_shared goes with --fit"):
        evaluate.main(["--scores=s.npy", "--labels=same.npy", "--allow_shared"])


def test_people_among_the_anchors_are_told_and_not_fitted(folder, capsys):
    _rescore(anchors="leaking.safetensors")
    said = capsys.readouterr().err
    assert said.startswith("warning: faces.npy: the people of 180 of 180 faces are likely among")
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=r"s.npy: the people of 180 of 180 .* too lax") as error:
        _fit()
    assert "\n" not in str(error.value)
    assert not (folder / "c.safetensors").exists()
    evaluate.main(["--scores=s.npy", "--labels=same.npy", "--resamples=0"])
    assert "thresholds too lax" in capsys.readouterr().err
    # Who knows better says so; where nobody did, a calibration that leaks says it itself.
    _fit("--allow_shared")
    assert Calibration.load("c.safetensors").origin.shared is None
    leaking = Calibration("logistic", AffineMap(1.0, 0.0), origin=read_origin(folder / "s.npy"))
    assert "was fitted to scores that leak" in leaking.check_scores(leaking.origin)


def test_names_tell_of_a_leak_that_cosines_do_not_show(folder, capsys):
    strangers = [f"person {i}/{j}" for i, j in enumerate(WHO)]
    (folder / "faces.names.txt").write_text("\n".join(strangers))
    _rescore()
    said = capsys.readouterr().err
    assert said.startswith("warning: faces.npy: the people of 180 of 180 faces are among the")
    with pytest.raises(UserError, match="people of 180 of 180 faces are among the anchors"):
        _fit()


@pytest.mark.parametrize("kind", ["names", "images", "integers"])
def test_labels_leave_the_own_identity_out(folder, capsys, kind):
    text = {
        "names": [f"person {who}" for who in WHO],
        "images": [f"person {who}/{row}" for row, who in enumerate(WHO)],
        "integers": [str(who) for who in WHO],
    }[kind]
    (folder / "who.txt").write_text("\n".join(text))
    _rescore("--labels=who.txt", anchors="leaking.safetensors")
    said = capsys.readouterr()
    assert said.err == ""
    assert "180 faces' own identity was left out" in said.out
    nearest = reference.top_k(FACES, LEAKING, 10, WHO, np.arange(ANCHORS))
    f = np.array([reference.density(row, 1.0) for row in nearest])
    i, j = PAIRS.T
    cosines = np.sum(FACES[i].astype(np.float64) * FACES[j], axis=1)
    np.testing.assert_allclose(np.load("s.npy"), cosines + np.log(f[i] + f[j]), atol=1e-5)
    _fit()
    assert Calibration.load("c.safetensors").origin.shared.left_out == 180
    # In use nobody is among the anchors, and no labels are needed.
    np.save("faces.npy", _images(reference.unit((180, 32), 9)))
    _rescore(*_LLR, anchors="leaking.safetensors", output="llr.npy")


@pytest.mark.parametrize(
    ("flags", "labels", "message"),
    [
        (["--method=s_norm"], "who.txt", "--labels leaves .* s_norm searches none"),
        (["--method=cosine"], "who.txt", "cosine searches none"),
        ([], "few.txt", "few.txt: 2 labels for 180 embeddings"),
        ([], "absent.txt", "absent.txt"),
        (["--anchors=fewer.safetensors"], "who.txt", "the anchors have no labels"),
        (["--output=who.txt.npy"], "who.txt.npy", "--output would overwrite --labels"),
    ],
)
def test_mistakes_in_labels(folder, flags, labels, message):
    (folder / "who.txt").write_text("\n".join(map(str, WHO)))
    np.save("who.txt.npy", WHO)
    (folder / "few.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match=message) as error:
        _rescore(f"--labels={labels}", *flags)
    assert "\n" not in str(error.value)
    assert not (folder / "s.npy").exists()


def test_the_file_of_the_origin_is_no_input(folder):
    np.save("pairs.npy.origin.json.npy", PAIRS)
    (folder / "pairs.npy.origin.json.npy").rename(folder / "s.npy.origin.json")
    with pytest.raises(UserError, match="would overwrite --names"):
        _rescore("--names=s.npy.origin.json")


def test_a_calibration_of_an_older_version_says_that_it_does_not_know(folder, capsys):
    Calibration("logistic", AffineMap(2.0, 1.0), "ida_r", "log", 5, 6).save("c.safetensors")
    header = (folder / "c.safetensors").read_bytes()
    assert b"origin" not in header
    _rescore(*_LLR, "--k=3", output="llr.npy")
    assert "c.safetensors does not say" in capsys.readouterr().err


def test_a_damaged_origin_is_refused(folder):
    origin = ScoreOrigin("ida_r", settings={"k": "ten"})
    Calibration("logistic", AffineMap(2.0, 1.0), origin=origin).save("c.safetensors")
    with pytest.raises(UserError, match="was not written by ida_jax"):
        Calibration.load("c.safetensors")


def test_leaking_scores_make_a_lax_threshold_and_labels_a_right_one(shared_data):
    """On LFW's first images: the realised FAR, asked for 1e-3, of people who are not anchors."""
    from ida_jax.rescoring.pairs import score_all_pairs

    root = shared_data / "lfw"
    names = [name.split("/")[0] for name in (root / "names.txt").read_text().split()]
    faces = unit_embeddings(np.load(root / "mobilefacenet_embeddings.npy"))
    people, first, who = np.unique(names, return_index=True, return_inverse=True)
    # Anchors: the first images of 1,500 people. Calibrated on: their second ones.
    second = first[np.bincount(who)[: len(first)] > 1] + 1
    chosen = np.flatnonzero(np.bincount(who) > 1)[:800]
    others = np.setdiff1d(np.arange(len(people)), chosen)
    of_anchors = np.concatenate([chosen, others[:700]])
    anchors = AnchorSet.from_embeddings(faces[first[of_anchors]], labels=of_anchors)
    scorer = Rescorer(anchors)
    second, tested = first[chosen] + 1, first[others[700:2200]]
    strangers = score_all_pairs(faces[tested], who[tested], scorer.terms(faces[tested])).impostor

    def realised(labels):
        terms = scorer.terms(faces[second], labels=labels)
        impostor = np.sort(score_all_pairs(faces[second], who[second], terms).impostor)
        return np.mean(strangers > impostor[-1 - int(1e-3 * impostor.size)])

    assert realised(None) > 3e-3
    assert 0.5e-3 < realised(chosen) < 2e-3
