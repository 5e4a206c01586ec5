"""IJB: the lists, the pooling and the evaluation, on made-up releases."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference_insightface
from hypothesis import given, settings
from hypothesis import strategies as st
from ijb_release import Size, write_release

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.metrics import templates
from ida_jax.metrics.identification import Searches, mate_ranks, search_figures
from ida_jax.metrics.templates import pool_templates, pooling_matrix
from ida_jax.protocols import ijb, ijb_search
from ida_jax.protocols.ijb import evaluate_ijb
from ida_jax.protocols.ijb_files import Galleries, read_galleries, read_ijb
from ida_jax.protocols.ijb_search import without_hidden
from ida_jax.rescoring.gallery import Candidates
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.terms import cosine_terms
from ida_jax.tables.identity_pairs import IdentityPairs

SIZE = Size(images=210, templates=60, subjects=20, pairs=700, genuine=40, width=16)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ijb") / "release"
    write_release(folder, SIZE)
    return folder


@pytest.fixture
def release(written, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "release")


@pytest.fixture(scope="module")
def scorers():
    anchors = np.random.default_rng(5).normal(size=(80, 16)).astype(np.float32)
    return make_scorers(
        ("cosine", "ida_r", "as_norm"), AnchorSet.from_embeddings(anchors), k=5, top_n=9
    )


def test_lists(written):
    meta = read_ijb(written, subset="ijbc")
    assert len(meta.names) == meta.templates.size == meta.media.size == meta.detector.size == 210
    assert meta.names[:2] == ("1.jpg", "2.jpg")
    assert meta.template_ids.tolist() == [1 + 3 * i for i in range(60)]
    assert meta.pairs.shape == (700, 2)
    assert int(meta.same.sum()) == 40
    lines = (written / "meta" / "ijbc_template_pair_label.txt").read_text().splitlines()
    for line, pair, same in zip(lines, meta.pairs, meta.same, strict=True):
        assert line.split() == [*map(str, meta.template_ids[pair]), str(int(same))]
    assert "210 images were found, the whole IJBC has 469,375" in meta.notes[0]
    found = read_galleries(written, subset="ijbc", template_ids=meta.template_ids)
    assert found.galleries["g1"].rows.tolist() == list(range(0, 20, 2))
    assert found.galleries["g1"].subjects.tolist() == list(range(1000, 1010))
    assert found.galleries["g2"].subjects.tolist() == list(range(1010, 1020))
    assert len(found.probes.rows) == 40


@pytest.mark.parametrize("separator", ["\t", "  "])
def test_lists_in_other_dress(release, separator):
    expected = read_ijb(release, subset="ijbc")
    for path in (release / "meta").glob("*.txt"):
        text = path.read_text().replace(" ", separator).replace("\n", "\r\n")
        path.write_text("\ufeff" + text + "\r\n\r\n", newline="")
    found = read_ijb(release / "meta", subset="ijbc")
    assert found.names == expected.names
    np.testing.assert_array_equal(found.pairs, expected.pairs)
    np.testing.assert_array_equal(found.detector, expected.detector)


def test_a_release_without_points_and_galleries(release):
    for path in (release / "meta").glob("*5pts*"):
        path.unlink()
    for path in (release / "meta").glob("*.csv"):
        path.unlink()
    meta = read_ijb(release, subset="ijbc")
    assert meta.detector is None
    assert read_galleries(release, subset="ijbc", template_ids=meta.template_ids) is None


def _read_all(folder):
    meta = read_ijb(folder, subset="ijbc")
    return meta, read_galleries(folder, subset="ijbc", template_ids=meta.template_ids)


MISTAKES = [
    ("ijbc_face_tid_mid.txt", 3, "4.jpg 7", r"tid_mid.txt:4: found 2 fields, expected 3"),
    ("ijbc_face_tid_mid.txt", 3, "4.jpg x 7", r"tid_mid.txt:4: found 'x', expected a whole"),
    ("ijbc_template_pair_label.txt", 5, "2 4 1", r"label.txt:6: template 2 has no images"),
    ("ijbc_template_pair_label.txt", 5, "1 4 2", r"label.txt:6: label 2, expected 1"),
    ("ijbc_template_pair_label.txt", 5, "4 4 1", r"label.txt:6: template 4 with itself"),
    ("ijbc_name_5pts_score.txt", 1, "9.jpg" + " 1" * 11, r"5pts_score.txt:2: image 9.jpg, but"),
    ("ijbc_name_5pts_score.txt", 1, "2.jpg" + " 1" * 10 + " nan", r"5pts_score.txt:2: score nan"),
    ("ijbc_name_5pts_score.txt", 1, "", r"has 209 lines and ijbc_face_tid_mid.txt 210"),
    ("ijbc_1N_gallery_G1.csv", 0, "A,B,C,D", r"G1.csv:1: the columns are A, B, C, D"),
    ("ijbc_1N_gallery_G1.csv", 2, "7,one", r"G1.csv:3: expected whole numbers"),
    ("ijbc_1N_gallery_G1.csv", 2, "2,1001", r"G1.csv:3: template 2 has no images"),
    ("ijbc_1N_gallery_G1.csv", 2, "7,1000", r"G1.csv: subject 1000 has 2 templates"),
    ("ijbc_1N_gallery_G2.csv", 2, "7,1001", r"G2.csv: subject 1001 is in ijbc_1N_gallery_G1"),
    ("ijbc_1N_probe_mixed.csv", 2, "4,1", r"mixed.csv:\d+: template 4 is of subject"),
]


@pytest.mark.parametrize(("name", "line", "text", "message"), MISTAKES)
def test_mistakes_name_file_and_line(release, name, line, text, message):
    path = release / "meta" / name
    lines = path.read_text().splitlines()
    if text == "4,1":
        lines.insert(line, "4,1")
        lines.insert(line, "4,2")
    else:
        lines[line] = text
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message) as caught:
        _read_all(release)
    assert "\n" not in str(caught.value)


def test_absent_lists(tmp_path, release):
    with pytest.raises(UserError, match="no folder at"):
        read_ijb(tmp_path / "nowhere", subset="ijbc")
    with pytest.raises(UserError, match=r"ijbb_face_tid_mid.txt"):
        read_ijb(release, subset="ijbb")
    (release / "meta" / "ijbc_1N_probe_mixed.csv").unlink()
    meta = read_ijb(release, subset="ijbc")
    with pytest.raises(UserError, match=r"probe_mixed.csv"):
        read_galleries(release, subset="ijbc", template_ids=meta.template_ids)


@settings(max_examples=60)
@given(st.integers(0, 5), st.integers(0, 3000), st.binary(max_size=6))
def test_damaged_lists_give_nothing_but_our_error(written, which, at, junk):
    source = sorted((written / "meta").iterdir())[which]
    whole = source.read_bytes()
    at = min(at, len(whole) - 1)
    folder = written.parent / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(written / "meta", folder / "meta")
    (folder / "meta" / source.name).write_bytes(whole[:at] + junk + whole[at + len(junk) + 1 :])
    with contextlib.suppress(UserError):
        _read_all(folder)


def _pooled_slowly(embeddings, template, media, weights, *, unit):
    """InsightFace's way, one template after the other."""
    rows = []
    for t in range(template.max() + 1):
        inside = np.flatnonzero(template == t)
        features = embeddings[inside].astype(np.float64)
        if unit:
            features = features / np.linalg.norm(features, axis=1, keepdims=True)
        features = features * weights[inside, None]
        means = [features[media[inside] == m].mean(axis=0) for m in np.unique(media[inside])]
        rows.append(np.sum(means, axis=0))
    return np.array(rows)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("slab", [1, 7, 64, 300])
