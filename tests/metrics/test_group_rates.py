"""FAR and TAR by group against a slow transcription: every pair written out in a list."""

import numpy as np
import pytest
from reference import rates_by_group

from ida_jax.common.errors import UserError
from ida_jax.metrics.group_rates import Sides, few_errors, group_rates
from ida_jax.metrics.groups import (
    ACROSS,
    REST,
    FaceGroups,
    groups_of_all_pairs,
    groups_of_listed_pairs,
    level_cells,
    named_cells,
    norm_groups,
    one_group_a_pair,
)
from ida_jax.metrics.resampling import identity_codes, pair_list_total
from ida_jax.metrics.roc import SplitScores

FARS = (0.2, 0.03, 1e-3)


def _faces(seed=0, people=13, groups=("F", "M")):
    """Units, codes with some unknown, and a symmetric matrix of scores with ties."""
    rng = np.random.default_rng(seed)
    units = np.sort(rng.integers(people, size=4 * people + 1))
    _, units = np.unique(units, return_inverse=True)
    of_person = rng.integers(-1, len(groups), units.max() + 1)
    scores = np.round(rng.normal(size=(units.size,) * 2), 1).astype(np.float32)
    scores = scores + scores.T + 2 * (units[:, None] == units)
    return units, of_person[units], scores


def _all_pairs(units, scores):
    first, second = np.triu_indices(units.size, 1)
    same = units[first] == units[second]
    return first, second, same, scores[first, second]


def _sides(units, first, second, same):
    genuine = np.stack([units[first[same]], units[second[same]]], axis=1)
    impostor = np.stack([units[first[~same]], units[second[~same]]], axis=1)
    count = units.max() + 1
    total = pair_list_total(impostor, count=count)
    return Sides(genuine, lambda at: impostor[at], count, total)


@pytest.mark.parametrize("cells_of", [named_cells, level_cells])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("left_out", [False, True])
def test_all_pairs_are_those_written_out(cells_of, seed, left_out):
    units, codes, scores = _faces(seed, groups=("F", "M", "X"))
    scores[3] = scores[:, 3] = np.nan
    cells = cells_of(("F", "M", "X"))
    first, second, same, of = _all_pairs(units, scores)
    faces = FaceGroups(codes, cells)
    # Of the first two people every pair with each other is left out.
    out = (np.sort([units[first], units[second]], axis=0).T == [0, 1]).all(axis=1) & left_out
    places = np.flatnonzero(out[~same])
    pairs = groups_of_all_pairs(faces, units, np.count_nonzero(same), left_out=places)
    first, second, same, of = first[~out], second[~out], same[~out], of[~out]
    rates = group_rates(
        {"m": SplitScores(of[same], of[~same])}, pairs, _sides(units, first, second, same),
        fars=FARS, own_thresholds=True, resamples=40, seed=5,
    )["m"]  # fmt: skip
    expected = rates_by_group(
        of, same, np.stack([units[first], units[second]], axis=1),
        cells.of[codes[first], codes[second]], groups=len(cells.names), compared=cells.compared,
        fars=FARS, resamples=40, seed=5,
    )  # fmt: skip
    _agree(rates, expected, cells.names)


def _agree(rates, expected, names):
    for q, name in enumerate(names):
        group = rates["groups"][name]
        assert group["genuine"] == expected["genuine"][q]
        assert group["impostor"] == expected["impostor"][q]
        for f, far in enumerate(FARS):
            key = f"{far:g}"
            assert group["false_accepts"][key] == expected["wrong"][q, f]
            for entry, value in (("realised_far", "far"), ("tar@far", "tar")):
                assert group[entry][key] == pytest.approx(expected[value][q, f], nan_ok=True) or (
                    group[entry][key] is None and np.isnan(expected[value][q, f])
                )
            for entry, value in (
                ("realised_far_interval", "far_ends"),
                ("tar_interval@far", "tar_ends"),
            ):
                ends = expected[value][:, q, f]
                if np.isnan(ends).any():
                    assert group[entry][key] is None
                else:
                    assert group[entry][key] == pytest.approx(ends.tolist())
    for f, far in enumerate(FARS):
        key = f"{far:g}"
        held = rates["group_thresholds"][key]
        assert held["threshold"][REST] == expected["threshold"][-1, f]
        shown = [held["threshold"][name] for name in names]
        assert shown == expected["threshold"][:-1, f].tolist()
        assert held["tar"] == pytest.approx(expected["own_tar"][f])
        assert held["tar_interval"] == pytest.approx(expected["own_tar_ends"][:, f].tolist())
        assert held["tar_gain_interval"] == pytest.approx(expected["gain_ends"][:, f].tolist())
        if expected["ratio"][f] is None:
            assert key not in rates["far_ratio"]
            continue
        high, low, ratio, ends = expected["ratio"][f]
        entry = rates["far_ratio"][key]
        assert (entry["highest"], entry["lowest"]) == (names[high], names[low])
        if ratio is None:
            assert entry["ratio"] is None
        else:
            assert entry["ratio"] == pytest.approx(ratio)
            assert entry["interval"] == pytest.approx(ends)


