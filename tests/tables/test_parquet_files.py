"""Folders of Parquet parts: their order, partitions and faults, for every kind of table."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ida_jax.anchors.sources import read_anchors
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_rows
from ida_jax.tables.embeddings import read_embeddings
from ida_jax.tables.identities import read_people
from ida_jax.tables.labelled_scores import read_labels, read_scores
from ida_jax.tables.pair_keys import KeyColumn
from ida_jax.tables.pair_lists import PairFile, convert_pairs
from ida_jax.tables.parquet_files import parquet_batches, parquet_layout, row_place
from ida_jax.tables.score_output import check_output, write_scores

E = np.arange(60, dtype=np.float32).reshape(20, 3) + 1
NAMES = [f"face {row}" for row in range(20)]
FACES = pa.table({"name": NAMES, "embedding": pa.array(list(E), pa.list_(pa.float32()))})


def _write(folder, table, cuts, name="part-{:05d}.parquet"):
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table[start:stop], path)
    return folder


def test_a_folder_is_its_parts_in_the_order_of_their_names(tmp_path):
    folder = _write(tmp_path / "faces", FACES, (0, 7, 7, 20))
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.parquet.crc").touch()
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "part-00009.parquet").write_text("unfinished")
    read = read_embeddings(folder)
    np.testing.assert_array_equal(read.embeddings, E)
    assert read.names == NAMES
    np.testing.assert_allclose(read_anchors(folder).embeddings, unit_rows(E).embeddings)
    # 10 is before 9.
    shuffled = _write(tmp_path / "other", FACES[0:2], (0, 1), "part-9.parquet")
    _write(shuffled, FACES[5:6], (0, 1), "part-10.parquet")
    assert read_embeddings(shuffled).names == ["face 5", "face 0"]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 20), max_size=5), st.integers(1, 9))
def test_however_it_is_cut(tmp_path_factory, cuts, rows):
    folder = _write(tmp_path_factory.mktemp("faces"), FACES, (0, *sorted(cuts), 20))
    batches = list(parquet_batches(folder, ["name"], rows=rows))
    assert [name for batch in batches for name in batch.column(0).to_pylist()] == NAMES
    layout = parquet_layout(folder, what="faces")
    where = [layout.place(row) for row in range(20)]
    assert len(set(where)) == 20
    assert where[0].endswith("row 0")


def test_partitions_are_columns(tmp_path):
    folder = _write(tmp_path / "k=9" / "day", FACES[:4], (0, 4), "day=2/part-{}.parquet")
    _write(folder, FACES[4:6], (0, 2), "day=10/part-{}.parquet")
    assert read_embeddings(folder).names == NAMES[4:6] + NAMES[:4]
    (batch, second) = parquet_batches(folder, ["day", "name"], rows=9)
    assert batch.column(0).to_pylist() == [10, 10]
    assert second.column(0).to_pylist() == [2] * 4
    parquet.write_table(FACES[:1], folder / "part-0.parquet")
    with pytest.raises(UserError, match=r"part-0.parquet lies in no folder day=…"):
        read_embeddings(folder)


def test_a_model_in_every_part_or_in_none(tmp_path):
    marked = FACES.replace_schema_metadata({"fingerprint": "a"})
    folder = _write(tmp_path / "faces", marked, (0, 5, 20))
    assert read_embeddings(folder).fingerprint == "a"
    parquet.write_table(FACES[:1], folder / "part-00002.parquet")
    with pytest.raises(UserError, match="expected one in all parts"):
        read_embeddings(folder)


def test_faults_name_the_file_and_the_row(tmp_path):
    folder = _write(tmp_path / "faces", FACES, (0, 7, 20))
    part = folder / "part-00001.parquet"
    embeddings = [*map(list, E[7:9]), None]
    names = ["x", "face 3", "z"]
    kind = pa.list_(pa.float32())
    parquet.write_table(pa.table({"name": names, "embedding": pa.array(embeddings, kind)}), part)
    with pytest.raises(UserError, match=r"part-00001.parquet, row 1: its name repeats 'face 3' of "
                       r".*part-00000.parquet, row 3"):  # fmt: skip
        read_embeddings(folder)
    names[1] = "y"
    parquet.write_table(pa.table({"name": names, "embedding": pa.array(embeddings, kind)}), part)
    read = read_embeddings(folder).embeddings
    with pytest.raises(UserError, match=r"row 9 is zero, .*\(.*part-00001.parquet, row 2\)"):
        unit_rows(read, place=row_place(folder))
    with pytest.raises(UserError, match=r"\(.*part-00001.parquet, row 2\)"):
        read_anchors(folder)
    parquet.write_table(FACES.drop(["name"])[:1], part)
    with pytest.raises(UserError, match=r"part-00001.parquet: column 'name' is absent, and string"):
        read_embeddings(folder)
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes.txt: name a folder that holds them alone"):
        read_embeddings(folder)


def test_labels_of_faces_and_of_pairs(tmp_path):
    people = pa.array(["anna", "bert", "anna"])
    folder = _write(tmp_path / "people", pa.table({"label": people}), (0, 2, 3))
    np.testing.assert_array_equal(read_people(folder), people.to_pylist())
    numbers = pa.table({"label": [3, None, 1], "more": [0.5] * 3})
    folder = _write(tmp_path / "numbers", numbers, (0, 1, 3))
    with pytest.raises(UserError, match=r"part-00001.parquet, row 0: its label is empty"):
        read_people(folder)
    folder = _write(tmp_path / "pairs", pa.table({"label": [1, 0, 1]}), (0, 2, 3))
    np.testing.assert_array_equal(read_labels(folder), [True, False, True])


def _converted(source, output, **options):
    convert_pairs(source, output, rows=20, **options)
    listed = PairFile(output)
    return listed.read(0, listed.count)


@pytest.mark.parametrize("named", [False, True])
def test_pairs_and_their_key(tmp_path, named):
    rng = np.random.default_rng(0)
    rows, keys = rng.integers(20, size=(9, 2)), [f"k{n}" for n in range(9)]
    sides = [[NAMES[row] for row in side] if named else side for side in rows.T]
    table = pa.table({"a": sides[0], "id": keys, "b": sides[1]})
    folder = _write(tmp_path / "pairs", table, (0, 4, 9), "day=3/part-{}.parquet")
    csv = tmp_path / "pairs.csv"
    lines = zip(*table.to_pydict().values(), strict=True)
    csv.write_text("".join(f"{a},{key},{b}\n" for a, key, b in [("a", "id", "b"), *lines]))
    names = NAMES if named else None
    for source in (folder, csv):
        pairs = _converted(source, tmp_path / "out.npy", names=names, key="id")
        np.testing.assert_array_equal(pairs, rows)
        column = KeyColumn(source, "id")
        taken = [column.take(count).to_pylist() for count in (2, 5, 2)]
        assert list(itertools.chain(*taken)) == keys
        with pytest.raises(UserError, match="became fewer"):
            column.take(1)
        with pytest.raises(UserError, match="--key=x"):
            KeyColumn(source, "x").take(1)
    with pytest.raises(UserError, match="expected two, one pair a row"):
        _converted(folder, tmp_path / "out.npy", names=names)
    assert KeyColumn(folder, "day").take(9).to_pylist() == [3] * 9


def test_a_missing_name_or_key_is_named(tmp_path):
    table = pa.table({"id": [1, 2, None], "a": ["face 1"] * 3, "b": ["face 2", None, "face 3"]})
    folder = _write(tmp_path / "pairs", table, (0, 1, 3))
    with pytest.raises(UserError, match=r"part-00001.parquet, row 0: one field is empty"):
        _converted(folder, tmp_path / "out.npy", names=NAMES, key="id")
    with pytest.raises(UserError, match=r"part-00001.parquet, row 1: its id is empty"):
        KeyColumn(folder, "id").take(3)
    (tmp_path / "p.csv").write_text("a,b,id\n1,2,x\n1,2,\n")
    with pytest.raises(UserError, match=r"p.csv, line 3: its id is empty"):
        KeyColumn(tmp_path / "p.csv", "id").take(2)


def test_scores_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("ida_jax.tables.score_output._BLOCK", 10)
    scores, folder = np.linspace(0, 1, 95, dtype=np.float32), tmp_path / "scores"
    for _ in range(2):  # an earlier one is replaced
        write_scores(folder, [scores[:50], scores[50:]], 95)
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["_SUCCESS", *(f"part-{n:05d}.parquet" for n in range(3))]
        np.testing.assert_array_equal(read_scores(folder), scores)
        assert [path.name for path in tmp_path.iterdir()] == ["scores"]
    with pytest.raises(ValueError, match="expected one each"):
        write_scores(folder, [scores[:50]], 95)
    np.testing.assert_array_equal(read_scores(folder), scores)
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
    Path(folder, "mine.txt").touch()
    with pytest.raises(UserError, match=r"holds mine.txt, which is not a part of scores"):
        check_output(folder)


def test_a_key_beside_the_scores(tmp_path):
    table = pa.table({"id": [5, 3, 4], "a": [0, 1, 2], "b": [1, 2, 3]})
    folder = _write(tmp_path / "pairs", table, (0, 1, 3))
    scores = np.float32([0.5, np.nan, 2])
    for name in ("s.parquet", "s.csv", "s"):
        write_scores(tmp_path / name, [scores], 3, keys=KeyColumn(folder, "id"))
        np.testing.assert_array_equal(read_scores(tmp_path / name), scores)
    assert (tmp_path / "s.csv").read_text() == "id,score\n5,0.5\n3,nan\n4,2\n"
    assert parquet.read_table(tmp_path / "s")["id"].to_pylist() == [5, 3, 4]