def test_pooling(written, monkeypatch, unit, slab):
    meta = read_ijb(written, subset="ijbc")
    embeddings = np.load(written / "embeddings.npy")
    media = meta.media % 5  # the same media in several templates
    expected = _pooled_slowly(embeddings, meta.templates, media, meta.detector, unit=unit)
    monkeypatch.setattr(templates, "_SLAB", slab)
    matrix = pooling_matrix(meta.templates, media, weights=meta.detector)
    found = pool_templates(matrix, embeddings, norm="unit" if unit else "keep")
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    halves = np.concatenate([embeddings / 2, embeddings / 2], axis=1)
    found = pool_templates(matrix, halves, norm="unit" if unit else "keep", halves=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_pooling_mistakes():
    with pytest.raises(UserError, match=r"template 1 .* has no image"):
        pooling_matrix([0, 2], [0, 0])
    with pytest.raises(UserError, match="weight of image 1 is nan"):
        pooling_matrix([0, 1], [0, 0], weights=[1, np.nan])
    with pytest.raises(UserError, match=r"template 1 .* has no image of a weight above 0"):
        pooling_matrix([0, 1], [0, 0], weights=[1, 0])
    matrix = pooling_matrix([0, 1], [0, 0])
    with pytest.raises(UserError, match="embedding 1 is zero, NaN"):
        pool_templates(matrix, np.array([[1.0, 2], [0, 0]]))
    with pytest.raises(UserError, match="the lists have 2 images"):
        pool_templates(matrix, np.ones((3, 2)))
    with pytest.raises(UserError, match="two halves"):
        pool_templates(matrix, np.ones((2, 3)), halves=True)


def test_searches_by_hand():
    searches = Searches(
        mate=np.array([0.9, 0.5, 0.3, np.nan]),
        rank=np.array([1, 2, 6, 11]),
        highest=np.array([0.6, 0.5, 0.1, 0.0, -0.2]),
    )
    found = search_figures(searches, fpirs=(0.2, 0.4, 1.0), ranks=(1, 5, 10))
    assert found["tpir@fpir"] == {"0.2": 0.25, "0.4": 0.75, "1": 0.75}
    assert found["false_alarms"] == {"0.2": 1, "0.4": 2, "1": 5}
    assert found["rank"] == {"1": 0.25, "5": 0.5, "10": 0.75}
    assert mate_ranks(np.array([[3, 1], [0, 2]]), np.array([1, 1])).tolist() == [2, 3]


# Two of one gallery; one of either; twice a person with others; one who is not there.
ONE_PERSON = (("1000", "1001"), ("1015", "1003"), ("1003", "1004"), ("1002", "7"))


@pytest.mark.parametrize("one_person", [(), ONE_PERSON])
def test_evaluation_against_slow_scores(written, scorers, one_person):
    meta = read_ijb(written, subset="ijbc")
    galleries = read_galleries(written, subset="ijbc", template_ids=meta.template_ids)
    embeddings = np.load(written / "embeddings.npy")
    evaluated = evaluate_ijb(
        embeddings, meta, scorers, subset="ijbc", galleries=galleries, fars=(0.01, 0.1),
        one_person=IdentityPairs(Path("list"), one_person, 0) if one_person else None,
        resamples=30,
    )  # fmt: skip
    subjects = np.full(60, -1)
    for enrolled in (*galleries.galleries.values(), galleries.probes):
        subjects[enrolled.rows] = enrolled.subjects
    apart = {frozenset(map(int, pair)) for pair in one_person}
    hidden = np.array([[frozenset((int(a), int(b))) in apart for b in subjects] for a in subjects])
    assert set(evaluated) == {
        "ijbc_1to1_norm_detector", "ijbc_1toN_norm_detector", "ijbc_1toN_g1_norm_detector",
        "ijbc_1toN_g2_norm_detector",
    }  # fmt: skip
    slow = _pooled_slowly(embeddings, meta.templates, meta.media, meta.detector, unit=False)
    slow /= np.linalg.norm(slow, axis=1, keepdims=True)
    anchors = scorers["ida_r"].anchors.embeddings.astype(np.float64)
    log_f = -np.log(np.exp(np.sort(slow @ anchors.T, axis=1)[:, -5:]).sum(axis=1))
    cosine = slow @ slow.T
    scores = {"cosine": cosine, "ida_r": cosine + np.logaddexp(log_f[:, None], log_f[None, :])}
    for method, every in scores.items():
        kept = ~hidden[meta.pairs[:, 0], meta.pairs[:, 1]]
        assert kept.all() == (not one_person)
        of_pairs, same = every[meta.pairs[:, 0], meta.pairs[:, 1]][kept], meta.same[kept]
        figures = evaluated["ijbc_1to1_norm_detector"].figures[method]
        assert figures.get("ignored_pairs", 0) == np.count_nonzero(~kept)
        for far in (0.01, 0.1):
            threshold = np.sort(of_pairs[~same])[::-1][int(far * np.count_nonzero(~same))]
            expected = np.mean(of_pairs[same] > threshold)
            assert figures["tar@far"][f"{far:g}"] == pytest.approx(expected)
            low, high = figures["tar_interval@far"][f"{far:g}"]
            assert low <= expected <= high
        for name, gallery in galleries.galleries.items():
            figures = evaluated[f"ijbc_1toN_{name}_norm_detector"].figures[method]
            away = hidden[galleries.probes.rows][:, gallery.rows]
            table = np.where(away, -np.inf, every[galleries.probes.rows][:, gallery.rows])
            assert figures.get("ignored_pairs", 0) == away.sum()
            assert away.any() == (len(one_person) > 0)
            is_mate = galleries.probes.subjects[:, None] == gallery.subjects[None, :]
            mated = is_mate.any(axis=1)
            mates = table[is_mate]
            threshold = np.sort(table[~mated].max(axis=1))[::-1][int(0.1 * (~mated).sum())]
            assert figures["tpir@fpir"]["0.1"] == pytest.approx(np.mean(mates > threshold))
            ranks = 1 + np.sum(table[mated] > mates[:, None], axis=1)
            assert figures["rank"]["1"] == pytest.approx(np.mean(ranks == 1))
            assert figures["rank"]["5"] == pytest.approx(np.mean(ranks <= 5))
            assert figures["mated_probes"] == mated.sum()
            assert set(figures["rank_interval"]) == {"1", "5", "10"}
    both = [evaluated[f"ijbc_1toN_{g}_norm_detector"].figures["ida_r"] for g in ("g1", "g2")]
    mean = evaluated["ijbc_1toN_norm_detector"].figures["ida_r"]
    assert mean["rank"]["1"] == pytest.approx((both[0]["rank"]["1"] + both[1]["rank"]["1"]) / 2)
    ends = [of["tpir_interval@fpir"]["0.1"] for of in both]
    assert mean["tpir_interval@fpir"]["0.1"] == pytest.approx(np.mean(ends, axis=0))
    assert mean.get("ignored_pairs", 0) == sum(of.get("ignored_pairs", 0) for of in both)
    # No gallery of both was searched.
    assert not {"gallery", "mated_probes", "false_alarms"} & set(mean)


def test_joined_galleries_are_searched_as_insightface_does(written, scorers, monkeypatch):
    meta = read_ijb(written, subset="ijbc")
    galleries = read_galleries(written, subset="ijbc", template_ids=meta.template_ids)
    monkeypatch.setattr(ijb_search, "_SLAB", 7)
    evaluated = evaluate_ijb(
        np.load(written / "embeddings.npy"), meta, scorers, subset="ijbc", galleries=galleries,
        join_galleries=True, resamples=0,
    )  # fmt: skip
    figures = evaluated["ijbc_1toN_joined_norm_detector"].figures["cosine"]
    embeddings = np.load(written / "embeddings.npy")
    slow = _pooled_slowly(embeddings, meta.templates, meta.media, meta.detector, unit=False)
    slow /= np.linalg.norm(slow, axis=1, keepdims=True)
    rows, subjects = (np.concatenate(c) for c in zip(*galleries.galleries.values(), strict=True))
    mates = [subjects.tolist().index(subject) for subject in galleries.probes.subjects]
    similarity = slow[galleries.probes.rows] @ slow[rows].T
    ranks, tpir = reference_insightface.identification(similarity, mates)
    assert figures["rank"] == {str(k): rate for k, rate in ranks.items()}
    assert figures["tpir@fpir"] == {f"{far:g}": rate for far, rate in tpir.items()}
    assert (figures["gallery"], figures["mated_probes"]) == (rows.size, len(mates))
    # A listed pair of subjects is hidden from each other, which can only help.
    pair = tuple(map(str, subjects[:2]))
    hidden = ijb_search.evaluate_joined(
        _unit(slow).astype(np.float32), {"cosine": cosine_terms(len(slow))}, galleries,
        one_person=IdentityPairs(Path("list"), (pair,), 0),
    )["1toN_joined"].figures["cosine"]  # fmt: skip
    assert hidden["ignored_pairs"] == np.isin(galleries.probes.subjects, subjects[:2]).sum()
    assert hidden["rank"]["1"] >= figures["rank"]["1"]
    probes = galleries.probes
    for subject, where in ((10**6, "in neither gallery"), (subjects[0], "in both galleries")):
        first, second = galleries.galleries.values()
        second = second._replace(subjects=np.r_[subjects[0], second.subjects[1:]])
        wrong = Galleries(
            {"g1": first, "g2": second},
            probes._replace(subjects=np.full(probes.rows.size, subject)),
        )
        with pytest.raises(UserError, match=where):
            ijb_search.evaluate_joined(np.float32(slow), {"cosine": cosine_terms(len(slow))}, wrong)


def test_subjects_must_be_there_to_be_left_out(written, scorers):
    meta = read_ijb(written, subset="ijbc")
    galleries = read_galleries(written, subset="ijbc", template_ids=meta.template_ids)
    embeddings = np.load(written / "embeddings.npy")
    for of, pair, message in (
        (None, ("1000", "1001"), "names subjects, which the 1:N lists"),
        (galleries, ("Ann", "Bea"), "names none of the 20 identities"),
    ):
        listed = IdentityPairs(Path("list"), (pair,), 0)
        with pytest.raises(UserError, match=message):
            evaluate_ijb(embeddings, meta, scorers, subset="ijbc", galleries=of, one_person=listed)


def test_hidden_candidates_by_hand():
    found = Candidates(
        scores=np.float32([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.3, 0.2, 0.1]]),
        rows=np.int32([[2, 0, 1], [1, 2, 0], [0, 1, 2]]),
    )
    shown = without_hidden(found, np.array([[0, 2], [1, 0], [2, 0], [2, 1]]), top=2)
    assert shown.rows.tolist() == [[0, 1], [1, 2], [2, -1]]
    np.testing.assert_array_equal(
        shown.scores, np.float32([[0.8, 0.7], [0.6, 0.5], [0.1, -np.inf]])
    )


