import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.metrics.identification import distractor_searches, prefix_sets, rank1
from ida_jax.protocols import face_blocks
from ida_jax.protocols import megaface as module
from ida_jax.protocols.face_blocks import fixed_blocks
from ida_jax.protocols.megaface import evaluate_megaface
from ida_jax.rescoring.methods import make_scorers

D = 8
ANCHORS = reference.unit((40, D), 9, clusters=4)
LABELS = np.repeat([5, 2, 9, 7, 4], [4, 1, 6, 3, 5])
METHODS = ("cosine", "ida_r", "z_norm", "s_norm")


@pytest.fixture
def scorers():
    return make_scorers(METHODS, AnchorSet.from_embeddings(ANCHORS), k=3, tau=4.0)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(face_blocks, "SIZES", (8, 16))
    monkeypatch.setattr(module, "_PROBES", 4)


def _faces(seed=0):
    """Probes near their identity's centre, and distractors among them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, D))
    probes = centres[LABELS] + 0.9 * rng.normal(size=(len(LABELS), D))
    distractors = centres[rng.integers(10, size=53)] + 1.5 * rng.normal(size=(53, D))
    return probes.astype(np.float32), distractors.astype(np.float32)


def _score(method, gallery, probe):
    cosine = gallery @ probe
    if method == "cosine":
        return cosine
    if method == "ida_r":
        density = [
            reference.density(reference.cohort_scores(f, ANCHORS, 3), 4.0) for f in (gallery, probe)
        ]
        return 4.0 * cosine + np.log(sum(density))
    (m1, s1), (m2, s2) = (
        reference.mean_and_std(reference.cohort_scores(f, ANCHORS)) for f in (gallery, probe)
    )
    z = (cosine - m1) / s1  # the gallery's face is the enrolled one
    return z if method == "z_norm" else (z + (cosine - m2) / s2) / 2


def _faults(method, probes, distractors, sets):
    """Failed searches, one search after the other in float64."""
    probes, distractors = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        for x in (probes, distractors)
    )
    faults, count = dict.fromkeys(sets, 0), 0
    scores = [[_score(method, d, p) for d in distractors] for p in probes]
    for p, label in enumerate(LABELS):
        for g, other in enumerate(LABELS):
            if p != g and label == other:
                count += 1
                mate = _score(method, probes[g], probes[p])
                for size, rows in sets.items():
                    faults[size] += mate <= max(scores[p][d] for d in rows)
    return faults, count


def test_searches():
    found = distractor_searches(LABELS)
    expected = [
        (p, g)
        for p in range(len(LABELS))
        for g in range(len(LABELS))
        if p != g and LABELS[p] == LABELS[g]
    ]
    assert list(zip(found.probe.tolist(), found.mate.tolist(), strict=True)) == expected
    # Four of the five identities have two images.
    assert found.identities == 4
    assert {LABELS[p]: i for p, i in zip(found.probe, found.identity, strict=True)} == {
        4: 0, 5: 1, 7: 2, 9: 3
    }  # fmt: skip
    for labels, message in (([1, 2, 3], "3 probes of 3 identities"), ([0.5], "float64")):
        with pytest.raises(UserError, match=message):
            distractor_searches(labels)


def test_facescrub_makes_the_known_number_of_searches(shared_data):
    from ida_jax.protocols.megaface_files import read_image_list

    images = read_image_list(shared_data / "protocols" / "facescrub_features_list.json")
    found = distractor_searches(images.labels)
    assert len(found.probe) == 153_634
    assert found.identities == 80


def test_rank1_is_strict():
    highest = np.float32([[0.1, 0.5], [-np.inf, 0.2]])
    found = rank1(np.float32([0.5, np.nan, 0.2, 0.3]), highest, [0, 0, 1, 1])
    assert found.right.tolist() == [[True, False], [False, False], [True, False], [True, True]]
    np.testing.assert_array_equal(found.rate, [0.75, 0.25])
    assert found.faults.tolist() == [1, 3]


def test_prefix_sets():
    assert {s: r.tolist() for s, r in prefix_sets((3, 1)).items()} == {1: [0], 3: [0, 1, 2]}
    kept = prefix_sets((1, 3, 5), [1, 2, 4])
    assert {s: r.tolist() for s, r in kept.items()} == {1: [], 3: [0, 1], 5: [0, 1, 2]}
    with pytest.raises(UserError, match="0 distractors"):
        prefix_sets((10, 0))


def test_every_method_against_one_search_at_a_time(scorers, small_blocks):
    probes, distractors = _faces()
    for sets in (prefix_sets((1, 9, 53)), {9: [40, 2, 7], 10: [0, 52], 11: range(3, 20)}):
        got = evaluate_megaface(
            probes, LABELS, [distractors[:20], distractors[20:]], scorers, sets=sets, resamples=50
        )
        for method in METHODS:
            faults, count = _faults(method, probes, distractors, sets)
            figures = got.figures[method]
            assert figures["faults@distractors"] == {str(s): n for s, n in faults.items()}
            assert figures["searches"] == count
            assert figures["probes"] == len(probes)
            for size, rate in figures["rank1@distractors"].items():
                assert rate == pytest.approx(1 - faults[int(size)] / count)
                low, high = figures["rank1_interval@distractors"][size]
                assert low <= rate <= high
                if method != "cosine":
                    base = got.figures["cosine"]["rank1@distractors"][size]
                    assert figures["rank1_gain@distractors"][size] == pytest.approx(rate - base)
                    low, high = figures["rank1_gain_interval@distractors"][size]
                    assert low <= rate - base <= high
        assert "rank1_gain@distractors" not in got.figures["cosine"]
    assert any(0 < n < count for n in faults.values())


@pytest.mark.parametrize("block", [1, 7, 8, 9, 52, 53])
def test_incoming_blocks_do_not_matter(scorers, block, small_blocks, monkeypatch):
    probes, distractors = _faces(1)
    kept = []
    monkeypatch.setattr(module, "rank1", lambda *scores: kept.append(scores) or rank1(*scores))

    def evaluate(size):
        blocks = (distractors[i : i + size] for i in range(0, 53, size))
        return evaluate_megaface(probes, LABELS, blocks, scorers, sizes=(5, 50), resamples=2)

    whole, cut = evaluate(53), evaluate(block)
    assert whole == cut
    for one, other in zip(kept[: len(METHODS)], kept[len(METHODS) :], strict=True):
        for side in range(2):  # scores of mates and the highest of distractors, to the last bit
            np.testing.assert_array_equal(one[side], other[side])


def test_no_more_is_taken_than_needed(scorers, small_blocks):
    probes, distractors = _faces()

    def blocks():
        yield distractors[:30]
        raise AssertionError("a second block was taken")

    evaluate_megaface(probes, LABELS, blocks(), scorers, sizes=(30,), resamples=2)


@pytest.mark.parametrize("place", [0, 15, 16, 40])
def test_a_copy_of_the_mate_is_a_tie_and_so_a_fault(place, small_blocks):
    probes, distractors = _faces()
    distractors = -np.abs(distractors)
    probes = np.abs(probes)
    scorers = make_scorers(("cosine",), None)
    clean = evaluate_megaface(probes, LABELS, [distractors], scorers, sizes=(53,), resamples=2)
    assert clean.figures["cosine"]["faults@distractors"] == {"53": 0}
    distractors[place] = probes[0]
    unit = probes / np.linalg.norm(probes, axis=1, keepdims=True)
    found = distractor_searches(LABELS)
    # Other distractors point away, so that the copy alone can be the higher one.
    faults = sum(
        g == 0 or unit[0] @ unit[p] > unit[g] @ unit[p]
        for p, g in zip(found.probe, found.mate, strict=True)
    )
    got = evaluate_megaface(probes, LABELS, [distractors], scorers, sizes=(53,), resamples=2)
    assert got.figures["cosine"]["faults@distractors"] == {"53": faults}


def test_bad_distractors_are_named_or_left_out(scorers, small_blocks):
    probes, distractors = _faces(2)
    distractors[[17, 20]] = np.nan
    distractors[33] = 0
    blocks = np.array_split(distractors, 5)
    with pytest.raises(UserError, match="distractors: row 17 is zero, NaN or infinite"):
        evaluate_megaface(probes, LABELS, blocks, scorers, sizes=(53,))
    got = evaluate_megaface(
        probes, LABELS, blocks, scorers, sizes=(10, 53), skip_bad=True, resamples=2
    )
    assert got.notes[0].startswith("3 distractors that are zero, NaN or infinite were left out")
    assert "row 17" in got.notes[0]
    good = np.delete(np.arange(53), [17, 20, 33])
    filled = np.where(np.isfinite(distractors) & (distractors != 0), distractors, 1)
    for method in METHODS:
        faults, _ = _faults(method, probes, filled, {10: range(10), 53: good})
        assert got.figures[method]["faults@distractors"] == {str(s): n for s, n in faults.items()}
    # Rows that no set asks for may be anything.
    evaluate_megaface(probes, LABELS, blocks, scorers, sets={2: [3, 40]}, resamples=2)


def test_notes_and_mistakes(small_blocks):
    probes, distractors = _faces()
    scorers = make_scorers(("cosine",), None)
    far = -np.abs(distractors)
    got = evaluate_megaface(
        np.abs(probes), LABELS, [far], scorers, sets={20: range(18), 50: range(50)}, resamples=2
    )
    assert got.notes == (
        "the 20 distractors are 18 without those deleted",
        "cosine: fewer than 10 faults decide rank-1 against 20, 50 distractors",
    )
    for change, message in (
        ({"sizes": (60,)}, "53 distractors were given, the sets reach 60"),
        ({"sets": {1: []}}, "no distractors"),
        ({"sets": {1: [-1, 3]}}, "negative rows"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_megaface(probes, LABELS, [far], scorers, **change)
    with pytest.raises(UserError, match=r"block of distractors is \[53, 5\], expected \[n, 8\]"):
        evaluate_megaface(probes, LABELS, [far[:, :5]], scorers, sizes=(5,))
    with pytest.raises(UserError, match="18 labels for 19 probes"):
        evaluate_megaface(probes, LABELS[1:], [far], scorers, sizes=(5,))
    with pytest.raises(UserError, match="probes: row 3"):
        evaluate_megaface(probes * (np.arange(19) != 3)[:, None], LABELS, [far], scorers)


@given(
    st.lists(st.integers(0, 9), max_size=6), st.integers(1, 7), st.integers(1, 30), st.integers(0)
)
def test_fixed_blocks(sizes, block, reach, seed):
    rng = np.random.default_rng(seed)
    came = [rng.normal(size=(size, 3)) * (rng.random((size, 1)) < 0.8) for size in sizes]
    rows = np.concatenate([np.empty((0, 3)), *came])[:reach]
    got = list(fixed_blocks(came, width=3, block=block, reach=reach, what="faces"))
    assert all(each.faces.shape == (block, 3) for each in got)
    assert sum(each.count for each in got) == len(rows)
    assert all(each.count == block for each in got[:-1])
    good = rows.any(axis=1)
    for number, each in enumerate(got):
        here = slice(number * block, number * block + each.count)
        np.testing.assert_array_equal(each.good[: each.count], good[here])
        assert not each.good[each.count :].any()
        np.testing.assert_array_equal(each.bad, np.flatnonzero(~good[here]))
        np.testing.assert_allclose(np.linalg.norm(each.faces, axis=1), 1, rtol=1e-6)
        wanted = rows[here][good[here]]
        wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(each.faces[each.good], wanted, atol=1e-6)