def test_listed_pairs_are_those_written_out():
    units, codes, scores = _faces(2)
    rng = np.random.default_rng(0)
    pairs = rng.integers(units.size, size=(500, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    cells = named_cells(("F", "M"))
    of_pairs = FaceGroups(codes, cells).listed(pairs)
    sides = units[pairs]
    same = sides[:, 0] == sides[:, 1]
    of = scores[tuple(pairs.T)]
    numbered, count = identity_codes(sides, same)
    impostors = numbered[~same]
    total = pair_list_total(impostors, count=count)
    groups = groups_of_listed_pairs(of_pairs, same, units=numbered)
    rates = group_rates(
        {"m": SplitScores(of[same], of[~same])}, groups,
        Sides(numbered[same], lambda at: impostors[at], count, total),
        fars=FARS, own_thresholds=True, resamples=30, seed=1,
    )["m"]  # fmt: skip
    expected = rates_by_group(
        of, same, numbered, of_pairs.codes, groups=3, compared=2, fars=FARS, resamples=30, seed=1
    )
    _agree(rates, expected, cells.names)


def test_without_units_there_are_no_intervals():
    units, codes, scores = _faces(3)
    first, second, same, of = _all_pairs(units, scores)
    pairs = np.stack([first, second], axis=1)
    of_pairs = FaceGroups(codes, named_cells(("F", "M"))).listed(pairs)
    groups = groups_of_listed_pairs(of_pairs, same)
    split = {"m": SplitScores(of[same], of[~same])}
    rates = group_rates(split, groups, None, fars=FARS, own_thresholds=True)["m"]
    assert "realised_far_interval" not in rates["groups"]["F"]
    assert "tar_interval" not in rates["group_thresholds"]["0.2"]
    assert rates["groups"][ACROSS]["genuine"] == 0
    assert rates["groups"][ACROSS]["tar@far"]["0.2"] is None


def test_a_group_without_impostors_has_no_far_and_takes_the_overall_threshold():
    same = np.array([True, True, False, False, False, False])
    scores = np.array([3.0, 1.0, 2.0, 1.5, 0.0, -1.0], np.float32)
    listed = one_group_a_pair(np.array([0, 1, 1, 1, 1, 1]), ("alone", "rest"))
    groups = groups_of_listed_pairs(listed, same)
    split = {"m": SplitScores(scores[same], scores[~same])}
    rates = group_rates(split, groups, None, fars=[0.25], own_thresholds=True)["m"]
    assert rates["groups"]["alone"]["realised_far"]["0.25"] is None
    assert rates["far_ratio"] == {}
    held = rates["group_thresholds"]["0.25"]["threshold"]
    assert held["alone"] == held[REST] == 1.5


def test_few_false_accepts_are_said():
    figures = {
        "a": {"groups": {"F": {"impostor": 9, "false_accepts": {"0.1": 3}},
                         "M": {"impostor": 900, "false_accepts": {"0.1": 30}},
                         "none": {"impostor": 0, "false_accepts": {"0.1": 0}}}},
        "b": {"groups": {"F": {"impostor": 9, "false_accepts": {"0.1": 2}}}},
    }  # fmt: skip
    (note,) = few_errors(figures)
    assert "FAR 0.1" in note
    assert "F (2)" in note
    assert "M" not in note
    assert "none" not in note


@pytest.mark.parametrize("count", [2, 7, 20])
def test_levels_of_norms_hold_as_many_pairs_each(count):
    rng = np.random.default_rng(0)
    faces = rng.normal(size=(700, 3)) * rng.uniform(1, 9, (700, 1))
    groups = norm_groups(faces, count)
    norms = np.linalg.norm(faces, axis=1)
    order = np.argsort(norms)
    assert (np.diff(groups.codes[order]) >= 0).all()
    first, second = np.triu_indices(700, 1)
    shares = np.bincount(groups.of_pairs(first, second), minlength=count) / first.size
    assert np.abs(shares * count - 1).max() < 0.15
    lower = np.minimum(groups.codes[first], groups.codes[second])
    assert np.array_equal(groups.of_pairs(first, second), lower)


def test_bad_rows_have_no_level():
    faces = np.arange(1.0, 31).reshape(10, 3)
    faces[4], faces[7] = 0, np.nan
    codes = norm_groups(faces, 3).codes
    assert (codes[[4, 7]] == -1).all()
    assert (np.delete(codes, [4, 7]) >= 0).all()


@pytest.mark.parametrize(
    ("faces", "count", "said"),
    [
        (np.eye(5), 2, "norms that are all alike"),
        (np.zeros((5, 2)), 2, "none is finite"),
        (np.diag([1.0, 2, 3]), 1, "1 groups of norms"),
        (np.diag([1.0, 2, 3]), 4, "from 2 to 3"),
    ],
)
def test_norms_that_make_no_levels_are_refused(faces, count, said):
    with pytest.raises(UserError, match=said):
        norm_groups(faces, count)


def test_a_group_may_not_bear_a_rows_own_name():
    with pytest.raises(UserError, match="rename it"):
        named_cells(("a", ACROSS))
    with pytest.raises(UserError, match="a group is named 'no group'"):
        one_group_a_pair(np.array([0, 1]), ("a", REST))


def test_a_list_may_have_more_groups_than_fit_in_16_bits():
    codes = np.arange(40_000)
    listed = one_group_a_pair(codes, [str(code) for code in codes])
    same = codes % 2 == 0
    of_pairs = groups_of_listed_pairs(listed, same)
    assert np.array_equal(of_pairs.genuine, codes[same])
    assert np.array_equal(of_pairs.impostor, codes[~same])
