import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.rescoring import pairs as module
from ida_jax.rescoring import tiles
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms, dao_terms

RULES = ("cosine", "dao", "z_norm", "t_norm", "s_norm", "csn")


def _faces(n=50):
    return reference.unit((n, 16), 0, clusters=4)


def _terms(rule, n):
    rng = np.random.default_rng(1)
    width = {"cosine": 0, "dao": 1, "csn": 1}.get(rule, 2)
    constants = {"dao": [3.0], "csn": [2.0, -0.5]}.get(rule, [])
    # Positive, as a standard deviation is.
    return FaceTerms(
        rule, rng.uniform(0.1, 2, (n, width)).astype(np.float32), np.float32(constants)
    )


def _oracle(faces, terms, i, j):
    c = float(faces[i].astype(np.float64) @ faces[j].astype(np.float64))
    first, second = (terms.values[row].astype(np.float64) for row in (i, j))
    match terms.rule:
        case "cosine":
            return c
        case "dao":
            return terms.constants[0] * c + np.log(np.exp(first[0]) + np.exp(second[0]))
        case "z_norm":
            return (c - first[0]) / first[1]
        case "t_norm":
            return (c - second[0]) / second[1]
        case "s_norm":
            return ((c - first[0]) / first[1] + (c - second[0]) / second[1]) / 2
        case "csn":
            return 2.0 * c + first[0] + second[0] - 0.5


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_score_pairs(count, rule, on_cpu, monkeypatch):
    """The program of other devices, too, which a CPU can run."""
    monkeypatch.setattr(module, "on_cpu", lambda _: on_cpu)
    for name in ("_GATHER_BLOCKS", "RULE_BLOCKS", "DEVICE_GATHER_BLOCKS"):
        monkeypatch.setattr(module, name, (4, 8))
    faces, terms = _faces(), _terms(rule, 50)
    pairs = np.random.default_rng(2).integers(50, size=(count, 2))
    got = score_pairs(faces, pairs, terms)
    assert got.dtype == np.float32
    expected = [_oracle(faces, terms, i, j) for i, j in pairs]
    np.testing.assert_allclose(got, np.array(expected).reshape(count), rtol=1e-5, atol=1e-5)
    if rule not in ("z_norm", "t_norm"):
        swapped = score_pairs(faces, pairs[:, ::-1], terms)
        np.testing.assert_allclose(got, swapped, rtol=1e-6)


