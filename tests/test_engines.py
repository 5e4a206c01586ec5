"""The code of docs/engines.md, run with the engines that are installed."""

import itertools
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import reference
from pyarrow import parquet

import ida_jax

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
CALLABLES, RAY, SPARK = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
)
N, P, D = 400, 300, 16


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Faces and pairs as folders of parts, and where the page's code runs."""
    monkeypatch.chdir(tmp_path)
    anchors = reference.unit((200, D), 0, clusters=20)
    ida_jax.AnchorSet.from_embeddings(anchors).save("anchors.safetensors")
    faces, names = 2 * reference.unit((N, D), 1, clusters=20), [f"face {n}" for n in range(N)]
    pairs = np.random.default_rng(2).integers(N, size=(P, 2))
    listed = pa.array(list(faces), pa.list_(pa.float32()))
    _write("faces", pa.table({"name": names, "embedding": listed}), (0, 10, 11, N))
    named = np.array(names)[pairs]
    columns = {"id": np.arange(P) * 7, "first": named[:, 0], "second": named[:, 1]}
    _write("pairs", pa.table(columns), (0, 100, P))
    expected = ida_jax.Rescorer("anchors.safetensors").score_pairs(faces, pairs)
    return dict(zip((np.arange(P) * 7).tolist(), expected.tolist(), strict=True))


def _write(folder, table, cuts):
    Path(folder).mkdir()
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        parquet.write_table(table[start:stop], f"{folder}/part-{number:05d}.parquet")
    Path(folder, "_SUCCESS").touch()


def _scores():
    table = parquet.read_table("scores")
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


def _require_same(expected):
    """Bit for bit: on a CPU gathered pairs have the same bits in any batch."""
    found = _scores()
    assert found.keys() == expected.keys()
    off = {key: (found[key], expected[key]) for key in found if found[key] != expected[key]}
    assert not off


def test_the_callables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    anchors = reference.unit((200, D), 0, clusters=20)
    ida_jax.AnchorSet.from_embeddings(anchors).save("anchors.safetensors")
    faces, people = reference.unit((4, D), 1, clusters=2), ["anna", "bert", "carl", "dora"]
    shown = {"embeddings": faces, "names": people}
    exec(CALLABLES, shown)
    nearest = reference.top_k(faces, anchors, 10)
    expected = [
        np.log(reference.dao(faces[i], faces[j], *_support(faces, anchors, i, j), 1))
        for i, j in ((0, 1), (2, 3))
    ]
    np.testing.assert_allclose(shown["batch"]["score"], expected, atol=1e-5)
    np.testing.assert_allclose(shown["faces"]["nearest"], [row[0] for row in nearest], atol=1e-6)


def _support(faces, anchors, i, j):
    order = np.argsort(-faces @ anchors.T, axis=1)[:, :10]
    return anchors[order[i]], anchors[order[j]]


def test_ray_data(folder):
    ray = pytest.importorskip("ray", reason="Ray is in the extra [ray], not in [test]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        try:
            exec(RAY, {})
        finally:
            ray.shutdown()
    _require_same(folder)


def test_spark(folder):
    pytest.importorskip("pyspark", reason="pyspark is no extra of ida_jax: install it to run this")
    if shutil.which("java") is None:
        pytest.skip("no Java here, which Spark needs")
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.sql import SparkSession

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        spark = spark.getOrCreate()
        try:
            exec(SPARK, {})
        finally:
            spark.stop()
    _require_same(folder)