@pytest.mark.parametrize("flip", ["none", "halves"])
def test_pooled_densities(written, scorers, monkeypatch, flip):
    meta = read_ijb(written, subset="ijbc")
    embeddings = np.load(written / "embeddings.npy")
    given = np.concatenate([embeddings, embeddings], axis=1) if flip == "halves" else embeddings
    monkeypatch.setattr(ijb, "_SLAB", 64)
    matrix = pooling_matrix(meta.templates, meta.media)
    faces = _unit(embeddings[:60])
    dao = {name: scorers[name].terms(faces) for name in ("cosine", "ida_r")}
    rows = np.arange(len(embeddings))
    found = ijb._pooled_terms(matrix, given, scorers, dao, rows=rows, halves=flip == "halves")
    density = np.exp(scorers["ida_r"].terms(_unit(embeddings)).values[:, 0].astype(np.float64))
    for t in range(60):
        inside = np.flatnonzero(meta.templates == t)
        means = [
            density[inside][meta.media[inside] == m].mean() for m in np.unique(meta.media[inside])
        ]
        assert found["ida_r"].values[t, 0] == pytest.approx(np.log(np.mean(means)), abs=1e-5)
    assert set(found) == {"ida_r"}


def test_pooled_densities_stay_finite(written, scorers):
    """F itself is 0 in float32 from log F = -104 on."""
    meta = read_ijb(written, subset="ijbc")
    anchors = scorers["ida_r"].anchors
    sharp = make_scorers(("ida_r",), anchors, k=5, tau=400.0)
    embeddings = np.load(written / "embeddings.npy")
    matrix = pooling_matrix(meta.templates, meta.media)
    faces = _unit(embeddings[:60])
    terms = {"ida_r": sharp["ida_r"].terms(faces)}
    assert terms["ida_r"].values.min() < -104
    rows = np.arange(len(embeddings))
    found = ijb._pooled_terms(matrix, embeddings, sharp, terms, rows=rows, halves=False)
    found = found["ida_r"].values
    assert np.isfinite(found).all()
    assert found.min() < -104


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_images_without_an_embedding(written, scorers):
    meta = read_ijb(written, subset="ijbc")
    embeddings = np.load(written / "embeddings.npy")
    several = np.flatnonzero(np.bincount(meta.templates) > 1)
    bad = [int(np.flatnonzero(meta.templates == t)[0]) for t in several[:5]]
    damaged = embeddings.copy()
    damaged[bad] = np.nan
    options = {"subset": "ijbc", "resamples": 0, "fars": (0.1,), "densities": "images"}
    few = {name: scorers[name] for name in ("cosine", "ida_r")}
    with pytest.raises(UserError, match=f"embedding {bad[0]} is zero, NaN"):
        evaluate_ijb(damaged, meta, few, **options)
    (found,) = evaluate_ijb(damaged, meta, few, skip_bad=True, **options).values()
    assert any("5 images without an embedding" in note for note in found.notes)
    kept = np.setdiff1d(np.arange(210), bad)
    rest = meta._replace(
        names=tuple(np.array(meta.names)[kept]), templates=meta.templates[kept],
        media=meta.media[kept], detector=meta.detector[kept],
    )  # fmt: skip
    (expected,) = evaluate_ijb(embeddings[kept], rest, few, **options).values()
    assert found.figures == expected.figures
    alone = int(np.flatnonzero(np.bincount(meta.templates) == 1)[0])
    damaged[meta.templates == alone] = 0
    with pytest.raises(UserError, match=f"template {meta.template_ids[alone]} has no image"):
        evaluate_ijb(damaged, meta, few, skip_bad=True, **options)


