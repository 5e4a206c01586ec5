import json

import pytest
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from ida_jax.common.errors import UserError
from ida_jax.data.sources.shards import (
    Example,
    Shard,
    remove_reports,
    serialize,
    shard_name,
    write_shards,
)

PREFIX = "faces-train.array_record"


def _example(row):
    if row % 5 == 3:
        return Example({}, problem=f"row {row} is bad")
    return Example({"image": b"x" * row, "label": row}, converted=row % 2)


def _read(path):
    reader = array_record_module.ArrayRecordReader(str(path))
    records = [reader.read(i, i + 1)[0] for i in range(reader.num_records())]
    return [tf_example_pb2.Example.FromString(record).features.feature for record in records]


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 130])
@pytest.mark.parametrize("rows_per_shard", [1, 4, 129])
def test_shards_hold_the_rows_in_order(tmp_path, rows, rows_per_shard):
    shards = write_shards(tmp_path, PREFIX, _example, rows=rows, rows_per_shard=rows_per_shard)
    count = -(-rows // rows_per_shard)
    assert len(shards) == count
    files = [tmp_path / shard_name(PREFIX, number, count) for number in range(count)]
    found = []
    for file, shard in zip(files, shards, strict=True):
        features = _read(file)
        assert shard.records == len(features) <= rows_per_shard
        found += [feature["label"].int64_list.value[0] for feature in features]
        assert all(
            feature["image"].bytes_list.value[0] == b"x" * feature["label"].int64_list.value[0]
            for feature in features
        )
    good = [row for row in range(rows) if row % 5 != 3]
    assert found == good
    assert [entry for shard in shards for entry in shard.corrupt] == [
        (row, f"row {row} is bad") for row in range(rows) if row % 5 == 3
    ]
    assert sum(shard.converted for shard in shards) == sum(row % 2 for row in good)
    assert sum(shard.bytes for shard in shards) == sum(
        len(serialize(_example(row).features)) for row in good
    )
    remove_reports(tmp_path)
    assert sorted(tmp_path.iterdir()) == files


def test_only_what_is_missing_is_written_again(tmp_path):
    whole = write_shards(tmp_path, PREFIX, _example, rows=20, rows_per_shard=4)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shard = [tmp_path / shard_name(PREFIX, number, 5) for number in range(5)]
    shard[1].unlink()
    (tmp_path / f"{shard[2].name}.json").unlink()
    (tmp_path / f"{shard[3].name}.json").write_text('{"records": 4')
    (tmp_path / f"{shard[4].name}.json").write_text('{"records": 4, "corrupt": []}')
    asked = []
    again = write_shards(
        tmp_path, PREFIX, lambda row: asked.append(row) or _example(row), rows=20, rows_per_shard=4
    )
    assert sorted(asked) == list(range(4, 20))
    assert again == whole
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content
    assert isinstance(again[0], Shard)
    assert again[0].corrupt == [(3, "row 3 is bad")]


def test_it_ends_where_enough_is_corrupt(tmp_path):
    shards = write_shards(
        tmp_path, PREFIX, _example, rows=100, rows_per_shard=10, stop_at_corrupt=3
    )
    assert [len(shard.corrupt) for shard in shards] == [2, 2]


@pytest.mark.parametrize("fails_at", ["write", "close"])
def test_a_full_disk_is_one_line_and_leaves_no_shard(tmp_path, monkeypatch, fails_at):
    class Full(array_record_module.ArrayRecordWriter):
        def write(self, record):
            if fails_at == "write":
                raise RuntimeError("write() failed: No space left on device")
            super().write(record)

        def close(self):
            super().close()
            if fails_at == "close":
                raise RuntimeError("close() failed: No space left on device")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(UserError, match=r"cannot write .*00000-of-00001 \(.*No space left"):
        write_shards(tmp_path, PREFIX, _example, rows=3)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_source_leaves_no_shard(tmp_path):
    def example(row):
        raise UserError(f"no row {row}")

    with pytest.raises(UserError, match="no row 0"):
        write_shards(tmp_path, PREFIX, example, rows=1)
    with pytest.raises(UserError, match="name a writable folder"):
        write_shards(tmp_path / "absent", PREFIX, _example, rows=1)
    assert not list(tmp_path.iterdir())


def test_reports_are_json_that_other_programs_read(tmp_path):
    write_shards(tmp_path, PREFIX, _example, rows=4)
    report = json.loads((tmp_path / f"{PREFIX}-00000-of-00001.json").read_text())
    assert report["records"] == 3
    assert report["corrupt"] == [[3, "row 3 is bad"]]
