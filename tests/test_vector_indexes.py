"""The recipes of docs/vector_indexes.md, run against the stores that are installed."""

import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import postgres_server
import pytest
import reference

import ida_jax

PAGE = Path(__file__).parents[1] / "docs" / "vector_indexes.md"
SETUP, *RECIPES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
G, M, D, TAU = 600, 7, 16, 8.0


def _store(recipe):
    return re.match(r"(?:import|from) (\w+)", recipe).group(1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the recipes find, and the scores in float64, [M, G]."""
    anchors = reference.unit((200, D), 0, clusters=20)
    enrolled, probes = (reference.unit((n, D), s, clusters=20) for n, s in ((G, 1), (M, 2)))
    path = tmp_path_factory.mktemp("index") / "anchors.safetensors"
    ida_jax.AnchorSet.from_embeddings(anchors, tau=TAU).save(path)
    names = {"enrolled": enrolled, "probes": probes, "ida_jax": ida_jax}
    exec(SETUP.replace('"anchors.safetensors"', repr(str(path))), names)
    log_f = [
        [np.log(reference.density(row, TAU)) for row in reference.top_k(faces, anchors, 10)]
        for faces in (probes, enrolled)
    ]
    exact = TAU * (np.float64(probes) @ np.float64(enrolled).T)
    exact += np.logaddexp(np.array(log_f[0])[:, None], np.array(log_f[1])[None])
    names["threshold"] = np.quantile(exact, 0.97)
    return names, exact


@pytest.fixture
def dsn():
    binaries = postgres_server.installation()
    if binaries is None:
        pytest.skip("no PostgreSQL with pgvector here")
    # pytest's own folders are closed to the server's user.
    with (
        tempfile.TemporaryDirectory() as folder,
        postgres_server.serving(binaries, Path(folder)) as d,
    ):
        yield d


# It takes exact=True, which a server needs, and says that it is exact without.
@pytest.mark.filterwarnings("ignore:Local mode performs exact")
@pytest.mark.parametrize("number", range(len(RECIPES)), ids=map(_store, RECIPES))
def test_a_recipe(number, prepared, request):
    recipe, (names, exact) = RECIPES[number], prepared
    assert len(recipe.splitlines()) <= 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stores' own
        pytest.importorskip(_store(recipe), exc_type=ImportError)
    names = dict(names)
    if _store(recipe) == "psycopg":
        names["dsn"] = request.getfixturevalue("dsn")
    exec(recipe, names)
    best = names["best"]
    order = np.argsort(-exact, axis=1)[:, :10]
    if best.claim == "exact":
        np.testing.assert_array_equal(best.rows, order)
        np.testing.assert_allclose(best.scores, np.take_along_axis(exact, order, axis=1), atol=1e-5)
    else:
        assert best.claim == "exact given the index's recall"
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(best.rows, order, strict=True)])
        assert recall > 0.5
        own = np.take_along_axis(exact, best.rows, axis=1)
        np.testing.assert_allclose(best.scores, own, atol=1e-5)
    if "db" in names:
        names["db"].close()
    if "above" in names:
        probes, rows = np.nonzero(exact >= names["threshold"])
        found = set(zip(names["above"].probes, names["above"].rows, strict=True))
        assert found == set(zip(probes, rows, strict=True))
