"""A method is one entry: with its rule it is found in every place that scores or shows methods."""

import numpy as np
import pytest
import reference

from ida_jax.common.errors import UserError
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.report.run_report import write_protocol_report
from ida_jax.report.tables import results_table
from ida_jax.rescore import main
from ida_jax.rescoring import method_table, terms
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.runs.config import run_section

FACES = reference.unit((24, 8), 1, clusters=6)
ANCHORS = reference.unit((40, 8), 0, clusters=6)
LABELS = np.repeat(np.arange(12), 2)
PAIRS = np.random.default_rng(2).integers(24, size=(50, 2))


@pytest.fixture
def toy(monkeypatch):
    """c − ½ (a₁ + a₂), with a the cosine to a face's nearest anchor."""
    rule = terms.Rule(1, 1, lambda c, f, g, w: c - w[0] * (f[..., 0] + g[..., 0]))
    method = method_table.Method(
        "Toy norm",
        "The cosine less how near the nearest anchors are.",
        rule="toy",
        needs=("anchors",),
        neighbours=lambda scorer: ("one", 1),
        values=lambda scorer, faces, nearest: nearest,
        constants=lambda scorer: (0.5,),
    )
    monkeypatch.setitem(terms.RULES, "toy", rule)
    monkeypatch.setitem(method_table.METHODS, "toy", method)
    nearest = (FACES.astype(np.float64) @ ANCHORS.T).max(axis=1)
    return FACES.astype(np.float64) @ FACES.T - 0.5 * (nearest[:, None] + nearest[None, :])


def test_pairs_and_galleries(toy):
    scorer = Rescorer(ANCHORS, method="toy")
    got = scorer.score_pairs(FACES, PAIRS)
    np.testing.assert_allclose(got, toy[PAIRS[:, 0], PAIRS[:, 1]], atol=1e-6)
    best = scorer.identify(FACES[:4], FACES[4:], top=3)
    np.testing.assert_array_equal(best.rows, np.argsort(-toy[:4, 4:], axis=1)[:, :3])
    with pytest.raises(UserError, match="toy needs anchors"):
        Rescorer(None, method="toy")


def test_the_command(toy, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "toy" in capsys.readouterr().out
    for name, array in (("e", FACES), ("p", PAIRS), ("a", ANCHORS)):
        np.save(tmp_path / f"{name}.npy", array)
    output = tmp_path / "s.npy"
    main(
        [
            f"--embeddings={tmp_path}/e.npy", f"--pairs={tmp_path}/p.npy",
            f"--anchors={tmp_path}/a.npy", f"--output={output}", "--method=toy",
        ]
    )  # fmt: skip
    np.testing.assert_allclose(np.load(output), toy[PAIRS[:, 0], PAIRS[:, 1]], atol=1e-6)


def test_all_pairs_and_the_report(toy, tmp_path):
    scorers = make_scorers(("cosine", "toy"), Rescorer(ANCHORS).anchors)
    methods = {name: scorer.terms(FACES) for name, scorer in scorers.items()}
    evaluated = evaluate_all_pairs(FACES, LABELS, methods, fars=(0.1,), resamples=10).evaluated
    upper = np.triu_indices(24, 1)
    same = LABELS[upper[0]] == LABELS[upper[1]]
    scores = toy[upper]
    threshold = np.sort(scores[~same])[::-1][int(0.1 * np.count_nonzero(~same))]
    tar = evaluated.figures["toy"]["tar@far"]["0.1"]
    assert tar == pytest.approx(np.mean(scores[same] > threshold))
    results = {"protocols": {"all_pairs": evaluated.figures}}
    assert "Toy norm" in results_table(results)
    path = tmp_path / "report.html"
    write_protocol_report(
        path, title="A toy", settings={}, results=results, evaluated={"all_pairs": evaluated}
    )
    page = path.read_text(encoding="utf-8")
    assert "<dt>Toy norm</dt><dd>The cosine less how near the nearest anchors are.</dd>" in page


def test_the_methods_of_given_artefacts(toy):
    assert "toy" in method_table.methods_with({"anchors"}, usual=True)
    assert method_table.methods_with((), usual=True) == ("cosine",)
    assert "z_norm" in method_table.methods_with({"anchors"})
    assert "z_norm" not in method_table.methods_with({"anchors"}, usual=True)
    assert "ida_l" not in method_table.methods_with({"anchors", "csn", "dao_fit"})
    assert run_section("A run").evaluate.methods[-1] == "toy"
    flags = {}
    method_table.add_artefact_flags(lambda flag, **options: flags.update({flag: options["help"]}))
    assert flags["--anchors"].endswith("; not for cosine, ida_l")
    assert flags["--ssr"] == "the SSR module; for ida_l"