@pytest.mark.parametrize("flip", ["none", "halves"])
def test_norms_of_unit_embeddings_weigh_nothing_and_that_is_said(written, scorers, flip):
    meta = read_ijb(written, subset="ijbc")
    raw = np.load(written / "embeddings.npy")
    only = {"cosine": scorers["cosine"]}
    for embeddings, norm, told in ((raw, "keep", False), (_unit(raw), "keep", True),
                                   (_unit(raw), "unit", False)):  # fmt: skip
        given = np.concatenate([embeddings] * 2, axis=1) if flip == "halves" else embeddings
        found = evaluate_ijb(
            given, meta, only, subset="ijbc", norm=norm, flip=flip, fars=(0.1,), resamples=0
        )
        (evaluated,) = found.values()
        assert any("norms weigh nothing" in note for note in evaluated.notes) is told


def test_variants_are_in_the_names(written, scorers):
    meta = read_ijb(written, subset="ijbc")
    embeddings = np.load(written / "embeddings.npy")
    few = {name: scorers[name] for name in ("cosine", "ida_r")}
    for options, name in (
        ({"norm": "unit", "detector": False}, "ijbc_1to1_unit"),
        ({"flip": "added", "densities": "images"}, "ijbc_1to1_flip_norm_detector_image_densities"),
    ):
        found = evaluate_ijb(embeddings, meta, few, subset="ijbc", resamples=0, fars=(0.1,),
                             **options)  # fmt: skip
        assert list(found) == [name]
    with pytest.raises(UserError, match="unknown flip 'twice'"):
        evaluate_ijb(embeddings, meta, few, subset="ijbc", flip="twice")