def test_several_methods_in_one_program(monkeypatch):
    faces, pairs = _faces(), np.random.default_rng(2).integers(50, size=(70, 2))
    methods = {rule: _terms(rule, 50) for rule in RULES}
    here = module.pair_scores(faces, pairs, methods)
    monkeypatch.setattr(module, "on_cpu", lambda _: False)
    there = module.pair_scores(faces, pairs, methods)
    assert list(there) == list(methods)
    for rule in RULES:
        np.testing.assert_allclose(there[rule], here[rule], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("cells_a_pair", [256, 20, 0.001])
@pytest.mark.parametrize("wide_index", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_grouping_by_tiles_changes_nothing(n, cells_a_pair, wide_index, threads, monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: threads)
    monkeypatch.setattr(module, "_TILE_BITS", 4)
    monkeypatch.setattr(module, "_RUN", 50)
    monkeypatch.setattr(module, "_CELLS_A_PAIR", cells_a_pair)
    if wide_index:
        monkeypatch.setattr(module, "_MOST_SMALL_TILES", 1)
    faces, terms = _faces(n), _terms("dao", n)
    pairs = np.random.default_rng(3).integers(n, size=(203, 2))
    expected = [_oracle(faces, terms, i, j) for i, j in pairs]
    np.testing.assert_allclose(score_pairs(faces, pairs, terms), expected, atol=1e-5)


@given(st.integers(1, 40), st.integers(0, 80), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_chunks_change_nothing(n, count, chunk, seed):
    faces, terms = _faces(n), _terms("s_norm", n)
    pairs = np.random.default_rng(seed).integers(n, size=(count, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE_BITS", 4)
        patch.setattr(module, "_CELLS_A_PAIR", 50)
        patch.setattr(module, "CHUNK", chunk)
        got = score_pairs(faces, pairs, terms)
    whole = score_pairs(faces, pairs, terms)
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-5)


def test_a_face_of_nan_spoils_its_own_pairs_alone(monkeypatch):
    monkeypatch.setattr(module, "_TILE_BITS", 4)
    monkeypatch.setattr(module, "_CELLS_A_PAIR", 50)
    faces, terms = _faces(), _terms("dao", 50)
    faces[7] = np.nan
    pairs = np.stack(np.meshgrid(np.arange(50), np.arange(50)), axis=-1).reshape(-1, 2)
    got = module.score_chunk(module.jax.device_put(faces), pairs.astype(np.int32), terms)
    np.testing.assert_array_equal(np.isnan(got), np.any(pairs == 7, axis=1))


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 50])
@pytest.mark.parametrize("rule", ["cosine", "dao", "z_norm"])
def test_all_pairs_come_once(n, rule, monkeypatch):
    monkeypatch.setattr(tiles, "_ROWS", 16)
    faces, terms, labels = _faces(max(n, 1))[:n], _terms(rule, n), np.arange(n) % 7
    got = score_all_pairs(faces, labels, terms)
    expected = {True: [], False: []}
    for i in range(n):
        for j in range(i + 1, n):
            expected[bool(labels[i] == labels[j])].append(_oracle(faces, terms, i, j))
    for scores, same in ((got.genuine, True), (got.impostor, False)):
        np.testing.assert_allclose(np.sort(scores), sorted(expected[same]), rtol=1e-5, atol=1e-5)


def test_mistakes(monkeypatch):
    faces, labels = _faces(), np.arange(50) % 7
    good = np.array([[0, 1], [2, 3]])
    log_f = np.linspace(-3, -2, 50).astype(np.float32)
    for wrong, message in (
        ({"pairs": np.array([[0, 1], [2, 50]])}, r"pair 1 is \(2, 50\), outside the 50 faces"),
        ({"pairs": np.array([[-1, 1]])}, r"pair 0 is \(-1, 1\)"),
        ({"pairs": good.astype(float)}, r"pairs are float64 \[2, 2\]: expected integers"),
        ({"pairs": np.zeros((2, 3), int)}, r"pairs are int64 \[2, 3\]"),
        ({"faces": 5 * faces}, "row 0 has norm 5, expected 1"),
        ({"faces": np.where(np.arange(50)[:, None] == 3, np.nan, faces)}, "row 3 has norm nan"),
        ({"terms": dao_terms(log_f[:49], tau=1.0)}, r"are \[49, 1\].*expected \[50, 1\]"),
        ({"terms": FaceTerms("s_norm", log_f[:, None])}, r"are \[50, 1\].*expected \[50, 2\]"),
    ):
        arguments = {"faces": faces, "pairs": good} | wrong
        with pytest.raises(UserError, match=message):
            score_pairs(**arguments)
    with pytest.raises(UserError, match="7 labels for 50 faces"):
        score_all_pairs(faces, labels[:7])
    with pytest.raises(UserError, match="log F of face 4 is inf"):
        dao_terms(np.where(log_f == log_f[4], np.inf, log_f), tau=1.0)
    for tau in (0.0, np.nan, np.inf):
        with pytest.raises(UserError, match="tau is"):
            dao_terms(log_f, tau=tau)
    monkeypatch.setattr(tiles, "_MOST_PAIRS", 1000)
    with pytest.raises(UserError, match=r"50 faces make 1,225 pairs, more than the 1,000"):
        score_all_pairs(faces, labels)


def test_few_sizes_stand_for_every_number_of_faces():
    """A server is asked for any number of pairs: nothing may compile for each of them."""
    anchors = reference.unit((40, 16), 0)
    scorer = Rescorer(anchors, k=5)
    faces = reference.unit((2050, 16), 1)
    for n in (1, 31, 33, 300, 1025):  # 64, 128, 1,024 and 4,096 rows, in blocks of pairs
        scorer.score(faces[:n], faces[n : 2 * n])
    before = module.gathered_cosines._cache_size(), module.apply_rule._cache_size()
    for n in (*range(2, 31), 34, 63, 301, 511, 1000):
        alone = scorer.score(faces[:n], faces[n : 2 * n])
        listed = scorer.score_pairs(faces, np.stack([np.arange(n), n + np.arange(n)], axis=1))
        np.testing.assert_allclose(alone, listed, atol=2e-6)
    scorer.score_pairs(faces, [[0, 1]])
    after = module.gathered_cosines._cache_size(), module.apply_rule._cache_size()
    assert after[0] <= before[0] + 2  # the list's 2,050 faces, with few and with many pairs
    assert after[1] <= before[1] + 2
