"""A protocol is one entry in one file: the command makes its flags and checks from the table."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from ida_jax import evaluate
from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.protocols import table

FACES = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


@dataclass(frozen=True)
class ToyOptions:
    above: float = table.option(0.5, "the cosine that a neighbour must exceed", metavar="COSINE")
    order: str = table.option("row", "of the faces", choices=("row", "reverse"))
    strict: bool = table.option(False, "no face without a neighbour")


def _read(request, options):
    assert isinstance(options, ToyOptions)
    rows = request.embeddings.embeddings
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _evaluate(request, options, faces, scorers):
    cosine = faces @ faces.T
    np.fill_diagonal(cosine, -1)
    share = float(np.mean(cosine.max(axis=1) > options.above))
    if options.strict and share < 1:
        raise UserError("--strict: a face has no neighbour")
    figures = {name: {"accuracy": share, "pairs": request.resamples} for name in scorers}
    return {f"toy_{options.order}": Evaluation(figures, {}, ("a toy",))}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    # The table is put back afterwards.
    monkeypatch.setattr(table, "PROTOCOLS", dict(table.all_protocols()))
    table.register(
        table.Protocol(
            "toy",
            files="a toy's files",
            rows="any faces",
            needs=("above",),
            flags=ToyOptions,
            read=_read,
            evaluate=_evaluate,
        )
    )
    np.save(tmp_path / "E.npy", FACES)
    return [
        "--protocol=toy", f"--embeddings={tmp_path / 'E.npy'}", f"--output={tmp_path / 'out'}"
    ]  # fmt: skip


def test_every_file_of_the_folder_is_in_the_table():
    assert set(table.all_protocols()) == {
        "pairs", "lfw", "calfw", "cplfw", "bin", "all_pairs", "ytf", "ijbb", "ijbc", "megaface"
    }  # fmt: skip


def test_help(toy, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--protocol=toy", "--help"])
    page = capsys.readouterr().out
    for text in ("a toy's files", "--above COSINE", "that a neighbour must exceed", "row,reverse"):
        assert text in page
    assert "--densities" not in page
    with pytest.raises(SystemExit):
        evaluate.main(["--protocol=ijbc", "--help"])
    page = capsys.readouterr().out
    assert "--densities" in page
    assert "--above" not in page


def test_end_to_end(toy, tmp_path, capsys):
    evaluate.main([*toy, "--above=0.7", "--resamples=7"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    faces = FACES / np.linalg.norm(FACES, axis=1, keepdims=True)
    nearest = np.sort(faces @ faces.T, axis=1)[:, -2]
    assert 0 < np.mean(nearest > 0.7) < 1
    figures = {"accuracy": np.mean(nearest > 0.7), "pairs": 7}
    assert results["protocols"] == {"toy_row": {"cosine": figures}}
    assert results["notes"] == {"toy_row": ["a toy"]}
    assert results["settings"]["above"] == 0.7
    assert results["settings"]["order"] == "row"
    assert "toy_row" in (tmp_path / "out" / "report.html").read_text()
    assert "toy_row: a toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--protocol=toy needs --above; see "),
        (["--above=high"], "argument --above: invalid float value: 'high'"),
        (["--above=0", "--order=none"], "argument --order: invalid choice: 'none'"),
        (["--above=0", "--norm=unit"], "--norm is for ijbb, ijbc, not for toy"),
        (["--above=2", "--strict"], "--strict: a face has no neighbour"),
        (["--protocol=all_pairs", "--above=0"], "--above is for toy, not for all_pairs"),
    ],
)
def test_mistakes_get_one_line(toy, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        evaluate.main([*toy, *flags])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_option_has_its_default(toy, tmp_path):
    evaluate.main([*toy, "--above=-1", "--strict", "--order=reverse"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["protocols"]["toy_reverse"]["cosine"]["accuracy"] == 1
    assert results["settings"]["strict"] is True
