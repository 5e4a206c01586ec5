import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.tables.labelled_scores import read_scores
from ida_jax.tables.score_origin import (
    MOST_SHARED,
    ScoreOrigin,
    Shared,
    differences,
    origin_file,
    read_origin,
)
from ida_jax.tables.score_output import write_scores

ORIGIN = ScoreOrigin(
    "ida_r_fitted",
    settings={"k": 10, "tau": 1.5},
    model="0123456789abcdef",
    anchors="0.5 -0.1",
    anchor_count=60,
    artefacts={"dao_fit": "00ff00ff00ff00ff"},
    shared=Shared(90, left_out=3, known=2, likely=1, threshold=0.625),
)
SCORES = np.float32([0.5, np.nan, -1.25])


@pytest.mark.parametrize("name", ["s.npy", "s.csv", "s.PARQUET"])
def test_the_origin_travels_with_the_scores(tmp_path, name):
    path = tmp_path / name
    for origin in (ORIGIN, ScoreOrigin("cosine"), None, ORIGIN):
        write_scores(path, [SCORES], 3, origin)
        assert read_origin(path) == origin
        np.testing.assert_array_equal(read_scores(path), SCORES)
    beside = [] if name.endswith("PARQUET") else [f"{name}.origin.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [name, *beside]


@pytest.mark.parametrize("name", ["s.npy", "s.csv"])
def test_scores_that_were_changed_have_no_origin(tmp_path, name):
    path = tmp_path / name
    write_scores(path, [SCORES], 3, ORIGIN)
    beside = origin_file(path).read_bytes()
    write_scores(path, [SCORES + 1], 3)
    assert not origin_file(path).exists()
    origin_file(path).write_bytes(beside)
    assert read_origin(path) is None
    # Two forms of the same scores beside each other do not disturb one another.
    write_scores(path, [SCORES], 3, ORIGIN)
    write_scores(path.with_suffix({".npy": ".csv", ".csv": ".npy"}[path.suffix]), [SCORES], 3)
    assert read_origin(path) == ORIGIN


def test_foreign_scores_have_no_origin(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    np.save(tmp_path / "s.npy", SCORES)
    table = pa.table({"score": SCORES})
    parquet.write_table(table, tmp_path / "s.parquet")
    foreign = table.replace_schema_metadata({"score_origin": "nobody's"})
    parquet.write_table(foreign, tmp_path / "t.parquet")
    for name in ("s.npy", "s.parquet", "t.parquet", "absent.npy", "absent.parquet"):
        assert read_origin(tmp_path / name) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from([*ORIGIN.to_json(), "method", "more"]), _JSON)
def test_a_damaged_record_is_none_or_an_origin(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("origin") / "s.npy"
    write_scores(path, [SCORES], 3, ORIGIN)
    record = json.loads(origin_file(path).read_bytes())
    origin_file(path).write_text(json.dumps(record | {key: value}))
    found = read_origin(path)
    if found is not None:
        assert isinstance(found.described(), str)
        assert isinstance(differences(found, ORIGIN), list)
        assert ScoreOrigin.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "ida_r"}, "method ida_r_fitted, not ida_r"),
        ({"scale": "dao"}, "scale log, not dao"),
        ({"settings": {"k": 20, "tau": 1.5}}, "k = 10, not 20"),
        ({"settings": {"k": 10, "tau": 1.0}}, "tau = 1.5, not 1"),
        ({"settings": {"k": 10}}, "tau = 1.5, not none"),
        ({"settings": {"k": 10, "tau": 1.5, "ddof": 0}}, "ddof = none, not 0"),
        ({"anchor_count": 61, "anchors": "0"}, "60 anchors, not 61"),
        ({"anchors": "0.5 0.1"}, "another set of 60 anchors"),
        ({"anchors": "0.5 -0.100002"}, "another set of 60 anchors"),
        ({"model": "f" * 16}, "model 0123456789abcdef, not ffffffffffffffff"),
        ({"artefacts": {"dao_fit": "1"}}, "dao_fit 00ff00ff00ff00ff, not 1"),
        ({"artefacts": {}}, "dao_fit 00ff00ff00ff00ff, not none"),
    ],
)
def test_every_difference_is_named(change, said):
    assert differences(ORIGIN, replace(ORIGIN, **change)) == [said]


def test_no_difference():
    assert differences(ORIGIN, replace(ORIGIN, shared=None)) == []
    assert differences(ORIGIN, replace(ORIGIN, anchors="0.4999999 -0.1000001")) == []
    for unknown in (replace(ORIGIN, model=""), ORIGIN):
        assert differences(unknown, ORIGIN) == differences(ORIGIN, unknown) == []


def test_share():
    def share(**counts):
        of = {"faces": 200, "left_out": 50, "known": 0, "likely": 0, "threshold": 0.5} | counts
        return Shared(**of).share

    assert share() == 0
    assert share(likely=2) == 0
    assert share(likely=3) == 0.015 > MOST_SHARED
    assert share(known=1, likely=2) == 0.005
    assert share(known=4, likely=3) == 0.02
    assert share(faces=0) == 0
